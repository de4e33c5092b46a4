"""Landscapes given by a formula: learning curves, costs, noise and a cliff, in no time.

Both are over learning rate and weight decay, and both are functions of the unit coordinates
u = (log10(learning_rate) + 4) / 4 and v = (log10(weight_decay) + 6) / 5:

    final(u, v) = peaks(u, v), fallen to 0.1 (chance) by a logistic cliff at high learning rates
    score(e)    = chance + (final - chance) * (1 - exp(-rate * e / epochs)) / (1 - exp(-rate))
    seconds(e)  = base * (1 + 0.3 v) * (1 +- 3 % by epoch)

Low learning rates approach their final score more slowly (`rate` grows with u). Replicates add
independent normal noise to every epoch's score and to the cliff's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.naming import pick
from tuner.seeding import derive_seed
from tuner.space import Config, Float, SearchSpace

CHANCE = 0.1


@dataclass(frozen=True)
class Peak:
    """One Gaussian hill: its height over the plain, where it stands, and how wide it is."""

    height: float
    u: float
    v: float
    width: float


@dataclass(frozen=True)
class Synthetic:
    """A formula that answers like a device.

    Attributes:
        epochs: the full length of a training.
        plain: the final score far from every peak.
        cliff: the u coordinate beyond which training diverges to chance.
        noise: standard deviation of a score between replicates.
    """

    name: str
    peaks: tuple[Peak, ...]
    plain: float = 0.55
    cliff: float = 0.86
    noise: float = 0.002
    epochs: int = 12
    base_seconds: float = 6.5

    @property
    def space(self) -> SearchSpace:
        """Learning rate and weight decay, both logarithmic."""
        return SearchSpace(
            learning_rate=Float(1e-4, 1.0, log=True), weight_decay=Float(1e-6, 1e-1, log=True)
        )

    def value(self, config: Config) -> float:
        """The final score without noise."""
        u, v = self.space.to_unit([config])[0]
        return self._final(u, v, self.cliff)

    def curve(
        self, config: Config, replicate: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score and device seconds of every epoch, two arrays of length `epochs`.

        Noise depends on the replicate and the configuration alone: within a replicate the same
        configuration scores and costs the same for every searcher.
        """
        u, v = self.space.to_unit([config])[0]
        generator = np.random.default_rng(
            derive_seed(replicate, self.name, f"{u:.12f}", f"{v:.12f}")
        )
        epoch = np.arange(1, self.epochs + 1) / self.epochs
        final = self._final(u, v, self.cliff + 0.01 * generator.standard_normal())
        rate = 1.5 + 4.0 * u
        rise = -np.expm1(-rate * epoch) / -math.expm1(-rate)
        score = CHANCE + (final - CHANCE) * rise
        score += self.noise * generator.standard_normal(self.epochs)
        seconds = self.base_seconds * (1 + 0.3 * v) * generator.uniform(0.97, 1.03, self.epochs)
        return np.clip(score, 0.0, 1.0), seconds

    def optimum(self) -> tuple[dict[str, float], float]:
        """The best configuration and its noise-free score, by a fine lattice and refinement."""
        best, step = np.array([0.5, 0.5]), 0.5
        for _ in range(12):
            axis = np.linspace(-step, step, 41)
            around = np.clip(best + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), 0, 1)
            best = around[np.argmax([self._final(u, v, self.cliff) for u, v in around])]
            step /= 4
        config = self.space.from_unit(best[None])[0]
        return config, self.value(config)  # type: ignore[return-value]

    def _final(self, u: float, v: float, cliff: float) -> float:
        hills = max(
            p.height * math.exp(-((u - p.u) ** 2 + (v - p.v) ** 2) / (2 * p.width**2))
            for p in self.peaks
        )
        trained = self.plain + hills
        return CHANCE + (trained - CHANCE) / (1 + math.exp((u - cliff) / 0.012))


def _smooth() -> Synthetic:
    """One broad hill, its top a step before the cliff."""
    return Synthetic("smooth", (Peak(0.37, 0.68, 0.55, 0.28),))


def _bumpy() -> Synthetic:
    """Five hills on a plain; the best one is the narrowest."""
    return Synthetic(
        "bumpy",
        (
            Peak(0.37, 0.70, 0.18, 0.12),
            Peak(0.26, 0.45, 0.70, 0.14),
            Peak(0.23, 0.70, 0.62, 0.13),
            Peak(0.20, 0.30, 0.30, 0.16),
            Peak(0.16, 0.12, 0.80, 0.14),
        ),
    )


LANDSCAPES: Mapping[str, Callable[[], Synthetic]] = {"smooth": _smooth, "bumpy": _bumpy}


def make_landscape(name: str) -> Synthetic:
    """The landscape of that name; ValueError, with the nearest name, where there is none."""
    return pick(name, LANDSCAPES, "landscape")()
