"""Where a model of many knobs looks for its next proposal: near the best so far.

TuRBO-1 (Eriksson, Pearce, Gardner, Turner and Poloczek, 2019, section 3): a model of few data and
many knobs is unsure of every corner, and a search that believes it visits one corner after the
other. The region grows while proposals succeed, shrinks while they fail, and begins anew once it
is small. With few knobs the whole space is better: see this folder's README.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.history import HistoryView
from tuner.searchers.surrogate import START, Outlook
from tuner.space import Choice, SearchSpace, Units

FEWEST_KNOBS = 8
SPREAD = 1.0
"""Of an improvement's standard deviation where there is a region, see Outlook.

The wider ones keep a search from staying where it is, which here the region decides.
"""
_FIRST, _LEAST, _MOST = 0.8, 0.5**7, 1.6  # sides, of the unit cube; as in the paper's section 3
_SUCCESSES = 3  # in a row, after which it grows
_FEWEST_FAILURES = 4  # in a row, after which it shrinks; or one for each knob
_GAIN = 1e-3  # of the best score's size, by which a success is better


@dataclass(frozen=True)
class Box:
    """A part of the unit cube: `low` and `high`, d each, or one for all knobs."""

    low: NDArray[np.float64] | float = 0.0
    high: NDArray[np.float64] | float = 1.0

    def within(self, units: Units) -> Units:
        """Points of the unit cube, `m x d`, moved to where they are in the box."""
        return np.asarray(self.low + (self.high - self.low) * units)

    def clipped(self, units: Units) -> Units:
        """Points, `m x d`, those outside moved to the nearest inside."""
        return np.clip(units, self.low, self.high)


WHOLE = Box()


def has_region(space: SearchSpace) -> bool:
    """Whether proposals are sought near the best so far, and not in the whole space."""
    return len(space) >= FEWEST_KNOBS and not all(isinstance(d, Choice) for d in space.values())


def region_of(outlook: Outlook, history: HistoryView) -> Box:
    """The box around what the model takes for the best so far."""
    lengths = outlook.posterior.covariance.lengths
    return trust_region(outlook.space, history, outlook.centres[0], lengths)


def trust_region(
    space: SearchSpace,
    history: HistoryView,
    centre: NDArray[np.float64],
    lengths: NDArray[np.float64],
) -> Box:
    """The box around a centre, d unit coordinates; of few knobs the whole space.

    Args:
        space: d knobs.
        history: which proposals succeeded.
        centre: the best so far.
        lengths: the model's lengthscales of all knobs but choices, in their order: the box is
            long where the model is smooth. An option has no neighbours, and all are in it.
    """
    if not has_region(space):
        return WHOLE
    ordered = [i for i, domain in enumerate(space.values()) if not isinstance(domain, Choice)]
    half = np.full(len(space), np.inf)
    # L_i = lambda_i L / (prod_j lambda_j)^(1 / d)
    relative = lengths / np.exp(np.log(lengths).mean())
    half[ordered] = 0.5 * relative * side(_outcomes(history), len(space))
    return Box(np.maximum(0.0, centre - half), np.minimum(1.0, centre + half))


def side(outcomes: Sequence[bool], knobs: int) -> float:
    """The side of the region after proposals that did, or did not, find something better."""
    now, successes, failures = _FIRST, 0, 0
    for is_success in outcomes:
        successes, failures = (successes + 1, 0) if is_success else (0, failures + 1)
        if successes == _SUCCESSES:
            now, successes = min(_MOST, 2 * now), 0
        if failures == max(_FEWEST_FAILURES, knobs):
            now, failures = now / 2, 0
        if now < _LEAST:
            now = _FIRST
    return now


def _outcomes(history: HistoryView) -> list[bool]:
    """Of each proposal of the model whose score is known, whether it was the best until then.

    What was drawn for the start, taken over or trained again is only there to be beaten.
    """
    best, found = -np.inf, []
    for trial in history:
        if trial.score is None:
            continue
        if not (trial.number < START or trial.source or trial.confirms is not None):
            found.append(trial.score > best + _GAIN * abs(best))
        best = max(best, trial.score)
    return found
