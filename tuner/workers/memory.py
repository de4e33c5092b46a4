"""How much memory the processes of a group hold, as the kernel counts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def can_measure() -> bool:
    """Whether this system says so: Linux does."""
    return (_PROC / "self" / "statm").exists()


def resident_bytes(group: int) -> int:
    """What the processes of a group hold together, in bytes, without what they share with files.

    A page that several of them share, as after a fork, is counted for each.
    """
    return sum(_private_bytes(pid) for pid in members(group))


def members(group: int) -> Iterator[int]:
    """The processes of a group that have not ended, by their numbers."""
    for entry in _PROC.iterdir() if can_measure() else ():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()  # a name in it may be no text
            except OSError:  # it has just ended
                continue
            state, _, process_group = stat[stat.rindex(b")") + 2 :].split()[:3]
            if int(process_group) == group and state != b"Z":
                yield int(entry.name)


def _private_bytes(pid: int) -> int:
    try:
        _, resident, shared = (_PROC / str(pid) / "statm").read_text().split()[:3]
    except (OSError, ValueError):  # it has just ended
        return 0
    return max(0, int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
