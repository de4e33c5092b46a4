"""A user's own images: a folder with a folder for each class, or an npz file.

Both become one npz file in the data root, once, named after what was in them: a run that goes on
later trains on what it began with, or says that it cannot.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models import kept
from models.kept import Arrays
from models.splits import held_out_size, stratified
from tuner.arrays import arrays_in
from tuner.foreign import read_capped

if TYPE_CHECKING:
    from PIL.Image import Image

_NAMED = re.compile(r"(.*)#([0-9a-f]{16})", re.DOTALL)  # where from, and what was in there
_SIDE, _LARGEST_KEPT = 64, 64  # pixels
_SPLIT_SEED = 20_202  # not the one by which validation is set aside
_LEAST_OF_A_CLASS = 6  # of which one is to test and one to validate on
MOST_SIDE, MOST_CLASSES = 1024, 100_000  # that a network of ours takes
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


def is_own(name: str) -> bool:
    """Whether a data set's name is a file or folder of the user's."""
    is_path = os.sep in name or name.endswith(".npz") or Path(name).is_dir()
    return is_path or _NAMED.fullmatch(name) is not None


def where(name: str) -> Path:
    """The file or folder of such a name."""
    return Path(_parts(name)[0])


def _parts(name: str) -> tuple[str, str]:
    """A path and the digest of what was there; a path itself may hold the mark between them."""
    found = _NAMED.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def named(name: str, root: Path) -> str:
    """The name by which a run remembers what is there now: its path and a digest.

    A name that was made earlier stays, as long as there is the copy that `convert` made of what was
    there then: a run goes on with what it began with. Raises ValueError where there is no such
    copy and it has changed, and where there is nothing to train on.
    """
    before = _parts(name)[1]
    if before and kept_at(name, root).exists():
        return name
    path = where(name).resolve()
    if path.is_dir():
        _, files = _files_of(path)
        each = [(str(file), i, file.stat()) for found in files.values() for file, i in found]
        listing = [(file, label, stat.st_size, stat.st_mtime_ns) for file, label, stat in each]
        digest = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    else:
        digest = hashlib.sha256(read_capped(path, kept.MOST_BYTES)).hexdigest()[:16]
    if before and before != digest:
        raise ValueError(f"{path} has changed since this run began; begin a new one")
    return f"{path}#{digest}"


def convert(name: str, root: Path) -> None:
    """Make the file at `kept_at`, where it is not there; `name` is as `named` gave it.

    Raises ValueError, naming the file, where what is there cannot be used.
    """
    target = kept_at(name, root)
    if target.exists():
        return
    kept.write(target, converted(where(name)))


def converted(path: Path) -> Arrays:
    """What `convert` makes of a folder or a file; ValueError where that cannot be used."""
    return _from_folder(path) if path.is_dir() else _from_file(path)


def kept_at(name: str, root: Path) -> Path:
    """Where `convert` keeps it."""
    return root / "own" / f"{_parts(name)[1]}.npz"


# -- npz -------------------------------------------------------------------------------------------


def _from_file(path: Path) -> Arrays:
    try:
        arrays = arrays_in(read_capped(path, kept.MOST_BYTES), kept.KINDS, kept.MOST_PIXELS)
        if not {"train_images", "train_labels"} <= set(arrays):
            raise ValueError("it lacks train_images or train_labels")
        if ("test_images" in arrays) != ("test_labels" in arrays):
            raise ValueError("it has one of test_images and test_labels, and not the other")
        found: Arrays = {}
        for part in ("train", "test"):
            if f"{part}_images" in arrays:
                images, labels = (arrays[f"{part}_{what}"] for what in ("images", "labels"))
                found[f"{part}_images"], found[f"{part}_labels"] = _checked(part, images, labels)
        if "test_images" in found and found["test_images"].shape[1:] != (
            shape := found["train_images"].shape[1:]
        ):
            raise ValueError(
                f"images to test on are not of the shape of those to train on, {shape}"
            )
        count = int(max(found[key].max() for key in found if key.endswith("labels"))) + 1
        names = arrays.get("classes", np.array([str(i) for i in range(count)]))
        if names.shape != (count,):
            raise ValueError(f"it has {count} classes, and {names.size} names for them")
        return _whole({**found, "classes": names})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(
    part: str, images: NDArray[Any], labels: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images with channels first, and labels; ValueError where they are no such."""
    if images.dtype != np.uint8:
        raise ValueError(f"{part}_images are uint8, pixels from 0 to 255, got {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(
            f"{part}_images are n x height x width, or that x 1 or x 3, got {images.shape}"
        )
    if max(images.shape[1:3]) > MOST_SIDE:
        raise ValueError(
            f"{part}_images are at most {MOST_SIDE} pixels high and broad, got {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{part}_labels are one for each image, got {labels.shape} for {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"{part}_labels are the classes' numbers, from 0 up and below {MOST_CLASSES}, got "
            f"{labels.min()} to {labels.max()}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64)


# -- folders ---------------------------------------------------------------------------------------


def _files_of(folder: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """The classes' names, and for each part its images, each with the number of its class.

    `DIR/CLASS/…`, or `DIR/train/CLASS/…` with `DIR/test/CLASS/…` or without.
    """
    parts = {"train": folder / "train", "test": folder / "test"}
    if not parts["train"].is_dir():
        parts = {"train": folder}
    names = sorted(_folders_in(parts["train"]))
    files: dict[str, list[tuple[Path, int]]] = {}
    for part, place in parts.items():
        if not place.is_dir():
            continue
        if unknown := _folders_in(place) - set(names):
            raise ValueError(f"{place} has the class {min(unknown)}, of which none is to train on")
        files[part] = [(f, i) for i, name in enumerate(names) for f in _images_below(place / name)]
    if not any(files.values()):
        raise ValueError(f"{folder} has no images; expected a folder for each class in it")
    return names, files


def _folders_in(place: Path) -> set[str]:
    """What programs put there for themselves is no class."""
    return {p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}


def _images_below(folder: Path) -> Iterator[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                yield Path(place) / name


def _from_folder(folder: Path) -> Arrays:
    names, files = _files_of(folder)
    every = [path for found in files.values() for path, _ in found]
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock
        facts = list(pool.map(_facts, every))
    size = facts[0][0] if len({f[0] for f in facts}) == 1 else (_SIDE, _SIDE)
    if max(size) > _LARGEST_KEPT:
        size = (_SIDE, _SIDE)
    mode = "L" if all(f[1] in ("1", "L") for f in facts) else "RGB"
    arrays: Arrays = {"classes": np.array(names)}
    for part, found in files.items():
        if not found:
            raise ValueError(f"{folder / part} has no images; leave it out, or fill it")
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda one: _pixels(one[0], size, mode), found))
        arrays[f"{part}_images"] = np.stack(images)
        arrays[f"{part}_labels"] = np.array([i for _, i in found], dtype=np.int64)
    return _whole(arrays)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An image the way up that it is meant to be seen; ValueError, naming it, where it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode not in _MODES:
                raise ValueError(f"more than 8 bits a channel ({image.mode}); save it with 8")
            yield ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _facts(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and how its pixels are kept."""
    with _opened(path) as image:
        return image.size, image.mode


def _pixels(path: Path, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    """An image as `channels x height x width`."""
    from PIL import Image

    with _opened(path) as image:
        fitted = image.convert(mode)
        if fitted.size != size:
            fitted = fitted.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(fitted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _whole(arrays: Arrays) -> Arrays:
    """With images to test on: where there are none, one in six of each class is set aside."""
    labels = arrays["train_labels"]
    counts = np.bincount(labels, minlength=len(arrays["classes"]))
    if len(counts) < 2 or counts.min() < _LEAST_OF_A_CLASS:
        name, few = arrays["classes"][int(counts.argmin())], int(counts.min())
        raise ValueError(
            f"expected at least 2 classes with {_LEAST_OF_A_CLASS} images each to train on, got "
            f"{few} of {str(name)[:60]!r}"
            if len(counts) > 1
            else "expected at least 2 classes, got 1"
        )
    if "test_labels" in arrays:
        return arrays
    tested, rest = stratified(labels, [held_out_size(len(labels))], _SPLIT_SEED)
    images = arrays["train_images"]
    return {
        **arrays,
        "train_images": images[rest],
        "train_labels": labels[rest],
        "test_images": images[tested],
        "test_labels": labels[tested],
    }
