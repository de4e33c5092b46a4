"""Data sets as arrays: the embedded sample, torchvision's sets, and a user's own images.

Validation always comes out of the training set, stratified by class and the same for every run;
the test set is a separate read (`load_test`), for the winner alone.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import kept, own_images
from models.splits import held_out_size, stratified
from tuner.arrays import arrays_in
from tuner.files import waiting_lock
from tuner.foreign import read_capped
from tuner.naming import pick

SAMPLE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
_SPLIT_SEED = 20_201
_PARTS = ("train", "validation", "test")
_KEPT_PARTS = ("train", "test")
_SAMPLE_KINDS = {f"{part}_{what}": "u" for part in _PARTS for what in ("images", "labels")}
_MOST_SAMPLE, _MOST_PIXELS = 16 << 20, 16_000_000


@dataclass(frozen=True)
class Split:
    """Images, `n x channels x height x width` uint8, and their labels, `n` int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def mean_and_spread(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the pixels from 0 to 255, for each channel; the spread of one that is constant is 1.

        Images of two colours in files made for three are no mistake.
        """
        channels, pixels = (0, 2, 3), self.images.astype(np.float32)
        spread = pixels.std(channels)
        spread[self.images.min(channels) == self.images.max(channels)] = 1
        return pixels.mean(channels), spread


@dataclass(frozen=True)
class ImageData:
    """What a search may see of a data set.

    Attributes:
        flips: whether a mirrored image shows the same class (a mirrored digit does not).
    """

    name: str
    train: Split
    validation: Split
    classes: int
    flips: bool


@dataclass(frozen=True)
class _Source:
    """A torchvision data set: its class, whether it may be mirrored, how to ask for a part."""

    torchvision: str
    flips: bool
    part: Callable[[bool], dict[str, Any]] = lambda train: {"train": train}


_SOURCES: Mapping[str, _Source] = {
    "fashion_mnist": _Source("FashionMNIST", flips=True),
    "mnist": _Source("MNIST", flips=False),
    "kmnist": _Source("KMNIST", flips=False),
    "cifar10": _Source("CIFAR10", flips=True),
    "cifar100": _Source("CIFAR100", flips=True),
    "svhn": _Source("SVHN", flips=False, part=lambda t: {"split": "train" if t else "test"}),
}
DATA_SETS = ("sample", *_SOURCES)


def title(name: str) -> str:
    """A data set's name for people: of a user's own, that of the file or folder."""
    return name if name in DATA_SETS else own_images.where(name).stem


def default_root() -> Path:
    """Where data sets are kept unless told otherwise: a folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tuner" / "data"


def prepare(name: str, root: Path) -> str:
    """Make sure that the files are there, fetching them if need be, one process at a time.

    Returns the name by which a run remembers them, which is `name` but for a user's own images.
    Raises ValueError where they are not there and cannot be fetched.
    """
    is_own = name not in DATA_SETS and own_images.is_own(name)
    if is_own:
        name = own_images.named(name, root)
    else:
        pick(name, dict.fromkeys(DATA_SETS), "data set")
    if name == "sample":
        return name
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    except OSError as error:
        raise ValueError(f"the data folder {root} cannot be written to: {error}") from error
    with waiting_lock(root / ".lock"):
        if is_own:
            own_images.convert(name, root)
        elif not (target := kept_at(name, root)).exists():
            if name == "fashion_mnist":
                _unpack_fashion_mnist(root)
            parts = {part: _fetched(name, root, part, download=True) for part in _KEPT_PARTS}
            kept.write(
                target,
                {f"{part}_images": split.images for part, split in parts.items()}
                | {f"{part}_labels": split.labels for part, split in parts.items()},
            )
    return name


def load(name: str, root: Path, *, merged: bool = False) -> ImageData:
    """Training and validation images; reads nothing of the test set and fetches nothing.

    With `merged` the validation images are among those to train on as well, for the network that a
    search ends with: a score on them means nothing then.
    """
    data = _load(name, root)
    if not merged:
        return data
    parts = (data.train, data.validation)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return replace(data, train=Split(images, labels))


def _load(name: str, root: Path) -> ImageData:
    if name == "sample":
        return ImageData(name, _sample("train"), _sample("validation"), 10, flips=True)
    full = _open(name, root, "train")
    held_out, rest = stratified(full.labels, [held_out_size(len(full))], _SPLIT_SEED)
    return ImageData(
        name,
        Split(full.images[rest], full.labels[rest]),
        Split(full.images[held_out], full.labels[held_out]),
        len(class_names(name, root)) if name not in _SOURCES else int(full.labels.max()) + 1,
        # Whether a mirrored image of the user's shows the same, nobody has said.
        name in _SOURCES and _SOURCES[name].flips,
    )


def load_test(name: str, root: Path) -> Split:
    """The test set: for the winner of a search, once."""
    if name == "sample":
        return _sample("test")
    return _open(name, root, "test")


def class_names(name: str, root: Path) -> list[str]:
    """What the classes are called, as far as anybody knows."""
    if name not in DATA_SETS:
        return [str(n) for n in kept.read(kept_at(name, root), ("classes",))["classes"]]
    import torchvision

    source = _SOURCES["fashion_mnist" if name == "sample" else name].torchvision
    known = getattr(getattr(torchvision.datasets, source), "classes", None)
    return list(known) if known else [str(i) for i in range(100 if name == "cifar100" else 10)]


def _sample(part: str) -> Split:
    """A part of the embedded sample, whose file is believed no more than any other."""
    names = [f"{part}_images", f"{part}_labels"]
    try:
        arrays = arrays_in(read_capped(SAMPLE, _MOST_SAMPLE), _SAMPLE_KINDS, _MOST_PIXELS, names)
        images, labels = (arrays[name] for name in names)
        if images.ndim != 3 or labels.shape != images.shape[:1] or (labels > 9).any():
            raise ValueError(f"images {images.shape} and labels {labels.shape} do not fit")
    except KeyError as error:
        raise ValueError(f"{SAMPLE} is not the embedded sample: it has no {error}") from error
    except ValueError as error:
        raise ValueError(f"{SAMPLE} is not the embedded sample: {error}") from error
    return Split(images[:, None], labels.astype(np.int64))


def kept_at(name: str, root: Path) -> Path:
    """Where `prepare` keeps a data set as arrays; of torchvision's made once, like its files."""
    return root / "arrays" / f"{name}.npz" if name in _SOURCES else own_images.kept_at(name, root)


def _open(name: str, root: Path, part: str) -> Split:
    """`train` or `test` of a data set; ValueError where it is not there."""
    target = kept_at(name, root)
    if name in _SOURCES and not target.exists():  # nobody has prepared it
        return _fetched(name, root, part, download=False)
    names = (f"{part}_images", f"{part}_labels")
    arrays = kept.read(target, names)
    return Split(*(arrays[name] for name in names))


def _fetched(name: str, root: Path, part: str, *, download: bool) -> Split:
    """A part of one of torchvision's sets, from its own files."""
    import torchvision

    source = _SOURCES[name]
    try:
        data = getattr(torchvision.datasets, source.torchvision)(
            str(root), download=download, **source.part(part == "train")
        )
    except (RuntimeError, OSError, AssertionError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"data set {name!r} was not found in {root} and could not be fetched ({reason}); "
            f"put torchvision's {source.torchvision} files there, or name their folder with "
            "--data-root"
        ) from error
    labels = np.asarray(data.labels if hasattr(data, "labels") else data.targets, dtype=np.int64)
    images = np.asarray(data.data)
    if images.ndim == 3:  # MNIST and its kin are n x height x width
        images = images[:, None]
    elif images.shape[-1] == 3:  # CIFAR is channels-last
        images = images.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(images), labels)


def _unpack_fashion_mnist(root: Path) -> None:
    """Lay packed files, in `root` or Debian's, out as torchvision expects them."""
    raw = root / "FashionMNIST" / "raw"
    for packed in (*root.glob("*-ubyte.gz"), *DEBIAN_FASHION_MNIST.glob("*-ubyte.gz")):
        target = raw / packed.stem
        if not target.exists():
            raw.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(".tmp")
            try:
                with gzip.open(packed) as source, open(temporary, "wb") as file:
                    shutil.copyfileobj(source, file)
                temporary.replace(target)
            except (OSError, EOFError, zlib.error) as error:
                temporary.unlink(missing_ok=True)
                raise ValueError(f"{packed} is damaged or cannot be unpacked: {error}") from error


def make_sample(root: Path, path: Path = SAMPLE) -> dict[str, Any]:
    """Write the embedded sample from the full Fashion-MNIST, and return its card."""
    prepare("fashion_mnist", root)
    full, test = (_open("fashion_mnist", root, part) for part in _KEPT_PARTS)
    train, validation, _ = stratified(full.labels, [10_000, 2_000], _SPLIT_SEED)
    tested, _ = stratified(test.labels, [2_000], _SPLIT_SEED)
    parts = {"train": (full, train), "validation": (full, validation), "test": (test, tested)}
    arrays: dict[str, NDArray[Any]] = {}
    for part, (split, index) in parts.items():
        arrays[f"{part}_images"] = split.images[index, 0]
        arrays[f"{part}_labels"] = split.labels[index].astype(np.uint8)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    card = {
        "data": "Fashion-MNIST, a stratified sample; validation is from the training set",
        "images": {part: len(index) for part, (_, index) in parts.items()},
        "bytes": path.stat().st_size,
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return card
