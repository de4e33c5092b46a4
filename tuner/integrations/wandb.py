"""Weights & Biases: a run for each trial, with its curve, its knobs and what became of it.

With `WANDB_MODE=offline` nothing leaves the machine until `wandb sync`.
"""

from __future__ import annotations

import hashlib
import secrets
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
    name_of,
    numbers_of,
    paid_minutes,
    trial_name,
)
from tuner.trial import Observation, Trial, TrialState

try:
    # Its name alone would find the folder that it keeps its runs in.
    from wandb import Run, init
except ImportError as error:
    raise ValueError("wandb is not installed: pip install 'tuner[wandb]'") from error


def callback(project: str, group: str | None = None, **more: Any) -> TrialLogger:
    """Logs a run for each trial into a project; for `tune(…, callbacks=[…])`.

    Args:
        project: by name.
        group: of all runs of a study. Give each study its own: the runs of a study that goes on
            are found by it. By default runs are grouped by searcher and seed, and are new ones.
        more: goes to `wandb.init`, such as `dir` or `entity`.
    """
    return TrialLogger(_Begin(group, {"project": project, **more}))


def log_study(
    place: str | Path, project: str = "tuner", group: str | None = None, **more: Any
) -> int:
    """Log a study or a finished race from its folder; how many trials it has.

    The group is called as the folder where it has no other name. Raises ValueError where there is
    no study, or none that can be read.
    """
    name = name_of(place) if group is None else group
    return log_place(callback(project, name, **more), place)


class _Begin:
    def __init__(self, group: str | None, given: dict[str, Any]) -> None:
        self._group, self._given = group, given
        self._study = group or secrets.token_hex(8)

    def __call__(self, search: Search, trial: Trial) -> TrialLog | None:
        name = f"{search.name}/{trial_name(trial)}"
        text = "\0".join((self._given["project"], self._study, name))
        names = {
            "name": name,
            "group": self._group or search.name,
            "id": hashlib.sha256(text.encode()).hexdigest()[:16],
            "config": knobs_of(trial),
        }
        return _Log(search, {**names, **self._given})


class _Log:
    """Of one trial. A run is a process's worth of work, so a trial that waits has none."""

    def __init__(self, search: Search, given: dict[str, Any]) -> None:
        self._search, self._given = search, given
        self._run: Run | None = None

    def write(self, trial: Trial, news: Sequence[Observation]) -> None:
        if self._run is None:
            self._run = init(resume="allow", reinit="create_new", **self._given)
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
