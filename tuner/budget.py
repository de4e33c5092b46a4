"""The pool of device time: what may still be spent, and what every nanosecond went to."""

from __future__ import annotations

import enum
from collections.abc import Mapping

NS_PER_MINUTE = 60_000_000_000
MOST_MINUTES = 1e8  # 190 years, which still fit into 64-bit nanoseconds


class Kind(enum.Enum):
    """What held device time was used for. The kinds add up to the time that it was held."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    WARM_UP = "warm_up"  # starting workers, compiling, timing
    CHECKPOINT = "checkpoint"
    SEARCH = "search"  # the device sat idle because the searcher was still thinking
    LOST = "lost"  # work that was ended before it was recorded

    __hash__ = object.__hash__  # a member is the only one of its value; Enum's own is slow


Costs = Mapping[Kind, int]
"""Device nanoseconds by kind."""


def to_ns(minutes: float) -> int:
    """Device minutes as whole nanoseconds."""
    return round(minutes * NS_PER_MINUTE)


def budget_ns(minutes: float, name: str = "budget_minutes") -> int:
    """A search's own device minutes as whole nanoseconds.

    Raises ValueError, with the `name` of what was given, where no search can have so many.
    """
    if not 0 < minutes < MOST_MINUTES:
        raise ValueError(
            f"{name} is each search's own device minutes: more than 0 and less than 1e8, "
            f"got {minutes:g}"
        )
    return max(1, to_ns(float(minutes)))


def to_minutes(ns: int) -> float:
    """Device nanoseconds as minutes, for people and files."""
    return ns / NS_PER_MINUTE


class Budget:
    """Integer nanoseconds from one pool, in two steps: reserve before an epoch, charge after.

    A reservation holds back device time for work in flight, so that no epoch begins which the
    pool cannot be expected to pay for. A charge is what was really used. The pool may be
    overspent only by what a runner needs to stop at a deadline: one batch.
    """

    def __init__(self, total_ns: int | None) -> None:
        if total_ns is not None and total_ns <= 0:
            raise ValueError(f"a budget must be positive, got {to_minutes(total_ns):g} minutes")
        self.total_ns = total_ns
        self._ledger = dict.fromkeys(Kind, 0)
        self._spent_ns = 0
        self._reserved: dict[int, int] = {}

    @property
    def ledger(self) -> Costs:
        """Nanoseconds charged so far, by kind."""
        return dict(self._ledger)

    @property
    def spent_ns(self) -> int:
        """Nanoseconds charged so far: the sum of the ledger."""
        return self._spent_ns

    @property
    def remaining_ns(self) -> int:
        """What is not spent yet, reserved or not; below zero where a batch ran over."""
        return (1 << 62 if self.total_ns is None else self.total_ns) - self.spent_ns

    @property
    def available_ns(self) -> int:
        """What is neither spent nor reserved."""
        return self.remaining_ns - sum(self._reserved.values())

    def reserve(self, number: int, ns: int) -> bool:
        """Hold back `ns` for trial `number`; False, and nothing changes, where it is not there."""
        if ns < 0 or number in self._reserved:
            raise ValueError(f"cannot reserve {ns} ns for trial {number}: negative or reserved")
        if ns > self.available_ns:
            return False
        self._reserved[number] = ns
        return True

    def restore(self, number: int, ns: int) -> None:
        """Hold back what an earlier `reserve` granted, though the pool may have shrunk since."""
        self._reserved[number] = ns

    def charge(self, costs: Costs, number: int | None = None) -> None:
        """Spend; what trial `number` had reserved shrinks by as much."""
        for kind, ns in costs.items():
            if ns < 0:
                raise ValueError(f"device time never runs backwards: {ns} ns of {kind.value}")
            self._ledger[kind] += ns
            self._spent_ns += ns
        if number is not None and number in self._reserved:
            left = self._reserved[number] - sum(costs.values())
            self._reserved[number] = max(0, left)

    def release(self, number: int) -> None:
        """Give back what trial `number` had reserved and not used."""
        self._reserved.pop(number, None)
