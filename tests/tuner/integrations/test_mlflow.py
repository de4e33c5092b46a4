"""MLflow's own client finds what was logged, in a store of SQLite's."""

import pytest

pytest.importorskip("mlflow.tracking")

from mlflow.tracking import MlflowClient

from tuner import Choice, Float, Infeasible, Study, TrialState, tune
from tuner.integrations import mlflow
from tuner.reader import Snapshot

SPACE = {"x": Float(0, 1), "act": Choice(("relu", None, True))}


def train(config):
    if config["x"] > 0.7:
        raise Infeasible("too far")
    for epoch in range(1, 4):
        yield config["x"] * epoch


def runs_of(uri, experiment):
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, {run.data.tags["tuner.name"]: run for run in found}


def test_a_search_is_all_there(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = mlflow.callback("mine", uri)
    study = Study(SPACE, "random")
    for number in range(5):
        trial = study.ask()
        log(study)
        if number == 3:
            study.tell(trial.number, state="infeasible", reason="too far", minutes=0.25)
        else:
            study.tell(trial.number, score=number / 10, minutes=0.5)
        log(study)
    study.ask()
    log(study)
    log.close()
    client, runs = runs_of(uri, "mine")
    assert len(runs) == len(study.trials) == 6
    for trial in study.trials:
        run = runs[f"random-0/trial-{trial.number:05d}"]
        assert run.data.params == {name: str(v) for name, v in trial.config.items()}
        history = client.get_metric_history(run.info.run_id, "score")
        assert [(m.step, m.value) for m in history] == [(o.epoch, o.score) for o in trial.curve]
        if trial.state is TrialState.RUNNING:
            assert run.info.status == "KILLED"
            continue
        is_good = trial.state is TrialState.COMPLETED
        assert run.info.status == ("FINISHED" if is_good else "FAILED")
        assert run.data.tags["tuner.state"] == trial.state.name
        assert run.data.tags["tuner.reason"] == trial.reason
        assert run.data.metrics["paid_minutes"] == trial.paid_ns / 60e9


def test_tune_logs_as_it_goes(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = tune(
        train,
        SPACE,
        budget_minutes=0.02,
        searcher="random",
        mode="min",
        callbacks=[mlflow.callback("live", uri)],
    )
    client, runs = runs_of(uri, "live")
    assert len(runs) == len(study.trials)
    history = client.get_metric_history(runs["random-0/trial-00000"].info.run_id, "score")
    assert [m.value for m in history] == [o.score for o in study.trials[0].curve]


def test_a_race_is_logged_from_its_folder_and_once(race_folder, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    snapshot = Snapshot(race_folder / "study.sqlite")
    wanted = {
        f"mine/{row.searcher}-{row.seed}/trial-{t.number:05d}": t
        for row in snapshot.runs()
        for t in snapshot.trials(row)
    }
    snapshot.close()
    assert mlflow.log_study(race_folder, tracking_uri=uri) == len(wanted)
    client, runs = runs_of(uri, "mine")
    assert runs.keys() == wanted.keys()
    for name, trial in list(wanted.items())[::7]:
        history = client.get_metric_history(runs[name].info.run_id, "score")
        assert [(m.step, m.value) for m in history] == [(o.epoch, o.score) for o in trial.curve]
    ended = sum(t.state.is_final for t in wanted.values())
    mlflow.log_study(race_folder, tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert len(found) == len(wanted) + (len(wanted) - ended)
