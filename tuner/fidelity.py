"""How long each trial trains: policies that look at the history and say what to do next."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

from tuner.brackets import Bracket, halving_bracket, hyperband_brackets, promoted
from tuner.history import HistoryView
from tuner.trial import Trial, TrialState


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
        return _sample(history, history.max_epochs or UNLIMITED)


class MedianStopping:
    """Stops a trial whose best score so far is below what completed ones had on average by then.

    After each epoch from the first rung on, its best score is compared with the median, over the
    completed trials, of the mean of their scores up to that epoch (Golovin et al., 2017, section
    3.2.2). Nobody is stopped before five have completed: a median of fewer says little.
    """

    def __init__(self, rungs: tuple[int, ...], eta: int) -> None:
        self._first = rungs[0]

    def next_action(self, history: HistoryView) -> Action:
        """Go on with the trial that waits, or stop it; with none, begin one."""
        for trial in _in_order(history):
            if self._is_hopeless(trial, history):
                return Stop(trial.number)
            return Resume(trial.number, trial.epoch + 1)
        return _sample(history, self._first)

    def _is_hopeless(self, trial: Trial, history: HistoryView) -> bool:
        means = history.means_until(trial.epoch)
        if len(means) < _COMPLETED_BEFORE_MEDIAN:
            return False
        middle = (means[len(means) // 2] + means[(len(means) - 1) // 2]) / 2
        return max(o.score for o in trial.curve) < middle


class Asha:
    """Asynchronous successive halving that promotes (Li et al., 2020, algorithm 2).

    A free slot goes to the best trial that may be promoted, from the highest rung down, else to a
    new one at the first rung. Trials that wait are paused and go on from their checkpoint.
    """

    def __init__(self, rungs: tuple[int, ...], eta: int) -> None:
        self._rungs, self._eta = rungs, eta

    def next_action(self, history: HistoryView) -> Action:
        """Promote, or drop a trial that never can be, or begin a new one."""
        for lower, upper in reversed(list(pairwise(self._rungs))):
            here = history.waiting.get(lower)
            if not here:
                continue
            finished = history.finished_at(lower)
            best = here.best
            rank = finished.place(best, history[best].score_at(lower))
            # Where there is nobody to come, what is left of the budget goes to the best there are.
            if history.is_exhausted or rank < promoted(len(finished), self._eta):
                return Resume(best, upper)
        hopeless = self._hopeless(history)
        return Stop(hopeless) if hopeless is not None else _sample(history, self._rungs[0])

    def _hopeless(self, history: HistoryView) -> int | None:
        """A paused trial that will not be promoted, whose checkpoint only takes up space.

        Of those that wait at a rung the better go first: who comes after as many as all that is
        left of the budget could take to the next rung has no hope, whatever is found meanwhile.
        Beyond `_MOST_PAUSED` the worst of the lowest rung is given up in any case.
        """
        waiting = history.waiting
        if sum(map(len, waiting.values())) > _MOST_PAUSED:
            return waiting[min(epoch for epoch, here in waiting.items() if here)].worst
        for lower, upper in pairwise(self._rungs):
            here = waiting.get(lower, ())
            if len(here) > 1 and len(here) > _affordable(history, upper - lower):
                return waiting[lower].worst
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
        for trial in _in_order(history):
            if trial.epoch in self._rungs[:-1]:
                finished = history.finished_at(trial.epoch)
                better = finished.above(trial.score_at(trial.epoch))
                if better >= max(1, promoted(len(finished), self._eta)):
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
        numbers = history.own_numbers
        last, growing = self._bracket_of(len(numbers))  # the only one that is not whole
        # A bracket whose members have all ended has nothing to do, and need not be looked at.
        members = (bisect_left(numbers, t.number) for t in history.running if t.is_own)
        at_work = dict(map(self._bracket_of, members))
        for first in sorted(at_work):
            bracket = at_work[first]
            if first == last and not history.is_exhausted:
                break
            trials = [history[n] for n in numbers[first : first + bracket.sizes[0]]]
            action = _within(bracket, trials)
            if action is not None:
                return action
        return _sample(history, growing.epochs[0])

    def _bracket_of(self, member: int) -> tuple[int, Bracket]:
        """The bracket that the own trial in this place belongs to, and where it begins."""
        cycle = sum(bracket.sizes[0] for bracket in self._brackets)
        first = member - member % cycle
        for bracket in self._brackets:
            if member < first + bracket.sizes[0]:
                break
            first += bracket.sizes[0]
        return first, bracket


def _within(bracket: Bracket, members: Sequence[Trial]) -> Action | None:
    """What a bracket that has all its members has to do; None while it waits, or is done."""
    alive = list(members)
    for k, until in enumerate(bracket.epochs):
        if k:
            below = bracket.epochs[k - 1]
            alive.sort(key=lambda t: (-t.score_at(below), t.number))
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
        rank_correlation: Spearman's, over these; None for fewer than five, and where all
            scored alike. Only what looked good went on, so it is lower than that of all settings.
    """

    epoch: int
    trials: int
    rank_correlation: float | None

    @property
    def warning(self) -> str:
        """What to say of it; empty where there is nothing to warn of."""
        found = self.rank_correlation
        if found is None or self.trials < _ENOUGH_TO_WARN or found >= _FORETELLS:
            return ""
        return (
            f"scores after epoch {self.epoch} hardly foretold the last ones (rank correlation "
            f"{found:.2f} over {self.trials} trials): a first rung after more "
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


def _in_order(history: HistoryView) -> list[Trial]:
    """Trials that wait for a decision, by number."""
    return [history[n] for n in sorted(n for here in history.waiting.values() for n in here)]


def _affordable(history: HistoryView, epochs: int) -> float:
    """How many trials the rest of the budget may still train for so many epochs, the last in part.

    A bound from above: at the cost of the cheapest epoch that was seen.
    """
    cheapest_ns = history.cheapest_epoch_ns
    if history.budget_ns is None or cheapest_ns is None:
        return math.inf
    left_ns = max(0, history.budget_ns - history.charged_ns)
    return left_ns // max(1, cheapest_ns * epochs) + 1
