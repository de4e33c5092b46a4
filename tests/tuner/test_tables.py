"""Frames of pandas' hold what the CSV files do."""

import subprocess
import sys

import pytest

from tuner import Choice, Float, Int, SearchSpace, Study, tune

SPACE = SearchSpace(lr=Float(1e-4, 1.0, log=True), layers=Int(2, 6), act=Choice(("relu", "gelu")))


def train(config):
    for epoch in range(1, 4):
        yield epoch * config["lr"]


def test_a_frame_is_what_pandas_reads_of_the_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    study = tune(train, SPACE, budget_minutes=0.001, searcher="random", mode="min")
    study.to_csv(tmp_path / "trials.csv")
    read = pandas.read_csv(tmp_path / "trials.csv", keep_default_na=False)
    frame = study.to_frame()
    assert list(frame.columns) == list(read.columns)
    complete = frame.score.notna()
    read["score"] = pandas.to_numeric(read["score"])
    pandas.testing.assert_frame_equal(frame[complete], read[complete], check_dtype=False)
    assert len(frame) == len(study.trials)


def test_a_frame_of_epochs_holds_every_curve():
    pandas = pytest.importorskip("pandas")
    study = tune(train, SPACE, budget_minutes=0.001, searcher="random", mode="min")
    frame = study.to_frame(epochs=True)
    assert list(frame.columns) == ["trial", "epoch", "score", "minutes"]
    for number, curve in frame.groupby("trial"):
        wanted = study.trials[number].curve
        assert list(curve.epoch) == [o.epoch for o in wanted]
        assert list(curve.score) == [o.score for o in wanted]
        assert list(curve.minutes) == [o.at_ns / 60e9 for o in wanted]
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == sum(t.epoch for t in study.trials)


def test_an_empty_study_has_empty_frames_with_columns():
    pytest.importorskip("pandas")
    study = Study(SPACE, "random")
    assert list(study.to_frame().columns)[-4:] == ["lr", "layers", "act", "reason"]
    assert len(study.to_frame(epochs=True)) == 0


def test_without_pandas_it_is_one_line():
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from tuner import Float, Study\n"
        "try:\n    Study({'x': Float(0, 1)}, 'random').to_frame()\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a frame needs pandas: pip install 'tuner[pandas]'\n"
