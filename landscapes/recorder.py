"""Recording: a design that is trained as a race would train it, and made into a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.table import Table, to_row
from tuner.history import HistoryView
from tuner.searchers.base import SpaceExhausted
from tuner.space import Config, SearchSpace
from tuner.trial import Trial, TrialState


class DesignSearcher:
    """Proposes the settings of a design, one after the other."""

    fallback = ""

    def __init__(self, design: Sequence[Config]) -> None:
        self._design = design

    def propose(self, history: HistoryView) -> Config:
        """The next setting; raises SpaceExhausted after the last."""
        if len(history) >= len(self._design):
            raise SpaceExhausted
        return self._design[len(history)]


def lattice(space: SearchSpace, points: Sequence[int]) -> list[dict[str, Any]]:
    """All combinations of so many values of each knob; ValueError where the counts do not fit."""
    if len(points) != len(space) or min(points) < 1:
        raise ValueError(
            f"a lattice needs a number of points for each of the {len(space)} knobs "
            f"({', '.join(space)}), each at least 1, got {','.join(map(str, points))}"
        )
    one = {name: domain.grid(n) for (name, domain), n in zip(space.items(), points, strict=True)}
    settings: list[dict[str, Any]] = [{}]
    for name, values in one.items():
        settings = [{**setting, name: value} for setting in settings for value in values]
    return settings


def sobol(space: SearchSpace, points: int, seed: int) -> list[dict[str, Any]]:
    """The first settings, no two alike, of a scrambled Sobol sequence; at most `points`."""
    import torch

    if points < 1:
        raise ValueError(f"a Sobol design needs at least 1 point, got {points}")
    engine = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed)
    drawn = space.from_unit(engine.draw(points, dtype=torch.float64).numpy())
    different = {tuple(config.items()): config for config in drawn}
    return list(different.values())


def make_table(
    name: str,
    space: SearchSpace,
    epochs: int,
    histories: Sequence[Iterable[Trial]],
    card: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
) -> Table:
    """The trials of one or more searches as a table.

    Trials of the same setting are its replicates, in the order of the histories. `seeds` are the
    searches' study seeds, by default 0, 1, …; the same setting with the same seed is the same
    training, and the one that went furthest counts. Trials without a finished epoch are left out,
    unless it was their own fault, and so is what was taken over from other studies.

    Raises ValueError where nothing is left, or a knob is not always there.
    """
    if space.conditions:
        raise ValueError(
            f"there is not always a {', '.join(space.conditions)}, and a recording's knobs are "
            "always there"
        )
    found: dict[tuple[float, ...], dict[int, Trial]] = {}
    for seed, history in zip(seeds or range(len(histories)), histories, strict=True):
        for trial in history:
            if trial.source:  # of another study, and the same for each of these
                continue
            if trial.curve or trial.state is TrialState.INFEASIBLE:
                by_seed = found.setdefault(to_row(space, trial.config), {})
                if seed not in by_seed or by_seed[seed].epoch < trial.epoch:
                    by_seed[seed] = trial
    if not found:
        raise ValueError("there is nothing to make a landscape of: no trial has finished an epoch")
    most = max(map(len, found.values()))
    shape = (len(found), most)
    scores = np.full((*shape, epochs), np.nan)
    seconds = np.full_like(scores, np.nan)
    infeasible, of_seed = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    for i, by_seed in enumerate(found.values()):
        for r, (seed, trial) in enumerate(by_seed.items()):
            _put(trial, scores[i, r], seconds[i, r])
            infeasible[i, r], of_seed[i, r] = trial.state is TrialState.INFEASIBLE, seed
    return Table(name, space, np.array(list(found)), scores, seconds, infeasible, card, of_seed)


def _put(trial: Trial, scores: NDArray[np.float64], seconds: NDArray[np.float64]) -> None:
    for o in trial.curve[: len(scores)]:
        scores[o.epoch - 1], seconds[o.epoch - 1] = o.score, o.device_ns / 1e9
    if trial.state is TrialState.INFEASIBLE and trial.epoch < len(scores):
        seconds[trial.epoch] = max(1, trial.partial_ns) / 1e9
