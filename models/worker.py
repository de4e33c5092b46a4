"""The process that trains. One per device on CUDA, one per core on the CPU; never the driver.

`python -m models.worker SOCKET BLOCK` with two inherited file descriptors. Messages are JSON. The
driver sends a set-up, has layouts measured, then gives jobs; the worker answers with what happened,
and when by the monotonic clock, which on one machine is the same in every process. It dies with
its driver.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from models import checkpoint, data
from models.crew import Crew, make_crew
from models.knobs import Recipe
from models.layout import Layout
from models.packed import Shape
from models.train import DeviceData, Halt, Precision
from tuner.files import CannotWriteError
from tuner.workers.checkpoints import DamagedCheckpointError
from tuner.workers.control import (
    DEADLINE,
    INTERRUPT,
    PROGRESS,
    STRETCH,
    YIELD,
    ControlBlock,
)
from tuner.workers.messages import receive, send
from tuner.workers.served import first_line, give_up, serve

_WARM_UP_STEPS, _TIMED_STEPS = 3, 20
_BEATS = 101
_TIMED_NS = 500_000_000  # however slow a step is
_MEMORY_SHARE = 0.85  # of a GPU's memory, which the next wider pack may be expected to take

Arrays = dict[str, NDArray[Any]]


@dataclass
class _Job:
    """A trial that the driver gave, in its crew and lane."""

    id: int
    place: int  # which of the worker's words says that it is to yield
    key: str
    number: int
    until: int
    crew: Crew
    lane: int
    spent: dict[str, int] = field(default_factory=dict)  # since its last message, by kind

    def spend(self, kind: str, ns: int) -> None:
        """Note what the time since the last note went to."""
        self.spent[kind] = self.spent.get(kind, 0) + ns


class _Writer:
    """Writes checkpoints and sends messages behind the training's back, in the order given.

    What a message names is on the disk before it is sent. A trial that goes on trains meanwhile;
    one that ends holds its place until then, and that is its time too, up to the deadline.
    """

    def __init__(self, connection: Connection, block: ControlBlock, directory: Path) -> None:
        self._connection, self._block, self._directory = connection, block, directory
        self._tasks: queue.Queue[tuple[dict[str, Any], str, Arrays | None]] = queue.Queue(256)
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, message: dict[str, Any], stem: str = "", arrays: Arrays | None = None) -> None:
        """Send a message, after its checkpoint, where it has one; waits where too many do."""
        self._tasks.put((message, stem, arrays))

    def _work(self) -> None:
        while True:
            message, stem, arrays = self._tasks.get()
            try:
                if arrays is not None:
                    try:
                        message["checkpoint"] = checkpoint.save(self._directory, stem, arrays)
                    except CannotWriteError as error:
                        # Not the trial's fault. Nothing more is said: what comes after an epoch
                        # that was not recorded cannot be either.
                        self._send_refusal(error)
                        return
                    if message["ends"]:
                        self._prolong(message)
                send(self._connection, message)
            except Exception as error:
                give_up(self._connection, error)

    def _send_refusal(self, error: CannotWriteError) -> None:
        refusal = {"path": str(error.path), "number": error.number, "reason": error.reason}
        send(self._connection, {"is": "unwritable", "at": time.monotonic_ns(), **refusal})

    def _prolong(self, message: dict[str, Any]) -> None:
        """Count the writing; past the deadline the device is not held for it."""
        at = min(time.monotonic_ns(), max(message["at"], self._block.words[DEADLINE]))
        spent = message["spent"]
        spent["checkpoint"] = spent.get("checkpoint", 0) + at - message["at"]
        message["at"] = at


class _Pulse:
    """Tells the driver that the worker gets on, and how long it usually takes between two beats.

    On a CPU that is a batch. On a GPU, ahead of which the host runs, it is a chunk.
    """

    def __init__(self, block: ControlBlock, beats_are_batches: bool) -> None:
        self._block, self._beats_are_batches = block, beats_are_batches
        self._latest: deque[int] = deque(maxlen=_BEATS)

    def beat(self) -> None:
        """The worker is about to begin a batch."""
        now, before = time.monotonic_ns(), self._block.words[PROGRESS]
        if self._beats_are_batches and before:
            self._latest.append(now - before)
        self._block.words[PROGRESS] = now

    def note(self, chunk_ns: int) -> None:
        """A chunk was trained and scored, on a GPU to its end."""
        self._block.words[PROGRESS] = time.monotonic_ns()
        if not self._beats_are_batches:
            self._latest.append(chunk_ns)
        self._block.words[STRETCH] = int(statistics.median(self._latest or (0,)))


class Worker:
    """Trains and tests what it is told, on one device, until its driver is gone."""

    def __init__(self, connection: Connection, block: ControlBlock) -> None:
        self._connection, self._block = connection, block
        setup = receive(connection)
        self._setup = setup
        self._device = torch.device(setup["device"])
        if self._device.type == "cpu":
            torch.set_flush_denormal(True)  # weights that decayed to next to nothing are slow
        else:
            torch.cuda.set_device(self._device)  # events and streams are of the current device
        self._directory = Path(setup["directory"])
        self._writer = _Writer(connection, block, self._directory)
        name, root = setup["data"], Path(setup["root"])
        if setup["fetches"]:
            data.prepare(name, root)
        images = data.load(name, root, merged=setup["merged"])
        self._data = DeviceData(images, self._device)
        self._crews: dict[Shape, list[Crew]] = {}
        self._jobs: dict[int, _Job] = {}
        self._shapes: set[Shape] = set()  # of all trials so far
        self._most_lanes: dict[Shape, int] = {}  # what memory holds, where that was met
        self._bytes_per_lane = 0
        # Of training and scoring without a look around, so far the longest; None before the first.
        self._stretch_ns: int | None = None
        self._pulse = _Pulse(block, self._device.type == "cpu")
        self._take_layout(Layout(**setup["layout"]))

    def run(self) -> None:
        """Say that it is there, and serve."""
        self._send({"is": "ready", "device": self._device_name(), "image": self._data.image})
        while True:
            try:
                while not self._jobs or self._connection.poll():
                    self._obey(receive(self._connection))
            except (EOFError, OSError):
                return
            for crews in list(self._crews.values()):
                for crew in list(crews):
                    if any(job.crew is crew for job in self._jobs.values()):
                        self._advance(crew)

    def _obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "train":
            self._begin(order)
        elif order["do"] == "measure":
            self._measure(Layout(**order["layout"]))
        else:
            self._test(order)

    # -- layouts -----------------------------------------------------------------------------------

    def _take_layout(self, layout: Layout) -> None:
        self._layout = layout
        self._precision = Precision(layout.bf16, layout.channels_last, layout.grouped)
        self._crews.clear()
        if self._device.type == "cpu":
            torch.set_num_threads(layout.threads)
        self._clear()

    def _measure(self, layout: Layout) -> None:
        """Take up a layout and time its steps with the default recipe; it stays taken up."""
        self._take_layout(layout)
        recipe = Recipe()
        step_ns: int | None = None
        n = len(self._data.labels)
        batches = n // min(recipe.batch_size, n)
        if self._has_room(layout.width):
            try:
                crew = self._make_crew(Shape.of(recipe), layout.width)
                lanes = [crew.enter(recipe, seed, None) for seed in range(layout.width)]
                self._time_steps(crew, _WARM_UP_STEPS)  # compiles, tunes and allocates
                step_ns = self._time_steps(crew, _TIMED_STEPS)
                if self._device.type == "cuda":  # whose memory must hold this too
                    crew.accuracy(lanes, self._data.validation, lambda: Halt.NO)
            except (torch.OutOfMemoryError, MemoryError):
                step_ns = None
        if self._device.type == "cuda":
            self._bytes_per_lane = torch.cuda.max_memory_allocated() // layout.width
        self._send({"is": "measured", "step_ns": step_ns, "batches": batches})

    def _has_room(self, lanes: int) -> bool:
        """Whether so many lanes will fit, by what fewer of them took; found without a failure."""
        if self._device.type == "cpu":
            return True
        free, _ = torch.cuda.mem_get_info(self._device)
        return lanes * self._bytes_per_lane < _MEMORY_SHARE * free

    def _time_steps(self, crew: Crew, most: int) -> int:
        """Mean device time of up to so many steps, in ns."""
        steps, began = 0, self._now()

        def halt() -> Halt:
            nonlocal steps
            over = steps == most or (steps and time.monotonic_ns() - began > _TIMED_NS)
            steps += not over
            return Halt.INTERRUPT if over else Halt.NO

        while crew.run(halt) is Halt.NO:
            crew.ended()
        return (self._now() - began) // steps

    # -- jobs --------------------------------------------------------------------------------------

    def _begin(self, order: dict[str, Any]) -> None:
        """Give a trial a lane, from its checkpoint where it has one."""
        began = self._now()
        recipe = Recipe.of(order["config"])
        try:
            arrays = self._load(order["from"])
            crew, lane = self._seat(recipe, order["seed"], arrays)
        except DamagedCheckpointError as error:
            self._report(order["id"], {"is": "unusable", "spent": {}, "reason": str(error)})
            return
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = f"out of memory: {first_line(error)}"
            kind = "unusable" if self._jobs else "infeasible"  # they may be in the way
            self._report(order["id"], {"is": kind, "spent": {}, "reason": reason})
            return
        fields = {name: order[name] for name in ("id", "place", "key", "number", "until")}
        job = _Job(**fields, crew=crew, lane=lane)
        job.spend("train" if arrays is None else "checkpoint", self._now() - began)
        self._jobs[job.id] = job

    def _load(self, named: Sequence[str] | None) -> Arrays | None:
        if named is None:
            return None
        name, sha256 = named
        return checkpoint.load(self._directory / name, sha256)

    def _seat(self, recipe: Recipe, seed: int, arrays: Arrays | None) -> tuple[Crew, int]:
        """A lane for a trial: in a crew of its shape, which grows by doubling up to the width."""
        shape = Shape.of(recipe)
        crews = self._crews.setdefault(shape, [])
        crew = next((c for c in crews if c.free), None) or self._make_room(shape, crews)
        try:
            return crew, crew.enter(recipe, seed, arrays)
        except (KeyError, RuntimeError) as error:  # whole, but of another network or device
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise DamagedCheckpointError(
                f"the checkpoint does not fit: {first_line(error)}"
            ) from error

    def _make_room(self, shape: Shape, crews: list[Crew]) -> Crew:
        """A crew with a free lane: the last one, made wider, or a new one.

        Where all trials so far had one shape the second of them makes it as wide as it may be;
        where shapes differ, each is widened by doubling as its trials come.
        """
        for other in [s for s in self._crews if s != shape and not self._has_jobs(s)]:
            del self._crews[other]  # its memory may be needed
        self._shapes.add(shape)
        most = min(self._layout.width, self._most_lanes.get(shape, self._layout.width))
        last = crews[-1] if crews else None
        if last is not None and last.lanes < most:
            lanes = most if len(self._shapes) == 1 else min(most, 2 * last.lanes)
            try:
                wider = self._make_crew(shape, lanes)
                self._seat_all(self._states(last), [wider])
            except torch.OutOfMemoryError:
                self._most_lanes[shape] = last.lanes
            else:
                crews[-1] = wider
                return wider
        crews.append(self._make_crew(shape, 1))
        return crews[-1]

    def _states(self, crew: Crew) -> list[tuple[_Job, Recipe, int, Arrays]]:
        """A crew's jobs, each with all that it takes to go on elsewhere."""
        jobs = [job for job in self._jobs.values() if job.crew is crew]
        states = crew.states([job.lane for job in jobs]) if jobs else []
        return [(j, *crew.trial(j.lane), s) for j, s in zip(jobs, states, strict=True)]

    def _seat_all(
        self, moving: Sequence[tuple[_Job, Recipe, int, Arrays]], crews: Sequence[Crew]
    ) -> None:
        """Give jobs lanes in other crews, which have room: all, or where memory ends none."""
        seats = []
        for job, recipe, seed, arrays in moving:
            crew = next(crew for crew in crews if crew.free)
            seats.append((job, crew, crew.enter(recipe, seed, arrays)))
        for job, crew, lane in seats:
            job.crew, job.lane = crew, lane

    def _has_jobs(self, shape: Shape) -> bool:
        return any(job.crew in self._crews[shape] for job in self._jobs.values())

    def _make_crew(self, shape: Shape, lanes: int) -> Crew:
        return make_crew(
            self._data,
            shape,
            lanes,
            epochs=self._setup["epochs"],
            precision=self._precision,
            augment=self._setup["augment"],
        )

    def _advance(self, crew: Crew) -> None:
        """Train a crew for a chunk, and see to those whose epoch is finished."""
        jobs = {job.lane: job for job in self._jobs.values() if job.crew is crew}
        began = self._now()
        try:
            asked = crew.run(self._halt)
            ended = crew.ended()
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._lower_width(crew, jobs, error)
            return
        trained = self._now()
        for job in jobs.values():
            job.spend("train", trained - began)
        for lane in [lane for lane, loss in ended.items() if loss is None]:
            reason = "the loss is not finite"
            self._end(jobs.pop(lane), {"is": "infeasible", "reason": reason}, trained)
            del ended[lane]
        if ended and not self._score(crew, {i: jobs[i] for i in ended}, ended):
            asked = Halt.DEADLINE
        now = self._now()
        self._stretch_ns = max(self._stretch_ns or 0, now - began)
        self._pulse.note(now - began)
        if asked is Halt.DEADLINE:
            now = self._now()
            for job in list(self._jobs.values()):
                self._end(job, {"is": "cut"}, now)
        elif asked is Halt.INTERRUPT:
            self._pause(list(self._jobs.values()))

    def _score(self, crew: Crew, jobs: dict[int, _Job], losses: dict[int, float | None]) -> bool:
        """Score, save and report finished epochs; False where the deadline came before that."""
        began = self._now()
        scores = self._accuracy(crew, list(jobs))
        scored = self._now()
        if scores is None:
            return False
        states = crew.states(list(jobs))
        saved = self._now()
        for (lane, job), score, arrays in zip(jobs.items(), scores, states, strict=True):
            job.spend("evaluate", scored - began)
            job.spend("checkpoint", saved - scored)
            epoch, _ = crew.progress(lane)
            ends = epoch >= job.until or self._block.words[YIELD + job.place] == job.id
            metrics = {"loss": losses[lane]}
            message = {"is": "epoch", "score": score, "metrics": metrics, "ends": ends}
            self._say(job, message, saved, arrays)
            if ends:
                self._remove(job)
        return True

    def _accuracy(self, crew: Crew, lanes: list[int]) -> list[float] | None:
        """Scores of lanes together, or in parts where memory does not hold that."""
        try:
            return crew.accuracy(lanes, self._data.validation, self._halt)
        except torch.OutOfMemoryError:
            if len(lanes) == 1:
                raise
        self._clear()
        middle = len(lanes) // 2
        first = self._accuracy(crew, lanes[:middle])
        rest = None if first is None else self._accuracy(crew, lanes[middle:])
        return None if first is None or rest is None else first + rest

    def _pause(self, jobs: Sequence[_Job]) -> None:
        """Save jobs in the middle of their epoch, and give them back."""
        for crew in {id(job.crew): job.crew for job in jobs}.values():
            mine = [job for job in jobs if job.crew is crew]
            began = self._now()
            states = crew.states([job.lane for job in mine])
            saved = self._now()
            for job, arrays in zip(mine, states, strict=True):
                job.spend("checkpoint", saved - began)
                self._say(job, {"is": "paused", "ends": True}, saved, arrays)
                self._remove(job)

    def _lower_width(self, crew: Crew, jobs: dict[int, _Job], error: BaseException) -> None:
        """The memory does not hold a crew's steps: go on with two of half the width.

        A trial for which it does not hold even one lane is infeasible.
        """
        shape = next(s for s, crews in self._crews.items() if crew in crews)
        crews, lanes = self._crews[shape], crew.lanes
        reason = f"out of memory: {first_line(error)}"
        error.__traceback__ = None  # which holds the step's tensors
        if lanes == 1:
            # Beside others it may be they who are in the way: it is tried again.
            is_alone = len(self._jobs) == 1
            for job in jobs.values():
                message = {"is": "infeasible" if is_alone else "unusable", "reason": reason}
                self._end(job, message, self._now())
            crews.remove(crew)
        else:
            half = -(-lanes // 2)
            self._most_lanes[shape] = half
            self._clear()  # there may be trials that have not even entered yet
            moving = self._states(crew)
            crews.remove(crew)  # first, or there would be room for neither
            del crew
            self._clear()
            halves = [self._make_crew(shape, half) for _ in range(2)]
            self._seat_all(moving, halves)
            crews += halves
        self._clear()

    def _clear(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _test(self, order: dict[str, Any]) -> None:
        crew = self._make_crew(Shape.of(Recipe.of(order["config"])), 1)
        try:
            arrays = self._load(order["from"])
            crew.enter(Recipe.of(order["config"]), order["seed"], arrays)
        except (DamagedCheckpointError, KeyError, RuntimeError) as error:
            self._send({"is": "untestable", "reason": first_line(error)})
            return
        split = data.load_test(self._setup["data"], Path(self._setup["root"]))
        scores = crew.accuracy([0], self._data.put(split), lambda: Halt.NO)
        self._send({"is": "tested", "score": (scores or [0.0])[0]})

    # -- messages ----------------------------------------------------------------------------------

    def _end(self, job: _Job, message: dict[str, Any], at: int) -> None:
        self._say(job, message, at)
        self._remove(job)

    def _remove(self, job: _Job) -> None:
        job.crew.leave(job.lane)
        del self._jobs[job.id]

    def _say(
        self, job: _Job, message: dict[str, Any], at: int, arrays: Arrays | None = None
    ) -> None:
        epoch, _ = job.crew.progress(job.lane)
        stem = f"{job.key}-{job.number:05d}-{epoch:05d}"
        self._writer.put({**message, "at": at, "job": job.id, "spent": job.spent}, stem, arrays)
        job.spent = {}

    def _report(self, job: int, message: dict[str, Any]) -> None:
        self._send({**message, "job": job})

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.put({"at": self._now(), **message})

    # -- the device --------------------------------------------------------------------------------

    def _halt(self) -> Halt:
        self._pulse.beat()
        left = self._block.words[DEADLINE] - time.monotonic_ns()
        if 0 < left < (self._stretch_ns or left + 1) and self._device.type == "cuda":
            # The host runs ahead of a GPU. Near the deadline it waits for it before each batch,
            # so that what is still queued then is one batch at most.
            left = self._block.words[DEADLINE] - self._now()
        if left <= 0:  # before all else, or who was interrupted would be scored beyond it
            return Halt.DEADLINE
        return Halt.INTERRUPT if self._block.words[INTERRUPT] else Halt.NO

    def _now(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic_ns()

    def _device_name(self) -> str:
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return "cpu"


if __name__ == "__main__":
    serve(lambda connection, block: Worker(connection, block).run())
