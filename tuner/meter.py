"""Who used a device, and for how long: one device's time split among those active on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split the whole number `total` in proportion to `weights`, exactly.

    Parts are differences of rounded running sums, so they add up to `total` to the unit. With
    no weight at all everything goes to the first part.
    """
    whole = sum(weights)
    if whole <= 0:
        return [] if not weights else [total, *[0] * (len(weights) - 1)]
    edges, running = [0], 0
    for weight in weights:
        running += weight
        edges.append(total * running // whole)
    return [right - left for left, right in itertools.pairwise(edges)]


class DeviceMeter:
    """Splits the time for which one device is held equally among its active claims.

    Readings are those of the monotonic clock: whoever sets the wall clock moves none of them, and
    the time for which a machine is asleep, on Linux and macOS, is in none of them.

    Time moves only by `advance`, and never backwards: a reading older than the last counts as
    the last. So the claims and the idle time add up to the time held, to the nanosecond, in
    whatever order messages from several workers come in.
    """

    def __init__(self, now_ns: int) -> None:
        self._start = self._now = now_ns
        self._is_over = False
        self._claims: dict[int, int] = {}
        self._idle = 0

    @property
    def held_ns(self) -> int:
        """How long the device has been held up to the last reading."""
        return self._now - self._start

    @property
    def now_ns(self) -> int:
        """The last reading."""
        return self._now

    def held_at(self, now_ns: int) -> int:
        """How long it will have been held at `now_ns`, without accounting for it yet."""
        return self.held_ns if self._is_over else max(now_ns, self._now) - self._start

    def end(self, now_ns: int) -> None:
        """From `now_ns` on nobody holds the device: it is gone. What was used can be settled."""
        self.advance(now_ns)
        self._is_over = True

    @property
    def is_over(self) -> bool:
        """Whether the device is held no more."""
        return self._is_over

    def has(self, key: int) -> bool:
        """Whether `key` is active."""
        return key in self._claims

    def advance(self, now_ns: int) -> None:
        """Account for the time since the last reading."""
        passed = now_ns - self._now
        if passed <= 0 or self._is_over:
            return
        self._now = now_ns
        if not self._claims:
            self._idle += passed
            return
        for key, share in zip(
            self._claims, apportion(passed, [1] * len(self._claims)), strict=True
        ):
            self._claims[key] += share

    def claim(self, key: int, now_ns: int) -> None:
        """From now on `key` is one of those who use the device."""
        self.advance(now_ns)
        self._claims[key] = 0

    def settle(self, key: int, now_ns: int) -> int:
        """What `key` used since its claim or last settlement; it stays active."""
        self.advance(now_ns)
        used, self._claims[key] = self._claims[key], 0
        return used

    def drop(self, key: int, now_ns: int) -> int:
        """What `key` used since its last settlement; it is active no more."""
        used = self.settle(key, now_ns)
        del self._claims[key]
        return used

    def take_idle(self) -> int:
        """The time in which nobody was active, since this was last asked."""
        idle, self._idle = self._idle, 0
        return idle
