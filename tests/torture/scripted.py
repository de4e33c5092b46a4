"""Workers that only say that they train, on a simulated clock, behind the real pool's face.

The scheduler, the runner, the meter, the pool's book-keeping and the store are the real ones. What
is simulated is what a machine does: time, batches, deaths, starts, and a driver that is slow.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

import tuner.workers.pool
import tuner.workers.runner
from models.layout import Layout
from models.pool import Pace, TrainingPool, TrainingSetup
from tuner.store import Store
from tuner.workers.control import DEADLINE, INTERRUPT, YIELD
from tuner.workers.pool import PooledWorker
from tuner.workers.runner import WorkerRunner

SECOND = 1_000_000_000
_PATIENCE = SECOND // 4
_NEVER = 1 << 62


@dataclass(frozen=True)
class Habits:
    """How a simulated machine behaves; times are in ns.

    Attributes:
        batch, start: the usual time of a batch, and of a worker's start.
        tail: how heavy the tail of a batch is: the shape of a Pareto distribution.
        batches, scorings: of an epoch.
        life: mean time until a worker dies; 0 for never.
        thinking: the mean time for which the driver is busy whenever it reads the clock.
        broken: the chance that a trial's loss is not finite, at each of its epochs.
    """

    batch: int
    start: int
    tail: float
    batches: int
    scorings: int
    life: int
    thinking: int
    broken: float


class World:
    """The simulated clock, and all that draws from one generator."""

    def __init__(self, habits: Habits, generator: np.random.Generator) -> None:
        self.habits, self.generator = habits, generator
        self.now = int(generator.integers(1, 10**15))  # of a clock that began with the machine
        self.last_said = 0
        """The latest time that a delivered message carries."""
        self.spill = 0
        """The longest stretch between two looks at the deadline that went over it."""
        self.deaths = 0

    def monotonic_ns(self) -> int:
        """Read the clock, which costs the driver a moment, and now and then seconds."""
        thinking = self.habits.thinking
        if thinking:
            self.now += int(self.generator.exponential(thinking))
            if self.generator.random() < 0.002:
                self.now += int(self.generator.integers(3 * SECOND))
        return self.now

    def stretch(self, usual: int) -> int:
        """A time with a heavy tail, of `usual` at least."""
        return usual + int(usual * min(300.0, self.generator.pareto(self.habits.tail)))

    @contextmanager
    def clock(self) -> Iterator[None]:
        """The clock of the pool and its runner, within the block."""
        mine = SimpleNamespace(
            monotonic_ns=self.monotonic_ns, monotonic=lambda: self.monotonic_ns() / SECOND
        )
        pool, runner = tuner.workers.pool, tuner.workers.runner
        with patch.object(pool, "time", mine), patch.object(runner, "time", mine):
            yield


@dataclass
class _Job:
    id: int
    place: int
    number: int
    until: int
    epoch: int
    batch: int = 0


class ScriptedWorker:
    """What is at the other end of a connection: obeys, trains, reports and dies.

    It does one stretch of work at a time, of which a batch is one, and looks at its words before
    each, as `models.worker` does.
    """

    def __init__(self, world: World, width: int) -> None:
        self._world = world
        self.words = _Words(self, YIELD + width)
        self._orders: deque[tuple[int, dict[str, Any]]] = deque()
        self._said: deque[tuple[int, dict[str, Any] | None]] = deque()  # by when it arrives
        self._jobs: dict[int, _Job] = {}
        self._scoring: list[_Job] = []
        self._scored = 0
        self._free_at = world.now
        self._is_dead, self._dies_at = False, _NEVER
        start, life = world.habits.start, world.habits.life
        self._free_at += int(start * world.generator.uniform(1, 3))
        if life:  # which may end before it has begun to work, though seldom thrice in a row
            lasts = int(world.generator.exponential(life))
            self._dies_at = lasts + (world.now if lasts % 100 < 2 else self._free_at)
        self._say({"is": "ready", "device": "scripted", "image": [1, 1, 1]})

    # -- the driver's end of the connection ------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """What the driver sends."""
        self.catch_up()
        self._orders.append((self._world.now, json.loads(data)))

    def close(self) -> None:
        """The driver has no more to say."""

    def kill(self) -> None:
        """It dies now."""
        self.catch_up()
        self._dies_at = self._world.now
        self._said = deque(said for said in self._said if said[0] < self._dies_at)

    @property
    def next_at(self) -> int:
        """When something happens next: a message arrives, or a stretch of work begins."""
        arrives = self._said[0][0] if self._said else _NEVER
        return min(arrives, self._acts_at)

    def catch_up(self) -> None:
        """Begin all that begins until now."""
        while self._acts_at <= self._world.now:
            self._act()

    def heard(self) -> list[dict[str, Any] | None]:
        """The messages that have arrived, and None once it is dead."""
        self.catch_up()
        found = []
        while self._said and self._said[0][0] <= self._world.now:
            found.append(self._said.popleft()[1])
        return found

    # -- what it does ----------------------------------------------------------------------------

    @property
    def _acts_at(self) -> int:
        if self._is_dead:
            return _NEVER
        if self._jobs:
            return min(self._free_at, self._dies_at)
        ordered = self._orders[0][0] if self._orders else _NEVER
        return min(max(self._free_at, ordered), self._dies_at)

    def _act(self) -> None:
        at = self._acts_at
        if at >= self._dies_at:
            self._die()
            return
        self._free_at = at
        if self._orders and self._orders[0][0] <= at:
            self._begin(self._orders.popleft()[1])
        elif self._words_say(INTERRUPT):
            self._work(self._world.habits.batch)  # saves
            self._end_all("paused")
        elif self.words[DEADLINE] <= at:
            self._end_all("cut")
        elif self._scoring:
            self._score()
        else:
            self._train()

    def _words_say(self, word: int) -> bool:
        return bool(self.words[word])

    def _work(self, ns: int) -> None:
        """Be busy for so long."""
        began, self._free_at = self._free_at, self._free_at + ns
        if began < self.words[DEADLINE] < self._free_at:
            self._world.spill = max(self._world.spill, ns)

    def _begin(self, order: dict[str, Any]) -> None:
        self._work(self._world.habits.batch // 2)  # loads
        epoch, batch = 0, 0
        if order["from"] is not None:
            epoch, batch = (int(part) for part in order["from"][1].split(":"))
        job = _Job(order["id"], order["place"], order["number"], order["until"], epoch, batch)
        self._jobs[job.id] = job

    def _train(self) -> None:
        habits = self._world.habits
        self._work(self._world.stretch(habits.batch))
        for job in list(self._jobs.values()):
            job.batch += 1
            if job.batch >= habits.batches:
                if self._world.generator.random() < habits.broken:
                    self._say_of(job, {"is": "infeasible", "reason": "the loss is not finite"})
                    del self._jobs[job.id]
                else:
                    self._scoring.append(job)

    def _score(self) -> None:
        habits = self._world.habits
        self._work(self._world.stretch(habits.batch // 2))
        self._scored += 1
        if self._scored < habits.scorings:
            return
        for job in self._scoring:
            job.epoch, job.batch = job.epoch + 1, 0
            ends = job.epoch >= job.until or self.words[YIELD + job.place] == job.id
            score = float(self._world.generator.random())
            message = {"is": "epoch", "score": score, "metrics": {"loss": 0.5}, "ends": ends}
            self._say_of(job, message)
            if ends:
                del self._jobs[job.id]
        self._scoring, self._scored = [], 0

    def _end_all(self, what: str) -> None:
        for job in self._jobs.values():
            self._say_of(job, {"is": what, "ends": True})
        self._jobs, self._scoring, self._scored = {}, [], 0

    def _say_of(self, job: _Job, message: dict[str, Any]) -> None:
        """Report a job, after its checkpoint has been written."""
        message |= {"job": job.id, "at": self._free_at}
        message["spent"] = {"train": 3, "evaluate": 1, "checkpoint": 1}
        writing = 0
        if message["is"] in ("epoch", "paused"):
            message["checkpoint"] = [f"{job.number}-{job.epoch}", f"{job.epoch}:{job.batch}"]
            writing = self._world.habits.batch // 3
        self._say(message, writing)

    def _say(self, message: dict[str, Any], writing: int = 0) -> None:
        """Put a message on its way, behind those before it."""
        message.setdefault("at", self._free_at)
        arrives = max(self._said[-1][0] if self._said else 0, message["at"]) + writing
        if writing and message["ends"]:  # its place is held until it is written
            message["at"] = min(arrives, max(message["at"], self.words[DEADLINE]))
        if arrives < self._dies_at:
            self._said.append((arrives, message))

    def _die(self) -> None:
        self._is_dead = True
        self._world.deaths += 1
        self._said.append((self._dies_at, None))


class _Words(list[int]):
    """A control block: until the driver writes into it a worker acts by what it said."""

    def __init__(self, worker: ScriptedWorker, length: int) -> None:
        super().__init__([0] * length)
        super().__setitem__(DEADLINE, _NEVER)
        self._worker = worker

    def __setitem__(self, index: Any, value: Any) -> None:
        self._worker.catch_up()
        super().__setitem__(index, value)


class ScriptedPool(TrainingPool):
    """The pool, with scripted workers for processes."""

    def __init__(self, world: World, layout: Layout, devices: int, directory: Path) -> None:
        names = tuple(f"cuda:{i}" for i in range(devices))
        setup = TrainingSetup(
            devices=names,
            slots=layout.slots,
            data="none",
            root=directory,
            epochs=4,
            directory=directory,
        )
        super().__init__(setup, layout)
        self._width = layout.width
        self.world = world
        step_ns = world.habits.batch * layout.slots
        self.pace = Pace(layout, (), step_ns, world.habits.batches)
        self.spawn_all(layout.workers)
        self.wait_until_ready()

    def messages(self) -> Iterator[tuple[PooledWorker, dict[str, Any] | None]]:
        """What arrives within a moment, the driver's clock moving on to it."""
        world, limit = self.world, self.world.now + _PATIENCE
        heard: list[tuple[int, PooledWorker, dict[str, Any] | None]] = []
        while not heard and world.now < limit:
            ends = [w.connection for w in self.workers]
            world.now = max(world.now, min(limit, *(end.next_at for end in ends)))  # type: ignore[attr-defined]
            for worker in self.workers:
                for message in worker.connection.heard():  # type: ignore[attr-defined]
                    at = world.now if message is None else int(message["at"])
                    heard.append((at, worker, message))
        heard.sort(key=lambda item: item[0])
        for at, worker, message in heard:
            if message is not None:  # past the deadline nobody waits for one who does not train
                most = _NEVER if message["is"] == "epoch" else worker.block.words[DEADLINE]
                world.last_said = max(world.last_said, min(at, most))
        return ((worker, message) for _, worker, message in heard)

    def cause_of_death(self, worker: PooledWorker) -> str:
        """It is always the same."""
        return "the worker was killed by SIGKILL"

    def close(self) -> None:
        """Nothing is left behind."""
        for worker in self.workers:
            os.close(worker.block.fd)
        self.workers.clear()

    def _spawn(self, index: int, device: int) -> PooledWorker:
        scripted: Any = ScriptedWorker(self.world, self._width)
        block: Any = SimpleNamespace(words=scripted.words, fd=os.open(os.devnull, os.O_RDONLY))
        process: Any = SimpleNamespace(pid=0, kill=lambda: None, wait=lambda: -9)
        return PooledWorker(index, device, process, scripted, block)


def quick_store(path: Path, *, create: bool) -> Store:
    """A store that does not wait for the disk: nobody pulls the plug here."""
    store = Store(path, create=create)
    store._db.execute("COMMIT")
    store._db.execute("PRAGMA synchronous = OFF")
    store._db.execute("BEGIN")
    return store


class WatchedRunner(WorkerRunner):
    """The runner, which notes when it took the devices and how much of them was in use."""

    began = 0

    def hold(self, allowance_ns: int, clock: int) -> None:
        """Take the devices, by the same clock as the deadline."""
        super().hold(allowance_ns, clock)
        worker = self._pool.workers[0]
        self.began = worker.block.words[DEADLINE] - allowance_ns // len(self._pool.setup.devices)

    def discard(self, trial: Any) -> None:
        """There are no files."""
