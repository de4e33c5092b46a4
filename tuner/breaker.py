"""When a search stops spending: where trial after trial fails, the fault is not theirs."""

from __future__ import annotations

import re
from collections import deque

IN_A_ROW = 5
LATEST = 20
"""Of so many trials that ended, more than half may not have failed."""


class Breaker:
    """Trips when five trials in a row fail for one reason, or more than half of the last twenty.

    Args:
        tripped: whether it had tripped before: then the first trial has to pass, and trips it
            again where it fails.

    Attributes:
        is_probing: whether one trial at a time is to be tried, until one passes.
    """

    def __init__(self, tripped: bool = False) -> None:
        self.is_probing = tripped
        self._in_a_row: list[str] = []
        self._latest: deque[str | None] = deque(maxlen=LATEST)

    def passed(self) -> None:
        """A trial finished an epoch."""
        self.is_probing = False
        self._in_a_row.clear()

    def ended(self, failure: str | None) -> str:
        """A trial ended: why it failed, None where it did not; what trips the breaker, or ''."""
        self._latest.append(failure)
        if failure is None:
            return ""
        if self._in_a_row and _kind(self._in_a_row[-1]) != _kind(failure):
            self._in_a_row.clear()
        self._in_a_row.append(failure)
        failed = sum(one is not None for one in self._latest)
        if self.is_probing:
            return f"the first trial since failures stopped this search failed too: {failure}"
        if len(self._in_a_row) >= IN_A_ROW:
            return f"{IN_A_ROW} trials in a row failed, the last with: {failure}"
        if failed > LATEST // 2:
            return (
                f"{failed} of the last {len(self._latest)} trials failed, the last with: {failure}"
            )
        return ""


def _kind(reason: str) -> str:
    """A reason without its numbers and hashes, which differ between failures of one kind."""
    return re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", reason)
