"""Landscapes given by a formula: known optima, learning curves, costs, noise, in no time.

All are functions of the unit coordinates u of a configuration, u[0] being the learning rate's:

    final(u)    = chance + (trained(u) - chance) / (1 + exp((u[0] - cliff) / steepness))
    score(u, e) = chance + (final - chance) * (1 - exp(-rate * e / E)) / (1 - exp(-rate))
    seconds     = base * (1 + 0.3 u[-1]) each epoch, +- 3 %; on a ridge it is base, +- 3 %

E is the full length in epochs; `rate` says how fast a curve rises, and is 1.5 + 4 u[0] unless
said otherwise. A replicate adds independent normal noise to every score and, where there is a
cliff, to the cliff's place. What `trained` is:

    smooth     plain + one broad Gaussian hill
    bumpy      plain + the highest of five Gaussian hills, the best of which is the narrowest
    cliff      rises linearly with u[0] up to a steep cliff; well beyond it trainings break off
    ridge      plain + a narrow hill in u[0] alone; the other knobs, up to eight, do nothing
               (after Bergstra and Bengio, 2012)
    deceptive  a high slow hill at low learning rates, a lower fast one at high ones: curves cross
    flat       the same everywhere: nothing to find
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Curve
from tuner.naming import pick
from tuner.seeding import derive_seed
from tuner.space import Config, Domain, Float, SearchSpace

CHANCE = 0.1
_PLAIN = 0.55
_KNOBS: Mapping[str, Domain] = {
    "learning_rate": Float(1e-4, 1.0, log=True),
    "weight_decay": Float(1e-6, 1e-1, log=True),
    "dropout": Float(0.0, 0.6),
    "momentum": Float(0.0, 0.98),
    "label_smoothing": Float(0.0, 0.2),
    "batch_size": Float(16.0, 512.0, log=True),
    **{f"knob_{i}": Float(0.0, 1.0) for i in range(7, 13)},
}
MOST_IDLE = 8

Units = NDArray[np.float64]  # n x d


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A formula that answers like a device.

    Attributes:
        trained: `n x d` unit coordinates to n final scores, before cliff and noise.
        summits: k x d: the places between which, but for their learning rate, the optimum is.
        cliff: the learning rate's coordinate beyond which training fails; infinite for none.
        diverges: the coordinate beyond which it breaks off within an epoch.
        rate: how fast curves rise, of d coordinates.
        noise: standard deviation of a score between replicates.
        dearer: how much more, as a share, an epoch costs at the end of the last knob's range.
    """

    name: str
    about: str
    space: SearchSpace
    trained: Callable[[Units], NDArray[np.float64]]
    summits: Units
    cliff: float = math.inf
    steepness: float = 0.012
    diverges: float = math.inf
    rate: Callable[[NDArray[np.float64]], float] = lambda u: 1.5 + 4.0 * float(u[0])
    noise: float = 0.002
    measure: str = "noise-free accuracy"
    caveat: str = ""
    epochs: int = 12
    base_seconds: float = 6.5
    dearer: float = 0.3

    @property
    def card(self) -> Mapping[str, Any]:
        """That it is a formula, and which."""
        return {"about": self.about, "badge": "a formula"}

    def value(self, config: Config, replicate: int | None = None, trainings: int = 1) -> float:
        """The final score without noise, whichever training; NaN where training breaks off."""
        units = self.space.to_unit([config])
        broken = units[0, 0] > self.diverges
        return math.nan if broken else float(self._final(units, self.cliff)[0])

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Score and device seconds of every epoch, two arrays of length `epochs`."""
        units = self.space.to_unit([config])
        u = units[0]
        path = [self.name, *(f"{x:.12f}" for x in u)]
        generator = np.random.default_rng(
            derive_seed(replicate, *path, *([repeat] if repeat else []))
        )
        cliff = self.cliff + 0.01 * generator.standard_normal()
        final = self._final(units, cliff)[0]
        epoch = np.arange(1, self.epochs + 1) / self.epochs
        rate = self.rate(u)
        score = CHANCE + (final - CHANCE) * np.expm1(-rate * epoch) / math.expm1(-rate)
        score += self.noise * generator.standard_normal(self.epochs)
        score = np.clip(score, 0.0, 1.0)
        seconds = self.base_seconds * (1 + self.dearer * u[-1])
        seconds = seconds * generator.uniform(0.97, 1.03, self.epochs)
        if u[0] > self.diverges:
            score[:] = np.nan
        return score, seconds

    def optimum(self) -> tuple[Config, float]:
        """The best configuration: a summit, its learning rate moved to where it is best."""
        line = np.linspace(0.0, 1.0, 20_001)
        line = line[line <= self.diverges]
        best: tuple[float, Units] = (-math.inf, self.summits[:1])
        for summit in self.summits:
            along = np.tile(summit, (len(line), 1))
            along[:, 0] = line
            values = self._final(along, self.cliff)
            top = int(np.argmax(values))
            best = max(best, (float(values[top]), along[top : top + 1]), key=lambda pair: pair[0])
        config = self.space.from_unit(best[1])[0]
        return config, self.value(config)

    def _final(self, units: Units, cliff: float) -> NDArray[np.float64]:
        # Beyond exp's range the cliff is 0 or 1 to all digits.
        fall = np.clip((units[:, 0] - cliff) / self.steepness, -500, 500)
        return np.asarray(CHANCE + (self.trained(units) - CHANCE) / (1 + np.exp(fall)))


def _hills(heights: list[float], widths: list[float], summits: Units) -> Callable[[Units], Any]:
    """The plain, and on it the highest of Gaussian hills at `k x d` summits."""
    # In more dimensions hills are wider, or nobody would ever meet one.
    wide = np.array(widths) * math.sqrt(summits.shape[1] / 2)

    def trained(units: Units) -> Any:
        squares = ((units[:, None, :] - summits) ** 2).sum(2)  # n x k
        return _PLAIN + (np.array(heights) * np.exp(-squares / (2 * wide**2))).max(1)

    return trained


def _space(dimensions: int) -> SearchSpace:
    if not 1 <= dimensions <= len(_KNOBS):
        raise ValueError(f"this landscape has 1 to {len(_KNOBS)} dimensions, got {dimensions}")
    return SearchSpace({name: _KNOBS[name] for name in list(_KNOBS)[:dimensions]})


def _smooth(dimensions: int) -> Synthetic:
    space = _space(dimensions)
    summit = [0.68, 0.55, 0.4, 0.6, 0.3, 0.5, 0.35, 0.65, 0.45, 0.7, 0.25, 0.55]
    summits = np.array([summit[:dimensions]])
    about = "One broad hill; its top is a step before the cliff."
    trained = _hills([0.37], [0.28], summits)
    return Synthetic("smooth", about, space, trained, summits, cliff=0.86)


def _bumpy(dimensions: int) -> Synthetic:
    space = _space(dimensions)
    summits = np.array(
        [
            [0.70, 0.18, 0.70, 0.25, 0.60, 0.40, 0.30, 0.75, 0.55, 0.20, 0.65, 0.35],
            [0.45, 0.70, 0.35, 0.65, 0.30, 0.75, 0.60, 0.25, 0.70, 0.55, 0.40, 0.80],
            [0.70, 0.62, 0.25, 0.40, 0.80, 0.20, 0.75, 0.45, 0.30, 0.65, 0.20, 0.50],
            [0.30, 0.30, 0.80, 0.75, 0.45, 0.55, 0.40, 0.60, 0.15, 0.80, 0.50, 0.25],
            [0.12, 0.80, 0.55, 0.15, 0.15, 0.85, 0.50, 0.35, 0.80, 0.40, 0.75, 0.65],
        ]
    )[:, :dimensions]
    heights, widths = [0.37, 0.26, 0.23, 0.20, 0.16], [0.12, 0.14, 0.13, 0.16, 0.14]
    about = "Five hills on a plain; the best one is the narrowest."
    return Synthetic("bumpy", about, space, _hills(heights, widths, summits), summits, cliff=0.86)


def _cliff(dimensions: int) -> Synthetic:
    space = _space(dimensions)
    centre = np.full(dimensions - 1, 0.5)

    def trained(units: Units) -> NDArray[np.float64]:
        off = ((units[:, 1:] - centre) ** 2).sum(1)
        return np.asarray(_PLAIN + 0.45 * units[:, 0] - 0.15 * off)

    about = "Better and better with the learning rate, up to the edge; beyond it training fails."
    summits = np.concatenate([[0.8], centre])[None]
    return Synthetic(
        "cliff", about, space, trained, summits, cliff=0.8, steepness=0.004, diverges=0.92
    )


def ridge_at(place: float, dimensions: int = 2) -> Synthetic:
    """A ridge that runs across the learning rate's unit coordinate `place`."""
    if not 2 <= dimensions <= MOST_IDLE + 1:
        raise ValueError(
            f"ridge has 2 to {MOST_IDLE + 1} dimensions, one that matters and up to {MOST_IDLE} "
            f"that do not, got {dimensions}"
        )
    idle = {f"idle_{i}": Float(0.0, 1.0) for i in range(1, dimensions)}
    space = SearchSpace({"learning_rate": _KNOBS["learning_rate"], **idle})
    summits = np.full((1, dimensions), 0.5)
    summits[0, 0] = place

    def trained(units: Units) -> Any:
        return _PLAIN + 0.37 * np.exp(-((units[:, 0] - place) ** 2) / (2 * 0.05**2))

    about = "One knob matters, the others do nothing."
    return Synthetic("ridge", about, space, trained, summits, dearer=0.0)


def _ridge(dimensions: int) -> Synthetic:
    return ridge_at(0.63, dimensions)


def _deceptive(dimensions: int) -> Synthetic:
    space = _space(dimensions)
    summits = np.full((2, dimensions), 0.5)
    summits[:, 0] = 0.25, 0.75
    about = "What starts fast loses in the end: the curves cross."
    trained = _hills([0.37, 0.27], [0.15, 0.2], summits)
    return Synthetic(
        "deceptive", about, space, trained, summits, rate=lambda u: 0.2 + 9.0 * float(u[0])
    )


def _flat(dimensions: int) -> Synthetic:
    space = _space(dimensions)

    def trained(units: Units) -> NDArray[np.float64]:
        return np.full(len(units), 0.85)

    about = "Nothing to find: every setting is as good as any other."
    middle = np.full((1, dimensions), 0.5)
    return Synthetic("flat", about, space, trained, middle, noise=0.004)


FORMULAS: Mapping[str, Callable[[int], Synthetic]] = {
    "smooth": _smooth,
    "bumpy": _bumpy,
    "cliff": _cliff,
    "ridge": _ridge,
    "deceptive": _deceptive,
    "flat": _flat,
}


def make_landscape(name: str, dimensions: int = 2) -> Synthetic:
    """The formula of that name in so many dimensions.

    Raises ValueError, with the nearest name, where there is none, and where it does not come in
    that many dimensions.
    """
    return pick(name, FORMULAS, "landscape")(dimensions)
