"""Places at which a test may kill the process, or have the disk refuse.

The environment variable TUNER_FAILPOINT names a place, at which visit, and what then happens:
`commit-before:3:kill` is SIGKILL just before the third commit, `file-written:1:ENOSPC` a full disk
under the first file. Without it a place costs next to nothing and does nothing.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

VARIABLE = "TUNER_FAILPOINT"

_ERRORS = ("ENOSPC", "EIO")


class Place(enum.Enum):
    """Where a process may be struck: between what is done and what is done next."""

    COMMIT_BEFORE = "commit-before"  # nothing of it is in the study's file
    COMMIT_WRITTEN = "commit-written"  # the rows are in the transaction, which is open
    COMMIT_AFTER = "commit-after"  # durable, and nobody has acted on it
    FILE_OPENED = "file-opened"  # the temporary file is there, and empty
    FILE_WRITTEN = "file-written"  # before its fsync
    FILE_SYNCED = "file-synced"  # after its fsync, before it is renamed
    FILE_RENAMED = "file-renamed"  # before the fsync of its folder
    FILE_DURABLE = "file-durable"  # after that
    CHECKPOINT_WRITTEN = "checkpoint-written"  # and no message or row names it yet
    SEND_BEFORE = "send-before"
    SEND_AFTER = "send-after"
    RECEIVE_BEFORE = "receive-before"  # a message is there or will come
    RECEIVE_AFTER = "receive-after"  # and is known to nobody else any more


@dataclass(frozen=True)
class Failpoint:
    """Strikes at one visit of one place, counted in this process.

    Attributes:
        visit: which, from 1 on.
        action: `kill`, or the name of the OSError that is raised: `ENOSPC`, `EIO`.
    """

    place: Place
    visit: int
    action: str
    _visits: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `PLACE:VISIT:ACTION`; raises ValueError where it is anything else."""
        place, _, rest = text.partition(":")
        visit, _, action = rest.partition(":")
        known = place in [p.value for p in Place] and action in ("kill", *_ERRORS)
        if not known or not (visit.isascii() and visit.isdecimal() and int(visit) > 0):
            raise ValueError(
                f"{VARIABLE} is PLACE:VISIT:ACTION, such as commit-before:3:kill, got {text!r}; "
                f"places are {', '.join(p.value for p in Place)}; visits count from 1; "
                f"actions are kill, {', '.join(_ERRORS)}"
            )
        return cls(Place(place), int(visit), action)

    def __call__(self, place: Place) -> None:
        """Count a visit, and strike where it is the one."""
        if place is not self.place or next(self._visits) != self.visit:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.action)
        raise OSError(code, os.strerror(code), f"at {VARIABLE} {place.value}")


_watcher: Callable[[Place], None] | None = None


def watch(by: Callable[[Place], None] | None) -> None:
    """Have `by` called at every place in this process, instead of what the variable asks for."""
    global _watcher
    _watcher = by


def reach(place: Place) -> None:
    """Say that the process is at `place`.

    Raises ValueError, at the first place, where the variable is wrong, and OSError where that is
    what it asks for.
    """
    strike = _watcher or _failpoint()
    if strike is not None:
        strike(place)


@cache
def _failpoint() -> Failpoint | None:
    """What the variable asked for when the first place was reached; None where it is not set."""
    text = os.environ.get(VARIABLE)
    return Failpoint.parse(text) if text else None
