"""Files that are whole or absent, locks that die with their holder, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from tuner.failpoints import Place, reach
from tuner.foreign import not_through_a_link

# What a write is refused with when there is no room: no block, no quota, no larger file.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DISK_ERRORS = _FULL | {errno.EIO}
"""Numbers of errors that are the disk's fault, whatever was being written."""


class CannotWriteError(OSError):
    """The disk takes no more, or fails: not the fault of what was being written.

    Its text is one sentence that names the path and says what to do.

    Attributes:
        path: what could not be written.
        number: the system's of the error, such as ENOSPC.
        reason: what the system, or SQLite, said.
    """

    def __init__(self, path: Path | str, number: int | None, reason: str) -> None:
        if number in _FULL:
            problem, remedy = "the disk is full", "make room there, then go on"
        elif number == errno.EIO:
            problem = "the disk fails"
            remedy = "see the kernel's log, copy what is there, then go on"
        else:
            problem, remedy = "it is refused", "see who may write there, then go on"
        super().__init__(f"{path} cannot be written: {problem} ({reason}); {remedy}")
        self.path, self.number, self.reason = path, number, reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again from its parts in another process, not from its text."""
        return type(self), (self.path, self.number, self.reason)

    @classmethod
    def of(cls, path: Path | str, error: OSError) -> CannotWriteError:
        """What the system said of `path`, as one sentence."""
        if isinstance(error, cls):
            return error
        return cls(path, error.errno, error.strerror or str(error))


def write_atomically(path: Path, data: bytes | str) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees the old file or the new one.

    A temporary file beside it, fsync, rename, fsync of the folder. Raises CannotWriteError, the
    temporary file removed, where any of it fails; the old file is untouched then, but where the
    last fsync alone failed, after which it may be either.
    """
    try:
        _replace(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise CannotWriteError.of(path, error) from error


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            reach(Place.FILE_OPENED)
            file.write(data)
            file.flush()
            reach(Place.FILE_WRITTEN)
            os.fsync(file.fileno())
        reach(Place.FILE_SYNCED)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    reach(Place.FILE_RENAMED)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    reach(Place.FILE_DURABLE)


def allocate(file: IO[bytes], size: int) -> None:
    """Make a file at least `size` bytes long, with blocks of its own; raises OSError.

    A hole would only look like room: filling it fails on a full disk, and through a mapping it
    kills the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    missing = size - file.seek(0, os.SEEK_END)  # macOS has no such call
    file.write(bytes(max(0, missing)))
    file.flush()


class Reserve:
    """Room kept on a disk for last words: a file that really takes it up, and is given back once.

    Raises CannotWriteError where there is not even that much room.
    """

    SIZE = 1 << 20

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "ab") as file:
                allocate(file, self.SIZE)
        except OSError as error:
            self.free()
            raise CannotWriteError.of(path, error) from error

    def free(self) -> None:
        """Give the room back. Never fails: there may be nothing left to give."""
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)  # at once, even where somebody has it open
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class HeldElsewhereError(ValueError):
    """Another living process holds the lock."""


class FileLock:
    """An advisory lock on `path`, which the kernel drops when its holder dies.

    No child keeps it: one that runs another program has the file closed, and so has one that was
    forked. Raises HeldElsewhereError, naming the holder, where another process has it, and
    CannotWriteError where there can be no such file.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        while True:
            try:
                self._file = open(  # noqa: SIM115, closed by release
                    path, "a+", encoding="utf-8", opener=not_through_a_link
                )
            except OSError as error:
                raise CannotWriteError.of(path, error) from error
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
        with contextlib.suppress(OSError):  # on a full disk it is a lock without a name
            self._file.truncate(0)
            self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            self._file.flush()

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with the next holder."""
        with contextlib.suppress(OSError):  # of a name that still cannot be written
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
