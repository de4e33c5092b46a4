"""Which knobs mattered: a share for each, and how the scores go with each knob's values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.space import Choice, Config, Domain, Int, SearchSpace
from tuner.trial import Trial, TrialState

_LEAST_TRIALS = 10
_MOST_BINS, _TRIALS_A_BIN, _LEAST_IN_A_BIN = 10, 6, 3
_TREES, _MOST_IN_FOREST = 32, 200
_CLEAR, _WORTH_NAMING = 0.05, 0.05

Floats = NDArray[np.float64]
Result = tuple[Config, float]


@dataclass(frozen=True)
class Importance:
    """How much of what tells good scores from bad ones goes with each knob alone.

    Attributes:
        trials: how many were compared, by their scores after epoch `epoch`.
        p: how often some knob would seem to matter so much where none does (Kruskal-Wallis over
            the cells of `effects`, the smallest of all knobs, times their number).
        shares: of each knob, in the space's order; they add up to 1, even where none matters.
    """

    method: str
    trials: int
    epoch: int
    p: float
    shares: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As in summary.json."""
        return {**vars(self), "shares": dict(self.shares)}


@dataclass(frozen=True)
class Cell:
    """The scores in one part of a knob's axis.

    Attributes:
        low: where it begins, as a value of the knob; whole numbers and the indices of options lie
            in the middle of theirs.
        quartiles: first, median and third; None where there are fewer than three scores.
    """

    low: float
    high: float
    count: int
    quartiles: tuple[float, float, float] | None


def has_optuna() -> bool:
    """Whether Optuna is installed, without loading it."""
    return find_spec("optuna") is not None


def interesting_floor(scores: Sequence[float]) -> float:
    """Below it scores are all the same to a reader: the cliff would flatten all the rest."""
    best, median = max(scores), float(np.median(scores))
    return max(min(scores), median - 1.5 * (best - median))


def measured(space: SearchSpace, trials: Iterable[Trial]) -> tuple[int, list[Result]]:
    """The epoch at which trials are compared, and the setting and score of each that reached it.

    It is the last one that enough trials reached, at least ten and two for each knob: scores of
    trainings of different lengths are no measure of a setting. (0, []) where there is none. What
    broke off or failed has no score and is left out; what several runs measured alike, as they do
    with a shared start, counts once.
    """
    curves = [
        (t.config, {o.epoch: o.score for o in t.curve if math.isfinite(o.score)})
        for t in trials
        if t.state not in (TrialState.INFEASIBLE, TrialState.FAILED)
    ]
    enough = max(_LEAST_TRIALS, 2 * len(space))
    reached = Counter(epoch for _, scores in curves for epoch in scores)
    for epoch in sorted((e for e, count in reached.items() if count >= enough), reverse=True):
        found = [(config, scores[epoch]) for config, scores in curves if epoch in scores]
        once = {(*map(repr, config.values()), score): (config, score) for config, score in found}
        if len(once) >= enough:
            return epoch, list(once.values())
    return 0, []


def importance(space: SearchSpace, trials: Iterable[Trial]) -> Importance | None:
    """The knobs' shares by fANOVA (Hutter, Hoos and Leyton-Brown, 2014), as Optuna has it.

    A forest is fitted to settings and scores, and asked how much of its variance over the whole
    space each knob makes by itself. PED-ANOVA, which asks how the best settings are distributed
    otherwise than all, is faster and needs no forest, but it takes settings for drawn at random:
    of a search that went where it is good it says that nothing matters there, and of knobs that
    were left alone meanwhile that they do.

    Most of the variance over a space is how deep its cliff is: scores below `interesting_floor`
    count as that. The forest is asked in unit coordinates, since Optuna's integrates over values,
    to which a logarithmic scale is all upper end; and it is shown 200 trials at most, drawn at
    random, which is one to two seconds' work.

    None where fewer trials than `measured` wants can be compared, where all are equal, and where
    Optuna is not installed.
    """
    epoch, results = measured(space, trials)
    if not results or not has_optuna():
        return None
    scores = np.array([score for _, score in results])
    scores = np.maximum(scores, interesting_floor(scores.tolist()))
    spread = float(np.ptp(scores))
    if not spread > 1e-12 * float(np.abs(scores).max()):  # equal, but for rounding
        return None
    scores = (scores - scores.min()) / spread  # shares have no scale, and a forest's splits do
    order = np.random.default_rng(0).permutation(len(results))[:_MOST_IN_FOREST]
    try:
        parts = _variances(space, [(results[i][0], float(scores[i])) for i in order])
    except RuntimeError:  # a forest that split nowhere: "zero total variance"
        return None
    total = sum(parts.values())
    if not total > 0:
        return None
    shares = {name: parts[name] / total for name in space}
    return Importance("fANOVA", len(results), epoch, _p_of_none(space, results), shares)


def _variances(space: SearchSpace, results: Sequence[Result]) -> dict[str, float]:
    """Each knob's own part of the variance, by Optuna."""
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
    )

    domains: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(range(len(domain.options)))
        if isinstance(domain, Choice)
        else FloatDistribution(0, 1)
        for name, domain in space.items()
    }
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of the new study
    study = optuna.create_study()
    optuna.logging.set_verbosity(before)
    for config, score in results:
        filled = space.filled(config)
        places = {
            name: domain.index(filled[name])
            if isinstance(domain, Choice)
            else domain.to_unit(filled[name])
            for name, domain in space.items()
        }
        study.add_trial(
            optuna.trial.create_trial(params=places, distributions=domains, value=score)
        )
    return optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0).evaluate(study)


def _p_of_none(space: SearchSpace, results: Sequence[Result]) -> float:
    from scipy.stats import kruskal

    found = [1.0]
    for name in space:
        cells, edges, scores = _cells(space, name, results)
        groups = [scores[cells == i] for i in range(len(edges) - 1)]
        groups = [group for group in groups if len(group) >= _LEAST_IN_A_BIN]
        if len(groups) > 1 and np.ptp(np.concatenate(groups)) > 0:
            found.append(len(space) * float(kruskal(*groups).pvalue))
    return min(found)


def effects(space: SearchSpace, trials: Iterable[Trial]) -> dict[str, list[Cell]]:
    """For each knob its axis in cells, with median and quartiles of the scores in each.

    Nothing is modelled: in a cell the other knobs are wherever the searchers put them.
    """
    _, results = measured(space, trials)
    found: dict[str, list[Cell]] = {}
    for name in space:
        cells, edges, scores = _cells(space, name, results)
        found[name] = [
            _cell(low, high, scores[cells == i])
            for i, (low, high) in enumerate(pairwise(edges.tolist()))
        ]
    return found


def _cell(low: float, high: float, inside: Floats) -> Cell:
    if len(inside) < _LEAST_IN_A_BIN:
        return Cell(low, high, len(inside), None)
    first, middle, third = np.quantile(inside, [0.25, 0.5, 0.75]).tolist()
    return Cell(low, high, len(inside), (first, middle, third))


def _cells(
    space: SearchSpace, name: str, results: Sequence[Result]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """The cell of a knob's axis of each result that has it, the k + 1 edges, and the scores."""
    domain = space[name]
    results = [(config, score) for config, score in results if space.is_there(name, config)]
    edges = _edges(domain, min(_MOST_BINS, max(2, len(results) // _TRIALS_A_BIN)))
    values: list[Any] = [config[name] for config, _ in results]
    if isinstance(domain, Choice):
        values = [domain.index(value) for value in values]
    cells = np.searchsorted(edges[1:-1], np.array(values, dtype=float), side="right")
    return cells, edges, np.array([score for _, score in results])


def _edges(domain: Domain, most: int) -> Floats:
    """Cells alike on the knob's own scale; each option has one, and each of few whole numbers."""
    if isinstance(domain, Choice):
        return np.arange(-0.5, len(domain.options), dtype=np.float64)
    low, high = float(domain.low), float(domain.high)
    if isinstance(domain, Int):
        low, high = low - 0.5, high + 0.5
        if high - low <= most:
            return np.arange(low, high + 0.5, dtype=np.float64)
    spaced = np.geomspace if domain.log else np.linspace
    return np.asarray(spaced(low, high, most + 1), dtype=np.float64)


def stands_out(found: Mapping[str, Any] | None) -> bool:
    """Whether `importance` of summary.json is more than chance makes of idle knobs."""
    return found is not None and found["p"] <= _CLEAR


def in_words(found: Mapping[str, Any] | None) -> str:
    """One line on what mattered, from `importance` in summary.json."""
    if found is None and not has_optuna():
        return "What mattered: importance needs tuner[optuna]."
    if found is None:
        return "What mattered: too few comparable trials to say."
    if not stands_out(found):
        return f"What mattered: no knob stands out from chance in {found['trials']} trials."
    ranked = sorted(found["shares"].items(), key=lambda pair: -pair[1])
    named = [f"{name} {100 * share:.0f} %" for name, share in ranked if share >= _WORTH_NAMING]
    rest = [name for name, share in ranked if share < _WORTH_NAMING]
    hardly = f"; hardly {', '.join(rest)}" if rest else ""
    return f"What mattered: {', '.join(named)}{hardly} (fANOVA, {found['trials']} trials)."
