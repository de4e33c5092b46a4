"""The records of a search: what a trial is, and what is observed of it."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from tuner.seeding import config_text
from tuner.space import Config

SIGNS = {"max": 1.0, "min": -1.0}
"""By the mode of a study, what turns its scores into those of which a higher one is better."""

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

    __hash__ = object.__hash__  # a member is the only one of its value; Enum's own is slow

    @property
    def is_final(self) -> bool:
        """Whether a trial in this state will never train again."""
        return self in _FINAL

    @property
    def is_broken(self) -> bool:
        """Whether a trial in this state has no score that counts."""
        return self in _BROKEN


_FINAL = frozenset(
    {TrialState.COMPLETED, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED}
)
_BROKEN = frozenset({TrialState.INFEASIBLE, TrialState.FAILED})


_NO_METRICS: Mapping[str, float] = {}


class Observation(NamedTuple):
    """One epoch of a trial; a tuple, since nothing is made more often.

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
    metrics: Mapping[str, float] = _NO_METRICS


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

    @cached_property
    def setting(self) -> str:
        """Its configuration as a text, the same for equal ones: asked for at every step of some."""
        return config_text(self.config)

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 before the first."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def score(self) -> float | None:
        """The score of the latest epoch; None where there is none that counts."""
        return self.curve[-1].score if self.curve and self.state not in _BROKEN else None

    def score_at(self, epoch: int) -> float:
        """The score after an epoch; infinitely bad where the trial never came so far.

        It stays as it was where the trial broke off later on: ranks that shift afterwards would
        take back what has been decided by them.
        """
        return self.curve[epoch - 1].score if len(self.curve) >= epoch else -math.inf

    @property
    def waits(self) -> bool:
        """Whether it has come as far as it was sent, and waits for a decision."""
        return self.state is TrialState.PAUSED and 0 < self.epoch >= self.target

    @property
    def is_own(self) -> bool:
        """Whether a policy answers for it: not taken over, and not a training that repeats one."""
        return not self.source and self.confirms is None

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


def negated(trial: Trial) -> Trial:
    """The same trial with its scores negated, as a minimised objective has them at the border."""
    return replace(trial, curve=tuple(o._replace(score=-o.score) for o in trial.curve))
