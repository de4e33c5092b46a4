"""The benchmarks of a proposal's and a start's time: all contenders are in, told the same."""

import json

import numpy as np
import pytest
import typer

from scripts.startup_benchmark import commands, startup
from scripts.suggest_benchmark import CONTENDERS, PENDING, SPACE, results, suggest


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_suggests_what_nobody_has_tried(name):
    known = results(12, 0)
    contender = CONTENDERS[name](known, 0)
    seen = [config for config, _ in known]
    for _ in range(2):
        config = contender.suggest()
        assert SPACE.contains(config)
        gaps = np.abs(SPACE.to_unit(seen) - SPACE.to_unit([config])).max(1)
        assert gaps.min() > 1e-6
        seen.append(config)
        contender.tell(0.5)


def test_all_are_told_the_same_trials():
    known = results(20, 3)
    assert len(known) == 20 + PENDING
    assert known == results(20, 3) != results(20, 4)
    ours = CONTENDERS["bayes"](known, 0)._history
    theirs = CONTENDERS["Optuna GPSampler"](known, 0)._study.trials
    assert [t.config for t in ours] == [t.params for t in theirs] == [c for c, _ in known]
    assert [t.score for t in ours] == [t.value for t in theirs]
    assert [t.state.name for t in ours][-5:] == ["COMPLETED", *["RUNNING"] * PENDING]


@pytest.mark.nightly
def test_suggest_writes_every_repeat_and_a_ratio_to_each_rival(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    suggest(sizes="10,12", repeats=2, out=tmp_path)
    found = json.loads((tmp_path / "suggest.json").read_text())
    for n in ("10", "12"):
        for times in found["seconds"][n].values():
            assert set(times) == set(CONTENDERS)
            assert all(len(t) == 2 and min(t) > 0 for t in times.values())
    fresh, warm = found["tables"]
    assert [row[0] for row in fresh["rows"]] == [row[0] for row in warm["rows"]] == ["10", "12"]
    assert len(fresh["columns"]) == len(fresh["rows"][0]) == 8


def test_suggest_refuses_in_one_line(tmp_path, capsys):
    with pytest.raises(typer.Exit):
        suggest(sizes="ten", repeats=1, out=tmp_path)
    assert "--sizes is numbers" in capsys.readouterr().err


@pytest.mark.nightly
def test_startup_times_every_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    startup(minutes=3, repeats=1, out=tmp_path)
    found = json.loads((tmp_path / "startup.json").read_text())
    assert list(found["seconds"]) == list(commands(3))
    assert "import optuna" in found["seconds"]
    assert all(len(times) == 1 and times[0] > 0 for times in found["seconds"].values())
    assert len(found["tables"][0]["rows"]) == len(found["seconds"])
