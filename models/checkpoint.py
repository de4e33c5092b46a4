"""Checkpoints: named arrays in one file, whole or absent, known by their SHA-256, never pickled."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.files import write_atomically


class DamagedCheckpointError(ValueError):
    """A checkpoint is missing, or is not the one that was written."""


def save(directory: Path, stem: str, arrays: dict[str, NDArray[Any]]) -> tuple[str, str]:
    """Write the arrays; the file's name and its SHA-256. Raises OSError where the disk refuses.

    The name ends in the hash, so that no file is ever overwritten by one with other content.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:  # savez would pickle it
            raise ValueError(f"a checkpoint holds numbers, but {name} holds objects")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{sha256[:12]}.npz"
    write_atomically(directory / name, data)
    return name, sha256


def load(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays that were saved; raises DamagedCheckpointError where the hash does not fit."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"checkpoint {path.name} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedCheckpointError(f"checkpoint {path.name} is damaged: its hash does not fit")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
