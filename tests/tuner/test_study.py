"""The library: ask and tell, and `tune`."""

import csv
import doctest
import itertools
import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest

import tuner.space
import tuner.study
from tuner import (
    Choice,
    Conditional,
    Float,
    Int,
    SearchSpace,
    SpaceExhausted,
    Study,
    TrialState,
    tune,
)
from tuner.scheduler import TrainingBrokenError
from tuner.trial import Trial

SPACE = SearchSpace(lr=Float(1e-4, 1.0, log=True), layers=Int(2, 6), act=Choice(("relu", "gelu")))


def test_the_examples_in_the_docstrings_run():
    for module in (tuner.space, tuner.study):
        names = {"Float": Float, "Int": Int, "SearchSpace": SearchSpace}
        found = doctest.testmod(module, extraglobs={"np": __import__("numpy"), **names})
        assert found.failed == 0
        assert found.attempted > 0


def value(config):
    return -((config["layers"] - 4) ** 2) - (config["act"] == "relu")


@pytest.mark.parametrize("name", ["grid", "random", "bayes"])
def test_ask_and_tell_with_several_out_at_once(name):
    study = Study(SPACE, name, seed=1)
    for _ in range(5):
        asked = [study.ask() for _ in range(3)]
        assert [t.number for t in study.history.running] == [t.number for t in asked]
        for trial in reversed(asked):
            study.tell(trial.number, score=value(trial.config), minutes=0.5)
    assert [t.number for t in study.trials] == list(range(15))
    assert study.best.score == max(value(t.config) for t in study.trials)
    assert study.minutes_spent == pytest.approx(7.5)


def test_a_reopened_study_goes_on_as_one_that_was_never_closed(tmp_path):
    path = tmp_path / "study.sqlite"
    whole = Study(SPACE, "bayes", seed=4)
    for _ in range(9):
        for study in (whole, Study(SPACE, "bayes", seed=4, path=path)):
            trial = study.ask()
            study.tell(trial.number, score=value(trial.config))
            study.close()
    with Study(SPACE, "bayes", seed=4, path=path) as again:
        assert again.trials == whole.trials


def test_a_trial_asked_before_closing_is_still_pending_and_can_be_told(tmp_path):
    path = tmp_path / "study.sqlite"
    with Study(SPACE, "random", path=path) as study:
        number = study.ask().number
    with Study(SPACE, "random", path=path) as study:
        assert [t.number for t in study.history.running] == [number]
        study.tell(number, score=1.0)
        assert study.best.number == number


def test_results_from_before_count(tmp_path):
    study = Study(SPACE, "bayes", path=tmp_path / "s.sqlite")
    study.add({"lr": 0.1, "layers": 4, "act": "gelu"}, score=0.9, minutes=3.0)
    assert study.best.score == 0.9
    assert study.best.source == "added"
    with pytest.raises(ValueError, match="layers = 9"):
        study.add({"lr": 0.1, "layers": 9, "act": "gelu"}, score=0.9)
    with pytest.raises(ValueError, match="missing"):
        study.add({"lr": 0.1}, score=0.9)
    assert len(study.trials) == 1


def test_a_loss_is_minimised_and_shown_as_it_was_told():
    study = Study({"x": Float(0, 1)}, "random", mode="min")
    for loss in (0.5, 0.2, 0.9):
        study.tell(study.ask().number, score=loss)
    assert study.best.score == 0.2
    assert [t.score for t in study.trials] == [0.5, 0.2, 0.9]
    assert study.history.best.score == -0.2


def test_infeasible_is_told_without_a_score():
    study = Study(SPACE, "random")
    study.tell(study.ask().number, state="infeasible", reason="out of memory")
    (trial,) = study.trials
    assert (trial.state, trial.reason, study.best) == (TrialState.INFEASIBLE, "out of memory", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": float("nan")}, "finite score, got nan"),
        ({"score": float("inf")}, "finite score"),
        ({}, "finite score, got None"),
        ({"score": 1.0, "minutes": -1.0}, "minutes"),
        ({"score": 1.0, "minutes": float("nan")}, "minutes"),
        ({"score": 1.0, "state": "compleet"}, "did you mean 'completed'"),
        ({"score": 1.0, "state": "running"}, "state to tell"),
    ],
)
def test_what_cannot_be_told_is_refused_and_the_trial_still_waits(arguments, message):
    study = Study(SPACE, "random")
    number = study.ask().number
    with pytest.raises(ValueError, match=message):
        study.tell(number, **arguments)
    study.tell(number, score=0.5, minutes=1.0)
    assert study.minutes_spent == 1.0
    with pytest.raises(ValueError, match="not waiting for a result"):
        study.tell(number, score=0.6)
    with pytest.raises(ValueError, match="not waiting for a result"):
        study.tell(99, score=0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"searcher": "bayse"}, "did you mean 'bayes'"),
        ({"mode": "maximum"}, "mode"),
        ({"budget_minutes": 0}, "more than 0 and less than 1e8, got 0"),
        ({"budget_minutes": -2}, "got -2"),
        ({"budget_minutes": math.inf}, "got inf"),
        ({"budget_minutes": math.nan}, "got nan"),
        ({"budget_minutes": 1e12}, r"got 1e\+12"),
        ({"seed": -1}, "seed is a whole number from 0 up to 2\\^63, got -1"),
        ({"seed": 2**63}, f"got {2**63}"),
        ({"seed": 0.5}, "got 0.5"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_a_file_is_made(tmp_path, arguments, message):
    path = tmp_path / "study.sqlite"
    with pytest.raises(ValueError, match=message):
        Study(SPACE, path=path, **arguments)
    assert not path.exists()


def test_a_file_of_another_study_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "study.sqlite"
    with Study(SPACE, "random", path=path) as study:
        study.ask()
    before = path.read_bytes()
    for changed in (
        {"searcher": "grid"},
        {"seed": 1},
        {"mode": "min"},
        {"space": {"x": Int(1, 2)}},
    ):
        with pytest.raises(ValueError, match="holds another study"):
            Study(**{"space": SPACE, "searcher": "random", "path": path, **changed})
    assert path.read_bytes() == before


def test_numpys_numbers_are_as_good_as_pythons(tmp_path):
    path = tmp_path / "study.sqlite"
    space = {
        "x": Float(np.float32(0.5), np.float64(2)),
        "n": Int(np.int64(1), 3.0),
        "c": Choice((np.int64(16), np.bool_(True), np.str_("a"))),
        "m": Conditional(Int(1, 2), "c", (np.int64(16),)),
    }
    lengths = {"max_epochs": np.int64(9), "min_epochs": np.int64(1), "eta": np.int64(3)}
    with Study(space, "random", np.int64(3), path, **lengths) as study:
        config = study.ask().config
        assert {type(v) for v in config.values()} <= {float, int, bool, str, type(None)}
    Study(space, "random+asha", path=tmp_path / "asha.sqlite", **lengths).close()
    plain = {
        "x": Float(0.5, 2.0),
        "n": Int(1, 3),
        "c": Choice((16, True, "a")),
        "m": Conditional(Int(1, 2), "c", (16,)),
    }
    with Study(plain, "random", 3, path, max_epochs=9) as study:
        assert study.trials[0].config == config


@pytest.mark.parametrize(
    "result", [{"score": None}, {"score": math.nan}, {"score": 0.5, "minutes": -1}]
)
def test_a_result_from_before_that_cannot_be_leaves_no_trial(result):
    study = Study(SPACE, "random")
    with pytest.raises(ValueError, match=r"a finite number, got|minutes are a number"):
        study.add({"lr": 0.1, "layers": 4, "act": "gelu"}, **result)
    assert study.trials == ()


def test_a_study_goes_on_with_the_rungs_that_it_began_with(tmp_path):
    path = tmp_path / "study.sqlite"
    usual = {"space": SPACE, "searcher": "random+asha", "path": path, "max_epochs": 27}
    Study(**usual).close()
    for changed in ({"eta": 4}, {"min_epochs": 1}):
        with pytest.raises(ValueError, match=r"\(eta, rungs\) \[3, 3, 9, 27\]"):
            Study(**usual, **changed)
    Study(**usual, eta=3, min_epochs=2).close()  # the same rungs
    with closing(sqlite3.connect(path)) as db, db:  # as an older version left it
        db.execute("DELETE FROM meta WHERE key = 'rungs'")
    Study(**usual, min_epochs=1).close()
    with pytest.raises(ValueError, match=r"\(eta, rungs\) \[3, 1, 3, 9, 27\]"):
        Study(**usual)
    whole = {**usual, "searcher": "random", "path": tmp_path / "whole.sqlite"}
    Study(**whole).close()
    Study(**whole, eta=4).close()  # which compares nobody at rungs


def test_a_study_is_opened_again_with_any_seed_that_it_could_be_made_with(tmp_path):
    for seed in (0, 2**53, 2**63 - 1):
        path = tmp_path / f"{seed}.sqlite"
        with Study(SPACE, "random", seed, path) as study:
            config = study.ask().config
        with Study(SPACE, "random", seed, path) as study:
            assert (study.trials[0].config, study.seed) == (config, seed)


def test_minutes_that_a_study_cannot_add_up_are_refused_and_the_trial_still_waits(tmp_path):
    with Study(SPACE, "random", path=tmp_path / "study.sqlite") as study:
        study.tell(study.ask().number, score=0.5, minutes=9e7)
        number = study.ask().number
        with pytest.raises(ValueError, match="with the 9e\\+07 before them to 1e8"):
            study.tell(number, score=0.5, minutes=9e7)
        study.tell(number, score=0.5, minutes=1)


@pytest.mark.parametrize("before", [0.9, 0.1])
def test_nothing_is_expected_of_a_result_from_before(before):
    study = Study({"x": Float(0, 1)}, "random")
    study.add({"x": 0.5}, before)
    for number, confirms in ((1, None), (2, 1)):
        trial = Trial(number, {"x": 0.25}, 0, 1, repeat=number - 1, confirms=confirms)
        study._history.start(trial)
        study.tell(number, score=0.8 - 0.1 * number)
    if before == 0.9:
        assert (study.best.number, study.expected_score) == (0, None)
    else:
        assert study.best.number == 1
        assert study.expected_score.mean == pytest.approx(0.65)


def test_what_is_told_together_is_kept_together_or_not_at_all(tmp_path):
    path = tmp_path / "study.sqlite"
    with Study(SPACE, "random", path=path) as study:
        first, second = study.ask(), study.ask()
        before = path.read_bytes()
        with study.together():
            study.tell(first.number, 0.5)
            assert path.read_bytes() == before
        kept = path.read_bytes()
        assert kept != before

        def tell_one_twice():
            with study.together():
                study.tell(second.number, 0.25)
                study.tell(first.number, 0.75)

        with pytest.raises(ValueError, match="not waiting"):
            tell_one_twice()
        assert path.read_bytes() == kept
    with Study(SPACE, "random", path=path) as study:
        assert [(t.state, t.score) for t in study.trials] == [
            (TrialState.COMPLETED, 0.5),
            (TrialState.RUNNING, None),
        ]
        study.tell(second.number, 0.25)
    with Study(SPACE, "random", path=path) as study:
        assert study.best.score == 0.5
        assert not study.history.running


def test_a_trial_starts_at_the_minutes_that_were_told_before_it():
    study = Study(SPACE, "random")
    study.tell(study.ask().number, 0.5, minutes=2)
    study.ask()
    assert [t.started_ns for t in study.trials] == [0, 120 * 10**9]


def test_to_csv_has_a_row_per_trial(tmp_path):
    study = Study(SPACE, "random")
    study.tell(study.ask().number, score=0.25, minutes=2)
    study.tell(study.ask().number, state="infeasible", reason="diverged")
    study.to_csv(tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert list(rows[0]) == ["trial", "state", "epochs", "score", "minutes", *SPACE, "reason"]
    assert (rows[0]["score"], rows[0]["minutes"], rows[0]["state"]) == ("0.25", "2.0", "COMPLETED")
    assert (rows[1]["score"], rows[1]["reason"]) == ("", "diverged")


# -- tune ----------------------------------------------------------------------------------------


def train(config):
    for epoch in itertools.count(1):
        yield value(config) - 1 / epoch


def test_tune_spends_its_budget_on_full_trainings(monkeypatch):
    # By a clock that moves when it is read: an epoch that a busy machine drags out would cost
    # more than what is left, and rightly end the search.
    readings = itertools.count(0, 1_000_000)
    monkeypatch.setattr("tuner.runner.time.monotonic_ns", lambda: next(readings))
    study = tune(train, SPACE, budget_minutes=0.03, searcher="random", max_epochs=4)
    assert study.minutes_spent >= 0.03 * 0.99
    complete = [t for t in study.trials if t.state is TrialState.COMPLETED]
    assert len(complete) > 10
    for trial in complete:
        assert [o.score for o in trial.curve] == [value(trial.config) - 1 / e for e in (1, 2, 3, 4)]
    ledger = study._recorder.budget.ledger
    assert sum(ledger.values()) == study._recorder.budget.spent_ns


def test_a_generator_that_ends_is_complete_and_a_plain_function_is_one_epoch():
    def three(config):
        yield from (0.1, 0.2, 0.3)

    study = tune(three, {"n": Int(1, 4)}, budget_minutes=1, searcher="random")
    assert [(t.epoch, t.state) for t in study.trials] == [(3, TrialState.COMPLETED)] * 4
    study = tune(
        lambda config: config["n"] / 2, {"n": Int(1, 4)}, budget_minutes=1, searcher="grid"
    )
    assert sorted(t.score for t in study.trials) == [0.5, 1.0, 1.5, 2.0]
    assert all(t.epoch == 1 for t in study.trials)


def test_the_configurations_own_faults_are_infeasible_and_the_search_goes_on():
    def fragile(config):
        yield 0.5
        if config["n"] == 1:
            raise MemoryError("too wide")
        if config["n"] == 2:
            yield float("nan")
        if config["n"] == 3:
            yield 1 / 0
        yield 0.9

    study = tune(fragile, {"n": Int(1, 4)}, budget_minutes=1, searcher="random")
    reasons = {t.config["n"]: t.reason for t in study.trials if t.state is TrialState.INFEASIBLE}
    assert reasons == {
        1: "MemoryError: too wide",
        2: "score nan",
        3: "ZeroDivisionError: division by zero",
    }
    assert study.best.config == {"n": 4}


def test_a_bug_in_train_ends_the_search_after_five_trials_with_its_message():
    calls = []

    def broken(config):
        calls.append(config)
        yield undefined_name  # noqa: F821

    with pytest.raises(TrainingBrokenError, match="undefined_name"):
        tune(broken, {"x": Float(0, 1)}, budget_minutes=1, searcher="random")
    assert len(calls) == 5


def test_generators_are_closed_when_their_trial_ends():
    closed = []

    def careful(config):
        try:
            for _ in range(100):
                yield 0.5
        finally:
            closed.append(config["n"])

    tune(careful, {"n": Int(1, 5)}, budget_minutes=1, searcher="random", max_epochs=2)
    assert sorted(closed) == [1, 2, 3, 4, 5]


def test_a_search_in_a_folder_goes_on_where_it_stopped(tmp_path):
    class Stop(BaseException):
        pass

    seen = []

    def stoppable(config):
        for epoch in range(3):
            if len(seen) == 7:
                raise Stop
            seen.append((config["n"], epoch))
            yield config["n"] + epoch / 10

    space = {"n": Int(1, 6)}
    with pytest.raises(Stop):
        tune(
            stoppable, space, budget_minutes=1, searcher="random", max_epochs=3, directory=tmp_path
        )
    seen.clear()
    seen.extend([None] * 8)
    study = tune(
        stoppable, space, budget_minutes=1, searcher="random", max_epochs=3, directory=tmp_path
    )
    twin = tune(stoppable, space, budget_minutes=1, searcher="random", max_epochs=3)
    assert [t.config for t in study.trials] == [t.config for t in twin.trials]
    assert [[o.score for o in t.curve] for t in study.trials] == [
        [o.score for o in t.curve] for t in twin.trials
    ]
    assert (tmp_path / "trials.csv").read_text().count("COMPLETED") == 6


def test_tune_refuses_what_makes_no_sense(tmp_path):
    for arguments, message in (
        ({"max_epochs": 0}, "at least 1"),
        ({"budget_minutes": 0}, "more than 0"),
        ({"searcher": "magic"}, "no searcher"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(train, SPACE, **{"budget_minutes": 1, **arguments})


def test_exhaustion_is_an_exception_of_its_own():
    study = Study({"n": Int(1, 2)}, "random")
    study.ask(), study.ask()
    with pytest.raises(SpaceExhausted, match="all 2"):
        study.ask()
