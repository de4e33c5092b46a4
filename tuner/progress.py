"""How far each searcher had come at each minute: medians, quartiles, ranks, minutes to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Line = Sequence[tuple[float, float]]
"""A step function: (minute, best score from then on)."""

_STEPS = 200


@dataclass(frozen=True)
class Progress:
    """Several seeds of one searcher on m common minutes.

    Attributes:
        scores: seeds x m, the best score so far; NaN before a seed's first.
        rank: m: the mean over seeds of its rank among the searchers, 1 for the best; ties share.
    """

    minutes: NDArray[np.float64]
    scores: NDArray[np.float64]
    rank: NDArray[np.float64]

    def quantile(self, share: float) -> NDArray[np.float64]:
        """A quantile over the seeds at each minute, m; NaN before every seed has a score."""
        quantiles: NDArray[np.float64] = np.quantile(self.scores, share, axis=0)
        return quantiles


def progress(lines: Mapping[str, Sequence[Line]], until: float) -> dict[str, Progress]:
    """The progress of each searcher up to minute `until`; lines in the same order of seeds."""
    from scipy.stats import rankdata

    minutes = np.linspace(0.0, until, _STEPS + 1)
    scores = {name: np.array([at(line, minutes) for line in many]) for name, many in lines.items()}
    together = np.stack(list(scores.values()))  # searchers x seeds x m
    # Without a score a searcher is behind everyone who has one.
    ranks = rankdata(-np.nan_to_num(together, nan=-math.inf), axis=0).mean(1)  # searchers x m
    return {
        name: Progress(minutes, scores[name], rank)
        for name, rank in zip(scores, ranks, strict=True)
    }


def at(line: Line, minutes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A step function at the given minutes; NaN before its first step."""
    if not line:
        return np.full(len(minutes), np.nan)
    index = np.searchsorted([minute for minute, _ in line], minutes, side="right") - 1
    scores = np.array([score for _, score in line])
    return np.where(index < 0, np.nan, scores[np.maximum(index, 0)])


def minutes_to(line: Line, target: float) -> float | None:
    """The first minute at which the best score so far was at least `target`; None for never."""
    return next((minute for minute, score in line if score >= target), None)


def race_progress(lines: Mapping[str, Sequence[Line]], until: float) -> dict[str, Any]:
    """The content of `progress` in summary.json: curves, ranks and minutes to a target.

    The target is the highest score that at least half of every searcher's seeds have reached by
    the end, and the question is by when half of them had: everyone gets there, some sooner.
    """
    found = progress(lines, until)
    target: float | None = min(_reached_by_half(p.scores[:, -1]) for p in found.values())
    if target == -math.inf:
        target = None
    return {
        "minutes": next(iter(found.values())).minutes.round(6).tolist(),
        "target": target,
        "searchers": {
            name: {
                "median": _listed(p.quantile(0.5)),
                "low": _listed(p.quantile(0.25)),
                "high": _listed(p.quantile(0.75)),
                "mean_rank": _listed(p.rank),
                **_to_target(lines[name], target),
            }
            for name, p in found.items()
        },
    }


def _reached_by_half(ends: NDArray[np.float64]) -> float:
    """The highest score that at least half of the seeds have; minus infinity for none."""
    known = np.nan_to_num(ends, nan=-math.inf)
    return float(np.sort(known)[len(known) // 2])


def _to_target(lines: Sequence[Line], target: float | None) -> dict[str, Any]:
    if target is None:
        return {"minutes_to_target": None, "seeds_at_target": 0}
    taken = sorted(math.inf if (m := minutes_to(line, target)) is None else m for line in lines)
    reached = sum(map(math.isfinite, taken))
    half = taken[(len(taken) - 1) // 2]
    return {
        "minutes_to_target": half if math.isfinite(half) else None,
        "seeds_at_target": reached,
    }


def _listed(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 6) for v in values.tolist()]
