"""The worker processes of a race: started, spoken with, and replaced when they die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from tuner.trial import Trial
from tuner.workers import warden
from tuner.workers.control import DEADLINE, END, PROGRESS, STRETCH, ControlBlock
from tuner.workers.devices import count_cores
from tuner.workers.messages import check, receive, send
from tuner.workers.served import OUTER_PATH, signal_name

PATIENCE_S = 0.25  # how long `messages` waits before it lets the caller look around
HUNG_AFTER_S = 60.0  # without a finished batch; or twenty times the usual, where longer
_START_AFTER_S = 600.0  # for a start, a measurement or a test, which compile and load
USUAL_STRETCHES = 20
_AWAY_S = 5.0
_DYING_S = 5.0  # from SIGTERM to SIGKILL
_MOST_NAMED = 8
_MAX_STARTS = 3  # in a row, without the worker becoming ready
_FOREVER = (1 << 63) - 1


class WorkerStartError(RuntimeError):
    """A worker process cannot be started, again and again."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the workers of a pool are, and what each is told at its start.

    Attributes:
        devices: `cpu`, or `cuda:N`, each the place of `per_device` workers.
        directory: where checkpoints lie, and the workers' logs.
        program: the module that a worker runs.
        hung_after_s: how long a worker with trials may finish no batch, at least.
        unknown_after_s: the same while it is not known yet how long its batches usually take.
        stretches: so many times the usual is what it may take, where that is longer.
        suffix: of a checkpoint, a file or a folder, by which `sweep` knows it.
        cores: of the machine's, how many the workers share; None for all that this process may use.
    """

    devices: tuple[str, ...]
    directory: Path
    program: str
    hung_after_s: float = HUNG_AFTER_S
    unknown_after_s: float = 0.0
    stretches: int = USUAL_STRETCHES
    suffix: str
    cores: int | None = None

    @property
    def core_count(self) -> int:
        """How many cores the workers of all devices share."""
        return min(self.cores or count_cores(), count_cores())

    @property
    def named(self) -> str:
        """Its devices, for people: of many their number."""
        if len(self.devices) > _MOST_NAMED:
            return f"{len(self.devices)} devices such as {self.devices[0]}"
        return ",".join(self.devices)

    @property
    def unit(self) -> str:
        """What its minutes are called: never GPU minutes where there is no GPU."""
        return "GPU minutes" if self.devices[0].startswith("cuda") else "device minutes (cpu)"

    def told(self) -> dict[str, Any]:
        """What every worker is told beside its device and the directory; JSON."""
        return {}

    def environment(self, device: int) -> dict[str, str]:
        """What is set for a worker on a device beside the environment of this process."""
        # One thread until a layout with more proves better: threads that wait for each other in
        # layers this small made epochs many times slower once another process wanted a core.
        return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class Job:
    """A trial that a worker was given."""

    id: int
    trial: Trial
    place: int  # among its worker's


@dataclass
class PooledWorker:
    """One worker process as the driver sees it."""

    index: int
    device: int
    process: subprocess.Popen[bytes]
    connection: Connection
    block: ControlBlock
    is_ready: bool = False
    starts: int = 1
    jobs: dict[int, Job] = field(default_factory=dict)
    last_words: str = ""
    ready: dict[str, Any] = field(default_factory=dict)
    busy_since: int | None = None
    """Since when something has been asked of it, by the monotonic clock; None while nothing is."""
    is_hung: bool = False
    ends_at: int = 0  # when one that is to end gets its SIGKILL; 0 while it is not

    @property
    def start_key(self) -> int:
        """Under which its start is metered; jobs are metered under their numbers from 1 on."""
        return -1 - self.index


class WorkerPool:
    """The worker processes of a whole race: started once, used by one runner after the other.

    A context manager; leaving it ends every worker.

    Args:
        setup: what the workers are, and what they are told.
        per_device: workers on each device.
        width: trials at once in each of them.
    """

    def __init__(self, setup: Setup, per_device: int = 1, width: int = 1) -> None:
        # Absolute, wherever a training goes: workers save there.
        self.setup = setup = replace(setup, directory=setup.directory.resolve())
        setup.directory.mkdir(parents=True, exist_ok=True)
        self.workers: list[PooledWorker] = []
        self.pace: Any = None
        """What was measured when it was started, by a pool that measures."""
        self.lost: set[int] = set()
        """Devices that are gone for good, with the machine that they were in."""
        self._per_device, self._width = per_device, width
        self._jobs = 0
        self._warden: subprocess.Popen[bytes] | None = None
        self._looked_at = time.monotonic_ns()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def epoch_ns(self) -> int:
        """Expected device time of an epoch, for want of any; 0 where nothing is known."""
        return 0 if self.pace is None else int(self.pace.epoch_ns)

    @property
    def slots(self) -> int:
        """Places of all workers."""
        return len(self.workers) * self._width

    def start(self) -> int:
        """Start all workers; the device time that took, in ns."""
        began = time.monotonic_ns()
        self.spawn_all(self._per_device)
        self.wait_until_ready()
        return (time.monotonic_ns() - began) * len(self.setup.devices)

    def spawn_all(self, per_device: int | None = None) -> None:
        """Have all workers start; `messages` says when each is ready."""
        per_device = per_device or self._per_device
        for device in range(len(self.setup.devices)):
            for _ in range(per_device):
                self.workers.append(self._spawn(len(self.workers), device))

    def sweep(self, keep: Collection[str]) -> None:
        """Delete what a driver that was killed left behind: all but the named checkpoints."""
        for pattern in (f"*{self.setup.suffix}", ".*.tmp"):
            for path in self.setup.directory.glob(pattern):
                if path.name not in keep:
                    self.remove(path.name)

    def remove(self, name: str) -> None:
        """Delete a checkpoint, a file or a folder, where it is there."""
        path = self.setup.directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def wait_until_ready(self) -> None:
        """Wait for workers that are being started; nobody pays for this."""
        while any(not w.is_ready for w in self.workers):
            for worker, message in self.messages():
                self.take_note(worker, message)

    def messages(self) -> Iterator[tuple[PooledWorker, dict[str, Any] | None]]:
        """What workers said within a moment, oldest first; None where one died."""
        by_connection = {w.connection: w for w in self.workers}
        heard: list[tuple[int, PooledWorker, dict[str, Any] | None]] = []
        for connection in wait_for(list(by_connection), timeout=PATIENCE_S):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                while worker.connection.poll():
                    message = receive(worker.connection)
                    check(message)
                    heard.append((int(message["at"]), worker, message))
            except (EOFError, OSError, ValueError, RecursionError) as error:
                if not isinstance(error, EOFError | OSError):
                    worker.last_words = worker.last_words or f"the worker sent garbage: {error}"
                heard.append((time.monotonic_ns(), worker, None))
        self._look_after_all()
        heard.sort(key=lambda item: item[0])
        return ((worker, message) for _, worker, message in heard)

    def _look_after_all(self) -> None:
        now = time.monotonic_ns()
        # Where this process was away itself, or the whole machine stood still, nobody is to blame.
        away_ns = max(0, now - self._looked_at - int(_AWAY_S * 1e9))
        for worker in self.workers:
            if away_ns and worker.busy_since is not None:
                seen = max(worker.busy_since, worker.block.words[PROGRESS])
                worker.busy_since = min(now, seen + away_ns)
        self._looked_at = now
        for worker in self.workers:
            self._look_after(worker)

    def _look_after(self, worker: PooledWorker) -> None:
        """End a worker that finishes nothing: its stacks, SIGTERM, and five seconds later SIGKILL.

        Its death is then noticed like any other.
        """
        now = time.monotonic_ns()
        if not worker.ends_at and _has_ended(worker.process):
            worker.ends_at = now + int(_DYING_S * 1e9)  # where its end of the pipe stays open
        if worker.ends_at:
            if now > worker.ends_at:  # a child that it forked holds its end of the pipe as well
                _signal_group(worker)
            elif worker.is_hung:
                # At each look: one that comes while the stacks are still being written may reach
                # another thread, and leave the one that runs Python's handlers asleep.
                _signal(worker, signal.SIGTERM)
        elif (limit_s := self._silence_s(worker, now)) is not None:
            worker.is_hung, worker.ends_at = True, now + int(_DYING_S * 1e9)
            worker.last_words = (
                f"there was no sign of life for {limit_s:.0f} s, so the worker was ended; where it "
                f"stood is in {self._log_path(worker.index).name}"
            )
            worker.block.words[END] = 1
            _signal(worker, signal.SIGUSR1)

    def _silence_s(self, worker: PooledWorker, now: int) -> float | None:
        """For how long a worker has got on with nothing, where that is too long."""
        if worker.busy_since is None:
            return None
        usual_s = worker.block.words[STRETCH] / 1e9
        known_s = self.setup.stretches * usual_s if usual_s else self.setup.unknown_after_s
        patience_s = max(self.setup.hung_after_s, known_s)
        if not worker.is_ready:  # it loads what it is to run
            patience_s = _START_AFTER_S
        elif not worker.jobs:
            patience_s = max(patience_s, _START_AFTER_S)
        silence_s = (now - max(worker.busy_since, worker.block.words[PROGRESS])) / 1e9
        return silence_s if silence_s > patience_s else None

    def take_note(self, worker: PooledWorker, message: dict[str, Any] | None) -> None:
        """Book-keeping for a message that concerns no trial; restarts a worker that died."""
        if message is None:
            self.restart(worker)
        elif message["is"] == "ready":
            worker.is_ready, worker.starts, worker.ready = True, 0, message
            worker.busy_since = None
        elif message["is"] == "crash":
            worker.last_words = str(message["reason"])

    def restart(self, worker: PooledWorker) -> bool:
        """Start a new process in the place of one that died; False where its device is gone.

        Raises WorkerStartError where that has failed again and again.
        """
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
        worker.is_ready, worker.jobs, worker.last_words = False, {}, ""
        worker.busy_since, worker.is_hung, worker.ends_at = fresh.busy_since, False, 0
        worker.starts += 1
        return True

    def cause_of_death(self, worker: PooledWorker) -> str:
        """Why a worker that closed its connection did so, in words."""
        if not worker.last_words or worker.is_hung:  # what says why it ends is about to
            _wait(worker.process, _DYING_S)
        self._end_group(worker)
        code = worker.process.wait()
        if worker.last_words:
            return worker.last_words
        if code < 0:
            return f"the worker was killed by {signal_name(-code)}"
        return f"the worker ended with exit code {code}"

    def room(self, worker: PooledWorker) -> int:
        """How many more trials a worker may be given."""
        return self._width - len(worker.jobs) if worker.is_ready else 0

    def give(self, worker: PooledWorker, trial: Trial, until_epoch: int, key: str) -> int:
        """Have a worker with room train a trial until an epoch is finished; the job's number."""
        self._jobs += 1
        taken = {job.place for job in worker.jobs.values()}
        place = min(p for p in range(self._width) if p not in taken)
        worker.jobs[self._jobs] = Job(self._jobs, trial, place)
        worker.busy_since = worker.busy_since or time.monotonic_ns()
        order = {**self._order("train", trial, key), "id": self._jobs, "place": place}
        with contextlib.suppress(OSError):  # a worker that just died is noticed by `messages`
            self.tell(worker, {**order, "until": until_epoch})
        return self._jobs

    def ask(self, trial: Trial, what: str) -> PooledWorker:
        """Have a worker that is ready do something with a trial's checkpoint; which of them."""
        worker = self.workers[0]
        worker.busy_since = time.monotonic_ns()
        with contextlib.suppress(OSError):  # a worker that just died is noticed by `messages`
            self.tell(worker, self._order(what, trial, ""))
        return worker

    def tell(self, worker: PooledWorker, order: dict[str, Any]) -> None:
        """Send an order; raises OSError where the worker is gone."""
        send(worker.connection, order)

    def take(self, worker: PooledWorker, job: int) -> None:
        """A job is done: its place is free."""
        del worker.jobs[job]
        if not worker.jobs:
            worker.busy_since = None

    def close(self) -> None:
        """End every worker at once, and all that trainings have started."""
        for worker in self.workers:
            self._end(worker)
        self.workers.clear()
        if self._warden is not None:
            self._warden.communicate()
            self._warden = None

    def _end(self, worker: PooledWorker) -> None:
        self._end_group(worker)
        worker.process.wait()
        worker.connection.close()

    def _end_group(self, worker: PooledWorker) -> None:
        """Kill a worker and what its trainings started, before its number can be another's."""
        if worker.process.returncode is None:
            _signal_group(worker)
        self._tell_warden(f"-{worker.process.pid}")

    def _tell_warden(self, line: str) -> None:
        if self._warden is None:
            self._warden = subprocess.Popen(
                [sys.executable, "-IS", warden.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        if self._warden.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it was killed: workers die all the same
                self._warden.stdin.write(f"{line}\n".encode())
                self._warden.stdin.flush()

    def _order(self, what: str, trial: Trial, key: str) -> dict[str, Any]:
        mark = trial.midway or trial.checkpoint
        return {
            "do": what,
            "key": key,
            "number": trial.number,
            "config": dict(trial.config),
            "seed": trial.seed,
            "epoch": trial.epoch,
            "from": None if mark is None else [mark.name, mark.sha256],
        }

    def _told(self) -> dict[str, Any]:
        return self.setup.told()

    def _log_path(self, index: int) -> Path:
        return self.setup.directory / f"worker-{index}.log"

    def _spawn(self, index: int, device: int) -> PooledWorker:
        """A new interpreter, not a fork: nothing of the driver's state, and its own session.

        In its own session the terminal's Ctrl-C does not reach it; the driver decides.
        """
        ours, theirs = socket.socketpair()
        block = ControlBlock()
        block.words[DEADLINE] = _FOREVER
        setup = self.setup
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) or "." for p in sys.path)}
        if (outer := os.environ.get("PYTHONPATH")) is not None:
            environment[OUTER_PATH] = outer
        environment |= setup.environment(device)
        with open(self._log_path(index), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", setup.program, str(theirs.fileno()), str(block.fd)],
                pass_fds=(theirs.fileno(), block.fd),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._tell_warden(f"+{process.pid}")
        theirs.close()
        connection = Connection(ours.detach())
        with contextlib.suppress(OSError):
            where = {"device": setup.devices[device], "directory": str(setup.directory)}
            send(connection, {**where, **self._told()})
        since = time.monotonic_ns()
        return PooledWorker(index, device, process, connection, block, busy_since=since)


def _signal_group(worker: PooledWorker) -> None:
    """SIGKILL for a worker that is not reaped yet, and for all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS's for zombies
        os.killpg(worker.process.pid, signal.SIGKILL)


def _signal(worker: PooledWorker, number: signal.Signals) -> None:
    """Unlike Popen's own way this never reaps: the group's number stays the worker's."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, its number still taken."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):  # on macOS before Python 3.13
        return False
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process to end, and leave its number taken."""
    until = time.monotonic() + seconds
    while not _has_ended(process) and time.monotonic() < until:
        time.sleep(0.01)
