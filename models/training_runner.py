"""The runner that really trains: worker processes on devices, metered while they are held."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from models.control import DEADLINE, INTERRUPT, YIELD_JOB, ControlBlock
from models.worker import receive, send
from tuner.budget import Kind
from tuner.meter import DeviceMeter, apportion
from tuner.runner import Event, EventKind
from tuner.trial import Checkpoint, Trial

_PATIENCE_S = 0.25  # how long `wait` waits before it lets the caller look around
_MAX_STARTS = 3  # in a row, without the worker becoming ready
_FOREVER = (1 << 63) - 1

_EVENTS: Mapping[str, EventKind] = {
    "epoch": EventKind.EPOCH,
    "paused": EventKind.PAUSED,
    "cut": EventKind.CUT,
    "infeasible": EventKind.INFEASIBLE,
    "unusable": EventKind.INTERRUPTED,
}


class WorkerStartError(RuntimeError):
    """A worker process cannot be started, again and again."""


def find_devices(wanted: str) -> list[str]:
    """The devices that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises ValueError where it is none of these, or there is no such GPU.
    """
    name, _, number = wanted.partition(":")
    if name not in ("auto", "cpu", "cuda") or (number and (name != "cuda" or not number.isdigit())):
        raise ValueError(f"a device is auto, cpu, cuda or cuda:N, got {wanted!r}")
    if name == "cpu":
        return ["cpu"]
    count = _count_gpus()
    if name == "auto":
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if count == 0:
        raise ValueError(
            f"{wanted!r} was asked for, but PyTorch sees no CUDA GPU here; check nvidia-smi and "
            "that this PyTorch is a CUDA build, or use --device cpu"
        )
    if number and int(number) >= count:
        raise ValueError(f"there is no {wanted}: the GPUs here are cuda:0 to cuda:{count - 1}")
    return [wanted] if number else [f"cuda:{i}" for i in range(count)]


def _count_gpus() -> int:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0  # no driver: no need to load PyTorch to find out
    import torch

    return torch.cuda.device_count()


@dataclass(frozen=True)
class Setup:
    """What every worker of a pool is told at its start.

    Attributes:
        directory: where checkpoints lie, and the workers' logs.
    """

    devices: tuple[str, ...]
    slots_per_device: int
    data: str
    root: Path
    epochs: int
    augment: bool
    directory: Path

    @property
    def unit(self) -> str:
        """What its minutes are called: never GPU minutes where there is no GPU."""
        return "GPU minutes" if self.devices[0].startswith("cuda") else "device minutes (cpu)"


@dataclass
class _Job:
    id: int
    trial: Trial


@dataclass
class _Worker:
    """One worker process as the driver sees it."""

    index: int
    device: int
    process: subprocess.Popen[bytes]
    connection: Connection
    block: ControlBlock
    is_ready: bool = False
    starts: int = 1
    job: _Job | None = None
    last_words: str = ""
    ready: dict[str, Any] = field(default_factory=dict)


class WorkerPool:
    """The worker processes of a whole race: started once, used by one runner after the other.

    A context manager; leaving it ends every worker.

    Args:
        setup: what the workers are told.
        precision: how they compute; where it is None, as the first of them finds quickest, for
            good. A race that is resumed goes on as it began.
    """

    def __init__(self, setup: Setup, precision: Mapping[str, bool] | None = None) -> None:
        self.setup = setup
        setup.directory.mkdir(parents=True, exist_ok=True)
        self.workers: list[_Worker] = []
        self.precision = precision
        self._jobs = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> int:
        """Start all workers and wait until they are ready; the device time that took, in ns."""
        began = time.monotonic_ns()
        for device in range(len(self.setup.devices)):
            for _ in range(self.setup.slots_per_device):
                self.workers.append(self._spawn(len(self.workers), device))
        self.wait_until_ready()
        if self.precision is None:
            ready = self.workers[0].ready
            self.precision = {key: bool(ready[key]) for key in ("bf16", "channels_last")}
        return (time.monotonic_ns() - began) * len(self.setup.devices)

    def sweep(self, keep: Collection[str]) -> None:
        """Delete what a driver that was killed left behind: all but the named checkpoints."""
        for pattern in ("*.npz", ".*.tmp"):
            for path in self.setup.directory.glob(pattern):
                if path.name not in keep:
                    path.unlink(missing_ok=True)

    def wait_until_ready(self) -> None:
        """Wait for workers that are being started; nobody pays for this."""
        while any(not w.is_ready for w in self.workers):
            for worker, message in self.messages():
                self.take_note(worker, message)

    @property
    def epoch_ns(self) -> int:
        """Device time of an epoch of the default recipe, by the workers' warm-up."""
        slowest = max(int(w.ready["epoch_ns"]) for w in self.workers)
        return slowest // self.setup.slots_per_device

    def messages(self) -> Iterator[tuple[_Worker, dict[str, Any] | None]]:
        """What workers said within a moment, oldest first; None where one died."""
        by_connection = {w.connection: w for w in self.workers}
        heard: list[tuple[int, _Worker, dict[str, Any] | None]] = []
        for connection in wait_for(list(by_connection), timeout=_PATIENCE_S):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                while worker.connection.poll():
                    message = receive(worker.connection)
                    heard.append((int(message["at"]), worker, message))
            except (EOFError, OSError, ValueError):
                heard.append((time.monotonic_ns(), worker, None))
        heard.sort(key=lambda item: item[0])
        return ((worker, message) for _, worker, message in heard)

    def take_note(self, worker: _Worker, message: dict[str, Any] | None) -> None:
        """Book-keeping for a message that concerns no trial; restarts a worker that died."""
        if message is None:
            self.restart(worker)
        elif message["is"] == "ready":
            worker.is_ready, worker.starts, worker.ready = True, 0, message
        elif message["is"] == "crash":
            worker.last_words = str(message["reason"])

    def restart(self, worker: _Worker) -> None:
        """Start a new process in the place of one that died."""
        reason = self.cause_of_death(worker)
        if worker.starts >= _MAX_STARTS:
            raise WorkerStartError(
                f"worker {worker.index} on {self.setup.devices[worker.device]} could not be "
                f"started {worker.starts} times in a row: {reason}; see "
                f"{self._log_path(worker.index)}"
            )
        worker.connection.close()
        fresh = self._spawn(worker.index, worker.device)
        worker.process, worker.connection = fresh.process, fresh.connection
        os.close(worker.block.fd)
        fresh.block.words[DEADLINE] = worker.block.words[DEADLINE]
        worker.block = fresh.block
        worker.is_ready, worker.job, worker.last_words = False, None, ""
        worker.starts += 1

    def cause_of_death(self, worker: _Worker) -> str:
        """Why a worker that closed its connection did so, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=5)
        worker.process.kill()
        code = worker.process.wait()
        if worker.last_words:
            return worker.last_words
        if code < 0:
            return f"the worker was killed by {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"

    def test(self, trial: Trial) -> float:
        """The test accuracy of a trial at its checkpoint; raises ValueError where it has none."""
        if trial.checkpoint is None:
            raise ValueError(f"trial {trial.number} has no checkpoint to test")
        self.wait_until_ready()
        worker = self.workers[0]
        with contextlib.suppress(OSError):  # a worker that just died is noticed by `messages`
            send(worker.connection, self._order("test", replace(trial, midway=None), ""))
        while True:
            for who, message in self.messages():
                if message is not None and message["is"] == "tested":
                    return float(message["score"])
                if message is not None and message["is"] == "untestable":
                    raise ValueError(f"the winner could not be tested: {message['reason']}")
                reason = self.cause_of_death(who) if message is None else ""
                self.take_note(who, message)
                if message is None and who is worker:
                    raise ValueError(f"the winner could not be tested: {reason}")

    def give(self, worker: _Worker, trial: Trial, until_epoch: int, key: str) -> None:
        """Have an idle worker train a trial until an epoch is finished."""
        self._jobs += 1
        worker.job = _Job(self._jobs, trial)
        order = self._order("train", trial, key)
        with contextlib.suppress(OSError):  # a worker that just died is noticed by `messages`
            send(worker.connection, {**order, "id": self._jobs, "until": until_epoch})

    def close(self) -> None:
        """End every worker at once."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.wait()
            worker.connection.close()
        self.workers.clear()

    def _order(self, what: str, trial: Trial, key: str) -> dict[str, Any]:
        mark = trial.midway or trial.checkpoint
        return {
            "do": what,
            "key": key,
            "number": trial.number,
            "config": dict(trial.config),
            "seed": trial.seed,
            "from": None if mark is None else [mark.name, mark.sha256],
            **(self.precision or {}),
        }

    def _log_path(self, index: int) -> Path:
        return self.setup.directory / f"worker-{index}.log"

    def _spawn(self, index: int, device: int) -> _Worker:
        """A new interpreter, not a fork: nothing of the driver's state, and its own session.

        In its own session the terminal's Ctrl-C does not reach it; the driver decides.
        """
        ours, theirs = socket.socketpair()
        block = ControlBlock()
        block.words[DEADLINE] = _FOREVER
        setup = self.setup
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        # One thread, however few workers: threads that wait for each other in layers this small
        # made epochs many times slower as soon as another process wanted a core.
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(self._log_path(index), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "models.worker", str(theirs.fileno()), str(block.fd)],
                pass_fds=(theirs.fileno(), block.fd),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        connection = Connection(ours.detach())
        with contextlib.suppress(OSError):
            send(
                connection,
                {
                    "device": setup.devices[device],
                    "data": setup.data,
                    "root": str(setup.root),
                    "epochs": setup.epochs,
                    "augment": setup.augment,
                    "directory": str(setup.directory),
                },
            )
        return _Worker(index, device, process, connection, block)


class TrainingRunner:
    """Runs one search's trials on a pool that other searches use in their turns.

    Args:
        pool: started.
        key: names this search's checkpoints; different for each search on the pool.
    """

    clock = 0

    def __init__(self, pool: WorkerPool, key: str) -> None:
        self._pool, self._key = pool, key
        self._meters: list[DeviceMeter] = []
        self._is_interrupted = False

    @property
    def slots(self) -> int:
        """All workers."""
        return len(self._pool.workers)

    @property
    def free_slots(self) -> int:
        """Workers that are ready and have nothing to do."""
        return sum(w.is_ready and w.job is None for w in self._pool.workers)

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
        for worker in self._pool.workers:
            worker.block.words[DEADLINE] = now + allowance_ns // len(self._meters)

    def release(self) -> list[Event]:
        """All devices were held until the last training on any of them ended.

        What is reported is what is not yet: the time in which a device had nothing to do while
        another had, and the share of workers that are still being started.
        """
        end = max(meter.now_ns for meter in self._meters)
        for meter in self._meters:
            meter.advance(end)
        starting = [w for w in self._pool.workers if self._meters[w.device].has(w.index)]
        shares = [self._meters[w.device].drop(w.index, 0) for w in starting]
        events = [self._paid(None, Kind.WARM_UP, share) for share in shares]
        idle = sum(meter.take_idle() for meter in self._meters)
        events.append(self._paid(None, Kind.SEARCH, idle))
        self._meters = []
        return events

    def launch(self, trial: Trial, until_epoch: int) -> None:
        """Give the trial to a free worker, on the least busy device."""
        free = [w for w in self._pool.workers if w.is_ready and w.job is None]
        busy = [w.device for w in self._pool.workers if w.job is not None]
        worker = min(free, key=lambda w: (busy.count(w.device), w.index))
        self._meters[worker.device].claim(worker.index, time.monotonic_ns())
        self._pool.give(worker, trial, until_epoch, self._key)
        if self._is_interrupted:
            self.interrupt()

    def stop(self, number: int) -> None:
        """Have the trial's worker stop after its epoch in flight."""
        for worker in self._pool.workers:
            if worker.job is not None and worker.job.trial.number == number:
                worker.block.words[YIELD_JOB] = worker.job.id

    def interrupt(self) -> None:
        """Have every worker save its trial after the batch in flight, and stop."""
        self._is_interrupted = True
        for worker in self._pool.workers:
            worker.block.words[INTERRUPT] = 1

    def wait(self) -> list[Event]:
        """What the workers report within a moment."""
        events = []
        for worker, message in self._pool.messages():
            at = time.monotonic_ns() if message is None else int(message["at"])
            event = self._event(worker, message, at)
            if event is not None:
                events.append(event)
        idle = sum(meter.take_idle() for meter in self._meters)
        if idle:
            held = sum(meter.held_ns for meter in self._meters)
            events.append(Event(None, EventKind.IDLE, {Kind.SEARCH: idle}, held))
        return events

    def discard(self, trial: Trial) -> None:
        """Delete the trial's checkpoints."""
        for mark in (trial.checkpoint, trial.midway):
            if mark is not None:
                (self._pool.setup.directory / mark.name).unlink(missing_ok=True)

    def close(self) -> None:
        """The pool outlives its runners."""

    def _event(self, worker: _Worker, message: dict[str, Any] | None, at: int) -> Event | None:
        meter, job = self._meters[worker.device], worker.job
        if message is not None and message["is"] in ("ready", "crash"):
            self._pool.take_note(worker, message)
            if message["is"] == "crash":
                return None
            return self._paid(None, Kind.WARM_UP, meter.drop(worker.index, at))
        if message is None:
            used = meter.drop(worker.index, at) if meter.has(worker.index) else 0
            reason = self._pool.cause_of_death(worker)
            self._pool.restart(worker)
            meter.claim(worker.index, at)  # until it is ready: WARM_UP
            if job is None:
                return self._paid(None, Kind.LOST, used)
            event = self._paid(job.trial.number, Kind.LOST, used)
            return replace(event, kind=EventKind.INTERRUPTED, ends=True, reason=reason)
        if job is None:
            return None
        kind = _EVENTS[message["is"]]
        ends = kind is not EventKind.EPOCH or bool(message["ends"])
        used = meter.drop(worker.index, at) if ends else meter.settle(worker.index, at)
        if ends:
            worker.job = None
        lost = kind in (EventKind.CUT, EventKind.INTERRUPTED)
        mark = message.get("checkpoint")
        return Event(
            job.trial.number,
            kind,
            {Kind.LOST: used} if lost else _split(used, message["spent"]),
            sum(m.held_ns for m in self._meters),
            0 if not ends else None,
            ends,
            float(message.get("score", 0.0)),
            {"loss": message["loss"]} if "loss" in message else {},
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
