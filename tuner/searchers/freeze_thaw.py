"""Freeze-thaw: which training to go on with, or which to begin, by one model of all curves.

Swersky, Snoek and Adams (2014) named it; here the curves' model is the searchers' own, and what is
compared is the expected improvement at the last epoch for each minute still to be paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tuner.brackets import rung_epochs
from tuner.fidelity import Action, Done, Resume, Sample, Stop, default_min_epochs
from tuner.history import HistoryView
from tuner.searchers.base import SpaceExhausted
from tuner.searchers.bayes import belief_of, has_model
from tuner.searchers.candidates import maximise, sobol_start
from tuner.searchers.fit import FitError
from tuner.searchers.random import draw_new
from tuner.searchers.surrogate import Belief, Outlook, Surrogate
from tuner.searchers.threads import one_thread
from tuner.searchers.trust_region import SPREAD, has_region, region_of
from tuner.seeding import derive_seed
from tuner.space import Config, SearchSpace, Units
from tuner.trial import Trial, TrialState

_MOST_PAUSED = 128
_SPREAD = 3.0  # see Outlook
_SHRINKAGE = 0.3  # of the cost model's coefficients, in units of data


class FreezeThawSearcher:
    """A searcher and a fidelity policy in one: it decides where, and how long.

    A step either begins a configuration, up to the first rung, or takes a paused trial to its
    next rung. Of all that could be done it does what has the highest

        log EI - log(epochs left) - max(0, log(their cost / what is left of the budget))
               + log P(feasible)

    where EI is the improvement that is expected at the last epoch over the best that is in hand,
    a new trial has all its epochs left and a paused one what is left of them. Their cost, which is
    predicted from what was paid, only counts where the budget can no longer pay for it: what is
    cheap is soon known, and what is good may be dear (see this folder's README). With many knobs
    what could be begun is near the best so far: see `trust_region`.

    Args:
        space: of the configurations.
        seed: of all that is drawn.
        rungs: the epochs at which a training may be paused; the last is its full length. By
            default a factor of three apart.
    """

    def __init__(self, space: SearchSpace, seed: int, rungs: Sequence[int] | None = None) -> None:
        self._space, self._seed, self._given_rungs = space, seed, rungs
        self._surrogate = Surrogate(space)
        self._last: tuple[object, _Decision] | None = None
        self.fallback = ""

    def next_action(self, history: HistoryView) -> Action:
        """Begin a trial, go on with one, or give one up."""
        return self._decide(history).action

    def propose(self, history: HistoryView) -> Config:
        """The configuration with which `next_action` would begin."""
        decision = self._decide(history)
        self.fallback = decision.fallback
        if decision.config is None:
            raise SpaceExhausted("all configurations have been tried")
        return decision.config

    def belief(self, history: HistoryView, configs: Sequence[Config]) -> Belief | None:
        """What the model makes of m configurations at full length; None while there is none."""
        return belief_of(self._look, history, configs)

    def _look(self, history: HistoryView) -> Outlook:
        rungs = self._rungs(history)
        spread = SPREAD if has_region(self._space) else _SPREAD
        return Outlook(self._surrogate, history, rungs[-1], rungs, in_hand=True, spread=spread)

    def _rungs(self, history: HistoryView) -> Sequence[int]:
        if self._given_rungs is not None:
            return self._given_rungs
        full = history.max_epochs or max((t.epoch for t in history), default=1)
        return rung_epochs(default_min_epochs(full), full, 3)

    def _decide(self, history: HistoryView) -> _Decision:
        # The scheduler asks twice about the same moment: for the action, then for the
        # configuration. What was decided is kept, for speed alone.
        moment = (
            history.is_exhausted,
            [(t.state, t.target, t.curve[-1:], t.config) for t in history],
        )
        if self._last is None or self._last[0] != moment:
            self._last = (moment, self._think(history))
        return self._last[1]

    def _think(self, history: HistoryView) -> _Decision:
        rungs = self._rungs(history)
        paused = [
            t
            for t in history.running
            if t.state is TrialState.PAUSED and t.curve and t.target <= t.epoch < rungs[-1]
        ]
        if not has_model(history):
            return self._start(history, rungs, paused)
        seed = derive_seed(self._seed, "freeze-thaw", len(history), history.epochs_seen)
        with one_thread():
            try:
                outlook = self._look(history)
            except FitError as error:
                note = f"the model could not be fitted ({type(error).__name__}): random"
                if history.is_exhausted:
                    return _resume(paused[0], rungs) if paused else _Decision(Done())
                drawn = None
                with suppress(SpaceExhausted):
                    drawn = draw_new(self._space, self._seed, "freeze-thaw-fallback", history)
                return _Decision(Sample(rungs[0]), drawn, note)
            price = _Price.of(self._space, history, rungs[-1])
            going_on = price.of_paused(paused, outlook)
            if len(paused) > _MOST_PAUSED:  # a checkpoint each: the least promising goes
                return _Decision(Stop(paused[int(np.argmin(going_on))].number))
            config: Config | None = None
            value = -np.inf
            if not history.is_exhausted:
                with suppress(SpaceExhausted):
                    new, box = partial(price.of_new, outlook), region_of(outlook, history)
                    config, value = maximise(self._space, new, outlook.centres, history, seed, box)
        if paused and going_on.max() >= value:
            return _resume(paused[int(np.argmax(going_on))], rungs)
        return _Decision(Done() if history.is_exhausted else Sample(rungs[0]), config)

    def _start(
        self, history: HistoryView, rungs: Sequence[int], paused: Sequence[Trial]
    ) -> _Decision:
        """The next point of the Sobol start; where a space has no more, what waits goes on."""
        if history.is_exhausted:
            return _resume(paused[0], rungs) if paused else _Decision(Done())
        config = None
        with suppress(SpaceExhausted):
            config = sobol_start(self._space, self._seed, history)
        return _Decision(Sample(rungs[0]), config)


@dataclass(frozen=True)
class _Decision:
    action: Action
    config: Config | None = None
    fallback: str = ""


def _resume(trial: Trial, rungs: Sequence[int]) -> _Decision:
    return _Decision(Resume(trial.number, next(rung for rung in rungs if rung > trial.epoch)))


@dataclass(frozen=True)
class _Price:
    """What an improvement costs: the epochs that are left, and whether they can still be paid.

    Attributes:
        full: the length of a whole training.
        costs: of an epoch, predicted.
        left_ns: of the budget; infinite where there is no limit.
    """

    full: int
    costs: CostModel
    left_ns: float

    @classmethod
    def of(cls, space: SearchSpace, history: HistoryView, full: int) -> _Price:
        """As a history shows it."""
        seen = [t for t in history if t.curve]
        # What was taken over from elsewhere cost something else there, or nobody knows what.
        paid = [t for t in seen if not t.source and t.device_ns] or seen
        costs = CostModel.fit(
            space.to_unit([t.config for t in paid]),
            np.array([t.device_ns / len(t.curve) for t in paid], dtype=np.float64),
        )
        left_ns = history.left_ns
        return cls(full, costs, np.inf if left_ns is None else max(1, left_ns))

    def of_new(self, outlook: Outlook, units: Units) -> NDArray[np.float64]:
        """The acquisition of beginning with each of m configurations, m."""
        value = outlook.log_improvement(units)
        return value - self._log_price(np.array(float(self.full)), self.costs.log_cost(units))

    def of_paused(self, trials: Sequence[Trial], outlook: Outlook) -> NDArray[np.float64]:
        """The acquisition of going on with each of these, k."""
        if not trials:
            return np.empty(0)
        value = outlook.log_improvement(outlook.space.to_unit([t.config for t in trials]))
        left = np.array([self.full - t.epoch for t in trials], dtype=np.float64)
        log_cost = np.log([max(1.0, t.device_ns / len(t.curve)) for t in trials])
        return value - self._log_price(left, log_cost)

    def _log_price(
        self, epochs: NDArray[np.float64], log_cost: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Of so many epochs at such a cost: their number, times by how much they are too dear."""
        log_epochs = np.log(epochs)
        too_dear = np.maximum(0.0, log_epochs + log_cost - np.log(self.left_ns))
        return np.asarray(log_epochs + too_dear, dtype=np.float64)


@dataclass(frozen=True)
class CostModel:
    """An epoch's device time: its logarithm is a quadratic in each coordinate.

    Ridge regression: with few data it says little more than their mean.
    """

    weights: NDArray[np.float64]

    @classmethod
    def fit(cls, units: Units, epoch_ns: NDArray[np.float64]) -> CostModel:
        """From `n x d` configurations and what an epoch of each cost."""
        features = _quadratic(units)
        penalty = _SHRINKAGE * np.eye(features.shape[1])
        penalty[0, 0] = 1e-6  # the mean is not shrunk
        log_cost = np.log(np.maximum(epoch_ns, 1.0))
        weights = np.linalg.solve(features.T @ features + penalty, features.T @ log_cost)
        return cls(np.asarray(weights, dtype=np.float64))

    def log_cost(self, units: Units) -> NDArray[np.float64]:
        """The logarithm of nanoseconds an epoch, m."""
        return np.asarray(_quadratic(units) @ self.weights, dtype=np.float64)


def _quadratic(units: Units) -> NDArray[np.float64]:
    centred = units - 0.5
    return np.hstack([np.ones((len(units), 1)), centred, 2 * centred**2])
