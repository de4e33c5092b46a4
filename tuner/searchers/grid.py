"""Grid search that fits its lattice to the budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuner.history import HistoryView
from tuner.searchers.base import ConfigKey, SpaceExhausted, config_key, generator, tried
from tuner.space import Config, SearchSpace, Value

_Walk = tuple[list[tuple[ConfigKey, Config]], Iterator[tuple[ConfigKey, Config]]]

_FINEST = 257
_SIDES = range(3, _FINEST + 1, 2)
_SCATTERED = 4096


class GridSearcher:
    """A lattice sized to what the budget can buy, visited so that the space is covered early.

    The rule, all of it a function of seed and history, where results taken over from an earlier
    study have no say in how the lattice is laid out, and their points are passed over:

    1. A lattice has n points a side, both ends included, evenly spaced on each knob's own scale;
       a choice knob always has all its options, an integer knob at most its integers. n is odd,
       so that every lattice holds the 3-point lattice and refines into 2n - 1.
    2. The first points come from the 3-point lattice, since nothing is known of the cost yet.
    3. As soon as an epoch has been paid for, n becomes the largest odd number whose lattice the
       budget can buy at the mean cost so far, and stays: the current lattice is the coarsest
       that holds every point visited.
    4. Within a lattice, points are visited in the order in which a low-discrepancy sequence
       falls into their cells.
    5. Where budget is left when a lattice is complete, it is refined to 2n - 1 points a side.

    With `points_per_axis` the first lattice has that many points a side (odd or not) instead.
    """

    fallback = ""

    def __init__(self, space: SearchSpace, seed: int, points_per_axis: int | None = None) -> None:
        if points_per_axis is not None and points_per_axis < 2:
            raise ValueError(f"a lattice needs at least 2 points a side, got {points_per_axis}")
        self._space, self._seed, self._points = space, seed, points_per_axis
        # Remembered, and told from space and seed at any time:
        self._walks: dict[int, _Walk] = {}
        self._values: dict[int, list[set[Value]]] = {}
        self._elsewhere: dict[ConfigKey, bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_walks": {}}  # its generators cannot be copied

    def propose(self, history: HistoryView) -> Config:
        """The first unvisited point of the current lattice, or of its refinement."""
        visited = tried(self._space, history)
        points = self._points or self._side(history)
        finest = max(_FINEST, self._points or 0)
        while points <= finest:
            for key, config in self._walk(points):
                if key not in visited:
                    return dict(config)
            if _is_whole_space(self._space, points):
                break
            points = 2 * points - 1
        raise SpaceExhausted(f"all points up to {min(points, finest)} a side have been visited")

    def _side(self, history: HistoryView) -> int:
        """Points a side of the lattice that is being visited (rules 2 and 3)."""
        visited = {config_key(self._space, t.config) for t in history.trained}
        for points in _SIDES:
            if all(self._holds(points, key) or self._is_elsewhere(key) for key in visited):
                break
        else:
            points = 3  # those of two lattices, neither of which holds the other
        return points if points > 3 else self._affordable_side(history)

    def _holds(self, points: int, key: ConfigKey) -> bool:
        """Whether a configuration is a point of a lattice."""
        if points not in self._values:
            self._values[points] = [{*axis, None} for axis in self._space.axes(points)]
        return all(
            value in axis for (_, value), axis in zip(key, self._values[points], strict=True)
        )

    def _is_elsewhere(self, key: ConfigKey) -> bool:
        """Whether it is a point of none: a shared start's, or a known recipe. It does not count."""
        if key not in self._elsewhere:
            self._elsewhere[key] = not any(self._holds(points, key) for points in _SIDES)
        return self._elsewhere[key]

    def _affordable_side(self, history: HistoryView) -> int:
        epoch_ns, budget_ns = history.mean_epoch_ns, history.budget_ns
        if not epoch_ns or budget_ns is None:
            return 3
        trials = budget_ns / (epoch_ns * (history.max_epochs or 1))
        points = 3
        while points + 2 <= _FINEST and lattice_size(self._space, points + 2) <= trials:
            points += 2
            if _is_whole_space(self._space, points):
                break
        return points

    def _walk(self, points: int) -> Iterator[tuple[ConfigKey, Config]]:
        """The points of a lattice in order, with their keys; remembered as far as anyone went."""
        if points not in self._walks:
            configs = self._in_order(points)
            self._walks[points] = [], ((config_key(self._space, c), c) for c in configs)
        known, rest = self._walks[points]
        yield from known
        for point in rest:
            known.append(point)
            yield point

    def _in_order(self, points: int) -> Iterator[dict[str, Value]]:
        """All points of a lattice, scattered first (rule 4)."""
        axes = self._space.axes(points)
        seen: set[tuple[int, ...]] = set()
        for unit in _kronecker(self._seed, len(axes), _SCATTERED):
            cell = tuple(int(u * len(axis)) for u, axis in zip(unit, axes, strict=True))
            if cell not in seen:
                seen.add(cell)
                yield self._space.pruned(
                    {n: axis[i] for n, axis, i in zip(self._space, axes, cell, strict=True)}
                )
        yield from self._space.lattice(points)  # those that came before are visited by now


def lattice_size(space: SearchSpace, points: int) -> int:
    """How many configurations a lattice with `points` a side has."""
    return space.size(space.axes(points))


def _is_whole_space(space: SearchSpace, points: int) -> bool:
    return space.cardinality is not None and lattice_size(space, points) >= space.cardinality


def _kronecker(seed: int, d: int, n: int) -> Iterator[tuple[float, ...]]:
    """The first n points of an additive recurrence in d dimensions, shifted by the seed.

    Steps are powers of the inverse of the generalised golden ratio g, the positive root of
    g^(d+1) = g + 1 (Roberts, 2018, "The unreasonable effectiveness of quasirandom sequences").
    """
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (d + 1))
    steps = [ratio ** -(i + 1) for i in range(d)]
    shift = generator(seed, "grid", HistoryView()).random(d)
    for i in range(n):
        yield tuple(float((s + i * step) % 1.0) for s, step in zip(shift, steps, strict=True))
