"""Files that are whole or absent, and locks that die with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


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

    No child keeps it: one that runs another program has the file closed, and so has one that was
    forked. Raises HeldElsewhereError, naming the holder, where another process has it.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        while True:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, closed by release
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(self._file)
                self._file.close()
                raise HeldElsewhereError(
                    f"{purpose} is in use by another process: {holder}; wait for it or stop it "
                    "first"
                ) from None
            if _is_at(path, self._file):
                break
            self._file.close()  # somebody removed it meanwhile, and it locks nobody out
        _held.add(self)
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with the next holder."""
        self._file.close()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go() -> None:
    """Close a forked child's copies, or the locks would last as long as it does."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: TextIO) -> str:
    """Who holds the lock, in its own words, which follow a moment after it has it."""
    words = ""
    for _ in range(20):
        file.seek(0)
        words = file.read(400).strip()
        with contextlib.suppress(ValueError, KeyError, TypeError, PermissionError):
            who = json.loads(words)
            if who["host"] != socket.gethostname():
                return words
            with contextlib.suppress(ProcessLookupError):
                os.kill(who["pid"], 0)
                return words
        time.sleep(0.01)
    return words or "unknown"


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, waiting for it as long as it takes."""
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
