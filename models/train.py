"""One trial's training: SGD on a device-resident data set, epoch by epoch, resumable anywhere.

Nothing here knows of trials, budgets or processes. Every random draw belongs to (seed, role,
epoch), so a training that was broken off and went on ends as one that was not.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.sgd import sgd

from models.cnn import CNN
from models.data import ImageData, Split
from models.knobs import Recipe
from models.noise import epoch_key, keep_factors
from tuner.seeding import derive_seed

WARM_UP_SHARE = 0.2  # of all steps: the learning rate rises linearly, then falls linearly to zero
_EVALUATION_BATCH = 500
_SHIFT = 2  # pixels


class Halt(enum.IntEnum):
    """Whether, and how, a training is asked to stop at the next batch."""

    NO = 0
    DEADLINE = 1
    INTERRUPT = 2


@dataclass(frozen=True)
class Precision:
    """How arithmetic is done on the device.

    Attributes:
        bf16: in bfloat16 where PyTorch holds that safe.
        channels_last: of a trial that trains alone.
        grouped: a pack's convolutions, see `models.stacked`.
    """

    bf16: bool = False
    channels_last: bool = True
    grouped: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which a forward pass runs."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


PLAIN = Precision()


class DeviceData:
    """A data set's training and validation images on the device, once, as uint8 tensors."""

    def __init__(
        self, data: ImageData, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.device, self.classes, self.flips = device, data.classes, data.flips
        self.dtype = dtype  # of images, weights and scores
        self._capturing: tuple[torch.cuda.Stream, Any, torch.cuda.CUDAGraph] | None = None
        self.image = (*data.train.images.shape[1:],)
        self.images, self.labels = self.put(data.train)
        self.validation = self.put(data.validation)
        mean, spread = data.train.mean_and_spread()
        shape = (1, -1, 1, 1)
        self._mean = torch.from_numpy(mean).reshape(shape).to(device, dtype)
        self._scale = 1 / torch.from_numpy(spread).reshape(shape).to(device, dtype)

    def put(self, split: Split) -> tuple[Tensor, Tensor]:
        """A split on the device: `n x channels x height x width` uint8, and `n` int64."""
        return (
            torch.from_numpy(split.images).to(self.device),
            torch.from_numpy(split.labels).to(self.device),
        )

    def capturing(self) -> tuple[torch.cuda.Stream, Any]:
        """The stream on which captures are warmed up, and the memory that all CUDA graphs share.

        One stream, since libraries keep a workspace for each that they have seen; and a graph that
        is never freed, since a pool that no graph uses any more cannot be used again.
        """
        if self._capturing is None:
            anchor, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
            pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(anchor, pool=pool):
                torch.zeros(1, device=self.device).add_(1)
            self._capturing = (stream, pool, anchor)
        return self._capturing[0], self._capturing[1]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images as floats with mean 0 and variance 1 over the training set."""
        return images.to(self.dtype).sub_(self._mean).mul_(self._scale)


class Trainer:
    """Trains one network, and can be saved and taken up again between any two batches.

    Args:
        data: on its device.
        recipe: the trial's knobs.
        seed: of the trial; every generator derives from (seed, role, epoch).
        epochs: the full length, over which the learning rate is laid out, however far it gets.
    """

    def __init__(
        self,
        data: DeviceData,
        recipe: Recipe,
        *,
        seed: int,
        epochs: int,
        precision: Precision = PLAIN,
        augment: bool = False,
    ) -> None:
        self._data, self._recipe, self._seed, self._epochs = data, recipe, seed, epochs
        self._precision, self._augment = precision, augment
        layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        network = make_network(data, recipe, seed).to(data.device)
        self._network = network.to(memory_format=layout)
        self._parameters: list[Tensor] = list(self._network.parameters())
        self._momenta: list[Tensor | None] = [None] * len(self._parameters)
        self._batch_size = min(recipe.batch_size, len(data.labels))
        self.batches = len(data.labels) // self._batch_size
        self.epoch, self.batch = 0, 0  # finished epochs, and batches of the one in progress
        self._loss = torch.zeros(
            (), dtype=data.dtype, device=data.device
        )  # sum over the epoch in progress
        self._plan: EpochPlan | None = None  # of the epoch in progress
        self._watch = _LossWatch(data.device)

    def run_epoch(self, halt: Callable[[], Halt]) -> float | Halt | None:
        """Train to the end of the epoch in progress.

        Returns the mean training loss; None as soon as the loss is not finite; or, where `halt`
        said so before a batch, what it said, with the epoch still in progress.
        """
        data, size = self._data, self._batch_size
        if self.batch == 0:
            self._loss.zero_()
        plan = self._plan or plan_epoch(
            data, self._recipe, self._seed, self.epoch, self._epochs, self._augment
        ).to(data.device)
        self._plan = plan
        smoothing = self._recipe.label_smoothing
        self._network.train()
        while self.batch < self.batches:
            asked = halt()
            if asked is not Halt.NO:
                return asked
            part = slice(self.batch * size, (self.batch + 1) * size)
            index = plan.order[part]
            images = data.normalise(data.images[index])
            if plan.moves is not None:
                images = move(images, plan.moves[part])
            with self._precision.autocast(data.device):
                logits = self._network(self._lay_out(images), self._draw_mask(plan))
                loss = F.cross_entropy(logits, data.labels[index], label_smoothing=smoothing)
            self._descend(loss, plan.learning_rates[self.batch])
            self._loss += loss.detach()
            self.batch += 1
            if self._watch.is_broken(self._loss):
                return None
        mean = self._loss.item() / self.batches
        if not math.isfinite(mean):
            return None
        self.epoch, self.batch, self._plan = self.epoch + 1, 0, None
        return mean

    def accuracy(
        self, split: tuple[Tensor, Tensor], halt: Callable[[], Halt] = lambda: Halt.NO
    ) -> float | None:
        """The share of a split's images that the network gets right; None where it was halted."""
        images, labels = split
        right = torch.zeros((), dtype=torch.int64, device=self._data.device)
        self._network.eval()
        with torch.inference_mode():
            for start in range(0, len(labels), _EVALUATION_BATCH):
                if halt() is Halt.DEADLINE:
                    return None
                part = slice(start, start + _EVALUATION_BATCH)
                with self._precision.autocast(self._data.device):
                    logits = self._network(self._lay_out(self._data.normalise(images[part])))
                right += (logits.argmax(1) == labels[part]).sum()
        return right.item() / len(labels)

    # -- saving and going on ---------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything needed to go on, as named arrays on the host."""
        arrays = {f"network.{k}": v for k, v in self._network.state_dict().items()}
        momenta = enumerate(self._momenta)
        arrays |= {f"momentum.{i}": buffer for i, buffer in momenta if buffer is not None}
        arrays["loss"] = self._loss
        # Copies: what lies on the CPU already would go on changing with the training.
        host = {k: v.detach().cpu().contiguous().numpy().copy() for k, v in arrays.items()}
        host["progress"] = np.array([self.epoch, self.batch], dtype=np.int64)
        return host

    def load_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave; raises KeyError or RuntimeError where it does not fit."""
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
        prefix = "network."
        self._network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        for i, parameter in enumerate(self._parameters):
            if f"momentum.{i}" in tensors:
                buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
                self._momenta[i] = buffer.detach().copy_(tensors[f"momentum.{i}"])
        self._loss.copy_(tensors["loss"])
        self.epoch, self.batch = (int(v) for v in arrays["progress"])
        self._plan = None

    # -- parts of a step -------------------------------------------------------------------------

    def _descend(self, loss: Tensor, learning_rate: float) -> None:
        """A step of SGD; where there is momentum, Nesterov's (Sutskever et al., 2013).

        By the function behind `torch.optim.SGD`: to make one of that class loads PyTorch's
        compiler, which takes each worker as long as all of PyTorch, while the device is held.
        """
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        gradients: list[Any] = [parameter.grad for parameter in self._parameters]
        momentum = self._recipe.momentum
        with torch.no_grad():
            sgd(
                self._parameters,
                gradients,
                self._momenta,
                fused=True,
                weight_decay=self._recipe.weight_decay,
                momentum=momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=momentum > 0,
                maximize=False,
            )

    def _lay_out(self, images: Tensor) -> Tensor:
        if self._precision.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _draw_mask(self, plan: EpochPlan) -> Tensor | None:
        if self._recipe.dropout == 0:
            return None
        device, width = self._data.device, self._network.head.in_features
        key = torch.tensor([plan.dropout_key], dtype=torch.int32, device=device)
        batch = torch.tensor([self.batch], device=device)
        dropout = torch.tensor([self._recipe.dropout], dtype=self._data.dtype, device=device)
        return keep_factors(key, batch, dropout, self._batch_size, width)[0]


def make_network(data: DeviceData, recipe: Recipe, seed: int) -> CNN:
    """The network that a trial begins with, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        network = CNN(
            data.image,
            data.classes,
            width=recipe.width,
            layers=recipe.layers,
            growth=recipe.growth,
        )
    return network.to(data.dtype)


@dataclass(frozen=True)
class EpochPlan:
    """Everything that an epoch is made of besides the network: a function of (seed, epoch).

    Attributes:
        order: `n` int64: the images, batch after batch.
        moves: `n x 3`, as `move` takes them, in that order; None without augmenting.
        learning_rates: one for each batch.
        dropout_key: for `models.noise`.
    """

    order: Tensor
    moves: Tensor | None
    learning_rates: list[float]
    dropout_key: int

    def to(self, device: torch.device) -> EpochPlan:
        """The same with its tensors on a device; they are drawn on the CPU, for any."""
        moves = None if self.moves is None else self.moves.to(device)
        return replace(self, order=self.order.to(device), moves=moves)


def plan_epoch(
    data: DeviceData, recipe: Recipe, seed: int, epoch: int, epochs: int, augment: bool
) -> EpochPlan:
    """Draw an epoch, the `epoch`th from 0 on, of a training laid out over `epochs`."""
    n = len(data.labels)
    draw = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    order = torch.randperm(n, generator=draw)
    moves = None
    if augment:
        shifts = torch.randint(-_SHIFT, _SHIFT + 1, (n, 2), generator=draw)
        mirrored = torch.randint(0, 2 if data.flips else 1, (n, 1), generator=draw)
        moves = torch.cat([shifts, mirrored], 1)
    batches = n // min(recipe.batch_size, n)
    shares = (np.arange(epoch * batches, (epoch + 1) * batches) + 1) / (epochs * batches + 1)
    heights = np.minimum(shares / WARM_UP_SHARE, (1 - shares) / (1 - WARM_UP_SHARE))
    rates = (recipe.learning_rate * heights).tolist()
    return EpochPlan(order, moves, rates, epoch_key(seed, epoch))


def move(images: Tensor, moves: Tensor) -> Tensor:
    """Shift and mirror each image on its own; what comes in from outside is the edge pixel.

    `images` is `n x channels x height x width`, `moves` is `n x 3`: down, right, mirror (0 or 1).
    """
    n, _, height, width = images.shape
    down, right, mirror = moves.unbind(1)
    rows = torch.arange(height, device=images.device) - down[:, None]  # n x height
    columns = torch.arange(width, device=images.device) - right[:, None]  # n x width
    columns = torch.where(mirror[:, None] == 1, width - 1 - columns, columns)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    picked = images[
        torch.arange(n, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None]
    ]  # n x height x width x channels
    return picked.permute(0, 3, 1, 2)


class _LossWatch:
    """Notices a loss that is not finite without making a GPU wait.

    On the CPU every batch is looked at. On a GPU the running sum is copied to the host in the
    background, and looked at once the copy is there, some batches later.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seen = torch.zeros((), pin_memory=self._cuda)
        self._copied: torch.cuda.Event | None = None

    def is_broken(self, loss: Tensor) -> bool:
        if not self._cuda:
            return not math.isfinite(loss.item())
        if self._copied is None:
            self._seen.copy_(loss, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        elif self._copied.query():
            self._copied = None
            return not math.isfinite(self._seen.item())
        return False
