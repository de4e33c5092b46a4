"""The workers of one device on a node of a cluster: what the driver's pool does, far from it.

A host starts them, watches over them and starts them anew, and passes on what they say. It decides
nothing and charges nothing. Checkpoints go with the messages that name them; nothing is left here.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.trial import Trial
from tuner.workers.checkpoints import read_files, write_files
from tuner.workers.pool import Job, PooledWorker, Setup, WorkerPool, WorkerStartError

Files = dict[str, bytes]
"""A checkpoint's files, by their names below its folder."""

_MOST_LOG = 100_000
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

    def now(self) -> int:
        """This machine's monotonic clock, in ns."""
        return time.monotonic_ns()

    def start(self) -> Started:
        """Start all workers, and wait until they are ready; raises what the pool does."""
        with self._busy:
            self._pool = self._make(self._setup)
            self._pool.start()
            return Started([worker.ready for worker in self._pool.workers], self._pool.pace)

    def poll(self, patience_s: float) -> list[tuple[int, dict[str, Any], Files]]:
        """What workers said, oldest first, within so long: the worker, its message, a checkpoint.

        A death is a message `died`, with its reason; by then another worker is being started.
        """
        until = time.monotonic() + patience_s
        heard: list[tuple[int, dict[str, Any], Files]] = []
        while not heard and time.monotonic() < until and not self._gone:
            with self._polling:
                if self._is_closed:
                    return []
                messages = list(self._pool.messages())
                with self._busy:
                    heard = [self._note(worker, message) for worker, message in messages]
        if self._gone and not heard:
            raise WorkerStartError(self._gone)
        return heard

    def give(self, index: int, order: Mapping[str, Any], files: Files) -> None:
        """Have a worker train or test; `files` are those of the checkpoint that it takes."""
        with self._busy:
            worker = self._pool.workers[index]
            if order["from"] is not None:
                name = order["from"][0]
                write_files(self._pool.setup.directory, name, files)
            if order["do"] == "train":
                trial = Trial(order["number"], order["config"], order["seed"], order["until"])
                worker.jobs[order["id"]] = Job(order["id"], trial, order["place"])
            worker.busy_since = worker.busy_since or time.monotonic_ns()
            self._pool.tell(worker, dict(order))

    def set_words(self, index: int, words: Mapping[int, int]) -> None:
        """Write into a worker's control block."""
        with self._busy:
            for place, value in words.items():
                self._pool.workers[index].block.words[int(place)] = value

    def close(self) -> list[str]:
        """End all workers, and leave nothing behind; the end of what each printed."""
        self._is_closed = True  # or who polls would take the ends for deaths, and start others
        with self._polling, self._busy:
            self._pool.close()
            logs = sorted(self._pool.setup.directory.glob("worker-*.log"))
            texts = [log.read_text(errors="replace")[-_MOST_LOG:] for log in logs]
            self._folder.cleanup()
            return texts

    def _note(
        self, worker: PooledWorker, message: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any], Files]:
        index = worker.index
        if message is None:
            reason, is_hung = self._pool.cause_of_death(worker), worker.is_hung
            try:
                self._pool.restart(worker)
            except WorkerStartError as error:
                self._gone = str(error)
            died = {"is": "died", "at": time.monotonic_ns(), "reason": reason, "hung": is_hung}
            return index, died, {}
        if message["is"] in ("ready", "crash"):
            self._pool.take_note(worker, message)
        elif message["is"] in ("tested", "untestable"):
            worker.busy_since = None
        elif message["is"] in _ENDS or message.get("ends"):
            self._pool.take(worker, message["job"])
        mark = message.get("checkpoint")
        if not mark:
            return index, message, {}
        files = read_files(self._pool.setup.directory / mark[0])
        self._pool.remove(mark[0])
        return index, message, files
