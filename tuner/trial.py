"""The records of a search: observations, trials, and the append-only history of them."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tuner.seeding import config_text
from tuner.space import Config

ADDED = "added"
"""The source of a result that was added by hand, which may have cost this search something."""


class TrialState(enum.Enum):
    """What became of a trial. Infeasible is not bad, and interrupted is not failed."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # broken off on purpose; goes on from its checkpoint
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"  # ended early by the fidelity policy
    INFEASIBLE = "INFEASIBLE"  # the configuration's own fault: diverged, out of memory
    INTERRUPTED = "INTERRUPTED"  # the machine's fault; goes on from its last epoch
    FAILED = "FAILED"  # interrupted once too often

    @property
    def is_final(self) -> bool:
        """Whether a trial in this state will never train again."""
        return self in _FINAL


_FINAL = frozenset(
    {TrialState.COMPLETED, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED}
)


@dataclass(frozen=True)
class Observation:
    """One epoch of a trial.

    Attributes:
        epoch: 1-based.
        score: higher is better; a minimised objective is negated before it comes here.
        device_ns: device time since the trial's previous observation, in nanoseconds.
        at_ns: device time that the whole run had used when this was observed.
        metrics: whatever else was measured, such as the training loss.
    """

    epoch: int
    score: float
    device_ns: int
    at_ns: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A file that a trial can go on from, named by the row written after it."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Trial:
    """One configuration and what its training has shown so far; changed only by replacement.

    Attributes:
        target: the epoch that the trial is to reach before anyone decides again.
        started_ns: device time that the run had used when the trial began.
        granted: the epoch that the budget was last found to pay for.
        reserved_ns: what is still held back for it.
        clock: the runner's reading when the epoch in flight began, None where none is; a replay
            goes on from it.
        partial_ns: device time paid since the last observation.
        faults: how many workers died under it.
        reason: why it is in its state, where that is not plain.
        note: why its configuration did not come from the searcher's model, where it did not.
        source: the study that it was taken over from, or `ADDED`; empty for a trial of this search
            itself.
        repeat: how many trainings of this configuration the search had begun before it.
        confirms: the trial whose configuration it trains again, to learn its mean; None where the
            searcher proposed it.
        checkpoint: of the last finished epoch, whose score is the trial's.
        midway: of the epoch in progress, where it was broken off; training goes on from there.
    """

    number: int
    config: Config
    seed: int
    target: int
    state: TrialState = TrialState.RUNNING
    curve: tuple[Observation, ...] = ()
    started_ns: int = 0
    granted: int = 0
    reserved_ns: int = 0
    clock: int | None = None
    partial_ns: int = 0
    faults: int = 0
    reason: str = ""
    note: str = ""
    source: str = ""
    repeat: int = 0
    confirms: int | None = None
    checkpoint: Checkpoint | None = None
    midway: Checkpoint | None = None

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 before the first."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def score(self) -> float | None:
        """The score of the latest epoch; None where there is none that counts."""
        if self.state in (TrialState.INFEASIBLE, TrialState.FAILED) or not self.curve:
            return None
        return self.curve[-1].score

    @property
    def device_ns(self) -> int:
        """Device time of all finished epochs, in nanoseconds."""
        return sum(o.device_ns for o in self.curve)

    @property
    def paid_ns(self) -> int:
        """Device time that this search paid for it: what was taken over costs nothing here."""
        return self.device_ns + self.partial_ns if self.source in ("", ADDED) else 0

    @property
    def remark(self) -> str:
        """All that there is to say of it: why it is as it is, and where it comes from."""
        origin = self.source if self.source in ("", ADDED) else f"from {self.source}"
        purpose = "" if self.confirms is None else f"confirms trial {self.confirms}"
        return "; ".join(filter(None, [self.reason, self.note, origin, purpose]))


class HistoryView:
    """What searchers and policies may read of a history: everything, and change nothing.

    Trials that were taken over from an earlier study are in it as any other, to be learnt from.
    What the search itself has done and found counts the trials that it `trained`, alone.

    Attributes:
        max_epochs: the full length of a training; None where the training itself says when.
        budget_ns: the device time that the search may use in all; None where it is not limited.
        is_exhausted: whether the searcher has nothing more to propose.
    """

    def __init__(self, max_epochs: int | None = None, budget_ns: int | None = None) -> None:
        self.max_epochs = max_epochs
        self.budget_ns = budget_ns
        self.is_exhausted = False
        self._trials: list[Trial] = []
        self._open: dict[int, None] = {}  # unfinished trials, an ordered set
        self._best: Trial | None = None
        self._epochs = 0
        self._epochs_ns = 0
        self._partial_ns = 0
        self._reading_ns = 0  # the latest of the run's device time
        self._begun: Counter[str] = Counter()  # trainings of each configuration

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials by number."""
        return tuple(self._trials)

    @property
    def own(self) -> tuple[Trial, ...]:
        """All trials that a policy answers for, by number.

        Not those taken over from another search, nor trainings that only repeat one.
        """
        return tuple(t for t in self._trials if not t.source and t.confirms is None)

    @property
    def trained(self) -> tuple[Trial, ...]:
        """All trials of this search itself, by number, repeats included: not those taken over."""
        return tuple(t for t in self._trials if not t.source)

    def trainings(self, config: Config) -> int:
        """How many trainings of a configuration this search itself has begun."""
        return self._begun[config_text(config)]

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials whose result is still to come, by number: running, paused, interrupted."""
        return tuple(self._trials[n] for n in sorted(self._open))

    @property
    def finished(self) -> tuple[Trial, ...]:
        """Trials that will never train again, by number."""
        return tuple(t for t in self._trials if t.state.is_final)

    @property
    def best(self) -> Trial | None:
        """The incumbent: the highest latest score of this search itself, finished or not.

        The earlier one on a tie.
        """
        return self._best

    @property
    def best_earlier(self) -> Trial | None:
        """The best result from before, where it beats all that this search has trained itself."""
        found = max((t for t in self._trials if t.source), key=_rank, default=None)
        if found is None or found.score is None:
            return None
        best = self.best
        is_ahead = best is None or best.score is None or found.score > best.score
        return found if is_ahead else None

    @property
    def epochs_seen(self) -> int:
        """How many epochs all trials of this search itself have finished."""
        return self._epochs

    @property
    def charged_ns(self) -> int:
        """Device time that was charged to trials of this search, broken-off epochs included."""
        return self._epochs_ns + self._partial_ns

    @property
    def spent_ns(self) -> int:
        """Device time that this search has spent, as far as its trials show it.

        What was charged to no trial shows in the reading of the meter at the next event.
        """
        return max(self.charged_ns, self._reading_ns)

    @property
    def left_ns(self) -> int | None:
        """What may still be spent, less what trials in flight hold back; None without a limit."""
        if self.budget_ns is None:
            return None
        reserved = sum(t.reserved_ns for t in self.running if t.state is TrialState.RUNNING)
        return self.budget_ns - self.spent_ns - reserved

    @property
    def mean_epoch_ns(self) -> int | None:
        """Mean device time of an epoch of this search itself; None before the first."""
        return self._epochs_ns // self._epochs if self._epochs else None

    def scores_at(self, epoch: int) -> dict[int, float]:
        """Scores at exactly this epoch, by trial number, of all trials that reached it."""
        return {
            t.number: o.score
            for t in self._trials
            for o in t.curve[epoch - 1 :]
            if o.epoch == epoch
        }

    def view(self) -> HistoryView:
        """A view that follows this history and has no way to change it."""
        other = HistoryView.__new__(HistoryView)
        other.__dict__ = self.__dict__  # one shared state, two sets of methods
        return other


class History(HistoryView):
    """The append-only record of one search. A subclass may also write it down."""

    def start(self, trial: Trial) -> Trial:
        """Append a new trial, whose number must be the next one."""
        if trial.number != len(self._trials):
            raise ValueError(f"expected trial {len(self._trials)} to start, got {trial.number}")
        self._trials.append(trial)
        self._begin(trial)
        self._place(trial)
        return trial

    def restore(self, trial: Trial) -> None:
        """Append a trial as it is on record, with its curve and state; it is not written down."""
        self._trials.append(trial)
        self._begin(trial)
        for observation in trial.curve:
            self._count(trial, observation)
        History._place(self, trial)  # not a subclass's: this is no news

    def adopt(self, trial: Trial) -> None:
        """Append a trial that another history has seen, with its curve and state, as news."""
        self.restore(trial)

    def observe(self, number: int, observation: Observation, **changes: object) -> Trial:
        """Append the next epoch to an open trial; `changes` go into other fields of the trial."""
        trial = self._open_trial(number)
        if observation.epoch != trial.epoch + 1:
            raise ValueError(
                f"trial {number} is at epoch {trial.epoch}: epoch {observation.epoch} is not next"
            )
        if not math.isfinite(observation.score):
            raise ValueError(f"trial {number}: a score is a finite number, got {observation.score}")
        self._count(trial, observation)
        curve = (*trial.curve, observation)
        return self._place(_changed(trial, curve=curve, **changes))

    def update(self, number: int, **changes: object) -> Trial:
        """Change the state or the book-keeping of an open trial, never its curve or config."""
        return self._place(_changed(self._open_trial(number), **changes))

    def close(self, number: int, state: TrialState, reason: str = "") -> Trial:
        """Put an open trial into a final state."""
        if not state.is_final:
            raise ValueError(f"a trial is closed as COMPLETED, STOPPED, …, not as {state.name}")
        return self.update(number, state=state, reason=reason)

    def _begin(self, trial: Trial) -> None:
        if not trial.source:
            self._begun[config_text(trial.config)] += 1
            self._partial_ns += trial.partial_ns
            self._reading_ns = max(self._reading_ns, trial.started_ns)

    def _count(self, trial: Trial, observation: Observation) -> None:
        if not trial.source:
            self._epochs += 1
            self._epochs_ns += observation.device_ns
            self._reading_ns = max(self._reading_ns, observation.at_ns)

    def _open_trial(self, number: int) -> Trial:
        if not 0 <= number < len(self._trials):
            raise ValueError(f"there is no trial {number}; the last is {len(self._trials) - 1}")
        if number not in self._open:
            raise ValueError(f"trial {number} has ended: {self._trials[number].state.name}")
        return self._trials[number]

    def _place(self, trial: Trial) -> Trial:
        if not trial.source:
            self._partial_ns += trial.partial_ns - self._trials[trial.number].partial_ns
        self._trials[trial.number] = trial
        if trial.state.is_final:
            self._open.pop(trial.number, None)
        else:
            self._open[trial.number] = None
        if trial.source:
            return trial
        best = self._best
        if best is not None and best.number == trial.number:
            # The incumbent itself changed: where it fell, another may be the best now.
            fell = trial.score is None or best.score is None or trial.score < best.score
            self._best = max(self.trained, key=_rank) if fell else trial
        elif trial.score is not None and (best is None or _rank(trial) > _rank(best)):
            self._best = trial
        if self._best is not None and self._best.score is None:
            self._best = None
        return trial


def _changed(trial: Trial, **changes: object) -> Trial:
    """As `dataclasses.replace`, without a look at every field: each epoch does this."""
    unknown = changes.keys() - trial.__dict__.keys()
    if unknown:
        raise TypeError(f"a trial has no {', '.join(sorted(unknown))}")
    new = object.__new__(Trial)
    new.__dict__.update(trial.__dict__, **changes)
    return new


def _rank(trial: Trial) -> tuple[float, int]:
    score = trial.score
    return (-float("inf") if score is None else score, -trial.number)
