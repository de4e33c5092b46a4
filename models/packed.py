"""Many trials of one shape trained as one program: k networks with their weights stacked.

Learning rate, weight decay, momentum, dropout, label smoothing and the seed do not change a
network's shape, so that one launch of a kernel can do a step for k trials. Each lane of a pack
holds a trial, with its own draws and its own place in its epoch; nothing in a step mixes two
lanes, so a trial that enters, leaves or diverges does not touch the others, and trains as it would
alone up to rounding. On CUDA a step is captured once in a graph and replayed; lanes change by
writing into the graph's own buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.knobs import Recipe
from models.noise import keep_factors
from models.stacked import StackedCNN
from models.train import (
    PLAIN,
    DeviceData,
    EpochPlan,
    Halt,
    Precision,
    make_network,
    move,
    plan_epoch,
)
from tuner.seeding import derive_seed

CHUNKS = 8  # in an epoch: lanes are filled, scored and freed at the end of one
_EVALUATION_BATCH = 500
_MOST_IMAGES = 1024  # of a lane: where memory does not hold many lanes, few of them need less


@dataclass(frozen=True)
class Shape:
    """What trials of one pack have in common."""

    layers: int
    width: int
    growth: float
    batch_size: int
    drops: bool  # whether there is dropout at all: its masks cost time

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        """The shape of a recipe."""
        growth = recipe.growth if recipe.layers > 1 else 1.0  # of a single block nothing grows
        return cls(recipe.layers, recipe.width, growth, recipe.batch_size, recipe.dropout > 0)


@dataclass
class _Lane:
    """A trial in its place."""

    recipe: Recipe
    seed: int
    epoch: int  # finished ones
    batch: int  # of the epoch in progress
    loss: float  # the sum over batches that it entered with


class Pack:
    """Trains up to `lanes` trials of one shape, step by step together.

    Args:
        data: on its device.
        shape: of every recipe that will enter.
        lanes: k, for good; empty ones compute on zeros and are read by nobody.
        epochs: the full length of a training.
    """

    def __init__(
        self,
        data: DeviceData,
        shape: Shape,
        lanes: int,
        *,
        epochs: int,
        precision: Precision = PLAIN,
        augment: bool = False,
    ) -> None:
        self._data, self._shape, self._epochs = data, shape, epochs
        self._precision, self._augment = precision, augment
        n = len(data.labels)
        self._size = min(shape.batch_size, n)
        self.batches = n // self._size
        self._chunk = -(-self.batches // CHUNKS)
        self._net = StackedCNN(make_network(data, _recipe_of(shape), 0), precision.grouped)
        zeros = _Allocator(data.device, data.dtype, lanes)
        # Of lane j, row j: its trial's weights, momentum, running statistics, and knobs.
        self._weights, self._momentum = zeros(self._net.n_weights), zeros(self._net.n_weights)
        self._statistics = zeros(self._net.n_statistics)
        self._knobs = zeros(4)  # weight decay, momentum, dropout, label smoothing
        self._loss = zeros()  # sum over the epoch in progress
        self._rates = zeros(self.batches)
        self._order = zeros(n, dtype=torch.int64)
        self._moves = zeros(n, 3, dtype=torch.int64) if augment else None
        self._keys = zeros(dtype=torch.int32)
        self._batch = zeros(dtype=torch.int64)
        self._end = zeros(dtype=torch.int64)  # batches of the epoch; 0 for an empty lane
        self._lanes: list[_Lane | None] = [None] * lanes
        # On the host until the next step: who entered, who begins an epoch, and drawn epochs.
        self._entering: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._beginning: set[int] = set()
        self._plans: dict[int, EpochPlan] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    # -- lanes -------------------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """How many there are: k."""
        return len(self._lanes)

    @property
    def free(self) -> list[int]:
        """The empty lanes."""
        return [i for i, lane in enumerate(self._lanes) if lane is None]

    def enter(self, recipe: Recipe, seed: int, arrays: dict[str, NDArray[Any]] | None) -> int:
        """Put a trial into an empty lane, from its start or from what `states` gave; the lane.

        Raises ValueError where no lane is free or the recipe is of another shape, KeyError or
        RuntimeError where the arrays do not fit.
        """
        if Shape.of(recipe) != self._shape or not self.free:
            raise ValueError(f"a free lane of a pack of {self._shape} does not fit {recipe}")
        i = self.free[0]
        epoch = batch = 0
        if arrays is None:
            weights, statistics = self._net.start(derive_seed(seed, "init"))
            momentum, loss = torch.zeros_like(weights), 0.0
        else:
            weights, momentum, statistics = self._net.unpack(arrays)
            epoch, batch = (int(v) for v in arrays["progress"])
            loss = float(arrays["loss"]) if batch else 0.0
        lane = _Lane(recipe, seed, epoch, batch, loss)
        self._plans[i] = self._draw(lane)
        self._entering[i] = (weights, momentum, statistics)
        self._lanes[i] = lane
        return i

    def leave(self, i: int) -> None:
        """Empty a lane."""
        self._lanes[i] = None
        for waiting in (self._plans, self._entering):
            waiting.pop(i, None)
        self._beginning.discard(i)
        self._end[i] = 0

    def progress(self, i: int) -> tuple[int, int]:
        """A lane's finished epochs, and batches of the one in progress."""
        lane = self._lane(i)
        return lane.epoch, lane.batch

    def trial(self, i: int) -> tuple[Recipe, int]:
        """What entered a lane, and its seed."""
        lane = self._lane(i)
        return lane.recipe, lane.seed

    def _lane(self, i: int) -> _Lane:
        lane = self._lanes[i]
        if lane is None:
            raise ValueError(f"lane {i} is empty")
        return lane

    def _admit(self) -> None:
        """Write what trials entered with into the buffers, all of them with one copy for each."""
        if not self._entering:
            return
        lanes, rows = list(self._entering), list(self._entering.values())
        recipes = [self._lane(i).recipe for i in lanes]
        knobs = [(r.weight_decay, r.momentum, r.dropout, r.label_smoothing) for r in recipes]
        weights, momentum, statistics = (torch.stack(part) for part in zip(*rows, strict=True))
        self._put(self._weights, lanes, weights)
        self._put(self._momentum, lanes, momentum)
        self._put(self._statistics, lanes, statistics)
        self._put(self._knobs, lanes, torch.tensor(knobs, dtype=torch.float64))
        self._put_losses(lanes)
        self._beginning |= self._entering.keys()
        self._entering.clear()

    def _lay_out(self) -> None:
        """Write the epochs that begin, or go on, likewise."""
        self._admit()
        if not self._beginning:
            return
        lanes = sorted(self._beginning)
        plans = [
            self._plans.pop(i) if i in self._plans else self._draw(self._lane(i)) for i in lanes
        ]
        rates = np.array([plan.learning_rates for plan in plans])
        self._put(self._order, lanes, torch.stack([plan.order for plan in plans]))
        if self._moves is not None:
            moves = [plan.moves for plan in plans if plan.moves is not None]
            self._put(self._moves, lanes, torch.stack(moves))
        self._put(self._rates, lanes, torch.from_numpy(rates))
        self._put(self._keys, lanes, torch.tensor([plan.dropout_key for plan in plans]))
        self._put(self._batch, lanes, torch.tensor([self._lane(i).batch for i in lanes]))
        self._put(self._end, lanes, torch.full((len(lanes),), self.batches))
        self._put_losses(lanes)
        self._beginning.clear()

    def _put_losses(self, lanes: Sequence[int]) -> None:
        losses = [self._lane(i).loss for i in lanes]
        self._put(self._loss, lanes, torch.tensor(losses, dtype=torch.float64))

    @staticmethod
    def _put(buffer: Tensor, lanes: Sequence[int], values: Tensor) -> None:
        rows = torch.tensor(lanes, device=buffer.device)
        buffer[rows] = values.to(buffer.device, buffer.dtype)

    def _draw(self, lane: _Lane) -> EpochPlan:
        return plan_epoch(
            self._data, lane.recipe, lane.seed, lane.epoch, self._epochs, self._augment
        )

    def _foresee(self) -> None:
        """Draw the lanes' next epochs while a GPU is busy with what was just queued."""
        for i, lane in enumerate(self._lanes):
            if lane is not None and lane.epoch + 1 < self._epochs and i not in self._plans:
                self._plans[i] = self._draw(replace(lane, epoch=lane.epoch + 1))

    # -- training ----------------------------------------------------------------------------------

    def run(self, halt: Callable[[], Halt]) -> Halt:
        """Train every lane for an eighth of an epoch, or to its epoch's end where that is nearer.

        Returns NO, or what `halt` said before a batch, with that batch not begun.
        """
        self._lay_out()
        steps = 0
        try:
            for _ in range(min(self._chunk, self._longest_way())):
                asked = halt()
                if asked is not Halt.NO:
                    return asked
                self._step()
                steps += 1
        finally:
            for lane in filter(None, self._lanes):
                lane.batch = min(lane.batch + steps, self.batches)
        if self._data.device.type == "cuda":
            self._foresee()
        return Halt.NO

    def _longest_way(self) -> int:
        """Batches to the end of the epoch, of the lane with most of them before it."""
        return max((self.batches - lane.batch for lane in self._lanes if lane), default=0)

    def ended(self) -> dict[int, float | None]:
        """Lanes whose epoch is finished: each its mean loss, None where that is not finite.

        A lane that diverged is among them as soon as it is seen, at the end of any chunk. The
        others begin their next epoch with the next `run`.
        """
        self._admit()
        losses = (self._loss / self.batches).tolist()
        found: dict[int, float | None] = {}
        for i, lane in enumerate(self._lanes):
            if lane is None:
                continue
            if not math.isfinite(losses[i]):
                found[i] = None
            elif lane.batch == self.batches:
                found[i] = losses[i]
                lane.epoch, lane.batch, lane.loss = lane.epoch + 1, 0, 0.0
                if lane.epoch < self._epochs:
                    self._beginning.add(i)
        return found

    def _step(self) -> None:
        """One batch of every lane; a function of the buffers alone, so that it can be replayed."""
        if self._data.device.type != "cuda":
            self._compute()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record a step; what warms it up leaves no trace, even where the memory does not do."""
        kept = [t.clone() for t in self._changing()]
        try:
            return self._record()
        finally:
            for tensor, before in zip(self._changing(), kept, strict=True):
                tensor.copy_(before)

    def _record(self) -> torch.cuda.CUDAGraph:
        stream, pool = self._data.capturing()
        stream.wait_stream(torch.cuda.current_stream(self._data.device))
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries choose algorithms and allocate outside the graph
                    self._compute()
        finally:
            torch.cuda.current_stream(self._data.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Packs take turns, and nothing outlives a step but the buffers: one pool of memory for all.
        with torch.cuda.graph(graph, pool=pool):
            self._compute()
        return graph

    def _changing(self) -> list[Tensor]:
        return [self._weights, self._momentum, self._statistics, self._loss, self._batch]

    def _compute(self) -> None:
        data, net = self._data, self._net
        live = self._batch < self._end
        # A lane at its end does its last batch again, and what comes of it is thrown away.
        batch = self._batch.clamp(max=self.batches - 1)
        places = batch[:, None] * self._size + torch.arange(self._size, device=data.device)
        index = self._order.gather(1, places)  # k x size
        images = data.normalise(data.images[index.flatten()])
        if self._moves is not None:
            images = move(images, self._moves.gather(1, _thrice(places)).flatten(0, 1))
        labels = data.labels[index]
        decay, momentum, dropout, smoothing = self._knobs.unbind(1)
        keep = None
        if self._shape.drops:
            keep = keep_factors(self._keys, batch, dropout, self._size, net.features)
        leaf = self._weights.detach().requires_grad_()
        with self._precision.autocast(data.device):
            logits, statistics = net.train(leaf, images, keep)
            losses = _cross_entropy(logits.to(data.dtype), labels, smoothing)  # k
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
        with torch.no_grad():
            # SGD with Nesterov's momentum as torch.optim has it; with momentum 0 it is plain SGD.
            mine = live[:, None]
            slope = slope.addcmul_(self._weights, decay[:, None])
            velocity = torch.addcmul(slope, self._momentum, momentum[:, None])
            rate = self._rates.gather(1, batch[:, None])
            change = torch.addcmul(slope, velocity, momentum[:, None]).mul_(rate)
            # Chosen, not multiplied by 0: what is thrown away may be infinite.
            self._weights.sub_(torch.where(mine, change, 0.0))
            torch.where(mine, velocity, self._momentum, out=self._momentum)
            moved = self._statistics.lerp(statistics, net.pace)
            torch.where(mine, moved, self._statistics, out=self._statistics)
            self._loss.add_(torch.where(live, losses.detach(), 0.0))
            self._batch.add_(live)

    # -- scoring and saving ------------------------------------------------------------------------

    def accuracy(
        self,
        lanes: Sequence[int],
        split: tuple[Tensor, Tensor],
        halt: Callable[[], Halt] = lambda: Halt.NO,
    ) -> list[float] | None:
        """For each of the lanes the share of a split's images it gets right; None where halted."""
        self._admit()
        images, labels = split
        chosen = torch.tensor(list(lanes), device=self._data.device)
        weights, statistics = self._weights[chosen], self._statistics[chosen]
        right = torch.zeros(len(lanes), dtype=torch.int64, device=self._data.device)
        with torch.inference_mode():
            # As many images in all as do not need more memory than a step of the whole pack does.
            most = max(_EVALUATION_BATCH, 2 * self._size * self.lanes)
            size = min(most // len(lanes), _MOST_IMAGES)
            for start in range(0, len(labels), size):
                if halt() is Halt.DEADLINE:
                    return None
                part = slice(start, start + size)
                with self._precision.autocast(self._data.device):
                    logits = self._net.evaluate(
                        weights, statistics, self._data.normalise(images[part])
                    )
                right += (logits.argmax(2) == labels[part]).sum(1)
        return [count / len(labels) for count in right.tolist()]

    def states(self, lanes: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """What each of the lanes needs to go on, here or in a `Trainer`, on the host."""
        self._admit()
        chosen = torch.tensor(list(lanes), device=self._data.device)
        kept = (self._weights, self._momentum, self._statistics, self._loss)
        rows = [t[chosen].cpu().numpy() for t in kept]  # copies, on a CPU as well
        found = []
        for row, i in enumerate(lanes):
            lane = self._lane(i)
            weights, momentum, statistics, loss = (part[row, ...] for part in rows)
            arrays = self._net.pack(weights, momentum, statistics, self._steps(lane))
            arrays["loss"] = loss
            arrays["progress"] = np.array([lane.epoch, lane.batch], dtype=np.int64)
            found.append(arrays)
        return found

    def _steps(self, lane: _Lane) -> int:
        return lane.epoch * self.batches + lane.batch


class _Allocator:
    """Makes zeros with a row for each lane."""

    def __init__(self, device: torch.device, dtype: torch.dtype, lanes: int) -> None:
        self._device, self._dtype, self._lanes = device, dtype, lanes

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(self._lanes, *shape, dtype=dtype or self._dtype, device=self._device)


def _recipe_of(shape: Shape) -> Recipe:
    return Recipe(
        layers=shape.layers,
        width=shape.width,
        growth=shape.growth,
        batch_size=shape.batch_size,
    )


def _thrice(places: Tensor) -> Tensor:
    return places[:, :, None].expand(-1, -1, 3)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Mean over a batch, of `k x n x classes` and `k x n`, with each lane's smoothing: `k`."""
    log_p = F.log_softmax(logits, 2)
    chosen = log_p.gather(2, labels[:, :, None])[:, :, 0].mean(1)
    return -((1 - smoothing) * chosen + smoothing * log_p.mean((1, 2)))
