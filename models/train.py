"""One trial's training: SGD on a device-resident data set, epoch by epoch, resumable anywhere.

Nothing here knows of trials, budgets or processes. Every random draw belongs to (seed, role,
epoch), so a training that was broken off and went on ends as one that was not.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.cnn import CNN
from models.data import ImageData, Split
from models.knobs import Recipe
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
    """How arithmetic is done on the device."""

    bf16: bool = False
    channels_last: bool = True

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which a forward pass runs."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


class DeviceData:
    """A data set's training and validation images on the device, once, as uint8 tensors."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.device, self.classes, self.flips = device, data.classes, data.flips
        self.image = (*data.train.images.shape[1:],)
        self.images, self.labels = self.put(data.train)
        self.validation = self.put(data.validation)
        pixels = data.train.images.astype(np.float32)
        shape = (1, -1, 1, 1)
        self._mean = torch.from_numpy(pixels.mean((0, 2, 3))).reshape(shape).to(device)
        self._scale = 1 / torch.from_numpy(pixels.std((0, 2, 3))).reshape(shape).to(device)

    def put(self, split: Split) -> tuple[Tensor, Tensor]:
        """A split on the device: `n x channels x height x width` uint8, and `n` int64."""
        return (
            torch.from_numpy(split.images).to(self.device),
            torch.from_numpy(split.labels).to(self.device),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images as floats with mean 0 and variance 1 over the training set."""
        return (images.float() - self._mean) * self._scale


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
        precision: Precision = Precision(),
        augment: bool = False,
    ) -> None:
        self._data, self._recipe, self._seed, self._epochs = data, recipe, seed, epochs
        self._precision, self._augment = precision, augment
        torch.manual_seed(derive_seed(seed, "init"))
        network = CNN(
            data.image,
            data.classes,
            width=recipe.width,
            layers=recipe.layers,
            dropout=recipe.dropout,
        )
        layout = torch.channels_last if precision.channels_last else torch.contiguous_format
        self._network = network.to(data.device, memory_format=layout)
        self._optimiser = torch.optim.SGD(
            self._network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
        self._batch_size = min(recipe.batch_size, len(data.labels))
        self.batches = len(data.labels) // self._batch_size
        self.epoch, self.batch = 0, 0  # finished epochs, and batches of the one in progress
        self._loss = torch.zeros((), device=data.device)  # sum over the epoch in progress
        self._watch = _LossWatch(data.device)

    def run_epoch(self, halt: Callable[[], Halt]) -> float | Halt | None:
        """Train to the end of the epoch in progress.

        Returns the mean training loss; None as soon as the loss is not finite; or, where `halt`
        said so before a batch, what it said, with the epoch still in progress.
        """
        data, size = self._data, self._batch_size
        if self.batch == 0:
            self._loss.zero_()
            torch.manual_seed(derive_seed(self._seed, "dropout", self.epoch))
        draw = torch.Generator().manual_seed(derive_seed(self._seed, "order", self.epoch))
        n = len(data.labels)
        order = torch.randperm(n, generator=draw).to(data.device)
        moves = self._draw_moves(n, draw) if self._augment else None
        smoothing = self._recipe.label_smoothing
        self._network.train()
        while self.batch < self.batches:
            asked = halt()
            if asked is not Halt.NO:
                return asked
            part = slice(self.batch * size, (self.batch + 1) * size)
            index = order[part]
            images = data.normalise(data.images[index])
            if moves is not None:
                images = move(images, moves[part])
            self._set_learning_rate()
            with self._precision.autocast(data.device):
                logits = self._network(self._lay_out(images))
                loss = F.cross_entropy(logits, data.labels[index], label_smoothing=smoothing)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._loss += loss.detach()
            self.batch += 1
            if self._watch.is_broken(self._loss):
                return None
        mean = self._loss.item() / self.batches
        if not math.isfinite(mean):
            return None
        self.epoch, self.batch = self.epoch + 1, 0
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
        for i, parameter in enumerate(self._network.parameters()):
            buffer = self._optimiser.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                arrays[f"momentum.{i}"] = buffer
        arrays["loss"] = self._loss
        arrays["random.cpu"] = torch.get_rng_state()
        if self._data.device.type == "cuda":
            arrays["random.cuda"] = torch.cuda.get_rng_state(self._data.device)
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
        for i, parameter in enumerate(self._network.parameters()):
            if f"momentum.{i}" in tensors:
                buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
                buffer.copy_(tensors[f"momentum.{i}"])
                self._optimiser.state[parameter]["momentum_buffer"] = buffer
        self._loss.copy_(tensors["loss"])
        torch.set_rng_state(tensors["random.cpu"])
        if self._data.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._data.device)
        self.epoch, self.batch = (int(v) for v in arrays["progress"])

    # -- parts of a step -------------------------------------------------------------------------

    def _lay_out(self, images: Tensor) -> Tensor:
        if self._precision.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _set_learning_rate(self) -> None:
        step = self.epoch * self.batches + self.batch
        share = (step + 1) / (self._epochs * self.batches + 1)
        rising, falling = share / WARM_UP_SHARE, (1 - share) / (1 - WARM_UP_SHARE)
        self._optimiser.param_groups[0]["lr"] = self._recipe.learning_rate * min(rising, falling)

    def _draw_moves(self, n: int, draw: torch.Generator) -> Tensor:
        """For each image a shift down and right in pixels and whether to mirror, `n x 3`."""
        shifts = torch.randint(-_SHIFT, _SHIFT + 1, (n, 2), generator=draw)
        mirrored = torch.randint(0, 2 if self._data.flips else 1, (n, 1), generator=draw)
        return torch.cat([shifts, mirrored], 1).to(self._data.device)


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
