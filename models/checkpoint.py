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


def save(path: Path, arrays: dict[str, NDArray[Any]]) -> str:
    """Write the arrays and return the file's SHA-256; raises OSError where the disk refuses."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


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
