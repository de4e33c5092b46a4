"""Which images are held out: each class in its share, and the same for every run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HELD_OUT_SHARE = 6  # one image in six
_MOST_HELD_OUT = 10_000


def held_out_size(n: int) -> int:
    """How many of `n` images are set aside to validate, or to test, on."""
    return min(_MOST_HELD_OUT, n // _HELD_OUT_SHARE)


def stratified(labels: NDArray[np.int64], sizes: list[int], seed: int) -> list[NDArray[np.int64]]:
    """Disjoint index sets of about the given sizes, each class in its share; last, the rest.

    Sizes are met exactly where they divide by the class shares. Of a small class each part has one
    at least, where that leaves some for the rest. Indices are in rising order.
    """
    generator = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(sizes) + 1)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        counts = [round(size * len(members) / len(labels)) for size in sizes]
        least = [max(count, min(size, 1)) for count, size in zip(counts, sizes, strict=True)]
        counts = least if sum(least) < len(members) else counts
        for part, piece in zip(parts, np.split(members, np.cumsum(counts)), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]
