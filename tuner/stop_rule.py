"""Ends a search that is no longer worth its minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tuner.confirm import enough_scores, training_ns
from tuner.fidelity import Action, Done, FidelityPolicy, Resume, Sample
from tuner.history import History, HistoryView
from tuner.naming import pick
from tuner.seeding import derive_seed
from tuner.space import SearchSpace
from tuner.trial import Trial, TrialState

STOPS = ("never", "auto")

_IN_A_ROW = 5
_EVERY = 20  # a check after each training; from twice so many on, one for each twentieth more
_ANYWHERE, _NEAR, _WIDTHS = 128, 16, (0.02, 0.1)  # where an improvement is looked for
_DRAWS = 256


class AutoStop:
    """Has another policy decide until what the rest of the budget can find is less than noise.

    By a Gaussian process on all full trainings. Two bounds on what the rest can bring over the
    incumbent, of which the lower counts: the largest expected improvement of one more training,
    times the trainings that the rest of the budget buys; and what would be gained, in expectation,
    by whoever saw the whole landscape without noise. Where that is below the noise of a single
    score at five checks in a row the search is over: nobody could see such an improvement.

    There are no checks before max(10, 2 d) + 5 scores, d knobs. All is a function of the history:
    a search that has ended by this rule stays so when it is resumed, unless it got more minutes.
    """

    def __init__(self, inner: FidelityPolicy, space: SearchSpace, seed: int) -> None:
        self._inner, self._space, self._seed = inner, space, seed
        self._known: dict[tuple[int, ...], bool] = {}  # for speed alone

    def next_action(self, history: HistoryView) -> Action:
        """What the inner policy says, or that this is all."""
        action = self._inner.next_action(history)
        if isinstance(action, Sample | Resume) and self._is_over(history):
            return Done()
        return action

    def _is_over(self, history: HistoryView) -> bool:
        if history.budget_ns is None:
            return False
        own = history.own
        ended = [t for t in own if t.state in (TrialState.COMPLETED, TrialState.INFEASIBLE)]
        ended.sort(key=lambda t: (_end_ns(t), t.number))
        latest = max((t.started_ns for t in own), default=0)
        # The rule has not fired where a trial began afterwards. Since the latest one did it may
        # have fired at any result, and those that came in later do not take that back.
        return any(
            self._fires(ended[: i + 1], history)
            for i, trial in enumerate(ended)
            if _end_ns(trial) > latest
        )

    def _fires(self, ended: Sequence[Trial], history: HistoryView) -> bool:
        first = enough_scores(self._space)
        checks, at = [], first
        while at <= len(ended):
            checks.append(at)
            at += max(1, at // _EVERY)
        if len(checks) < _IN_A_ROW:
            return False
        return all(self._is_idle(ended[:at], first, history) for at in checks[-_IN_A_ROW:][::-1])

    def _is_idle(self, ended: Sequence[Trial], first: int, history: HistoryView) -> bool:
        """Whether there was nothing more to be expected when these had ended."""
        left_ns = (history.budget_ns or 0) - _end_ns(ended[-1])
        key = (history.budget_ns or 0, *(t.number for t in ended))
        if key not in self._known:
            scored = sum(t.score is not None for t in ended)
            begun = [t for t in history.own if t.started_ns < _end_ns(ended[-1])]
            mean_ns = (_end_ns(ended[-1]) - begun[0].started_ns) / len(begun)
            self._known[key] = scored >= first and self._gain(ended, left_ns / mean_ns) < 0
        return self._known[key]

    def _gain(self, ended: Sequence[Trial], trainings: float) -> float:
        """By how much more than the noise so many more trainings may improve on the incumbent."""
        from tuner.searchers.candidates import sobol
        from tuner.searchers.fit import FitError
        from tuner.searchers.surrogate import Outlook, Surrogate
        from tuner.searchers.threads import one_thread

        full = max(t.epoch for t in ended)
        known = History(full)
        for number, trial in enumerate(ended):
            known.restore(replace(trial, number=number))
        seed = derive_seed(self._seed, "stop", len(ended))
        generator = np.random.default_rng(seed)
        surrogate = Surrogate(self._space)
        with one_thread():
            try:
                outlook = Outlook(surrogate, known.view(), full, (), in_hand=False)
                anywhere = sobol(self._space, seed, _ANYWHERE)
                near = np.repeat(outlook.centres, _NEAR, axis=0)
                near = near + generator.choice(_WIDTHS, (len(near), 1)) * generator.normal(
                    size=near.shape
                )
                units = self._space.snap(np.clip(np.concatenate([anywhere, near]), 0.0, 1.0))
                points = np.concatenate([outlook.incumbent[None], outlook.points(units)])
                mean, covariance = outlook.posterior.joint(points)
            except FitError:
                return math.inf
        one = math.exp(outlook.log_improvement(units).max())
        draws = generator.multivariate_normal(
            mean, covariance, size=_DRAWS, method="eigh", check_valid="ignore"
        )
        everything = float((draws.max(1) - draws[:, 0]).mean())
        return min(trainings * one, everything) - outlook.posterior.noise_sd


def with_stop(policy: FidelityPolicy, stop: str, space: SearchSpace, seed: int) -> FidelityPolicy:
    """The policy as `stop`, `never` or `auto`, ends it; ValueError for another name."""
    check_stop(stop)
    return AutoStop(policy, space, seed) if stop == "auto" else policy


def check_stop(stop: str) -> None:
    """Raise ValueError, with the nearest name, where there is no such way to stop."""
    pick(stop, dict.fromkeys(STOPS), "way to stop")


def returned_ns(history: HistoryView, stop: str) -> int | None:
    """What a search that has ended left of its budget, where that buys another training, or 0.

    None where it was not to end before its budget, and where it was not the rule that ended it:
    a finite space that has been tried out has nothing more to find.
    """
    left_ns, cost_ns = history.left_ns, training_ns(history)
    if stop == "never" or history.is_exhausted or left_ns is None or cost_ns is None:
        return None
    return left_ns if left_ns >= cost_ns else 0


def _end_ns(trial: Trial) -> int:
    """The device time of the run at which a trial ended."""
    return (trial.curve[-1].at_ns if trial.curve else trial.started_ns) + trial.partial_ns
