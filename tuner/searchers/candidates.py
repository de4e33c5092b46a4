"""Where an acquisition function is looked at: legal configurations, ever closer to its maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from tuner.history import HistoryView
from tuner.searchers.base import config_key, tried
from tuner.searchers.random import draw_new
from tuner.searchers.surrogate import Improvements
from tuner.searchers.trust_region import WHOLE, Box
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, SearchSpace, Units

_RAW_POINTS = 512
_LOCAL_POINTS = 64  # around each centre
_WIDTHS = (0.01, 0.03, 0.1, 0.3)  # of the steps from a centre
_REFINEMENTS = (0.1, 0.03, 0.01)
_KEPT, _CHILDREN = 8, 32  # of each refinement
_APART = 1e-3  # proposals closer than this to a trial, in the unit cube, would tell nothing new
_COUNTABLE = 4096  # a space with at most so many configurations is searched whole

Acquisition = Callable[[Units], NDArray[np.float64]]
"""Values, m, at `m x d` unit coordinates; higher is better."""


def sobol(space: SearchSpace, seed: int, count: int, first: int = 0) -> Units:
    """`count` points of a scrambled Sobol sequence from its point `first` on, `count x d`."""
    engine = qmc.Sobol(len(space), rng=seed)
    if first:
        engine.fast_forward(first)
    units: Units = engine.random(count)
    return units


def sobol_start(space: SearchSpace, seed: int, history: HistoryView) -> Config:
    """The start of a model-based search: the next point of a Sobol sequence, by trial number."""
    units = sobol(space, derive_seed(seed, "sobol"), 1, len(history))
    config = space.from_unit(units)[0]
    if space.cardinality is not None:
        seen = tried(space, history)
        if config_key(space, config) in seen:
            return draw_new(space, seed, "sobol-start", history)
    return config


def maximise(
    space: SearchSpace,
    acquisition: Acquisition,
    centres: Units,
    history: HistoryView,
    seed: int,
    box: Box = WHOLE,
) -> tuple[Config, float]:
    """The best unvisited configuration that was found, and its acquisition value.

    Raises SpaceExhausted where nothing is left.
    """
    candidates = Candidates.around(space, acquisition, centres, history, seed, box)
    best = candidates.pick(candidates.values)
    return candidates.config(best), float(candidates.values[best])


@dataclass
class Candidates:
    """Where an acquisition was looked at.

    Attributes:
        space: of the configurations.
        units: m x d, each a legal configuration's.
        values: of the acquisition, m.
        visited: coordinates that would tell nothing new, `n x d`; none where the space is finite,
            of which `units` are what is left.
    """

    space: SearchSpace
    units: Units
    values: NDArray[np.float64]
    visited: Units

    @classmethod
    def around(
        cls,
        space: SearchSpace,
        acquisition: Acquisition,
        centres: Units,
        history: HistoryView,
        seed: int,
        box: Box = WHOLE,
    ) -> Candidates:
        """Sobol points and perturbed `centres` (`c x d`), and closer and closer to the best.

        All of them are in the box, but for the space's steps and what is left of a small space.
        Steps beyond a knob's range end at its end, where optima often are. There are no gradients
        in this, so that integers and options are searched as such. Raises SpaceExhausted where
        nothing is left.
        """
        generator = np.random.default_rng(seed)
        start = np.repeat(centres, _LOCAL_POINTS, axis=0)
        widths = generator.choice(_WIDTHS, size=(len(start), 1))
        if space.cardinality is not None:
            few = space.cardinality <= _COUNTABLE
            near = None if few else box.clipped(_perturbed(space, start, widths, generator))
            units = space.to_unit(_untried(space, near, history, seed, box))
            return cls(space, units, acquisition(units), np.empty((0, len(space))))
        near = box.clipped(_perturbed(space, start, widths, generator))
        drawn = box.within(sobol(space, seed, _RAW_POINTS))
        units = space.snap(np.concatenate([drawn, near]))
        values = acquisition(units)
        for width in _REFINEMENTS:
            best = np.argsort(-values, kind="stable")[:_KEPT]
            start = np.repeat(units[best], _CHILDREN, axis=0)
            widths = width * generator.choice([0.3, 1.0], size=(len(start), 1))
            children = space.snap(box.clipped(_perturbed(space, start, widths, generator)))
            units = np.concatenate([units, children])
            values = np.concatenate([values, acquisition(children)])
        return cls(space, units, values, space.to_unit([t.config for t in history]))

    def pick(self, values: NDArray[np.float64], taken: Sequence[int] = ()) -> int:
        """Of m values the highest that is neither `taken` nor too near to what is; the highest."""
        visited = self.visited
        if len(visited):
            visited = np.concatenate([visited, self.units[list(taken)]])
        order = [i for i in np.argsort(-values, kind="stable").tolist() if i not in taken]
        for index in order:
            if np.abs(visited - self.units[index]).max(1).min(initial=1.0) > _APART:
                return int(index)
        return int(order[0])

    def config(self, index: int) -> Config:
        """The configuration at coordinates number `index`."""
        return self.space.from_unit(self.units[index : index + 1])[0]

    def several(self, improve: Callable[[Units, int], Improvements], count: int) -> list[Config]:
        """Up to `count` configurations, each the best if those before it are in flight.

        `improve` is asked, where more than one is wanted, what that makes of the others.
        """
        taken, count = [self.pick(self.values)], min(count, len(self.units))
        improvements = improve(self.units, count) if count > 1 else None
        while improvements is not None and len(taken) < count:
            improvements.propose(taken[-1])
            taken.append(self.pick(improvements.values, taken))
        return [self.config(index) for index in taken]


def _untried(
    space: SearchSpace, near: Units | None, history: HistoryView, seed: int, box: Box
) -> list[Config]:
    """Configurations of a finite space: all of a small one, some of a large one."""
    configs: list[Config]
    if near is None:
        configs = list(space.grid(max(domain.cardinality or 1 for domain in space.values())))
    else:
        drawn = box.within(sobol(space, seed, _RAW_POINTS))
        configs = list(space.from_unit(np.concatenate([drawn, near])))
    seen = tried(space, history)
    each = {config_key(space, c): c for c in configs}  # many points snap onto one configuration
    configs = [c for key, c in each.items() if key not in seen]
    return configs or [draw_new(space, seed, "rest", history)]


def _perturbed(
    space: SearchSpace,
    start: Units,
    widths: NDArray[np.float64],
    generator: np.random.Generator,
) -> Units:
    """A few knobs of each row of `start` moved by normal steps; an option jumps anywhere."""
    moved = start + widths * generator.standard_normal(start.shape)
    moves = generator.random(start.shape) < max(0.3, 1.5 / len(space))
    jump = generator.random(start.shape)
    # A neighbouring index means nothing to a choice.
    choices = [i for i, domain in enumerate(space.values()) if isinstance(domain, Choice)]
    moved[:, choices] = jump[:, choices]
    return np.clip(np.where(moves, moved, start), 0.0, 1.0)
