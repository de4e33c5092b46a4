"""TensorBoard's own reader finds what was logged."""

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from tuner import Choice, Float, Infeasible, Study, TrialState, tune
from tuner.integrations import tensorboard
from tuner.reader import Snapshot

SPACE = {"x": Float(0, 1), "act": Choice(("relu", None, True))}


def train(config):
    if config["x"] > 0.7:
        raise Infeasible("too far")
    for epoch in range(1, 4):
        yield config["x"] * epoch


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(found, tag):
    return [(s.step, s.value) for s in found.Scalars(tag)]


def text(found, tag):
    return found.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


def hparams(found, tag):
    content = found.SummaryMetadata(f"_hparams_/session_{tag}_info").plugin_data.content
    return getattr(plugin_data_pb2.HParamsPluginData.FromString(content), f"session_{tag}_info")


def test_a_search_is_all_there(tmp_path):
    study = tune(
        train,
        SPACE,
        budget_minutes=0.002,
        searcher="random",
        callbacks=[tensorboard.callback(tmp_path)],
    )
    assert {t.state for t in study.trials} >= {TrialState.COMPLETED, TrialState.INFEASIBLE}
    for trial in study.trials:
        found = read(tmp_path / "random-0" / f"trial-{trial.number:05d}")
        knobs = hparams(found, "start").hparams
        assert knobs["x"].number_value == trial.config["x"]
        act = knobs["act"]
        assert trial.config["act"] in (
            [True] if act.HasField("bool_value") else [act.string_value, None]
        )
        if trial.curve:
            wanted = [(o.epoch, pytest.approx(o.score)) for o in trial.curve]
            assert scalars(found, "score") == wanted
        if trial.state.is_final:
            assert text(found, "state") == trial.state.name
            minutes = trial.paid_ns / 60e9
            assert scalars(found, "paid_minutes") == [(trial.epoch, pytest.approx(minutes))]
            is_good = trial.state is TrialState.COMPLETED
            assert hparams(found, "end").status == (
                api_pb2.STATUS_SUCCESS if is_good else api_pb2.STATUS_FAILURE
            )


def test_a_race_is_logged_from_its_folder_and_once(race_folder, tmp_path):
    count = tensorboard.log_study(race_folder, tmp_path)
    snapshot = Snapshot(race_folder / "study.sqlite")
    runs = {f"mine/{row.searcher}-{row.seed}": snapshot.trials(row) for row in snapshot.runs()}
    snapshot.close()
    assert count == sum(map(len, runs.values()))
    for name, trials in runs.items():
        found = read(tmp_path / name / f"trial-{trials[-1].number:05d}")
        wanted = [(o.epoch, pytest.approx(o.score)) for o in trials[-1].curve]
        assert scalars(found, "score") == wanted
    before = sorted(tmp_path.rglob("*"))
    tensorboard.log_study(race_folder, tmp_path)
    ended = {t.number for t in trials if t.state.is_final}
    again = {p.parent.name for p in set(tmp_path.rglob("*")) - set(before)}
    assert not again & {f"trial-{number:05d}" for number in ended}


def test_a_trial_that_was_broken_off_is_logged_anew_and_no_point_twice(tmp_path):
    path = tmp_path / "study.sqlite"
    with Study(SPACE, "random", path=path) as study, tensorboard.callback(tmp_path) as log:
        trial = study.ask()
        log(study)
    with Study(SPACE, "random", path=path) as study, tensorboard.callback(tmp_path) as log:
        study.tell(trial.number, 0.5)
        log(study)
    found = read(tmp_path / "random-0" / "trial-00000")
    assert scalars(found, "score") == [(1, 0.5)]
    assert len(list((tmp_path / "random-0" / "trial-00000").iterdir())) == 2
