"""A trained network as files that others can use: safetensors, JSON, an exported program.

Nothing here is pickled, and `load` reads only `model.safetensors` and `config.json`. `model.pt2` is
PyTorch's own archive of an exported program, for those who want to run it without this project; who
loads one of a stranger's trusts PyTorch's reader of it, so `load` never does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes
from torch import nn

from models.cnn import CNN
from models.data import ImageData, Split
from models.knobs import Recipe
from models.own_images import MOST_CLASSES, MOST_SIDE
from tuner.files import write_atomically
from tuner.foreign import read_capped, read_json

WEIGHTS, CONFIG, PROGRAM = "model.safetensors", "config.json", "model.pt2"
_MOST_BYTES = 1 << 30
_BATCH = 500
_MOST = (4, MOST_SIDE, MOST_SIDE, 4096, 16)  # channels, height, breadth; width, layers
_MOST_GROWTH = 8.0


@dataclass(frozen=True)
class Architecture:
    """What a network is, besides its weights.

    Attributes:
        image: channels, height and width.
        classes: what they are called, in the order of the logits.
        width, layers, growth: see `models.cnn.CNN`.
        mean, spread: of the training images, see `models.data.Split.mean_and_spread`.
    """

    image: tuple[int, int, int]
    classes: tuple[str, ...]
    width: int
    layers: int
    growth: float
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def of(cls, recipe: Recipe, data: ImageData, classes: Sequence[str]) -> Architecture:
        """That of a training on these images, which are normalised as they were there."""
        channels, height, breadth = data.train.images.shape[1:]
        mean, spread = data.train.mean_and_spread()
        return cls(
            (channels, height, breadth),
            tuple(classes),
            recipe.width,
            recipe.layers,
            recipe.growth,
            tuple(map(float, mean)),
            tuple(map(float, spread)),
        )

    @classmethod
    def from_json(cls, data: Any) -> Architecture:
        """What JSON says; raises ValueError where it describes no network of ours."""
        try:
            channels, height, breadth = data["image"]
            found = cls(
                (channels, height, breadth),
                tuple(data["classes"]),
                data["width"],
                data["layers"],
                data["growth"],
                tuple(data["mean"]),
                tuple(data["spread"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this describes no network of ours: {error}") from error
        found._check()
        return found

    def _check(self) -> None:
        sides = zip((*self.image, self.width, self.layers), _MOST, strict=True)
        numbers = (self.growth, *self.mean, *self.spread)
        if not (
            all(type(n) is int and 1 <= n <= most for n, most in sides)
            and all(type(x) is float and math.isfinite(x) for x in numbers)
            and 1 <= self.growth <= _MOST_GROWTH
            and len(self.mean) == len(self.spread) == self.image[0]
            and min(self.spread) > 0
            and 2 <= len(self.classes) <= MOST_CLASSES
            and all(isinstance(name, str) for name in self.classes)
        ):
            raise ValueError("this describes no network of ours: its sizes make no sense")


class Classifier(nn.Module):
    """The network with its normalisation: takes images as they are, gives logits.

    Input is `n x channels x height x width`, uint8 or float, pixels from 0 to 255; output is
    `n x classes`.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.network = CNN(a.image, len(a.classes), width=a.width, layers=a.layers, growth=a.growth)
        shape = (1, -1, 1, 1)
        mean, spread = (np.array(values, dtype=np.float32) for values in (a.mean, a.spread))
        self.register_buffer("mean", torch.from_numpy(mean).reshape(shape), persistent=False)
        self.register_buffer("scale", 1 / torch.from_numpy(spread).reshape(shape), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        logits: torch.Tensor = self.network((images.to(self.mean.dtype) - self.mean) * self.scale)
        return logits


def save(
    folder: Path, checkpoint: Mapping[str, NDArray[Any]], architecture: Architecture
) -> Classifier:
    """Write a model's files; the model, as it is read from them.

    `checkpoint` is a training's, of which the network's arrays are taken.
    """
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / WEIGHTS, to_bytes({k: np.asarray(v, order="C") for k, v in weights.items()})
    )
    write_atomically(folder / CONFIG, json.dumps(asdict(architecture), indent=1) + "\n")
    model = load(folder)
    sample = torch.zeros(2, *architecture.image, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (sample,), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # or they would be in the file, as a pickle
    torch.export.save(program, folder / PROGRAM)
    return model


def accuracy(model: Classifier, split: Split) -> float:
    """The share of images that a model gets right."""
    right = 0
    with torch.inference_mode():
        for begin in range(0, len(split), _BATCH):
            part = slice(begin, begin + _BATCH)
            logits = model(torch.from_numpy(split.images[part]))
            right += int((logits.argmax(1) == torch.from_numpy(split.labels[part])).sum())
    return right / len(split)


def load(folder: Path) -> Classifier:
    """The model in a folder, ready to predict.

    Raises ValueError, naming the file, where it is damaged or no such.
    """
    try:
        architecture = Architecture.from_json(read_json(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    try:
        arrays = from_bytes(read_capped(folder / WEIGHTS, _MOST_BYTES))
        model = Classifier(architecture)
        model.network.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / WEIGHTS} holds no such network: {first}") from error
    return model.eval()
