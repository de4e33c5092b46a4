"""The one loop: ask the policy, maybe the searcher, launch, wait, record, charge."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from tuner.breaker import Breaker
from tuner.budget import Budget, Costs, Kind
from tuner.confirm import worth_keeping
from tuner.fidelity import Done, FidelityPolicy, Repeat, Resume, Sample, Stop
from tuner.history import History
from tuner.runner import FINAL_STATE, Event, EventKind, Runner
from tuner.searchers.base import Searcher, SpaceExhausted, decides_how_long, propose
from tuner.seeding import trial_seed
from tuner.space import Config
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

MAX_FAULTS = 3
"""How often a trial goes on in a new worker after its old one died."""

LOOK_AHEAD_SLOTS = 4
"""From so many slots on proposals are made ahead.

Fewer lose more by a result that a proposal has not seen than by the time that it takes, in which
all other slots train.
"""

BATCH_SLOTS, MOST_AT_ONCE = 8, 16
"""Where so many slots are free at once, so many proposals at most are made together.

In a pack of a hundred trials those that began together end together, and with a model of hundreds
of trials a proposal takes as long as dozens of steps of the whole pack.
"""


class TrainingBrokenError(RuntimeError):
    """Trial after trial failed: the fault is not the configurations'."""


@dataclass(frozen=True)
class Proposal:
    """What a searcher proposed, and why not from its model, where it did not."""

    config: Config
    fallback: str


class Noted(enum.StrEnum):
    """What is known of a run beside its trials and charges."""

    EXHAUSTED = "exhausted"  # true once the searcher has nothing more to propose
    PROPOSALS = "proposals"  # with which no trial has begun yet
    TRIPPED = "tripped"  # why failures stopped it; empty once a trial has passed since


@dataclass
class Recorder:
    """Writes a run's charges and notes beside its history, and commits; in memory it lists them."""

    budget: Budget
    store: Store | None = None
    run: int = 0
    clock: int = 0
    charges: list[tuple[Costs, int | None]] = field(default_factory=list)
    notes: dict[Noted, Any] = field(default_factory=dict)

    def charge(self, costs: Costs, number: int | None) -> None:
        """Spend, and note what for."""
        if any(costs.values()):
            self.budget.charge(costs, number)
            if self.store is None:
                self.charges.append((costs, number))
            else:
                self.store.charge(self.run, costs, number)

    def commit(self) -> None:
        """Make all that was recorded durable."""
        if self.store is not None:
            self.store.commit()

    def read(self, clock: int) -> None:
        """Note the runner's clock."""
        if self.store is not None and clock != self.clock:
            self.store.set_clock(self.run, clock)
        self.clock = clock

    def note(self, what: Noted, value: Any) -> None:
        """Keep something of the run that no trial says."""
        if self.store is None:
            self.notes[what] = value
        else:
            self.store.set_meta(f"{what}-{self.run}", value)

    def noted(self, what: Noted) -> Any:
        """What was kept last; None for nothing."""
        if self.store is None:
            return self.notes.get(what)
        return self.store.meta(f"{what}-{self.run}")

    def proposed(self, proposals: Sequence[Proposal]) -> None:
        """Note the proposals with which no trial has begun yet."""
        self.note(Noted.PROPOSALS, [[dict(p.config), p.fallback] for p in proposals])

    @property
    def were_proposed(self) -> list[Proposal]:
        """The proposals that are on record."""
        return [Proposal(*one) for one in self.noted(Noted.PROPOSALS) or ()]

    def held(self, ns: int) -> None:
        """Note the device time held so far, in case the driver is killed before it charges it."""
        if self.store is not None:
            self.store.set_held(self.run, ns)


class Scheduler:
    """Runs one search: composes a searcher, a policy, a runner and a budget, and owns no rule.

    Args:
        searcher: proposes configurations.
        policy: says how long each trains.
        runner: trains them.
        history: what has happened so far, recorded as it goes on.
        recorder: where charges go.
        seed: of the study; each trial's own seed derives from it.
        keep: how many completed trials' checkpoints are kept, beside the best one's.
        on_change: called after every batch of events and every launch, for whoever watches.
    """

    def __init__(
        self,
        searcher: Searcher,
        policy: FidelityPolicy,
        runner: Runner,
        history: History,
        recorder: Recorder,
        *,
        seed: int,
        keep: int = 0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.history = history
        self.budget = recorder.budget
        self._searcher, self._policy, self._runner = searcher, policy, runner
        self._recorder, self._seed, self._on_change = recorder, seed, on_change
        self._view = history.view()
        self._in_flight: set[int] = set()
        self._breaker = Breaker(bool(recorder.noted(Noted.TRIPPED)))
        ended = [t for t in history.trained if t.state.is_final and t.score is not None]
        self._keep = keep
        self._kept = worth_keeping(history, ended, keep)
        self._base_ns = 0
        self._looks_ahead = runner.slots >= LOOK_AHEAD_SLOTS and not decides_how_long(searcher)
        self._proposals = recorder.were_proposed  # with which no trial has begun yet
        self._interrupted = False
        self._trip = ""  # why nothing more may be spent
        self.finished = False  # nothing that the budget could buy is left to do

    @property
    def in_flight(self) -> tuple[Trial, ...]:
        """The trials that hold a slot now, by number."""
        return tuple(self.history[n] for n in sorted(self._in_flight))

    @property
    def held_ns(self) -> int:
        """Device time that the run has used up to now, charged or not yet."""
        held = self._base_ns + (self._runner.held_ns if self._in_flight else 0)
        return max(held, self.budget.spent_ns)

    @property
    def expected_epoch_ns(self) -> int:
        """What an epoch of a new trial is expected to cost."""
        return self._epoch_ns(None)

    @property
    def next_ns(self) -> int | None:
        """What comes next is expected to cost at least; None where the search is over.

        That is an epoch, but of a repeat the whole training.
        """
        if broken_off := self._broken_off():
            return self._epoch_ns(broken_off)
        match self._policy.next_action(self._view):
            case Done():
                return None
            case Resume(number, _):
                return self._epoch_ns(self.history[number])
            case Repeat(number, until_epoch):
                return self._whole(until_epoch) * self._epoch_ns(self.history[number])
            case _:
                return self._epoch_ns(None)

    @property
    def can_go_on(self) -> bool:
        """Whether the budget is expected to buy what comes next, if anything does."""
        next_ns = self.next_ns
        return next_ns is not None and self.budget.remaining_ns >= next_ns

    def pay_warm_up(self, device_ns: int) -> None:
        """Charge for the start of workers, as far as the budget goes.

        A search whose budget does not buy what comes next pays nothing: it has no use for them.
        """
        if self.can_go_on:
            paid_ns = min(device_ns, self.budget.remaining_ns)
            self._recorder.charge({Kind.WARM_UP: paid_ns}, None)
            self._recorder.commit()

    def interrupt(self) -> None:
        """Stop soon without losing work; `run` returns. Safe to call in a signal handler."""
        self._interrupted = True
        self._runner.interrupt()

    def run(self, turn_ns: int | None = None) -> None:
        """Hold the devices for one turn: until `turn_ns` are used, or to the end of the budget.

        At the end of a turn the trials in flight finish their epoch and go on in the next one.
        Sets `finished` when there is nothing left that the budget could buy.
        """
        self._base_ns = self.budget.spent_ns
        self._runner.hold(self.budget.remaining_ns, self._recorder.clock)
        stopping: set[int] = set()
        try:
            while True:
                over = turn_ns is not None and self.held_ns - self._base_ns >= turn_ns
                if not over and not self._interrupted:
                    self._fill_slots()
                    self._look_ahead()
                if not self._in_flight and (over or self._interrupted or not self._is_starting):
                    break
                if over and stopping != self._in_flight:
                    for number in self._in_flight - stopping:
                        self._runner.stop(number)
                    stopping = set(self._in_flight)
                self._settle(self._runner.wait())
                stopping &= self._in_flight
        except BaseException:
            self._runner.release()  # and record nothing: a transaction may be half written
            raise
        held_ns = self._base_ns + self._runner.held_ns
        kind = Kind.SEARCH if self._runner.free_slots else Kind.WARM_UP
        for event in self._runner.release():
            self._recorder.charge(event.costs, None)
        self.finished = not self._interrupted and not over
        if self.finished:
            self._recorder.charge({kind: self._late_ns(held_ns)}, None)
        self._recorder.commit()
        if self.finished:
            reason = "the search ended" if self.next_ns is None else "budget spent"
            for trial in self.history.running:
                self.history.update(trial.number, reason=reason)
            self._recorder.commit()

    @property
    def _is_starting(self) -> bool:
        """Whether no slot is free though nothing runs: a worker is being started, to wait for."""
        return not self._runner.free_slots and self._affordable_epochs(None) > 0

    def _late_ns(self, held_ns: int) -> int:
        """Of `held_ns` what nobody has paid for, where it took the time for another epoch.

        The devices are given back with the last training. But where the driver, or the start of a
        worker, was so slow that what was left then buys an epoch no longer, they waited for it.
        """
        left_ns, next_ns = self.budget.remaining_ns, self.next_ns
        late_ns = held_ns - self.budget.spent_ns
        is_why = next_ns is not None and left_ns >= next_ns > left_ns - late_ns
        return min(late_ns, left_ns) if is_why else 0

    # -- what to do next -------------------------------------------------------------------------

    def _fill_slots(self) -> None:
        while self._runner.free_slots and not (self._breaker.is_probing and self._in_flight):
            if not self._launch_one():
                break
            self._on_change()

    def _launch_one(self) -> bool:
        """Put one trial into a free slot; False where there is nothing to do or to pay it with."""
        if broken_off := self._broken_off():
            return self._launch(broken_off, broken_off.target)
        match self._policy.next_action(self._view):
            case Sample(until_epoch):
                return self._start(until_epoch)
            case Resume(number, until_epoch):
                return self._launch(self.history[number], until_epoch)
            case Repeat(number, until_epoch):
                return self._repeat(self.history[number], until_epoch)
            case Stop(number):
                closed = self.history.close(number, TrialState.STOPPED, "stopped by the policy")
                self._recorder.commit()  # before its checkpoint goes
                self._retire(closed)
                return True
            case _:
                return False

    def _broken_off(self) -> Trial | None:
        """What was broken off, by a signal, a fault or the end of a turn: it goes on first.

        Before all else what a replay had in flight, which holds reservations already.
        """
        waiting = (t for t in self.history.under_way if t.number not in self._in_flight)

        def turn(trial: Trial) -> tuple[bool, bool]:
            # A runner that looks for whoever brought a worker down waits for those in question.
            is_new = trial.clock is None
            return is_new, is_new and trial.state is not TrialState.INTERRUPTED

        return min(waiting, key=turn, default=None)

    def _start(self, until_epoch: int) -> bool:
        if self.history.is_exhausted or not self._affordable_epochs(None):
            return False
        try:
            proposals = self._proposals or self._propose()
        except SpaceExhausted:
            self.history.is_exhausted = True
            self._recorder.note(Noted.EXHAUSTED, True)
            return self._launch_one()  # the policy may have another use for what is left
        self._keep_proposals(proposals[1:])
        return self._begin(proposals[0].config, until_epoch, note=proposals[0].fallback)

    def _look_ahead(self) -> None:
        """Make the next proposal while every slot trains, so that the first to be free has it.

        The rule: with LOOK_AHEAD_SLOTS or more a configuration is proposed once those before it
        fill all slots, from the history as it is then, and recorded until a trial begins with it.
        So it is a function of seed and history, in a replay the same as in training.
        """
        due = self._looks_ahead and not self._proposals and not self._runner.free_slots
        if due and not self.history.is_exhausted and self._affordable_epochs(None):
            with suppress(SpaceExhausted):  # what is in flight may be the last, or may fail
                self._keep_proposals(self._propose())

    def _propose(self) -> list[Proposal]:
        """One proposal; where many slots are free at once, some for them together.

        Those are recorded too, so that they are a function of seed, history and free slots.
        """
        free = self._runner.free_slots
        count = min(free, MOST_AT_ONCE) if self._looks_ahead and free >= BATCH_SLOTS else 1
        configs = propose(self._searcher, self._view, count)
        return [Proposal(config, self._searcher.fallback) for config in configs]

    def _keep_proposals(self, proposals: list[Proposal]) -> None:
        if proposals or self._proposals:
            self._recorder.proposed(proposals)
        self._proposals = proposals

    def _repeat(self, trial: Trial, until_epoch: int) -> bool:
        """Train a configuration again; False where the budget does not pay for all of it.

        An unfinished training would say nothing of the final score.
        """
        if self._affordable_epochs(trial) < self._whole(until_epoch):
            return False
        return self._begin(trial.config, until_epoch, confirms=trial.number)

    def _whole(self, until_epoch: int) -> int:
        """How many epochs a whole training has at least, where it may say itself when it ends."""
        return 1 if self.history.max_epochs is None else until_epoch

    def _begin(
        self, config: Config, until_epoch: int, *, note: str = "", confirms: int | None = None
    ) -> bool:
        repeat = self.history.trainings(config)
        trial = Trial(
            len(self.history),
            config,
            trial_seed(self._seed, config, repeat),
            until_epoch,
            started_ns=self._base_ns + self._runner.held_ns,
            note=note,
            repeat=repeat,
            confirms=confirms,
        )
        return self._launch(self.history.start(trial), until_epoch)

    def _launch(self, trial: Trial, target: int) -> bool:
        """Train a trial as far as the budget pays for; False where that is not one epoch."""
        number, clock = trial.number, trial.clock
        granted, reserved_ns = trial.granted, trial.reserved_ns
        if clock is not None:  # a replay goes on under the reservation that it had
            self.budget.restore(number, reserved_ns)
        else:
            epochs = min(self._affordable_epochs(trial), target - trial.epoch)
            granted, reserved_ns = trial.epoch + epochs, epochs * self._epoch_ns(trial)
            if epochs < 1 or not self.budget.reserve(number, reserved_ns):
                self.history.update(number, state=TrialState.PAUSED)
                return False
            clock = self._runner.clock
        trial = self.history.update(
            number,
            state=TrialState.RUNNING,
            reason="",
            target=target,
            granted=granted,
            reserved_ns=reserved_ns,
            clock=clock,
        )
        self._recorder.commit()  # the row is durable before the device acts on it
        self._runner.launch(trial, granted)
        self._in_flight.add(number)
        return True

    def _epoch_ns(self, trial: Trial | None) -> int:
        """What an epoch is expected to cost: its own mean, else the run's, else a guess."""
        if trial is not None and trial.confirms is not None and not trial.curve:
            trial = self.history[trial.confirms]  # the same setting, by whose cost it was begun
        if trial is not None and trial.curve:
            return trial.device_ns // len(trial.curve)
        mean = self.history.mean_epoch_ns
        return self._runner.first_guess_ns if mean is None else mean

    def _affordable_epochs(self, trial: Trial | None) -> int:
        uncharged = max(0, self._base_ns + self._runner.held_ns - self.budget.spent_ns)
        reserved = self.budget.remaining_ns - self.budget.available_ns
        free_ns = self.budget.remaining_ns - max(reserved, uncharged)
        return max(0, free_ns) // max(1, self._epoch_ns(trial))

    # -- what has happened -----------------------------------------------------------------------

    def _settle(self, events: list[Event]) -> None:
        """Record a batch of events in one transaction."""
        changes = []
        for event in events:
            self._recorder.charge(event.costs, event.number)
            if event.number is not None:
                old = self.history[event.number]
                changes.append((old, self._record(old, event)))
        if events:
            self._recorder.read(self._runner.clock)
            self._recorder.commit()
            for old, new in changes:
                self._sweep(old, new)
            self._on_change()
        self._recorder.held(self.held_ns)
        if self._trip:
            raise TrainingBrokenError(
                f"{self._trip}; nothing more is spent, and nothing that was finished is lost: once "
                "the cause is mended the search goes on, with one trial until that passes"
            )

    def _record(self, trial: Trial, event: Event) -> Trial:
        """Note in the history what has happened to a trial; the trial as it is then."""
        number = trial.number
        if event.kind is EventKind.EPOCH:
            cost_ns = sum(event.costs.values())
            trial = self.history.observe(
                number,
                Observation(
                    trial.epoch + 1,
                    event.score,
                    trial.partial_ns + cost_ns,
                    self._base_ns + event.held_ns,
                    event.metrics,
                ),
                partial_ns=0,
                clock=event.clock,
                reserved_ns=max(0, trial.reserved_ns - cost_ns),
                checkpoint=event.checkpoint or trial.checkpoint,
                midway=None,
            )
        if event.ends:
            self._in_flight.discard(number)
            self.budget.release(number)
            trial = self._end(trial, event)
        if event.kind is EventKind.EPOCH:
            if self._breaker.is_probing:
                self._recorder.note(Noted.TRIPPED, "")
            self._breaker.passed()
        if trial.state.is_final:
            failure = trial.reason if trial.state is TrialState.FAILED else None
            if trip := self._breaker.ended(failure):
                self._trip = trip
                self._recorder.note(Noted.TRIPPED, trip)
        return trial

    def _end(self, trial: Trial, event: Event) -> Trial:
        """Put a trial that gave its slot back into the state that the event leaves it in."""
        number, kind = trial.number, event.kind
        if kind is EventKind.EPOCH:
            is_complete = trial.epoch == self.history.max_epochs
            state = TrialState.COMPLETED if is_complete else TrialState.PAUSED
            return self.history.update(number, state=state, clock=None)
        if kind is EventKind.EXHAUSTED and not trial.curve:
            reason = "the training ended without a score; expected one yielded, or returned"
            return self.history.close(number, TrialState.FAILED, reason)
        if kind in FINAL_STATE:
            paid_ns = trial.partial_ns + sum(event.costs.values())
            self.history.update(number, partial_ns=paid_ns)
            return self.history.close(number, FINAL_STATE[kind], event.reason)
        if kind is EventKind.INTERRUPTED and event.is_suspect:  # it may be another's fault
            state = TrialState.INTERRUPTED
            return self.history.update(number, state=state, reason=event.reason, clock=None)
        if kind is EventKind.HUNG and trial.faults:
            return self.history.close(number, TrialState.INFEASIBLE, event.reason)
        if kind in (EventKind.INTERRUPTED, EventKind.HUNG):
            faults = trial.faults + 1
            gone = faults > MAX_FAULTS
            return self.history.update(
                number,
                state=TrialState.FAILED if gone else TrialState.INTERRUPTED,
                reason=f"{faults} times: {event.reason}" if gone else event.reason,
                faults=faults,
                clock=None,
            )
        # PAUSED where it is, or CUT back to its last checkpoint
        kept = {k: ns for k, ns in event.costs.items() if k is not Kind.LOST}
        return self.history.update(
            number,
            state=TrialState.PAUSED,
            reason=event.reason,
            clock=event.clock,
            partial_ns=trial.partial_ns + sum(kept.values()),
            midway=event.checkpoint or trial.midway,
        )

    def _sweep(self, old: Trial, new: Trial) -> None:
        """Discard what an event made useless, by the trial as it was before and after it."""
        if old.checkpoint is not None and old.checkpoint != new.checkpoint:
            self._runner.discard(replace(old, midway=None))
        if old.midway is not None and old.midway != new.midway:
            self._runner.discard(replace(old, checkpoint=None))
        if new.state.is_final:
            self._retire(new)

    def _retire(self, trial: Trial) -> None:
        """Of all trials that ended, keep the checkpoints of those that may be chosen in the end.

        Not of the incumbent alone: one that is still training may yet get worse, and then the
        best that ended is the incumbent again.
        """
        if trial.score is None or trial.checkpoint is None:
            self._runner.discard(trial)
            return
        before = [*self._kept, trial]
        self._kept = worth_keeping(self.history, before, self._keep)
        for other in before:
            if other not in self._kept:
                self._runner.discard(other)


def mark_interrupted(history: History, recorder: Recorder, runner_keeps: bool) -> None:
    """Make ready to go on after a driver that died without a word.

    What was in flight is INTERRUPTED and goes on from its last epoch, and what the dead driver
    had held without recording it is charged as lost, once. With `runner_keeps` nothing was lost:
    a replay takes up its virtual clock where it was.
    """
    if recorder.noted(Noted.EXHAUSTED):
        history.is_exhausted = True
    for trial in history.running:
        if trial.state is TrialState.RUNNING:
            history.update(
                trial.number,
                state=TrialState.INTERRUPTED,
                reason="the driver ended",
                clock=trial.clock if runner_keeps else None,
            )
    if not runner_keeps and recorder.store is not None:
        # No further than the budget goes: past the deadline no batch begins, and it was the driver
        # that held on, until it died.
        held = recorder.store.held(recorder.run) - recorder.budget.spent_ns
        lost = min(held, recorder.budget.remaining_ns)
        if lost > 0:
            recorder.charge({Kind.LOST: lost}, None)
    recorder.commit()
