"""What may be concluded from a race: paired comparisons of searchers, and the words for them.

Searchers meet the same conditions within a seed, so they are compared in pairs, seed by seed, by
what a user would get (`reward`): the noise-free value of each run's incumbent on a landscape, its
test accuracy in real training; never by the luckiest validation score.

Each pair of searchers is tested with a permutation test of the mean difference (Fisher, 1935:
under the null hypothesis every difference may as well have the other sign), and the p-values of
all pairs are corrected by Holm (1979), so that the chance of any false verdict is at most ALPHA.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
"""The highest chance, over all pairs of a race, of a difference being claimed that is none."""

POWER = 0.8
"""A difference `can be told` where it would be found with this chance."""

_STEP = 1e-9
_COARSE_SEEDS = 12
_SIMULATED = 2_000
_RESAMPLES = 9_999  # all sign changes where there are no more than that, else so many at random


@dataclass(frozen=True)
class Comparison:
    """Two searchers over the seeds that both have a reward for.

    Attributes:
        seeds, of_seeds: how many those are, and how many there were.
        ahead, behind: by mean reward; on a tie in the order of the race.
        difference: of the mean rewards, at least 0.
        standard_error: of that mean difference; None with one seed.
        p: Holm-corrected; None with one seed.
        detectable: the smallest true difference that would probably be resolved with these
            seeds (chance POWER), at least `difference` where that is not; None where none could.
    """

    ahead: str
    behind: str
    seeds: int
    of_seeds: int
    difference: float
    standard_error: float | None
    p: float | None
    detectable: float | None

    @property
    def is_resolved(self) -> bool:
        """Whether the difference is larger than chance would explain."""
        return self.p is not None and self.p <= ALPHA


@dataclass(frozen=True)
class Standing:
    """One searcher's means over its seeds; `gap` is validation less reward."""

    searcher: str
    seeds: int
    reward: float | None
    best_validation: float | None

    @property
    def gap(self) -> float | None:
        """By how much the best validation score flatters what the user gets."""
        if self.reward is None or self.best_validation is None:
            return None
        return self.best_validation - self.reward


def compare(rewards: Mapping[str, Sequence[float | None]]) -> list[Comparison]:
    """All pairs of searchers, the most clearly different first.

    `rewards` holds, for each searcher, one reward a seed, in the same order of seeds for all; None
    where nobody knows it.
    """
    pairs = list(itertools.combinations(rewards, 2))
    differences = [_differences(rewards[a], rewards[b]) for a, b in pairs]
    tested = [i for i, d in enumerate(differences) if len(d) > 1]
    corrected = holm([_p_value(differences[i]) for i in tested])
    p_values: dict[int, float] = dict(zip(tested, corrected, strict=True))
    found = []
    for i, ((a, b), d) in enumerate(zip(pairs, differences, strict=True)):
        if not len(d):
            continue
        mean = float(d.mean())
        ahead, behind = (a, b) if mean >= 0 else (b, a)
        error = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else None
        p, size = p_values.get(i), abs(mean)
        smallest = None if error is None else _detectable(error, len(d), len(pairs))
        if smallest is not None and p is not None and p > ALPHA:
            smallest = max(smallest, size)
        total = len(rewards[a])
        found.append(Comparison(ahead, behind, len(d), total, size, error, p, smallest))
    return sorted(found, key=lambda c: (2.0 if c.p is None else c.p, -c.difference))


def seeds_needed(pairs: int) -> int:
    """The fewest seeds with which a permutation test can resolve anything among so many pairs.

    With n seeds the smallest two-sided p-value is 2 / 2^n, and Holm multiplies it by the pairs.
    """
    seeds = 2
    while pairs * 2.0 ** (1 - seeds) > ALPHA:
        seeds += 1
    return seeds


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down corrected p-values, in the order given (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def _differences(a: Sequence[float | None], b: Sequence[float | None]) -> NDArray[np.float64]:
    both = [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return np.array([d for d in both if math.isfinite(d)])


def _p_value(differences: NDArray[np.float64]) -> float:
    """Of a two-sided paired permutation test that the mean difference is 0."""
    from scipy.stats import permutation_test

    # Accuracies are fractions of few images, and ties among sign changes are many. Sums of whole
    # numbers are exact, so that ties are ties; what is rounded off is a billionth.
    steps = np.rint(differences / _STEP)
    result = permutation_test(
        (steps,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",  # of one sample: changes of sign
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),  # the same race always gets the same verdict
    )
    return float(result.pvalue)


def _detectable(standard_error: float, seeds: int, pairs: int) -> float | None:
    """The difference that would be found with chance POWER at Holm's first step; None for none."""
    if seeds < seeds_needed(pairs):
        return None
    return standard_error * _standard_errors_needed(seeds, pairs)


@lru_cache
def _standard_errors_needed(seeds: int, pairs: int) -> float:
    """How many standard errors a true difference must have to be found with chance POWER."""
    if seeds > _COARSE_SEEDS:
        from scipy.stats import t

        return float(t.ppf(1 - ALPHA / pairs / 2, seeds - 1) + t.ppf(POWER, seeds - 1))
    # With few seeds a permutation test has few p-values, and is weaker than the t-test: simulate
    # it on normal differences, of which half of all sign changes are enough by symmetry.
    noise = np.random.default_rng(0).standard_normal((_SIMULATED, seeds))
    signs = 1.0 - 2.0 * np.array(list(itertools.product((0, 1), repeat=seeds - 1)))
    signs = np.column_stack([np.ones(len(signs)), signs])  # 2^(seeds - 1) x seeds

    def power(shift: float) -> float:
        x = noise + shift
        as_far = np.abs(x @ signs.T) >= np.abs(x.sum(1, keepdims=True)) - 1e-9
        return float((pairs * as_far.mean(1) <= ALPHA).mean())

    low, high = 0.0, 10.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high * math.sqrt(seeds)


# -- in words -------------------------------------------------------------------------------------


def verdict(
    rewards: Mapping[str, Sequence[float | None]],
    validations: Mapping[str, Sequence[float | None]],
    *,
    measure: str,
    minutes: float,
    caveat: str = "",
) -> dict[str, Any]:
    """The content of `verdict` in summary.json: text, pairs, and each searcher's means.

    `measure` says what the rewards are, such as `test accuracy`, and `caveat` what must be known
    of them; rewards are fractions, and are spoken of in points, which are hundredths.
    """
    comparisons = compare(rewards)
    standings = [_stand(name, rewards[name], validations[name]) for name in rewards]
    standings.sort(key=lambda s: -math.inf if s.reward is None else s.reward, reverse=True)
    sentences = [f"{describe(c, minutes)}." for c in comparisons]
    named = f"{measure}, {caveat}" if caveat else measure
    opening, is_enough = _opening(rewards, comparisons, named)
    return {
        "text": " ".join([opening, *sentences]) if is_enough else opening,
        # For where a sentence is all that is read: the clearest pair, or why there is none.
        "headline": sentences[0] if is_enough else opening,
        "measure": measure,
        "caveat": caveat,
        "alpha": ALPHA,
        "pairs": [
            {**asdict(c), "resolved": c.is_resolved, "text": s}
            for c, s in zip(comparisons, sentences, strict=True)
        ],
        "standings": [
            {**asdict(s), "gap": s.gap, "text": _standing(s, measure)} for s in standings
        ],
    }


def _stand(
    name: str, rewards: Sequence[float | None], validations: Sequence[float | None]
) -> Standing:
    """Means over the seeds that have a reward; where none has one, over all."""
    both = [v for v, r in zip(validations, rewards, strict=True) if r is not None]
    return Standing(name, len(rewards), _mean(rewards), _mean(both or validations))


def describe(comparison: Comparison, minutes: float) -> str:
    """One comparison as a clause, without a full stop."""
    c = comparison
    # Seeds without a reward for both are left out, and nobody should be left to guess so.
    seeds = f"{c.seeds} seeds" if c.seeds == c.of_seeds else f"{c.seeds} of {c.of_seeds} seeds"
    if c.p is None or c.standard_error is None:
        return (
            f"{c.ahead} came out {_points(c.difference)} points over {c.behind}, in one seed: "
            "nothing follows from that"
        )
    if c.is_resolved:
        return (
            f"{c.ahead} is ahead of {c.behind} by {_points(c.difference)} ± "
            f"{_points(c.standard_error)} points after {minutes:g} minutes (paired permutation "
            f"test over {seeds}, Holm-corrected p = {_p_text(c.p)})"
        )
    if c.detectable is None:
        limit = f"with {seeds} no difference, however large, can be told"
    elif c.detectable == 0:
        limit = f"no difference at all in {seeds}"
    else:
        under = _points(c.detectable)
        limit = f"with these {seeds} a difference under {under} points cannot be told"
    return f"{c.ahead} and {c.behind} are not resolved: {limit}"


def _opening(
    rewards: Mapping[str, Sequence[float | None]], comparisons: list[Comparison], measure: str
) -> tuple[str, bool]:
    """What comes before the pairs and True; or why they say nothing, and False."""
    pairs = len(rewards) * (len(rewards) - 1) // 2
    if not pairs:
        return "One searcher alone: there is nothing to compare it with.", False
    if not comparisons:
        return f"No two runs have a known {measure}: nothing can be concluded.", False
    enough = seeds_needed(pairs)
    seeds = max(c.seeds for c in comparisons)
    if seeds < enough:
        what = "one seed" if seeds == 1 else f"{seeds} seeds"
        return (
            f"Nothing can be concluded from {what}; it takes at least {enough} (--seeds {enough}) "
            f"to tell {len(rewards)} searchers apart.",
            False,
        )
    return f"Compared by {measure}:", True


def _standing(standing: Standing, measure: str) -> str:
    if standing.reward is None:
        return f"{standing.searcher} has no known {measure}"
    text = f"{standing.searcher}: {measure} {standing.reward:.4f} on average"
    if standing.gap is None or standing.best_validation is None:
        return text
    side = "under" if standing.gap >= 0 else "over"
    return (
        f"{text}, {_points(abs(standing.gap))} points {side} its best validation score, "
        f"{standing.best_validation:.4f}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else None


def _points(fraction: float) -> str:
    points = 100 * fraction
    return f"{points:.1f}" if points >= 0.095 or points == 0 else f"{points:.2g}"


def _p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"
