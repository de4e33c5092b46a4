"""MLflow: a run for each trial, with its curve, its knobs and what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from tuner.trial import Observation, Trial

try:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient
except ImportError as error:
    raise ValueError("MLflow is not installed: pip install 'tuner[mlflow]'") from error

_NAME = "tuner.name"  # the tag by which a trial is found again
_MOST = 1_000  # metrics that MLflow takes at once
_PAGE = 1_000


def callback(experiment: str, tracking_uri: str | None = None) -> TrialLogger:
    """Logs a run for each trial into an experiment; for `tune(…, callbacks=[…])`.

    Where a study goes on, trials that had ended and have a run are left as they are; one that was
    broken off has a second run, with all of its curve.

    Args:
        experiment: by name; it is made where it is not there. Give each study its own: trials are
            known by searcher, seed and number.
        tracking_uri: such as `sqlite:///mlflow.db`; None for MLflow's own choice.
    """
    return TrialLogger(_Begin(MlflowClient(tracking_uri), experiment))


def log_study(
    place: str | Path, experiment: str | None = None, tracking_uri: str | None = None
) -> int:
    """Log a study or a finished race from its folder; how many trials it has.

    The experiment is called as the folder where it has no other name. Raises ValueError where
    there is no study, or none that can be read.
    """
    name = name_of(place) if experiment is None else experiment
    return log_place(callback(name, tracking_uri), place)


class _Begin:
    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self._client = client
        known = client.get_experiment_by_name(experiment)
        self._id = client.create_experiment(experiment) if known is None else known.experiment_id
        self._ended = set(self._names_of_ended())

    def __call__(self, search: Search, trial: Trial) -> TrialLog | None:
        name = f"{search.name}/{trial_name(trial)}"
        if trial.state.is_final and name in self._ended:
            return None
        run = self._client.create_run(self._id, run_name=name, tags={_NAME: name})
        params = [Param(key, str(value)) for key, value in knobs_of(trial).items()]
        self._client.log_batch(run.info.run_id, params=params)
        return _Log(self._client, run.info.run_id, search)

    def _names_of_ended(self) -> Iterator[str]:
        token = None
        while True:
            page = self._client.search_runs([self._id], max_results=_PAGE, page_token=token)
            for run in page:
                if run.info.status in ("FINISHED", "FAILED") and _NAME in run.data.tags:
                    yield run.data.tags[_NAME]
            token = page.token
            if not token:
                return


class _Log:
    def __init__(self, client: MlflowClient, run_id: str, search: Search) -> None:
        self._client, self._id, self._search = client, run_id, search

    def write(self, trial: Trial, news: Sequence[Observation]) -> None:
        now_ms = time.time_ns() // 1_000_000
        metrics = [
            Metric(key, value, now_ms, seen.epoch)
            for seen in news
            for key, value in numbers_of(trial, seen).items()
        ]
        if trial.state.is_final:
            metrics.append(Metric("paid_minutes", paid_minutes(trial), now_ms, trial.epoch))
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MOST])
        if trial.state.is_final:
            tags = [RunTag(f"tuner.{k}", text) for k, text in facts_of(self._search, trial).items()]
            self._client.log_batch(self._id, tags=tags)
            status = "FAILED" if trial.state.is_broken else "FINISHED"
            self._client.set_terminated(self._id, status)

    def close(self) -> None:
        self._client.set_terminated(self._id, "KILLED")
