"""The workers of one device on a node of a cluster: what the driver's pool does, far from it.

A host starts them, watches over them and starts them anew, and passes on what they say. It decides
nothing and charges nothing. Checkpoints go with the messages that name them; nothing is left here.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.files import CannotWriteError
from tuner.trial import Trial
from tuner.workers.checkpoints import DamagedCheckpointError, read_files, write_files
from tuner.workers.pool import Job, PooledWorker, Setup, WorkerPool, WorkerStartError

Files = dict[str, bytes]
"""A checkpoint's files, by their names below its folder."""

Said = tuple[int, dict[str, Any], Files]
"""Which worker, its message, and the files of the checkpoint that it names."""

_MOST_LOG = 100_000
_UNTESTABLE = {"is": "untestable"}
_ENDS = frozenset({"paused", "cut", "infeasible", "unusable", "exhausted", "failed"})


@dataclass(frozen=True)
class Started:
    """What a host says once it has started: what each worker said, and what its pool measured."""

    ready: list[dict[str, Any]]
    pace: Any


class Host:
    """The pool of one device, for a driver on another machine; an actor of Ray.

    Args:
        make: the pool of a setup; importable by its name on the node.
        setup: of `cpu`, or of `cuda:0`, of those that this process sees. Its folder is the
            driver's, and plays no part.
    """

    def __init__(self, make: Callable[[Setup], WorkerPool], setup: Setup) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tuner-host-")
        self._make, self._setup = make, replace(setup, directory=Path(self._folder.name))
        self._pool = WorkerPool(self._setup)  # without a worker, until it starts
        self._busy, self._polling = threading.Lock(), threading.Lock()
        self._gone, self._is_closed = "", False
        self._said: list[Said] = []  # by this host itself, for the next poll
        self._lives: Counter[int] = Counter()  # of each worker, how often it was started anew
        self._from: dict[int, str] = {}  # of each job, the checkpoint that it went on from

    def now(self) -> int:
        """This machine's monotonic clock, in ns."""
        return time.monotonic_ns()

    def start(self) -> Started:
        """Start all workers, and wait until they are ready; raises what the pool does."""
        with self._busy:
            self._pool = self._make(self._setup)
            self._pool.start()
            return Started([worker.ready for worker in self._pool.workers], self._pool.pace)

    def poll(self, patience_s: float) -> list[Said]:
        """What workers said, oldest first, within so long: the worker, its message, a checkpoint.

        A death is a message `died`, with its reason; by then another worker is being started.
        """
        until = time.monotonic() + patience_s
        heard: list[Said] = []
        while not heard and time.monotonic() < until and not self._gone:
            with self._polling:
                if self._is_closed:
                    return []
                messages = list(self._pool.messages())
                with self._busy:
                    heard, self._said = self._said, []
                    heard += [self._note(worker, message) for worker, message in messages]
        if self._gone and not heard:
            raise WorkerStartError(self._gone)
        return heard

    def give(self, index: int, life: int, order: Mapping[str, Any], files: Files) -> None:
        """Have a worker train or test; `files` are those of the checkpoint that it takes.

        What is meant for an earlier life of the worker is dropped: that it ended, and its jobs
        with it, is among what `poll` returns. So is why an order could not be passed on.
        """
        with self._busy:
            if life != self._lives[index]:
                return
            worker = self._pool.workers[index]
            is_job = order["do"] == "train"
            try:
                if order["from"] is not None:
                    self._put(order["from"][0], files)
                if is_job:
                    trial = Trial(order["number"], order["config"], order["seed"], order["until"])
                    worker.jobs[order["id"]] = Job(order["id"], trial, order["place"])
                    if order["from"] is not None:
                        self._from[order["id"]] = order["from"][0]
                worker.busy_since = worker.busy_since or time.monotonic_ns()
                self._pool.tell(worker, dict(order))
            except CannotWriteError as error:
                why = {"path": str(error.path), "number": error.number, "reason": error.reason}
                self._say(index, {"is": "unwritable", **why})
            except (OSError, ValueError) as error:
                if is_job:
                    worker.jobs.pop(order["id"], None)
                about = {"is": "unusable", "job": order["id"], "spent": {}}
                self._say(index, {**(about if is_job else _UNTESTABLE), "reason": str(error)})

    def _put(self, name: str, files: Files) -> None:
        if not files:
            raise DamagedCheckpointError(f"checkpoint {name} did not come along")
        write_files(self._pool.setup.directory, name, files)

    def _say(self, index: int, message: dict[str, Any]) -> None:
        self._said.append((index, {**message, "at": time.monotonic_ns()}, {}))

    def set_words(self, index: int, life: int, words: Mapping[int, int]) -> None:
        """Write into a worker's control block, if that is still the one that is meant."""
        with self._busy:
            for place, value in words.items() if life == self._lives[index] else ():
                self._pool.workers[index].block.words[int(place)] = value

    def close(self) -> dict[int, str]:
        """End all workers, and leave nothing behind; the end of what each printed."""
        self._is_closed = True  # or who polls would take the ends for deaths, and start others
        with self._polling, self._busy:
            self._pool.close()
            logs = self._pool.setup.directory.glob("worker-*.log")
            texts = {int(p.stem.partition("-")[2]): p.read_text(errors="replace") for p in logs}
            self._folder.cleanup()
            return {index: text[-_MOST_LOG:] for index, text in texts.items()}

    def _note(self, worker: PooledWorker, message: dict[str, Any] | None) -> Said:
        index = worker.index
        if message is None:
            return self._bury(worker)
        if message["is"] in ("ready", "crash"):
            self._pool.take_note(worker, message)
        elif message["is"] in ("tested", "untestable"):
            worker.busy_since = None
        elif message["is"] in _ENDS or message.get("ends"):
            if message["job"] in worker.jobs:
                self._pool.take(worker, message["job"])
            self._forget(message["job"])
        mark = message.get("checkpoint")
        if not mark:
            return index, message, {}
        try:
            files = read_files(self._pool.setup.directory / mark[0])
        except (OSError, ValueError) as error:  # of what is not on record nothing goes on
            worker.last_words = f"its checkpoint was gone: {error}"
            return self._bury(worker)
        self._pool.remove(mark[0])
        return index, message, files

    def _bury(self, worker: PooledWorker) -> Said:
        """End a worker that died, or is to; another is started in its place."""
        index, jobs = worker.index, list(worker.jobs)
        reason, is_hung = self._pool.cause_of_death(worker), worker.is_hung
        for job in jobs:
            self._forget(job)
        self._lives[index] += 1
        try:
            self._pool.restart(worker)
        except WorkerStartError as error:
            self._gone = str(error)
        died = {"is": "died", "at": time.monotonic_ns(), "reason": reason, "hung": is_hung}
        return index, died, {}

    def _forget(self, job: int) -> None:
        """Delete what a job that is over went on from: the driver has it."""
        if job in self._from:
            self._pool.remove(self._from.pop(job))
