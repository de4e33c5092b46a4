"""What a landscape is: a space, a curve for every setting of it, an optimum, a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from tuner.space import Config, SearchSpace

Curve = tuple["NDArray[Any]", "NDArray[Any]"]
"""Score and device seconds of every epoch, two float64 arrays of length `epochs`."""


class Landscape(Protocol):
    """Stands in for a device: what every configuration of a space would score and cost.

    Attributes:
        name: what it is called.
        space: the knobs it knows.
        epochs: the full length of a training.
        measure: what `value` is, in words.
        caveat: what must be known of it; empty for nothing.
        card: where it is from. `about` says in a sentence what it is, `badge` in a few words
            whether it is a formula or was recorded, on which device and when.
    """

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def space(self) -> SearchSpace:
        """The knobs it knows."""

    @property
    def epochs(self) -> int:
        """The full length of a training."""

    @property
    def measure(self) -> str:
        """What `value` is, in words."""

    @property
    def caveat(self) -> str:
        """What must be known of it."""

    @property
    def card(self) -> Mapping[str, Any]:
        """Where it is from."""

    def curve(self, config: Config, replicate: int) -> Curve:
        """Score and device seconds of every epoch, two arrays of length `epochs`.

        A function of the configuration and the replicate alone: within a replicate the same
        configuration scores and costs the same for every searcher. From where the training
        breaks off by its own fault (it diverged) scores are NaN.
        """

    def value(self, config: Config, replicate: int | None = None) -> float | None:
        """The final score without noise; NaN where the training breaks off.

        Where it can only be estimated from repeated trainings, those that `replicate` was shown
        are left out; None where there are no others.
        """

    def optimum(self) -> tuple[Config, float]:
        """The best configuration that is known, and its `value`."""
