"""What judges and shows need of a landscape, without knowing how it answers like a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tuner.space import Config, SearchSpace


class Terrain(Protocol):
    """What every configuration of a space is worth.

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

    def value(
        self, config: Config, replicate: int | None = None, trainings: int = 1
    ) -> float | None:
        """The final score without noise; NaN where the training breaks off.

        Where it can only be estimated from repeated trainings, those that `replicate` was shown
        by training the configuration `trainings` times are left out; None where there are no
        others.
        """

    def optimum(self) -> tuple[Config, float]:
        """The best configuration that is known, and its `value`."""
