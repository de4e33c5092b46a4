"""The worker processes that train CNNs, and how trainings are laid out on them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.checkpoint import SUFFIX
from models.layout import (
    Layout,
    Timing,
    alone,
    cache_key,
    choose,
    explore,
    read_cache,
    write_cache,
)
from tuner.trial import Trial
from tuner.workers.messages import send
from tuner.workers.pool import PooledWorker, Setup, WorkerPool, WorkerStartError


@dataclass(frozen=True, kw_only=True)
class TrainingSetup(Setup):
    """What every worker that trains CNNs is told at its start.

    Attributes:
        slots: trials at once on each device; None for as many as measure best.
        merged: whether to train on the images to validate on as well.
        fetches: whether workers make sure themselves that the data is there, as on other machines.
    """

    program: str = "models.worker"
    suffix: str = SUFFIX
    slots: int | None
    data: str
    root: Path
    epochs: int
    augment: bool = False
    merged: bool = False
    fetches: bool = False

    def told(self) -> dict[str, Any]:
        """What to train on, and how."""
        return {
            "data": self.data,
            "root": str(self.root),
            "epochs": self.epochs,
            "augment": self.augment,
            "merged": self.merged,
            "fetches": self.fetches,
        }


@dataclass(frozen=True)
class Pace:
    """How trainings are laid out on a device, and how quick that was measured to be.

    Attributes:
        timings: of what might have been best, measured now or by an earlier pool.
        step_ns: device time of one step of all trials of the layout.
        batches: of an epoch of the default recipe.
    """

    layout: Layout
    timings: tuple[Timing, ...]
    step_ns: int
    batches: int

    @property
    def epoch_ns(self) -> int:
        """A trial's share of the device time in which the default recipe trains an epoch."""
        return self.step_ns * self.batches // self.layout.slots

    @property
    def alone(self) -> Timing | None:
        """The best for a trial that has the device to itself, where that was measured."""
        return alone(self.timings)

    @property
    def alone_epoch_ns(self) -> int | None:
        """What that epoch would cost such a trial."""
        return None if self.alone is None else self.alone.step_ns * self.batches


class TrainingPool(WorkerPool):
    """Workers that train CNNs.

    Args:
        setup: what the workers are told.
        layout: how trainings are laid out on each device; where it is None, as is measured to be
            best, for good. A race that is resumed goes on as it began.
        cache: file in which measurements are remembered; None for no such.
    """

    def __init__(
        self, setup: TrainingSetup, layout: Layout | None = None, cache: Path | None = None
    ) -> None:
        super().__init__(setup)
        self._wanted_slots = setup.slots
        self._layout, self._cache = layout, cache
        self._timings: list[Timing] = []
        self._batches = 1
        self._mishap = ""  # how a worker died of being measured

    def start(self) -> int:
        """Start all workers, and choose a layout; the device time that took, in ns."""
        began, busy = time.monotonic_ns(), os.getloadavg()[0] > self.setup.core_count / 2
        self.spawn_all(self._first_layout.workers)
        self.wait_until_ready()
        if self._layout is None:
            self._layout = self._choose(busy)
        for worker in self.workers:
            if self._rank(worker) >= self._layout.workers:
                self._end(worker)
        self.workers = [w for w in self.workers if self._rank(w) < self._layout.workers]
        for index, worker in enumerate(self.workers):
            worker.index = index
        self._width = self._layout.width
        step_ns = self._measure(self._layout, range(len(self.setup.devices)))
        if step_ns is None:
            raise ValueError(
                f"{self._layout} does not fit into the memory of {', '.join(self.setup.devices)}; "
                f"ask for fewer trials at once with --slots{self._mishap}"
            )
        self.pace = Pace(self._layout, tuple(self._timings), step_ns, self._batches)
        return (time.monotonic_ns() - began) * len(self.setup.devices)

    @property
    def _first_layout(self) -> Layout:
        """What a worker that starts is to take up."""
        return self._layout or self._widest()

    def _told(self) -> dict[str, Any]:
        return {**super()._told(), "layout": asdict(self._first_layout)}

    def _widest(self) -> Layout:
        """As many processes as any layout that may be chosen has."""
        if self.setup.devices[0] == "cpu":
            return Layout(self._wanted_slots or self.setup.core_count)
        return Layout(1)

    def _rank(self, worker: PooledWorker) -> int:
        """Its place among the workers of its device, from 0 on."""
        return [w for w in self.workers if w.device == worker.device].index(worker)

    def _choose(self, busy: bool) -> Layout:
        """The best layout by what was measured earlier, else by measuring on the first device.

        While others are `busy` on the cores, what is measured there says nothing: the simplest.
        """
        cores, ready, device = self.setup.core_count, self.workers[0].ready, self.setup.devices[0]
        key = cache_key(str(ready["device"]), cores, ready["image"])
        slots, cache = self._wanted_slots, self._cache if self._wanted_slots is None else None
        self._timings = [] if cache is None else read_cache(cache, key)
        if not self._timings and busy and device == "cpu":
            return self._widest()
        if not self._timings:
            self._timings = explore(device, cores, slots, lambda one: self._measure(one, [0]))
            if cache is not None:
                write_cache(cache, key, self._timings)
        return choose(self._timings).layout

    def _measure(self, layout: Layout, devices: Collection[int]) -> int | None:
        """Have a layout's workers take it up and time it all at once; of the slowest, in ns.

        None where the memory of one does not hold it, or it died of it.
        """
        asked = [w for w in self.workers if w.device in devices and self._rank(w) < layout.workers]
        order = {"do": "measure", "layout": asdict(layout)}
        for worker in asked:
            worker.busy_since = time.monotonic_ns()
            with contextlib.suppress(OSError):  # a worker that just died is noticed by `messages`
                send(worker.connection, order)
        found: dict[int, int | None] = {}
        while len(found) < len(asked):
            for worker, message in self.messages():
                if message is not None and message["is"] == "measured":
                    worker.busy_since = None
                    found[worker.index] = message["step_ns"]
                    self._batches = int(message["batches"])
                else:
                    if message is None:
                        found[worker.index] = None
                        self._mishap = f" ({self.cause_of_death(worker)})"
                    self.take_note(worker, message)
        self.wait_until_ready()
        times = [ns for ns in found.values() if ns is not None]
        return max(times) if len(times) == len(asked) else None


def accuracy_on_test(pool: WorkerPool, trial: Trial) -> float:
    """Of a trial at its checkpoint, by a worker that trains CNNs.

    Raises ValueError where it has none, or it cannot be tested.
    """
    if trial.checkpoint is None:
        raise ValueError(f"trial {trial.number} has no checkpoint to test")
    try:
        return _accuracy_on_test(pool, replace(trial, midway=None))
    except WorkerStartError as error:  # the search itself is not lost for that
        raise ValueError(f"the winner could not be tested: {error}") from error


def _accuracy_on_test(pool: WorkerPool, trial: Trial) -> float:
    pool.wait_until_ready()
    worker = pool.ask(trial, "test")
    while True:
        for who, message in pool.messages():
            if message is not None and message["is"] in ("tested", "untestable"):
                worker.busy_since = None
            if message is not None and message["is"] == "tested":
                return float(message["score"])
            if message is not None and message["is"] == "untestable":
                raise ValueError(f"the winner could not be tested: {message['reason']}")
            reason = pool.cause_of_death(who) if message is None else ""
            pool.take_note(who, message)
            if message is None and who is worker and who.device in pool.lost:
                return _accuracy_on_test(pool, trial)  # by one that is still there
            if message is None and who is worker:
                raise ValueError(f"the winner could not be tested: {reason}")
