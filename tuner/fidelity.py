"""How long each trial trains: policies that look at the history and say what to do next."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

from tuner.brackets import Bracket, halving_bracket, hyperband_brackets, promotable
from tuner.trial import HistoryView, Trial, TrialState


@dataclass(frozen=True)
class Sample:
    """Ask the searcher for a new configuration and train it until an epoch is finished."""

    until_epoch: int


@dataclass(frozen=True)
class Resume:
    """Train a paused trial further."""

    number: int
    until_epoch: int


@dataclass(frozen=True)
class Repeat:
    """Train the configuration of an earlier trial once more, with another seed."""

    number: int
    until_epoch: int


@dataclass(frozen=True)
class Stop:
    """End a trial: it will not train again."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do until a result comes in."""


@dataclass(frozen=True)
class Done:
    """Nothing more to do at all."""


Action: TypeAlias = Sample | Resume | Repeat | Stop | Wait | Done

UNLIMITED = 1 << 30
"""The target of a training that itself says when it is complete."""

_MOST_PAUSED = 256
_ENOUGH_TO_WARN, _FORETELLS = 8, 0.2
_COMPLETED_BEFORE_MEDIAN = 5


class FidelityPolicy(Protocol):
    """Says what a free slot should do next: a pure function of the history.

    Rungs and brackets are derived from the trials each time, so there is no state to be saved,
    and a search that was killed at any moment goes on as it would have. What was broken off by a
    signal or a fault goes on by itself, before the policy is asked.
    """

    def next_action(self, history: HistoryView) -> Action:
        """The next action, given everything that is known."""


class FullFidelity:
    """Every trial trains to the end."""

    def next_action(self, history: HistoryView) -> Action:
        """A new trial, to its full length."""
        return Sample(history.max_epochs or UNLIMITED)


class MedianStopping:
    """Stops a trial whose best score so far is below what completed ones had on average by then.

    After each epoch from the first rung on, its best score is compared with the median, over the
    completed trials, of the mean of their scores up to that epoch (Golovin et al., 2017, section
    3.2.2). The first five trials complete: a median of fewer says little.
    """

    def __init__(self, rungs: tuple[int, ...], eta: int) -> None:
        self._first, self._last = rungs[0], rungs[-1]

    def next_action(self, history: HistoryView) -> Action:
        """Go on with the trial that waits, or stop it; with none, begin one."""
        for trial in history.running:
            if _waits(trial):
                if self._is_hopeless(trial, history):
                    return Stop(trial.number)
                return Resume(trial.number, trial.epoch + 1)
        completed = sum(t.state is TrialState.COMPLETED for t in history.own)
        has_enough = completed >= _COMPLETED_BEFORE_MEDIAN
        return _sample(history, self._first if has_enough else self._last)

    def _is_hopeless(self, trial: Trial, history: HistoryView) -> bool:
        averages = [
            statistics.fmean(o.score for o in t.curve[: trial.epoch])
            for t in history.own
            if t.state is TrialState.COMPLETED
        ]
        if len(averages) < _COMPLETED_BEFORE_MEDIAN:
            return False
        return max(o.score for o in trial.curve) < statistics.median(averages)


class Asha:
    """Asynchronous successive halving that promotes (Li et al., 2020, algorithm 2).

    A free slot goes to the best trial that may be promoted, from the highest rung down, else to a
    new one at the first rung. Trials that wait are paused and go on from their checkpoint.
    """

    def __init__(self, rungs: tuple[int, ...], eta: int) -> None:
        self._rungs, self._eta = rungs, eta

    def next_action(self, history: HistoryView) -> Action:
        """Promote, or drop a trial that never can be, or begin a new one."""
        waiting = [t for t in history.running if _waits(t)]
        for lower, upper in reversed(list(pairwise(self._rungs))):
            here = {t.number for t in waiting if t.epoch == lower}
            if not here:
                continue
            scores = _scores_at(history, lower)
            candidates = promotable(scores, scores.keys() - here, self._eta)
            if history.is_exhausted:  # what is left of the budget goes to the best there are
                candidates = sorted(here, key=lambda n: (-scores[n], n))
            if candidates:
                return Resume(candidates[0], upper)
        hopeless = self._hopeless(history, waiting)
        return Stop(hopeless) if hopeless is not None else _sample(history, self._rungs[0])

    def _hopeless(self, history: HistoryView, waiting: Sequence[Trial]) -> int | None:
        """A paused trial that will not be promoted, whose checkpoint only takes up space.

        Of those that wait at a rung the better go first: who comes after as many as all that is
        left of the budget could take to the next rung has no hope, whatever is found meanwhile.
        Beyond `_MOST_PAUSED` the worst of the lowest rung is given up in any case.
        """
        if len(waiting) > _MOST_PAUSED:
            return min(waiting, key=lambda t: (t.epoch, t.curve[-1].score, -t.number)).number
        for lower, upper in pairwise(self._rungs):
            here = [t for t in waiting if t.epoch == lower]
            if len(here) > 1 and len(here) > _affordable(history, upper - lower):
                return min(here, key=lambda t: (t.curve[-1].score, -t.number)).number
        return None


class AshaStopping:
    """Successive halving that only stops, for comparison (what other libraries call ASHA).

    A trial that reaches a rung goes on if it is among the best 1/eta of all that reached it
    before, else it ends: it is judged once, by those who happened to come earlier.
    """

    def __init__(self, rungs: tuple[int, ...], eta: int) -> None:
        self._rungs, self._eta = rungs, eta

    def next_action(self, history: HistoryView) -> Action:
        """Judge the trial that waits; with none, begin one."""
        for trial in history.running:
            if _waits(trial) and trial.epoch in self._rungs[:-1]:
                scores = _scores_at(history, trial.epoch)
                better = sum(s > trial.curve[-1].score for s in scores.values())
                if better >= max(1, len(scores) // self._eta):
                    return Stop(trial.number)
                return Resume(trial.number, self._rungs[self._rungs.index(trial.epoch) + 1])
        return _sample(history, self._rungs[0])


class Halving:
    """Synchronous brackets, one after another, over and over.

    Members of a bracket are known by their numbers: the sizes of all brackets before it say where
    it begins. A slot that would have to wait for a rung to fill works on the next bracket.
    """

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._brackets = tuple(brackets)

    @classmethod
    def successive(cls, rungs: tuple[int, ...], eta: int) -> Halving:
        """Successive halving over all rungs (Jamieson and Talwalkar, 2016)."""
        return cls([halving_bracket(rungs, eta)])

    @classmethod
    def hyperband(cls, rungs: tuple[int, ...], eta: int) -> Halving:
        """All of Hyperband's brackets (Li et al., 2018)."""
        return cls(hyperband_brackets(rungs, eta))

    def next_action(self, history: HistoryView) -> Action:
        """The first thing that any bracket has to do, the oldest bracket first."""
        own, first = history.own, 0
        for bracket in itertools.cycle(self._brackets):
            members = own[first : first + bracket.sizes[0]]
            first += bracket.sizes[0]
            is_whole = len(members) == bracket.sizes[0]
            if is_whole or (history.is_exhausted and members):
                action = _within(bracket, members)
                if action is not None:
                    return action
            if not is_whole:
                break
        return _sample(history, bracket.epochs[0])


def _within(bracket: Bracket, members: Sequence[Trial]) -> Action | None:
    """What a bracket that has all its members has to do; None while it waits, or is done."""
    alive = list(members)
    for k, until in enumerate(bracket.epochs):
        if k:
            below = bracket.epochs[k - 1]
            alive.sort(key=lambda t: (-_score_at(t, below), t.number))
            for trial in alive[max(1, bracket.sizes[k]) :]:
                if trial.state is TrialState.PAUSED and trial.epoch == below:
                    return Stop(trial.number)
            alive = alive[: max(1, bracket.sizes[k])]
            for trial in alive:
                if trial.state is TrialState.PAUSED and trial.epoch == below:
                    return Resume(trial.number, until)
        if any(not t.state.is_final and t.epoch < until for t in alive):
            return None
    return None


POLICIES: Mapping[str, Callable[[tuple[int, ...], int], FidelityPolicy]] = {
    "full": lambda rungs, eta: FullFidelity(),
    "median": MedianStopping,
    "sh": Halving.successive,
    "asha": Asha,
    "asha-stop": AshaStopping,
    "hyperband": Halving.hyperband,
}
"""By name: built from the rungs, as `brackets.rung_epochs` gives them, and eta."""


def default_min_epochs(max_epochs: int) -> int:
    """The first rung where nobody chose one: the second epoch, or a 27th of a long training.

    Measured as Spearman's rank correlation between early and final scores of 200 random settings:
    on two recordings of real CNNs 0.70 and 0.85 after epoch 1 and 0.91 after epoch 2; on six
    tasks of LCBench, whose epoch 1 is the untrained network, -0.08 to 0.46 and 0.37 to 0.84.
    """
    return min(max_epochs, max(2, round(max_epochs / 27)))


@dataclass(frozen=True)
class FirstRung:
    """How well the first rung of a search foretold the end.

    Attributes:
        epoch: where trials were first compared.
        trials: how many went on from there to the end.
        rank_correlation: Spearman's, over these; None for fewer than five. Only what looked
            good went on, so it is lower than that of all settings would be.
    """

    epoch: int
    trials: int
    rank_correlation: float | None

    @property
    def warning(self) -> str:
        """What to say of it; empty where there is nothing to warn of."""
        if self.trials < _ENOUGH_TO_WARN or (self.rank_correlation or 0.0) >= _FORETELLS:
            return ""
        return (
            f"scores after epoch {self.epoch} hardly foretold the last ones (rank correlation "
            f"{self.rank_correlation:.2f} over {self.trials} trials): a first rung after more "
            f"epochs, --min-epochs, may find more"
        )


def first_rung(histories: Sequence[HistoryView]) -> FirstRung | None:
    """Of one entry's runs; None where no trial was broken off early."""
    own = [t for history in histories for t in history.own]
    full = max((h.max_epochs or 0 for h in histories), default=0)
    broken_off = (TrialState.PAUSED, TrialState.STOPPED)
    early = Counter(t.epoch for t in own if t.state in broken_off and 0 < t.epoch < full)
    epoch, ended = early.most_common(1)[0] if early else (0, 0)
    if ended <= 2 * len(histories):  # what the end of a budget breaks off is no rung
        return None
    ends = [(t.curve[epoch - 1].score, t.curve[-1].score) for t in own if t.epoch == full]
    if len(ends) < 5 or any(len(set(column)) < 2 for column in zip(*ends, strict=True)):
        return FirstRung(epoch, len(ends), None)
    from scipy.stats import spearmanr

    return FirstRung(epoch, len(ends), float(spearmanr(*zip(*ends, strict=True)).statistic))


def _sample(history: HistoryView, until_epoch: int) -> Action:
    """A new trial; where the searcher has no more, whatever is still in flight is all there is."""
    return Done() if history.is_exhausted else Sample(until_epoch)


def _waits(trial: Trial) -> bool:
    """Whether a trial has come as far as it was sent, and waits for a decision."""
    return trial.state is TrialState.PAUSED and 0 < trial.epoch >= trial.target


def _score_at(trial: Trial, epoch: int) -> float:
    """The score at an epoch; infinitely bad where the trial never came so far.

    It stays as it was where the trial broke off later on: ranks that shift afterwards would take
    back what has been decided by them.
    """
    return trial.curve[epoch - 1].score if len(trial.curve) >= epoch else -math.inf


def _scores_at(history: HistoryView, rung: int) -> dict[int, float]:
    """The scores at a rung by trial; one that broke before it has finished it, infinitely bad."""
    return {
        t.number: _score_at(t, rung)
        for t in history.own
        if len(t.curve) >= rung or t.state in (TrialState.INFEASIBLE, TrialState.FAILED)
    }


def _affordable(history: HistoryView, epochs: int) -> float:
    """How many trials the rest of the budget may still train for so many epochs, the last in part.

    A bound from above: at the cost of the cheapest epoch that was seen.
    """
    costs = [o.device_ns for t in history.own for o in t.curve]
    if history.budget_ns is None or not costs:
        return math.inf
    left_ns = max(0, history.budget_ns - history.charged_ns)
    return left_ns // max(1, min(costs) * epochs) + 1
