"""The runner that really trains: trials on a pool of workers, metered while devices are held."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tuner.budget import Kind
from tuner.files import CannotWriteError
from tuner.meter import DeviceMeter, apportion
from tuner.runner import Event, EventKind
from tuner.trial import Checkpoint, Trial
from tuner.workers.control import DEADLINE, INTERRUPT, YIELD
from tuner.workers.pool import Job, PooledWorker, WorkerPool

_EVENTS: Mapping[str, EventKind] = {
    "epoch": EventKind.EPOCH,
    "exhausted": EventKind.EXHAUSTED,
    "failed": EventKind.FAILED,
    "paused": EventKind.PAUSED,
    "cut": EventKind.CUT,
    "infeasible": EventKind.INFEASIBLE,
    "unusable": EventKind.INTERRUPTED,
}


class WorkerRunner:
    """Runs one search's trials on a pool that other searches use in their turns.

    Args:
        pool: started.
        key: names this search's checkpoints; different for each search on the pool.
    """

    clock = 0

    def __init__(self, pool: WorkerPool, key: str) -> None:
        self._pool, self._key = pool, key
        self._meters: list[DeviceMeter] = []
        self._deadline = self._allowance_ns = 0
        self._late: set[int] = set()  # jobs that were given when it had passed
        self._is_interrupted = False
        # Trials that went down with a worker together: one of them may be at fault.
        self._suspects: set[int] = set()
        self._unexplained = 0  # deaths in company since somebody was last found to be at fault
        self._most_together: int | None = None  # on one worker
        self._refusal: CannotWriteError | None = None  # of the disk, to save a checkpoint

    @property
    def slots(self) -> int:
        """Places of all workers."""
        return self._pool.slots

    @property
    def free_slots(self) -> int:
        """Free places of workers that are ready."""
        return sum(self._room(worker) for worker in self._pool.workers)

    def _room(self, worker: PooledWorker) -> int:
        """Free places; while there are suspects one, on a worker that has nothing else to do."""
        room = self._pool.room(worker)
        if self._suspects:
            return 0 if worker.jobs else min(room, 1)
        if self._most_together is not None:
            return min(room, max(0, self._most_together - len(worker.jobs)))
        return room

    @property
    def held_ns(self) -> int:
        """Time since `hold` on every device, up to now."""
        now = time.monotonic_ns()
        return sum(meter.held_at(now) for meter in self._meters)

    @property
    def first_guess_ns(self) -> int:
        """What the warm-up of the workers says."""
        return self._pool.epoch_ns

    def hold(self, allowance_ns: int, clock: int) -> None:
        """Take all devices. The deadline is when all of them together have used the allowance."""
        self._pool.wait_until_ready()
        now = time.monotonic_ns()
        self._meters = [DeviceMeter(now) for _ in self._pool.setup.devices]
        self._allowance_ns = allowance_ns
        for device in self._pool.lost:
            self._meters[device].end(now)
        self._set_deadline(now)

    def _set_deadline(self, now: int) -> None:
        """When all devices that are there will together have used what is left."""
        there = [meter for meter in self._meters if not meter.is_over]
        if not there:
            return
        left_ns = self._allowance_ns - sum(meter.held_at(now) for meter in self._meters)
        self._deadline = now + left_ns // len(there)
        for worker in self._pool.workers:
            worker.block.words[DEADLINE] = self._deadline

    def release(self) -> list[Event]:
        """All devices were held until the last training on any of them ended.

        What is reported is what is not yet: the time in which a device had nothing to do while
        another had, and the share of workers that are still being started.
        """
        end = max(meter.now_ns for meter in self._meters)
        for meter in self._meters:
            meter.advance(end)
        starting = [w for w in self._pool.workers if self._meters[w.device].has(w.start_key)]
        shares = [self._meters[w.device].drop(w.start_key, 0) for w in starting]
        events = [self._paid(None, Kind.WARM_UP, share) for share in shares]
        idle = sum(meter.take_idle() for meter in self._meters)
        events.append(self._paid(None, Kind.SEARCH, idle))
        self._meters = []
        return events

    def launch(self, trial: Trial, until_epoch: int) -> None:
        """Give the trial to a worker with room, on the least busy device.

        While there are suspects each trial is alone, for an epoch: who finishes one is cleared, and
        who brings the worker down again is found. The scheduler launches those who were
        interrupted first, so that once it launches another none of them is coming back.
        """
        if trial.number not in self._suspects:
            self._suspects &= {j.trial.number for w in self._pool.workers for j in w.jobs.values()}
        if self._suspects:
            until_epoch = min(until_epoch, trial.epoch + 1)
        workers = self._pool.workers
        busy = [w.device for w in workers for _ in w.jobs]
        worker = min(
            (w for w in workers if self._room(w)),
            key=lambda w: (busy.count(w.device), len(w.jobs), w.index),
        )
        now = time.monotonic_ns()
        job = self._pool.give(worker, trial, until_epoch, self._key)
        if time.monotonic_ns() > self._deadline:  # the driver was slow; no batch of it will begin
            self._late.add(job)
        self._meters[worker.device].claim(job, min(now, self._deadline))
        if self._is_interrupted:
            self.interrupt()

    def stop(self, number: int) -> None:
        """Have the trial's worker stop after its epoch in flight."""
        for worker in self._pool.workers:
            for job in worker.jobs.values():
                if job.trial.number == number:
                    worker.block.words[YIELD + job.place] = job.id

    def interrupt(self) -> None:
        """Have every worker save its trial after the batch in flight, and stop."""
        self._is_interrupted = True
        for worker in self._pool.workers:
            worker.block.words[INTERRUPT] = 1

    def wait(self) -> list[Event]:
        """What the workers report within a moment.

        Raises CannotWriteError where one could not write a checkpoint, once all that others had
        finished before has been reported.
        """
        if self._refusal is not None:
            raise self._refusal
        events = []
        for worker, message in self._pool.messages():
            if message is not None and message["is"] == "unwritable":
                self._refusal = CannotWriteError(
                    message["path"], message["number"], message["reason"]
                )
            elif message is None:
                events += self._funeral(worker, time.monotonic_ns())
            elif message["is"] in ("ready", "crash"):
                events += self._note(worker, message)
            elif (job := worker.jobs.get(message["job"])) is not None:
                events.append(self._event(worker, job, message))
        idle = sum(meter.take_idle() for meter in self._meters)
        if idle:
            held = sum(meter.held_ns for meter in self._meters)
            events.append(Event(None, EventKind.IDLE, {Kind.SEARCH: idle}, held))
        return events

    def discard(self, trial: Trial) -> None:
        """Delete the trial's checkpoints."""
        for mark in (trial.checkpoint, trial.midway):
            if mark is not None:
                self._pool.remove(mark.name)

    def close(self) -> None:
        """The pool outlives its runners."""

    def _note(self, worker: PooledWorker, message: dict[str, Any]) -> list[Event]:
        """What concerns no trial: a worker is there again, or says why it is about to die."""
        self._pool.take_note(worker, message)
        meter = self._meters[worker.device]
        if message["is"] == "crash" or not meter.has(worker.start_key):
            return []
        share = meter.drop(worker.start_key, min(int(message["at"]), self._deadline))
        return [self._paid(None, Kind.WARM_UP, share)]

    def _funeral(self, worker: PooledWorker, at: int) -> list[Event]:
        """A worker died: every trial that it had is interrupted, and a new one is started.

        Past the deadline the device is held for no worker that is dead or starts, however late the
        driver comes to know of it.
        """
        at = min(at, self._deadline)
        meter, jobs = self._meters[worker.device], list(worker.jobs.values())
        reason = self._pool.cause_of_death(worker)
        events = []
        if meter.has(worker.start_key):  # it was not even ready
            events.append(self._paid(None, Kind.LOST, meter.drop(worker.start_key, at)))
        is_lost = worker.device in self._pool.lost  # with its machine: none of them did it
        in_company = len(jobs) > 1 or is_lost
        kind = EventKind.HUNG if worker.is_hung and not in_company else EventKind.INTERRUPTED
        for job in jobs:
            lost = self._paid(job.trial.number, Kind.LOST, meter.drop(job.id, at))
            event = lost._replace(kind=kind, ends=True, reason=reason, is_suspect=in_company)
            events.append(event)
        if is_lost:
            self._suspects -= {job.trial.number for job in jobs}
        elif in_company:
            self._suspects |= {job.trial.number for job in jobs}
            self._unexplained += 1
            if self._unexplained > 1:  # nobody did it alone: so many together are too many
                self._most_together = max(1, len(jobs) // 2)
        elif jobs:
            self._unexplained = 0
        if self._pool.restart(worker):
            meter.claim(worker.start_key, at)  # until it is ready: WARM_UP
        elif not meter.is_over:  # nobody holds it any more, and the others have what is left
            meter.end(at)
            self._set_deadline(at)
        return events

    def _event(self, worker: PooledWorker, job: Job, message: dict[str, Any]) -> Event:
        """What a worker says of one of its trials."""
        meter, at = self._meters[worker.device], int(message["at"])
        if job.id in self._late:
            at = min(at, self._deadline)
        if message["is"] == "repeated":  # an epoch that was known already: paid for again
            return self._paid(None, Kind.LOST, meter.settle(job.id, at))
        kind = _EVENTS[message["is"]]
        ends = kind is not EventKind.EPOCH or bool(message["ends"])
        used = meter.drop(job.id, at) if ends else meter.settle(job.id, at)
        if ends:
            self._pool.take(worker, job.id)
        self._suspects.discard(job.trial.number)
        mark = message.get("checkpoint")
        unsaved = kind is EventKind.PAUSED and not mark
        lost = unsaved or kind in (EventKind.CUT, EventKind.INTERRUPTED)
        return Event(
            job.trial.number,
            kind,
            {Kind.LOST: used} if lost else _split(used, message["spent"]),
            sum(m.held_ns for m in self._meters),
            0 if not ends else None,
            ends,
            float(message.get("score", 0.0)),
            message.get("metrics", {}),
            Checkpoint(*mark) if mark else None,
            "budget spent" if kind is EventKind.CUT else str(message.get("reason", "")),
        )

    def _paid(self, number: int | None, kind: Kind, ns: int) -> Event:
        held = sum(meter.held_ns for meter in self._meters)
        return Event(number, EventKind.IDLE, {kind: ns}, held)


def _split(used_ns: int, spent: Mapping[str, int]) -> dict[Kind, int]:
    """A worker's share of the device, split as the worker's own time was."""
    kinds = [Kind.TRAIN, Kind.EVALUATE, Kind.CHECKPOINT]
    parts = apportion(used_ns, [max(0, int(spent.get(kind.value, 0))) for kind in kinds])
    return dict(zip(kinds, parts, strict=True))
