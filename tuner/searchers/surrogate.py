"""The model of the model-based searchers: a Gaussian process over knobs and epochs.

What it is shown of a history, and what it makes of it; the process itself is in `kernels`, `fit`
and `posterior`. Notation: n data, d knobs, m points to predict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from tuner.history import HistoryView
from tuner.searchers.fit import FitError, Prior, fit
from tuner.searchers.kernels import Array, Kernel
from tuner.searchers.posterior import Gaps, Posterior, log_expected_improvement
from tuner.space import Choice, Config, SearchSpace, Units
from tuner.trial import Trial, TrialState

CLAMP = 0.15
"""How far under the median, in units of best - median, the surrogate is shown scores to be.

Real learning-rate landscapes end in a cliff, and a Gaussian process that is shown the cliff spends
itself on it. What lies well below the median is all equally uninteresting, and is shown as equal.
"""

START = 5
"""How many trials are drawn before there is a model, in spaces of any size.

A model of so few knows little, but its slopes point somewhere, where a draw points nowhere.
"""

_BLOWN = 1000.0
_CENTRES = 5  # of the local search
_MOST_FITTED = 200  # data; the likelihood of more costs their cube and hardly moves its maximum
_MOST_KNOWN, _ANEW = 2_000, 250  # data of the process; after how many it is chosen anew which


@dataclass(frozen=True)
class Data:
    """What is known of the scores: n observations, in the order in which they were made.

    Attributes:
        points: n x (d + 1).
        scores: n.
        trials: whose each of them is, n.
        left_out: trials of which nothing is shown, where there are very many: see `bounded`.
    """

    points: Array
    scores: Array
    trials: NDArray[np.int64]
    left_out: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.scores)

    def shown(self, m: int) -> Array:
        """What the process is shown of the first m scores, m: see `shown_scores`."""
        latest = dict(zip(self.trials[:m].tolist(), self.scores[:m].tolist(), strict=True))
        return shown_scores(self.scores[:m], not_blown(np.array(list(latest.values())))[:START])


class Surrogate:
    """Fits the process to a history; what was fitted last is kept, for speed alone.

    Args:
        space: of the configurations.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.choices = [i for i, dom in enumerate(space.values()) if isinstance(dom, Choice)]
        self._fitted: dict[str, tuple[tuple[bytes, bytes], Prior]] = {}

    def points(self, units: Array, epochs: Any, full: int) -> Array:
        """The model's points, `m x (d + 1)`, at `m x d` unit coordinates and m (or one) epochs."""
        units = np.asarray(units, dtype=np.float64).reshape(-1, len(self.space))
        x = units - 0.5
        for i in self.choices:
            x[:, i] = np.floor(units[:, i] * len(list(self.space.values())[i].options))  # type: ignore[union-attr]
        at = np.broadcast_to(np.log(epochs) / math.log(max(2, full)), (len(x),))
        return np.column_stack([x, at])

    def data(self, history: HistoryView, full: int, ladder: Sequence[int] = ()) -> Data:
        """The observations of a history.

        Without a ladder, the last of each trial that ended. With one, all curves, at the epochs
        of the ladder, and the last of each trial that is not running.
        """
        curves, looked_at = bool(ladder), frozenset(ladder)
        rows: list[tuple[int, int, int, float, Trial]] = []
        for trial in history:
            if trial.score is None or not (curves or trial.state.is_final):
                continue
            last = trial.curve[-1].epoch
            is_settled = trial.state is not TrialState.RUNNING
            seen = [
                o
                for o in trial.curve
                if (o.epoch == last and is_settled) or (curves and o.epoch in looked_at)
            ]
            rows += [(o.at_ns, trial.number, o.epoch, o.score, trial) for o in seen]
        rows.sort(key=lambda row: row[:3])
        numbers = [row[1] for row in rows]
        if len(rows) > _MOST_KNOWN:
            rows = [rows[i] for i in bounded(np.array(numbers), np.array([r[3] for r in rows]))]
        left_out = frozenset(numbers).difference(row[1] for row in rows)
        units = self.space.to_unit([row[4].config for row in rows])
        epochs = np.array([row[2] for row in rows], dtype=np.float64)
        scores = np.array([row[3] for row in rows], dtype=np.float64)
        trials = np.array([row[1] for row in rows], dtype=np.int64)
        return Data(self.points(units, epochs, full), scores, trials, left_out)

    def posterior(self, data: Data) -> Posterior:
        """The process given all data, its hyperparameters fitted to some of the first m of them.

        m is a function of n: a few more data hardly move hyperparameters, and fitting them is
        most of the work. Raises FitError where no fit succeeds, or there is nothing to fit to: what
        is in flight may not have come to an epoch that the model looks at.
        """
        if len(data) < 2:
            raise FitError(f"a fit needs two scores, got {len(data)}")
        m = fitted_size(len(data))
        # Of the first m alone, the clamp as well: so the same fit serves until m grows.
        prior = self._fit("score", data.points[:m], data.shown(m), thinned(data.trials[:m]))
        return Posterior.of(prior, data.points, data.shown(len(data)))

    def feasibility(self, history: HistoryView, full: int) -> Posterior | None:
        """A process on +1 for each trial with a score and -1 for each infeasible one.

        P(feasible) = Phi(mean / sd) by it; None where all trials were feasible. A separate model:
        infeasible is not a bad score, and how bad it would be nobody can say.
        """
        trials = [t for t in history if t.curve or t.state is TrialState.INFEASIBLE]
        labels = [-1.0 if t.state is TrialState.INFEASIBLE else 1.0 for t in trials]
        if len(trials) > _MOST_KNOWN:
            kept = bounded(np.array([t.number for t in trials]), -np.array(labels))
            trials, labels = [trials[i] for i in kept], [labels[i] for i in kept]
        if -1.0 not in labels or 1.0 not in labels:
            return None
        points = self.points(self.space.to_unit([t.config for t in trials]), full, full)
        y = np.array(labels)
        m = fitted_size(len(labels))
        if len(set(labels[:m])) < 2:
            m = len(labels)
        # The first and the last of those that are in order of their labels: some of each.
        some = np.argsort(y[:m], kind="stable")[thinned(np.arange(m))]
        return Posterior.of(self._fit("feasible", points[:m], y[:m], some), points, y)

    def _fit(self, what: str, x: Array, y: Array, some: NDArray[np.intp]) -> Prior:
        """The process fitted to some of n data; the last call's where it was of the same."""
        key = (x.tobytes(), y.tobytes())
        kept = self._fitted.get(what)
        if kept is None or kept[0] != key:
            kernel = Kernel(len(self.space), self.choices)
            kept = (key, fit(kernel, x[some], y[some]))
            self._fitted[what] = kept
        return kept[1]


@dataclass(frozen=True)
class Belief:
    """What the model makes of m configurations; all are scores, fractions.

    Attributes:
        mean, sd: of the noise-free score, m each.
        gap_sd: the standard deviation of its difference from the incumbent's, m, as the search
            takes it: see `spread` of Outlook.
        incumbent_mean: the incumbent's expected score. With these, the expected improvement over
            the incumbent by more than xi is that of a normal variable with mean
            mean - incumbent_mean - xi and standard deviation gap_sd.
    """

    mean: Array
    sd: Array
    gap_sd: Array
    incumbent_mean: float


class Outlook:
    """The model of a history, ready to be asked about the full length of a training.

    Attributes:
        posterior: of the scores, given the data.
        believed: the same, as if all trials in flight had yielded what is expected of them.
        incumbent: the point over which an improvement is sought, d + 1.
        centres: the most promising configurations so far, `c x d`.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        history: HistoryView,
        full: int,
        ladder: Sequence[int],
        *,
        in_hand: bool,
        spread: float = 1.0,
    ) -> None:
        """See the class; raises FitError.

        Args:
            surrogate: of the space.
            history: with at least two scores.
            full: the length of a whole training.
            ladder: as `Surrogate.data` takes it.
            in_hand: whether the incumbent is what a trial has reached, at its last epoch, and not
                what it would be expected to reach at the full length.
            spread: how much wider an improvement's standard deviation is taken to be. Fitted
                hyperparameters are taken for the truth, and with few data they are not. The
                process is too sure of itself, and a search that believes it stays where it is.
        """
        self._spread = spread
        self._surrogate, self._full, self.space = surrogate, full, surrogate.space
        data = surrogate.data(history, full, ladder)
        self.posterior = surrogate.posterior(data)
        self.believed = self.posterior.believing(_in_flight(surrogate, history, full))
        self._feasible = surrogate.feasibility(history, full)
        scored = [t for t in history if t.score is not None and t.number not in data.left_out]
        units = surrogate.space.to_unit([t.config for t in scored])
        promise = self.believed.mean(self.points(units))
        self.centres = units[np.argsort(-promise, kind="stable")[:_CENTRES]]
        rivals, value = self.points(units), promise
        if in_hand:
            rivals = surrogate.points(units, [t.epoch for t in scored], full)
            value = self.believed.mean(rivals)
        self.incumbent = rivals[int(np.argmax(value))]

    def points(self, units: Units) -> Array:
        """The model's points at the full length, `m x (d + 1)`."""
        return self._surrogate.points(units, self._full, self._full)

    def log_improvement(self, units: Units) -> Array:
        """Log of the expected improvement times the chance that it can be had, m."""
        points = self.points(units)
        return log_expected_improvement(*self._gap(points)) + self._log_feasible(points)

    def improvements(self, units: Units, most: int) -> Improvements:
        """The same at m coordinates for up to `most` proposals at once."""
        points = self.points(units)
        gaps = Gaps(self.believed, points, self.incumbent, most)
        return Improvements(gaps, self._spread, self._log_feasible(points))

    def _log_feasible(self, points: Array) -> Array | float:
        """Log of P(feasible) at m points: the other factor of Gardner et al. (2014, equation 5)."""
        if self._feasible is None:
            return 0.0
        mean, sd = self._feasible.mean_sd(points)
        return np.asarray(log_ndtr(mean / sd))

    def belief(self, configs: Sequence[Config]) -> Belief:
        """What the model makes of m configurations."""
        points = self.points(self._surrogate.space.to_unit(configs))
        gap, gap_sd = self._gap(points)
        best = float(self.believed.mean(self.incumbent[None])[0])
        return Belief(gap + best, self.posterior.mean_sd(points)[1], gap_sd, best)

    def _gap(self, points: Array) -> tuple[Array, Array]:
        mean, sd = self.believed.gap(points, self.incumbent)
        return mean, self._spread * sd


@dataclass(frozen=True)
class Improvements:
    """The log improvement at m coordinates, while one after the other comes to be proposed."""

    gaps: Gaps
    spread: float
    log_feasible: Array | float

    @property
    def values(self) -> Array:
        """As `Outlook.log_improvement` has them, m."""
        gap_sd = self.spread * self.gaps.sd
        return log_expected_improvement(self.gaps.mean, gap_sd) + self.log_feasible

    def propose(self, j: int) -> None:
        """Believe coordinate j to yield what is expected of it at the full length."""
        self.gaps.believe(j)


def _in_flight(surrogate: Surrogate, history: HistoryView, full: int) -> Array:
    """Where results are to come: the trials in flight, each at the epoch that it trains to."""
    waiting = [t for t in history.running if t.state is not TrialState.PAUSED or not t.curve]
    units = surrogate.space.to_unit([t.config for t in waiting])
    return surrogate.points(units, [min(t.target, full) for t in waiting], full)


def fitted_size(n: int) -> int:
    """To how many of n data hyperparameters are fitted: all at first, then in growing steps."""
    if n < 15:
        return n
    if n < 40:
        return n - n % 3
    size = 40
    while size + max(5, size // 8) <= n:
        size += max(5, size // 8)
    return size


def thinned(trials: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which of n data hyperparameters are fitted to: all, or those of evenly spaced trials, n'.

    Whole curves, or what is known of the epochs would be lost; trials of the start, which say what
    the whole space is like, and of the search, which say what its best region is.
    """
    each = np.unique(trials)
    count = len(each) * _MOST_FITTED // max(1, len(trials))
    if len(trials) <= _MOST_FITTED:
        count = len(each)
    kept = each[np.linspace(0, len(each) - 1, max(2, count)).round().astype(np.intp)]
    return np.flatnonzero(np.isin(trials, kept))


def bounded(trials: NDArray[np.int64], values: Array) -> NDArray[np.intp]:
    """Which of n data, in the order in which they were made, are shown to the process, n'.

    All, up to `_MOST_KNOWN`: a matrix of all that ten minutes of a large GPU bring would fill its
    host. Of more, whole trials: the first, which say what is usual, the best, and of the others
    some that are evenly spaced. The latest, up to `_ANEW`, are shown in any case: so it stays the
    same for long which, and what was fitted to them serves on.
    """
    n = len(trials)
    if n <= _MOST_KNOWN:
        return np.arange(n)
    m = n - n % _ANEW
    latest = dict(zip(trials[:m].tolist(), values[:m].tolist(), strict=True))
    each, ends = np.array(list(latest)), np.array(list(latest.values()))  # by their first data
    order = each[np.argsort(-ends, kind="stable")]
    data_of = Counter(trials[:m].tolist())
    room = (_MOST_KNOWN - _ANEW) // 2
    best = order[np.cumsum([data_of[number] for number in order.tolist()]) <= room]
    rest = each[~np.isin(each, best)]
    count = room * len(rest) // sum(data_of[number] for number in rest.tolist())
    spaced = rest[np.linspace(0, len(rest) - 1, count).round().astype(np.intp)]
    kept = np.isin(trials, np.concatenate([each[:START], best, spaced]))
    kept[m:] = True
    return np.flatnonzero(kept)


def not_blown(scores: Array) -> Array:
    """Those of n scores that did not blow up, in their order.

    A loss has no bound. Where most of the first trainings blew up their median says nothing of
    what is usual: it may be a million, and all that did not would be shown as one. What lies a
    thousand times as far under the best as the median of all has blown up: so this can tell once
    half of all have not. Of a search without noise that has converged it also drops the first
    trials, whose median is as far from all that is still looked at.
    """
    best = float(np.max(scores))
    spread = best - float(np.median(scores))
    if not spread > 1e-12 * float(np.max(np.abs(scores))):
        return scores
    return scores[best - scores <= _BLOWN * spread]


def shown_scores(scores: Array, first: Array) -> Array:
    """What the surrogate is shown, n values: scores clamped from below at a floor.

    The floor is median - CLAMP (best - median), the best of all, the median of the first trials
    alone: those were drawn, and show what is usual. A search that does its work comes back to
    where scores are high, and the median of all would rise until the noise is all that is shown.
    """
    best, median = float(np.max(scores)), float(np.median(first))
    return np.maximum(scores, min(median, best) - CLAMP * max(0.0, best - median))
