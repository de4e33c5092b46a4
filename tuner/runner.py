"""What runs trials: the contract, and the runner for a user's own generator function.

A runner trains and measures. It never decides what to train and never charges: it reports what
happened and what that cost, and the scheduler does the rest. Real training, a user's function and
a replay differ only here.
"""

from __future__ import annotations

import enum
import math
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, Protocol

from tuner.budget import Costs, Kind
from tuner.meter import DeviceMeter
from tuner.space import Config
from tuner.trial import Checkpoint, Trial, TrialState


class EventKind(enum.Enum):
    """What a runner may report."""

    EPOCH = "epoch"  # an epoch was finished and scored
    EXHAUSTED = "exhausted"  # the training itself says that it is complete
    PAUSED = "paused"  # stopped as asked; goes on from its checkpoint
    CUT = "cut"  # stopped at the deadline; the epoch in flight is lost
    INFEASIBLE = "infeasible"  # the configuration's own fault
    INTERRUPTED = "interrupted"  # the machine's fault
    HUNG = "hung"  # it made no progress, and its worker was ended
    FAILED = "failed"  # the training function raised
    IDLE = "idle"  # device time that no trial used


_NO_METRICS: Mapping[str, float] = {}


class Event(NamedTuple):
    """One thing that happened, and what it cost.

    Attributes:
        number: the trial; None for device time that no trial used.
        costs: device nanoseconds by kind since the trial's last event.
        held_ns: device time used in this hold, by all, up to this event.
        clock: the runner's reading at which the trial's next epoch began, None where it did not.
        ends: whether the trial gave its slot back with this event.
        score: of an EPOCH, higher is better.
        metrics: of an EPOCH, whatever else was measured.
        checkpoint: what the trial can go on from, where that changed.
        reason: why, for all but an EPOCH.
        is_suspect: of an INTERRUPTED one, whether others were interrupted with it, so that it need
            not be at fault.
    """

    number: int | None
    kind: EventKind
    costs: Costs
    held_ns: int
    clock: int | None = None
    ends: bool = False
    score: float = 0.0
    metrics: Mapping[str, float] = _NO_METRICS
    checkpoint: Checkpoint | None = None
    reason: str = ""
    is_suspect: bool = False


class Runner(Protocol):
    """Runs trials in slots on devices that it holds between `hold` and `release`."""

    @property
    def free_slots(self) -> int:
        """How many trials may be launched right now."""

    @property
    def slots(self) -> int:
        """How many trials may run at once when all is well."""

    @property
    def held_ns(self) -> int:
        """Device time used in this hold, up to now."""

    @property
    def clock(self) -> int:
        """The runner's own clock; a real runner, which cannot go back to a reading, has 0."""

    @property
    def first_guess_ns(self) -> int:
        """Expected device time of an epoch, for want of any observation."""

    def hold(self, allowance_ns: int, clock: int) -> None:
        """Take the devices, to use at most `allowance_ns` of their time in all.

        `clock` is the last reading on record: where a virtual clock goes on.
        """

    def release(self) -> list[Event]:
        """Give the devices back; what no event has reported yet of the time they were held."""

    def launch(self, trial: Trial, until_epoch: int) -> None:
        """Train `trial` from where it is until `until_epoch` is finished; needs a free slot."""

    def stop(self, number: int) -> None:
        """Have a trial stop at the end of its epoch in flight; it reports PAUSED or its end."""

    def interrupt(self) -> None:
        """Have all trials stop as soon as they can without losing work; safe in a signal."""

    def wait(self) -> list[Event]:
        """Wait a moment for something to happen; what happened, oldest first, maybe nothing."""

    def discard(self, trial: Trial) -> None:
        """Forget what `trial`, as this record has it, would go on from: nothing will."""

    def close(self) -> None:
        """End everything at once. May be called twice."""


TrainFunction = Callable[..., "Generator[float | None, None, None] | float"]
"""A user's training: `train(config)`, or on workers `train(config, checkpoint)` too."""


class FunctionRunner:
    """Runs a user's `train(config)` in this process: a generator yielding a score an epoch.

    One slot; its device time is the wall time inside the generator. A function that returns a
    number instead counts as one epoch. A generator cannot be stopped between two scores, so the
    budget is overspent by at most one epoch, and one that was lost with its process is run
    again from the start up to where it was, at the study's expense (`lost`).
    """

    slots = 1
    clock = 0

    def __init__(self, train: TrainFunction, sign: float = 1.0) -> None:
        self._train = train
        self._sign = sign
        self._live: dict[int, tuple[Generator[float | None, None, None], int]] = {}
        self._job: tuple[int, int] | None = None
        self._catch_up = 0
        self._stopping = False
        self._interrupted = False
        self._meter = DeviceMeter(0)
        self._allowance_ns = 0

    @property
    def free_slots(self) -> int:
        """1 while nothing runs."""
        return 1 if self._job is None else 0

    @property
    def held_ns(self) -> int:
        """Time since `hold`."""
        return self._meter.held_at(time.monotonic_ns())

    @property
    def first_guess_ns(self) -> int:
        """Nothing is known of a function before it has run: the first epoch is always begun."""
        return 0

    def hold(self, allowance_ns: int, clock: int) -> None:
        """Start the clock."""
        self._allowance_ns = allowance_ns
        self._meter = DeviceMeter(time.monotonic_ns())

    def release(self) -> list[Event]:
        """Stop the clock."""
        return []

    def launch(self, trial: Trial, until_epoch: int) -> None:
        """Remember what to run; it runs in `wait`."""
        self._job = (trial.number, until_epoch)
        self._stopping = False
        if trial.number not in self._live:
            self._live[trial.number] = (_epochs(self._train, trial.config), 0)
        self._catch_up = trial.epoch  # of this trial, and not of the one that ran before
        self._meter.claim(0, time.monotonic_ns())

    def stop(self, number: int) -> None:
        """Stop after the epoch in flight."""
        self._stopping = True

    def interrupt(self) -> None:
        """Stop after the epoch in flight."""
        self._interrupted = True

    def wait(self) -> list[Event]:
        """Run one epoch of the launched trial."""
        if self._job is None:
            return []
        number, until = self._job
        idle = self._idle()
        generator, epoch = self._live[number]
        if self._interrupted or self._stopping:
            return [*idle, self._end(number, EventKind.PAUSED, "interrupted")]
        if self.held_ns >= self._allowance_ns:
            return [*idle, self._end(number, EventKind.CUT, "budget spent")]
        try:
            found = next(generator)
            if found is None:  # between two batches
                return idle
            score = float(found) * self._sign
        except StopIteration:
            return [*idle, self._end(number, EventKind.EXHAUSTED, "")]
        except Exception as error:
            return [*idle, self._end(number, blame(error), describe(error))]
        if not math.isfinite(score):
            return [*idle, self._end(number, EventKind.INFEASIBLE, f"score {score}")]
        epoch += 1
        self._live[number] = (generator, epoch)
        if epoch <= self._catch_up:
            # Seen before the interruption: paid for again, recorded once.
            costs = {Kind.LOST: self._meter.settle(0, time.monotonic_ns())}
            return [*idle, Event(None, EventKind.IDLE, costs, self.held_ns)]
        ends = epoch >= until
        now = time.monotonic_ns()
        used = self._meter.drop(0, now) if ends else self._meter.settle(0, now)
        if ends:
            self._job = None
        event = Event(
            number, EventKind.EPOCH, {Kind.TRAIN: used}, self.held_ns, ends=ends, score=score
        )
        return [*idle, event]

    def discard(self, trial: Trial) -> None:
        """Close the trial's generator, so that its `finally` blocks run."""
        live = self._live.pop(trial.number, None)
        if live is not None:
            _close(live[0])

    def close(self) -> None:
        """Close every generator."""
        while self._live:
            _close(self._live.popitem()[1][0])

    def _idle(self) -> list[Event]:
        idle = self._meter.take_idle()
        return [Event(None, EventKind.IDLE, {Kind.SEARCH: idle}, self.held_ns)] if idle else []

    def _end(self, number: int, kind: EventKind, reason: str) -> Event:
        self._job = None
        used = self._meter.drop(0, time.monotonic_ns())
        if kind is not EventKind.PAUSED:
            self._live.pop(number, None)
        what_for = Kind.TRAIN if kind in FINAL_STATE else Kind.LOST
        return Event(number, kind, {what_for: used}, self.held_ns, ends=True, reason=reason)


def _epochs(train: TrainFunction, config: Config) -> Generator[float | None, None, None]:
    result = train(dict(config))
    if isinstance(result, Generator):
        yield from result
    else:
        yield result


_LONGEST_REASON = 2_000


def _close(generator: Generator[float | None, None, None]) -> None:
    """Have a training's `finally` blocks run; what they raise is told, and ends nothing else."""
    try:
        generator.close()
    except Exception as error:
        traceback.print_exception(error)


class Infeasible(Exception):
    """Raised by a training where its configuration cannot be trained at all; the text says why.

    That is not the same as bad: searchers learn where it is likely, and no score is made up.
    """


def blame(error: Exception) -> EventKind:
    """Whose fault an exception is: the configuration's, or the function's."""
    # PyTorch's error is known by its name, so that nobody has to load PyTorch for it.
    is_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
    )
    own_fault = is_memory or isinstance(error, ArithmeticError | Infeasible)
    return EventKind.INFEASIBLE if own_fault else EventKind.FAILED


def describe(error: BaseException) -> str:
    """An error in words."""
    text = str(error)
    if not isinstance(error, Infeasible):
        text = f"{type(error).__name__}: {text}".strip(": ")
    # A file name may hold bytes that are no text, and an error the whole of a file.
    return text[:_LONGEST_REASON].encode("utf-8", "backslashreplace").decode()


FINAL_STATE: Mapping[EventKind, TrialState] = {
    EventKind.EXHAUSTED: TrialState.COMPLETED,
    EventKind.INFEASIBLE: TrialState.INFEASIBLE,
    EventKind.FAILED: TrialState.FAILED,
}
"""The state in which each event that ends a trial for good leaves it."""
