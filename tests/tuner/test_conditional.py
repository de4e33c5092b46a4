"""Knobs that are not always there, from the proposal to the files."""

import csv

import numpy as np
import pytest

from tests.scripts.command_line import tune as tune_py
from tuner import Choice, Conditional, Float, Int, SearchSpace, Study, tune
from tuner.history import History
from tuner.searchers import make_searcher
from tuner.searchers.base import SpaceExhausted
from tuner.trial import Trial
from tuner.warm_start import read_study

TREE = SearchSpace(
    kind=Choice(("sgd", "adam")),
    momentum=Conditional(Float(0.0, 0.99), "kind", ("sgd",)),
    layers=Int(1, 3),
    growth=Conditional(Float(1.0, 2.0), "layers", (2, 3)),
)


def score(config):
    """Best with sgd at momentum 0.9, and three layers that grow by 1.5."""
    first = 0.3 if config["kind"] == "adam" else 0.5 - abs(config["momentum"] - 0.9)
    second = 0.1 if config["layers"] == 1 else 0.5 - abs(config["growth"] - 1.5)
    return first + second + 0.01 * config["layers"]


def filled(searcher, count, path=None):
    study = Study(TREE, searcher, path=path)
    for _ in range(count):
        trial = study.ask()
        TREE.check(trial.config)
        study.tell(trial.number, score(trial.config), minutes=0.1)
    return study


BRANCHES = SearchSpace(  # 12 x 8 configurations, and an unconditioned product of 12 x 8^12
    kind=Choice(tuple("abcdefghijkl")),
    **{f"depth_{kind}": Conditional(Int(1, 8), "kind", (kind,)) for kind in "abcdefghijkl"},
)


@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_space_of_many_branches_is_searched_to_its_last_configuration(name):
    assert len(BRANCHES.grid(3)) == 12 * 3
    history = History(1)
    searcher = make_searcher(name, BRANCHES, 0)
    for number in range(96):
        history.start(Trial(number, searcher.propose(history.view()), 0, 1))
    assert {tuple(t.config.values()) for t in history} == {
        tuple(config.values()) for config in BRANCHES.grid(8)
    }
    with pytest.raises(SpaceExhausted, match=r"all 96 configurations|all points up to"):
        searcher.propose(history.view())


def test_bayes_looks_at_every_branch_of_a_small_space():
    study = Study(BRANCHES, "bayes")
    for _ in range(20):
        trial = study.ask()
        depth = trial.config[f"depth_{trial.config['kind']}"]
        study.tell(trial.number, depth + 2 * (trial.config["kind"] == "c"), minutes=0.1)
    assert study.best.score > 7


def test_the_values_of_a_parent_may_be_a_list_and_are_named_once(tmp_path):
    def space(values):
        return {"o": Choice(("sgd", "adam")), "m": Conditional(Float(0, 0.9), "o", values)}

    Study(space(["sgd"]), "random", path=tmp_path / "study.sqlite").close()
    Study(space(["sgd"]), "random", path=tmp_path / "study.sqlite").close()  # the same study
    with pytest.raises(ValueError, match="knob 'm' names a value of 'o' twice"):
        SearchSpace(space(["sgd", "sgd"]))


def test_bayes_finds_the_best_branch_and_the_best_place_on_it():
    best = filled("bayes", 40).best
    assert (best.config["kind"], best.config["layers"]) == ("sgd", 3)
    assert best.score > 0.98  # 1.03 is the highest there is
    assert best.score > filled("random", 40).best.score


def test_a_study_is_opened_again_and_taken_over(tmp_path):
    filled("random", 6, tmp_path / "study.sqlite").close()
    again = Study(TREE, "random", path=tmp_path / "study.sqlite")
    assert again.space == TREE
    assert any(t.config["momentum"] is None for t in again.trials)
    again.to_csv(tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        cells = [row["momentum"] for row in csv.DictReader(file)]
    assert [cell == "" for cell in cells] == [t.config["kind"] == "adam" for t in again.trials]
    again.close()
    new = Study(TREE, "bayes", seed=3)
    assert len(new.add_from(read_study(tmp_path / "study.sqlite"))) == 6
    added = new.add({"kind": "adam", "layers": 1}, 0.4)  # what is not there need not be named
    assert (added.config["momentum"], added.config["growth"]) == (None, None)
    with pytest.raises(ValueError, match="there is no momentum"):
        new.add({"kind": "adam", "layers": 1, "momentum": 0.5}, 0.4)


@pytest.mark.parametrize("searcher", ["freeze-thaw", "bohb", "grid", "tpe+asha"])
def test_whatever_searches_gives_a_training_what_is_there(searcher):
    seen = []

    def train(config):
        TREE.check(config)
        seen.append(config)
        for epoch in range(1, 10):
            yield score(config) - 0.5 / epoch

    study = tune(train, TREE, budget_minutes=0.02, searcher=searcher, max_epochs=9)
    assert {c["kind"] for c in seen} == {"sgd", "adam"}
    assert study.best.score > 0.3


def test_a_race_of_networks_draws_what_is_there(tmp_path):
    """One layer has nothing to grow; the pictures and the page have places for both."""
    flags = ["--knobs", "layers,growth", "--knob", "layers=1:2", "--epochs", 1, "--slots", 1]
    flags += ["--searchers", "random", "--budget-minutes", 0.25, "--seed", 1, "--device", "cpu"]
    result = tune_py(*flags, "--quiet", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    with open(tmp_path / "run" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["layers"] for row in rows} == {"1", "2"}
    assert all((row["growth"] == "") == (row["layers"] == "1") for row in rows)
    for name in ("race.png", "knobs.png", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 1000


def test_a_recording_has_no_such_knobs(tmp_path):
    from landscapes.table import Table

    one = np.ones((1, 1, 1))
    with pytest.raises(ValueError, match="momentum, growth is conditional"):
        Table("t", TREE, np.zeros((1, 4)), one, one, np.zeros((1, 1), bool))
