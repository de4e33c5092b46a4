"""Files that are whole or absent, and locks that die with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tuner.foreign import not_through_a_link


def write_atomically(path: Path, data: bytes | str) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees the old file or the new one.

    A temporary file beside it, fsync, rename, fsync of the folder. Raises OSError, the old file
    untouched and the temporary one removed, where any of it fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class HeldElsewhereError(ValueError):
    """Another living process holds the lock."""


class FileLock:
    """An advisory lock on `path`, which the kernel drops when its holder dies.

    Raises HeldElsewhereError, naming the holder, where another process has it.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self._file = open(  # noqa: SIM115, closed by release
            path, "a+", encoding="utf-8", opener=not_through_a_link
        )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(400).strip() or "unknown"
            self._file.close()
            raise HeldElsewhereError(
                f"{purpose} is in use by another process: {holder}; wait for it or stop it first"
            ) from None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with the next holder."""
        self._file.close()


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, waiting for it as long as it takes."""
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
