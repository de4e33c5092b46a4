"""Data sets as they are kept once they were converted: one npz file each.

A worker reads one in a moment, where torchvision takes seconds to load and checks or unpickles
its files each time; and a worker's start is paid for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.arrays import arrays_in
from tuner.files import write_atomically
from tuner.foreign import read_capped

MOST_BYTES, MOST_PIXELS = 2 << 30, 4_000_000_000
_HEADERS = 1 << 20  # of the file, at most
KINDS = {
    **{f"{part}_images": "u" for part in ("train", "test")},
    **{f"{part}_labels": "iu" for part in ("train", "test")},
    "classes": "U",
}

Arrays = dict[str, NDArray[Any]]


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays: `train_images`, `n x channels x height x width` uint8, and so on."""
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_BYTES - _HEADERS:
        raise ValueError(f"the images are {size >> 20:,} MiB as arrays, and at most 2,047 are kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def read(path: Path, only: tuple[str, ...]) -> Arrays:
    """The arrays of these names; ValueError, naming the file, where it is not what was written."""
    try:
        return arrays_in(read_capped(path, MOST_BYTES), KINDS, MOST_PIXELS, only)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it, and it is made anew") from error
