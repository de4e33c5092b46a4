"""What a campaign is: a promise put to the test n times, and how often it did not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import beta

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Found:
    """What came of a campaign.

    Attributes:
        n: how often the promise was put to the test.
        failures: in words, each time that it did not hold.
        notes: what else was counted, such as how many kills landed in the middle of a write.
        is_all: whether there is no more to be tested, however often that was asked for.
    """

    n: int
    failures: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    is_all: bool = False

    @property
    def bound(self) -> float:
        """The upper 95 % bound of the rate of failures (Clopper and Pearson, 1934)."""
        k = len(self.failures)
        return 1.0 if k >= self.n else float(beta.ppf(CONFIDENCE, k + 1, self.n - k))


@dataclass(frozen=True)
class Campaign:
    """A way of putting a promise to the test.

    Attributes:
        promise: its number, such as P5.
        words: what is promised, and how it is tested, in a line.
        run: takes how often, and a seed; raises unittest.SkipTest where it cannot be run.
        nightly, short: how often, in the nightly campaign and in the tests; 0 where even once
            takes too long for them.
    """

    promise: str
    words: str
    run: Callable[[int, int], Found]
    nightly: int
    short: int

    @property
    def name(self) -> str:
        """By which it is asked for: the promise and the function."""
        return f"{self.promise}-{self.run.__name__}"
