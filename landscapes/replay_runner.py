"""Replay: a landscape takes the device's place, and a virtual clock the place of time."""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Landscape
from tuner.budget import Kind
from tuner.runner import Event, EventKind
from tuner.trial import Trial


class _Job(NamedTuple):
    number: int
    scores: list[float]
    costs: list[int]
    epoch: int  # the last finished
    until: int
    began: int  # reading of the clock at which the epoch in flight began


class ReplayRunner:
    """Runs trials on one virtual device that its slots share equally.

    The clock counts the time that each active trial has had: while k trials are active it moves
    by 1 ns for every k ns of device time. A trial's epoch is finished when the clock has moved
    by the epoch's cost, so what it is charged does not depend on who shares the device, and the
    device time held is exactly the sum of what was charged and of what is in flight. Epochs
    that finish at one reading are reported in the order in which they began.

    Thinking takes no virtual time: `search` is always 0 in a replay.
    """

    def __init__(self, landscape: Landscape, replicate: int, slots: int = 1) -> None:
        if slots < 1:
            raise ValueError(f"a replay needs at least 1 slot, got {slots}")
        self._landscape, self._replicate, self.slots = landscape, replicate, slots
        self._jobs: dict[int, _Job] = {}
        self._queue: list[tuple[int, int, int]] = []  # finish, began, number
        self._began = 0  # sum over jobs
        self._stopping: set[int] = set()
        self._interrupted = False
        self._allowance_ns = 0
        self._charged_ns = 0
        self.clock = 0

    @property
    def free_slots(self) -> int:
        """Slots without a trial."""
        return self.slots - len(self._jobs)

    @property
    def held_ns(self) -> int:
        """Device time used in this hold: charged, and in flight."""
        return self._charged_ns + len(self._jobs) * self.clock - self._began

    @property
    def first_guess_ns(self) -> int:
        """The cost of an epoch in the middle of the space."""
        middle = self._landscape.space.from_unit(np.full((1, len(self._landscape.space)), 0.5))[0]
        return _to_ns(self._landscape.curve(middle, self._replicate)[1])[0]

    def hold(self, allowance_ns: int, clock: int) -> None:
        """Go on at `clock`."""
        self._allowance_ns, self._charged_ns, self.clock = allowance_ns, 0, clock

    def release(self) -> list[Event]:
        """There is nothing to give back."""
        return []

    def launch(self, trial: Trial, until_epoch: int) -> None:
        """Begin the trial's next epoch, at the reading that the trial says it began at."""
        scores, seconds = self._landscape.curve(trial.config, self._replicate, trial.repeat)
        began = self.clock if trial.clock is None else trial.clock
        self._begin(
            _Job(trial.number, scores.tolist(), _to_ns(seconds), trial.epoch, until_epoch, began)
        )

    def stop(self, number: int) -> None:
        """Let the trial end with its epoch in flight."""
        self._stopping.add(number)

    def interrupt(self) -> None:
        """Break everything off where it is; a later replay takes it up there."""
        self._interrupted = True

    def wait(self) -> list[Event]:
        """Move the clock to the next reading at which epochs finish, or to the deadline."""
        if not self._jobs:
            return []
        if self._interrupted:
            return [self._break_off(job) for job in list(self._jobs.values())]
        finish = self._queue[0][0]
        # held_ns at reading c is charged + k c - began: the deadline is where it is the allowance.
        room = self._allowance_ns - self._charged_ns + self._began
        if len(self._jobs) * finish > room:
            self.clock = max(self.clock, room // len(self._jobs))
            return [self._cut(job) for job in list(self._jobs.values())]
        self.clock = finish
        events = []
        while self._queue and self._queue[0][0] == finish:
            events.append(self._finish(self._jobs[heapq.heappop(self._queue)[2]]))
        return events

    def discard(self, trial: Trial) -> None:
        """There is nothing to forget: a curve is looked up at each launch."""

    def close(self) -> None:
        """There is nothing to end."""

    def _begin(self, job: _Job) -> None:
        self._jobs[job.number] = job
        self._began += job.began
        heapq.heappush(self._queue, (job.began + job.costs[job.epoch], job.began, job.number))

    def _leave(self, job: _Job) -> None:
        del self._jobs[job.number]
        self._began -= job.began

    def _finish(self, job: _Job) -> Event:
        number, score, costs = job.number, job.scores[job.epoch], {Kind.TRAIN: job.costs[job.epoch]}
        self._leave(job)
        self._charged_ns += job.costs[job.epoch]
        is_broken = math.isnan(score)
        ends = is_broken or job.epoch + 1 == job.until or number in self._stopping
        if ends:
            self._stopping.discard(number)
        else:
            self._begin(_Job(number, job.scores, job.costs, job.epoch + 1, job.until, self.clock))
        if is_broken:
            why = "the training broke off"
            return Event(number, EventKind.INFEASIBLE, costs, self.held_ns, ends=True, reason=why)
        clock = None if ends else self.clock
        return Event(number, EventKind.EPOCH, costs, self.held_ns, clock, ends, score)

    def _cut(self, job: _Job) -> Event:
        self._leave(job)
        self._queue.clear()
        used = self.clock - job.began
        self._charged_ns += used
        return Event(
            job.number,
            EventKind.CUT,
            {Kind.LOST: used},
            self.held_ns,
            ends=True,
            reason="budget spent",
        )

    def _break_off(self, job: _Job) -> Event:
        held = self.held_ns
        self._leave(job)
        self._queue.clear()
        return Event(job.number, EventKind.PAUSED, {}, held, job.began, True, reason="interrupted")


def _to_ns(seconds: NDArray[np.float64]) -> list[int]:
    return [max(1, round(s * 1e9)) for s in seconds.tolist()]
