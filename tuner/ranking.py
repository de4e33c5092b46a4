"""A ranking that is kept in order as scores come in, so that nobody sorts them again."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator


class Ranking:
    """Trials by their score, the best first and the earlier one first on a tie.

    Every question is answered at once or in a binary search.
    """

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []  # the negative score, the number

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return (number for _, number in self._keys)

    @property
    def best(self) -> int:
        """The number of the first."""
        return self._keys[0][1]

    @property
    def worst(self) -> int:
        """The number of the last."""
        return self._keys[-1][1]

    def place(self, number: int, score: float) -> int:
        """How many trials come before one with this number and score."""
        return bisect_left(self._keys, (-score, number))

    def above(self, score: float) -> int:
        """How many trials have a higher score."""
        return bisect_left(self._keys, (-score,))


class OpenRanking(Ranking):
    """A ranking that changes: a binary search, and one move of eight bytes a trial behind it."""

    def add(self, number: int, score: float) -> None:
        """Put a trial where it belongs."""
        insort(self._keys, (-score, number))

    def remove(self, number: int, score: float) -> None:
        """Take out a trial, which must be in it with this score."""
        del self._keys[bisect_left(self._keys, (-score, number))]
