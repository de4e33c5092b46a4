"""Ctrl-C and SIGTERM: once, stop well; twice, stop now."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tuner.race import Race

SIGTERM_PATIENCE_S = 10


class Stopped(BaseException):
    """A signal came where there is nothing to wait for; carries its number."""


@dataclass
class Stopper:
    """What a signal stops: the race while one runs, else everything at once."""

    race: Race | None = None
    number: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Ctrl-C or SIGTERM once: stop well. Twice, or ten seconds after SIGTERM: stop now."""
        first, self.number = self.number is None, self.number or number
        if not first or self.race is None:
            raise Stopped(self.number)
        self.race.interrupt()
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, SIGTERM_PATIENCE_S)

    def go(self, race: Race, go: Callable[[], None]) -> None:
        """Run a race, by `go`, to its end or until a signal ends it well."""
        self.race = race
        go()
        self.race = None

    def check(self) -> None:
        """Raise Stopped where a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stopping_signals() -> Iterator[Stopper]:
    """Let signals stop what is told to the Stopper; the handlers from before are put back."""
    stopper = Stopper()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stopper) for number in numbers}
    try:
        yield stopper
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
