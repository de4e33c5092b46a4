"""Checkpoints: named arrays in one file, whole or absent, known by their SHA-256, never pickled.

The files are safetensors, which others read too, and which are written in a third of the time of an
npz: a pack of a hundred trials writes some three hundred a second.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from tuner.failpoints import Place, reach
from tuner.files import write_atomically
from tuner.foreign import read_capped
from tuner.workers.checkpoints import DamagedCheckpointError

SUFFIX = ".safetensors"
_MOST_BYTES = 1 << 30


def save(directory: Path, stem: str, arrays: dict[str, NDArray[Any]]) -> tuple[str, str]:
    """Write the arrays; the file's name and its SHA-256. Raises OSError where the disk refuses.

    The name ends in the hash, so that no file is ever overwritten by one with other content.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"a checkpoint holds numbers, but {name} holds objects")
    data = to_bytes({name: np.asarray(a, order="C") for name, a in arrays.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{sha256[:12]}{SUFFIX}"
    write_atomically(directory / name, data)
    reach(Place.CHECKPOINT_WRITTEN)
    return name, sha256


def load(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays that were saved; raises DamagedCheckpointError where the hash does not fit."""
    try:
        data = read_capped(path, _MOST_BYTES)
    except ValueError as error:
        raise DamagedCheckpointError(f"checkpoint {path.name} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedCheckpointError(f"checkpoint {path.name} is damaged: its hash does not fit")
    try:
        return from_bytes(data)
    except SafetensorError as error:
        raise DamagedCheckpointError(f"checkpoint {path.name} is no such file: {error}") from error
