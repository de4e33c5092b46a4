"""What a user's training saves and goes on from: folders, whole or absent, known by their hashes.

A folder is written under a temporary name. What it holds is listed, with sizes and hashes, in a
manifest, whose own hash the study keeps; then it gets its name. So a checkpoint that was torn, cut
or altered is never gone on from, and one that no row names is swept away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.failpoints import Place, reach
from tuner.files import DISK_ERRORS, CannotWriteError, write_atomically
from tuner.foreign import parse_json, read_capped

SUFFIX = ".checkpoint"
_MANIFEST = "checkpoint.json"
_MOST_MANIFEST = 4 << 20
_ITSELF = ""  # as a checkpoint that is one file is called among its files


class DamagedCheckpointError(ValueError):
    """A checkpoint is missing, or is not the one that was written."""


class TrialCheckpoint:
    """What `train(config, checkpoint)` gets: where to go on from, and where to save.

    >>> def train(config, checkpoint):
    ...     model = build(config)
    ...     if checkpoint.folder:
    ...         model.load(checkpoint.folder / "weights.npz")
    ...     for epoch in range(checkpoint.epoch, 10):
    ...         score = fit_one_epoch(model)
    ...         with checkpoint.save() as folder:
    ...             model.save(folder / "weights.npz")
    ...         yield score

    Attributes:
        folder: what was saved last, to read from; None where the trial begins.
        epoch: the number of scores that had been yielded when that was saved; 0 at the beginning.
            The score that follows a `save` belongs to it.
        seed: the trial's, a function of the study's seed and the configuration.
        number: the trial's.
    """

    def __init__(self, directory: Path, stem: str, number: int, seed: int) -> None:
        self.folder: Path | None = None
        self.epoch = 0
        self.number, self.seed = number, seed
        self._directory, self._stem = directory, stem
        self._saved: Path | None = None  # under a temporary name, until the next score
        self.spent_ns = 0  # on saving, since this was last read
        self._saves = 0

    @contextmanager
    def save(self) -> Iterator[Path]:
        """An empty folder to save into; it counts once the block has ended without an error.

        Save before the score is yielded that belongs to it. What is saved again before that takes
        its place. Raises CannotWriteError where the disk takes no more.
        """
        began = time.monotonic_ns()
        self._saves += 1
        making = self._directory / f".{self._stem}-{os.getpid()}-{self._saves}.tmp"
        try:
            making.mkdir()
            yield making
            for path in _files(making):
                _sync(path)
        except BaseException as error:
            shutil.rmtree(making, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise CannotWriteError.of(error.filename or making, error) from error
            raise
        self._drop()
        self._saved = making
        self.spent_ns += time.monotonic_ns() - began

    def keep(self, epoch: int) -> tuple[str, str] | None:
        """Give what was saved since the last call its name; that and its hash, or None.

        `epoch` is the number of scores with which it goes.
        """
        if self._saved is None:
            return None
        began, making, self._saved = time.monotonic_ns(), self._saved, None
        files = {str(p.relative_to(making)): [p.stat().st_size, _digest(p)] for p in _files(making)}
        manifest = json.dumps({"epoch": epoch, "files": files}).encode()
        sha256 = hashlib.sha256(manifest).hexdigest()
        name = f"{self._stem}-{epoch:05d}-{sha256[:12]}{SUFFIX}"
        try:
            (making / _MANIFEST).write_bytes(manifest)
            _sync(making / _MANIFEST)
            _sync(making)
            reach(Place.FILE_SYNCED)
            if (self._directory / name).exists():  # what is in it is the same, by its name
                shutil.rmtree(making)
            else:
                making.rename(self._directory / name)
            reach(Place.FILE_RENAMED)
            _sync(self._directory)
        except OSError as error:
            raise CannotWriteError.of(self._directory / name, error) from error
        reach(Place.CHECKPOINT_WRITTEN)
        self.spent_ns += time.monotonic_ns() - began
        return name, sha256

    def load(self, name: str, sha256: str) -> None:
        """Go on from a checkpoint; raises DamagedCheckpointError where it is not what was saved."""
        folder = self._directory / name
        try:
            manifest = read_manifest(folder, sha256)
            self.epoch, self.folder = int(manifest["epoch"]), folder
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DamagedCheckpointError(f"checkpoint {name} is damaged: {error}") from error

    def scratch(self) -> Path:
        """Where a program of this trial may write; swept away with what nobody names."""
        return self._directory / f".{self._stem}-{os.getpid()}.tmp"

    def close(self) -> None:
        """Delete what was saved and goes with no score."""
        self._drop()

    def _drop(self) -> None:
        if self._saved is not None:
            shutil.rmtree(self._saved, ignore_errors=True)
            self._saved = None


def copy_into(source: Path, target: Path) -> None:
    """Copy the files of a checkpoint, or of a folder that becomes one, into another folder."""
    for path in _files(source):
        name = path.relative_to(source)
        if str(name) != _MANIFEST:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def read_files(checkpoint: Path) -> dict[str, bytes]:
    """All files of a checkpoint by their names below it, to be sent; its manifest too.

    One that is a file itself is called `""`. Raises DamagedCheckpointError where it is missing,
    ValueError or OSError where it cannot be read.
    """
    if checkpoint.is_file():
        return {_ITSELF: checkpoint.read_bytes()}
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(f"checkpoint {checkpoint.name} is missing")
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in _files(checkpoint)}


def write_files(directory: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Put a checkpoint that was sent in its place, whole or not at all; one that is there stays.

    Raises ValueError where a name leads out of it, and CannotWriteError.
    """
    if (directory / name).exists():
        return
    if set(files) == {_ITSELF}:
        write_atomically(directory / name, files[_ITSELF])
        return
    making = directory / f".{name}-{os.getpid()}.tmp"
    try:
        making.mkdir()
        for file, data in files.items():
            path = making / file
            if making.resolve() not in path.resolve().parents:
                raise ValueError(f"a checkpoint's file cannot be called {file!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            _sync(path)
        _sync(making)
        making.rename(directory / name)
        _sync(directory)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise CannotWriteError.of(directory / name, error) from error


def verify(checkpoint: Path, sha256: str) -> None:
    """Raise ValueError or OSError where a checkpoint is not as it was saved."""
    if not checkpoint.is_file():
        read_manifest(checkpoint, sha256)
    elif _digest(checkpoint) != sha256:
        raise ValueError(f"{checkpoint.name} is not as it was saved")


def read_manifest(folder: Path, sha256: str) -> Mapping[str, Any]:
    """The manifest of a folder that holds what it lists, and nothing else.

    Raises ValueError or OSError where it is not as it was saved.
    """
    data = read_capped(folder / _MANIFEST, _MOST_MANIFEST)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its list of files is not the one that was saved")
    manifest: Mapping[str, Any] = parse_json(data.decode(), _MOST_MANIFEST)
    found = {str(path.relative_to(folder)) for path in _files(folder)} - {_MANIFEST}
    if found != set(manifest["files"]):
        raise ValueError(f"its files are not those that were saved: {sorted(found)[:5]}")
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if path.stat().st_size != size or _digest(path) != digest:
            raise ValueError(f"{name} is not as it was saved")
    return manifest


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; ValueError where one is no regular file."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"a checkpoint holds files and folders, and {path.name} is neither")
        if path.is_file():
            yield path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
