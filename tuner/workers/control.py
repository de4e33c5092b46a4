"""Words that a driver and a worker share in memory, so that a worker can be stopped at a batch."""

from __future__ import annotations

import mmap
import os
import tempfile

DEADLINE = 0  # reading of the monotonic clock, in ns, after which no batch may begin
INTERRUPT = 1  # not 0 where the worker is to save its trials after the batch in flight, and stop
END = 2  # not 0 where a SIGTERM is the driver's, and the worker is to end
# Written by the worker:
PROGRESS = 3  # reading of the monotonic clock, in ns, when it last looked around between batches
STRETCH = 4  # how long it usually works in between, in ns; 0 where that is not known yet
YIELD = 5  # from here on, one for each place of a worker: the job that is to end with its epoch
MOST_PLACES = mmap.PAGESIZE // 8 - YIELD


class ControlBlock:
    """Shared 64-bit `words`, looked at by one worker before every batch."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = _page()
        self.fd = fd
        self.words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("q")


def _page() -> int:
    """A file of one page that has no name: nothing is left behind, whoever dies first.

    In memory where the kernel has such. On a disk that is full a page that is a hole would end
    whoever writes to it, so it is filled.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("tuner-control")
        os.truncate(fd, mmap.PAGESIZE)
        return fd
    with tempfile.TemporaryFile() as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        return os.dup(file.fileno())
