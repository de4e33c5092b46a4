"""Where an acquisition function is looked at: legal configurations, ever closer to its maximum."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from tuner.history import HistoryView
from tuner.searchers.base import config_key, tried
from tuner.searchers.random import draw_new
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
) -> tuple[Config, float]:
    """The best unvisited configuration that was found, and its acquisition value.

    Sobol points and perturbed `centres` (`c x d`) first; then, again and again, the best are
    perturbed by ever smaller steps. Steps beyond a knob's range end at its end, where optima
    often are. There are no gradients in this, so that integers and options are searched as such.
    Raises SpaceExhausted where nothing is left.
    """
    generator = np.random.default_rng(seed)
    if space.cardinality is not None:
        return _maximise_finite(space, acquisition, centres, history, seed, generator)
    start = np.repeat(centres, _LOCAL_POINTS, axis=0)
    widths = generator.choice(_WIDTHS, size=(len(start), 1))
    units = space.snap(
        np.concatenate(
            [sobol(space, seed, _RAW_POINTS), _perturbed(space, start, widths, generator)]
        )
    )
    values = acquisition(units)
    for width in _REFINEMENTS:
        best = np.argsort(-values, kind="stable")[:_KEPT]
        start = np.repeat(units[best], _CHILDREN, axis=0)
        widths = width * generator.choice([0.3, 1.0], size=(len(start), 1))
        children = space.snap(_perturbed(space, start, widths, generator))
        units = np.concatenate([units, children])
        values = np.concatenate([values, acquisition(children)])
    visited = space.to_unit([t.config for t in history])  # n x d
    order = np.argsort(-values, kind="stable")
    for index in order:
        if np.abs(visited - units[index]).max(1).min(initial=1.0) > _APART:
            return space.from_unit(units[index : index + 1])[0], float(values[index])
    return space.from_unit(units[order[:1]])[0], float(values[order[0]])


def _maximise_finite(
    space: SearchSpace,
    acquisition: Acquisition,
    centres: Units,
    history: HistoryView,
    seed: int,
    generator: np.random.Generator,
) -> tuple[Config, float]:
    configs: list[Config]
    if (space.cardinality or 0) <= _COUNTABLE:
        axes = space.axes(max(domain.cardinality or 1 for domain in space.values()))
        configs = [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
    else:
        start = np.repeat(centres, _LOCAL_POINTS, axis=0)
        widths = generator.choice(_WIDTHS, size=(len(start), 1))
        near = _perturbed(space, start, widths, generator)
        configs = list(space.from_unit(np.concatenate([sobol(space, seed, _RAW_POINTS), near])))
    seen = tried(space, history)
    configs = [c for c in configs if config_key(space, c) not in seen]
    if not configs:
        configs = [draw_new(space, seed, "rest", history)]
    values = acquisition(space.to_unit(configs))
    best = int(np.argmax(values))
    return configs[best], float(values[best])


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
