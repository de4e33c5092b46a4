"""What a landscape is: a terrain that also answers like a device."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from tuner.space import Config
from tuner.terrain import Terrain

Curve = tuple["NDArray[Any]", "NDArray[Any]"]
"""Score and device seconds of every epoch, two float64 arrays of length `epochs`."""


class Landscape(Terrain, Protocol):
    """Stands in for a device: what every configuration of a space would score and cost."""

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Score and device seconds of every epoch, two arrays of length `epochs`.

        A function of the arguments alone: within a replicate the same configuration scores and
        costs the same for every searcher, and each `repeat` is another training of it. From where
        the training breaks off by its own fault (it diverged) scores are NaN.
        """
