"""Weights & Biases: a run for each trial, with its curve, its knobs and what became of it.

With `WANDB_MODE=offline` nothing leaves the machine until `wandb sync`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.integrations.trial_log import (
    Search,
    TrialLog,
    TrialLogger,
    facts_of,
    knobs_of,
    log_place,
    numbers_of,
    paid_minutes,
    trial_name,
)
from tuner.trial import Observation, Trial, TrialState

try:
    import wandb
except ImportError as error:
    raise ValueError("wandb is not installed: pip install 'tuner[wandb]'") from error


def callback(project: str, group: str | None = None, **init: Any) -> TrialLogger:
    """Logs a run for each trial into a project; for `tune(…, callbacks=[…])`.

    A trial's run has an id of its own name and the group's, so that one that goes on after it was
    paused or interrupted goes on there.

    Args:
        project: by name.
        group: of all runs of a study; by default the searcher and the seed.
        init: goes to `wandb.init`, such as `dir` or `entity`.
    """
    return TrialLogger(_Begin(group, {"project": project, **init}))


def log_study(
    place: str | Path, project: str = "tuner", group: str | None = None, **init: Any
) -> int:
    """Log a study or a finished race from its folder; how many trials it has.

    The group is called as the folder where it has no other name. Raises ValueError where there is
    no study, or none that can be read.
    """
    name = Path(place).resolve().name if group is None else group
    return log_place(callback(project, name, **init), place)


class _Begin:
    def __init__(self, group: str | None, init: dict[str, Any]) -> None:
        self._group, self._init = group, init

    def __call__(self, search: Search, trial: Trial) -> TrialLog | None:
        name = f"{search.name}/{trial_name(trial)}"
        group = self._group or search.name
        text = "\0".join((self._init["project"], group, name))
        given = {
            "name": name,
            "group": group,
            "id": hashlib.sha256(text.encode()).hexdigest()[:16],
            "config": knobs_of(trial),
        }
        return _Log(search, {**given, **self._init})


class _Log:
    """Of one trial. A run is a process's worth of work, so a trial that waits has none."""

    def __init__(self, search: Search, init: dict[str, Any]) -> None:
        self._search, self._init = search, init
        self._run: wandb.Run | None = None

    def write(self, trial: Trial, news: Sequence[Observation]) -> None:
        if self._run is None:
            self._run = wandb.init(resume="allow", reinit="create_new", **self._init)
        for seen in news:
            self._run.log(numbers_of(trial, seen), step=seen.epoch)
        if trial.state.is_final:
            facts = {**facts_of(self._search, trial), "paid_minutes": paid_minutes(trial)}
            self._run.summary.update(facts)
        if trial.state is not TrialState.RUNNING:
            self._run.finish(exit_code=int(trial.state.is_broken))
            self._run = None

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=1)
            self._run = None
