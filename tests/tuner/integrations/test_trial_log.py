"""What is logged of trials: everything once, whoever keeps the log."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import Float, Infeasible, Observation, Study, Trial, TrialState, tune
from tuner.integrations.trial_log import (
    Search,
    TrialLogger,
    knobs_of,
    log_place,
    numbers_of,
    plain_names,
)
from tuner.reader import Snapshot

SPACE = {"x": Float(0, 1)}


def train(config):
    if config["x"] > 0.8:
        raise Infeasible("too far")
    for epoch in range(1, 4):
        yield config["x"] * epoch


class Kept:
    """A log that keeps what it was given."""

    def __init__(self):
        self.trials, self.closed = {}, []

    def logger(self):
        return TrialLogger(self._begin)

    def _begin(self, search, trial):
        kept, key = self, (search, trial.number)
        assert key not in self.trials
        self.trials[key] = ([], [])

        class Log:
            def write(self, trial, news):
                kept.trials[key][0].extend(o.score for o in news)
                kept.trials[key][1].append(trial.state)

            def close(self):
                kept.closed.append(key)

        return Log()


def test_every_epoch_is_logged_once_and_every_trial_is_ended():
    kept = Kept()
    study = tune(
        train, SPACE, budget_minutes=0.001, searcher="random", callbacks=[kept.logger()], mode="min"
    )
    assert len(kept.trials) == len(study.trials) > 5
    for (search, number), (scores, states) in kept.trials.items():
        trial = study.trials[number]
        assert search == Search("random", 0)
        assert scores == [o.score for o in trial.curve]
        assert states[-1] is trial.state
        assert states[:-1] == [TrialState.RUNNING] * (len(states) - 1)
    assert {t.state for t in study.trials} >= {TrialState.COMPLETED, TrialState.INFEASIBLE}
    open_ones = [key for key, (_, states) in kept.trials.items() if not states[-1].is_final]
    assert kept.closed == open_ones


def test_trials_of_policies_are_logged_as_they_pause_and_go_on():
    kept = Kept()
    study = tune(
        train,
        SPACE,
        budget_minutes=0.002,
        searcher="random+asha",
        max_epochs=3,
        min_epochs=1,
        callbacks=[kept.logger()],
    )
    went_on = 0
    for (_, number), (scores, states) in kept.trials.items():
        assert scores == [o.score for o in study.trials[number].curve]
        went_on += TrialState.PAUSED in states and states[-1] is not TrialState.PAUSED
    assert went_on


def test_ask_and_tell_with_several_out():
    kept, study = Kept(), Study(SPACE, "random")
    with kept.logger() as log:
        first, second = study.ask(), study.ask()
        log(study)
        study.tell(second.number, 0.5)
        study.tell(study.ask().number, 0.7)  # begun and ended between two calls
        log(study)
        log(study)
    search = Search("random", 0)
    assert kept.trials[search, 1] == ([0.5], [TrialState.RUNNING, TrialState.COMPLETED])
    assert kept.trials[search, 2] == ([0.7], [TrialState.COMPLETED])
    assert kept.closed == [(search, first.number)]


def test_results_from_before_are_not_the_searchs_own():
    kept, study = Kept(), Study(SPACE, "random")
    study.add({"x": 0.5}, 0.5)
    kept.logger()(study)
    assert not kept.trials


def test_a_race_is_logged_from_its_folder(race_folder):
    kept = Kept()
    snapshot = Snapshot(race_folder / "study.sqlite")
    wanted = {
        (Search(row.searcher, row.seed, "mine"), t.number): [o.score for o in t.curve]
        for row in snapshot.runs()
        for t in snapshot.trials(row)
    }
    snapshot.close()
    assert log_place(kept.logger(), race_folder) == len(wanted)
    assert {key: scores for key, (scores, _) in kept.trials.items()} == wanted
    assert len({search for search, _ in wanted}) == 4


def test_losses_in_a_folder_are_losses(tmp_path):
    kept = Kept()
    study = tune(
        train, SPACE, budget_minutes=0.0005, searcher="random", directory=tmp_path, mode="min"
    )
    log_place(kept.logger(), tmp_path)
    found = [scores for scores, _ in kept.trials.values()]
    assert found == [[o.score for o in t.curve] for t in study.trials]


def test_a_folder_is_called_by_its_whole_name(tmp_path):
    for name in ("lr-0.1", "lr-0.2"):
        (tmp_path / name).mkdir()
        with Study(SPACE, "random", path=tmp_path / name / "study.sqlite") as study:
            study.tell(study.ask().number, score=0.5)
        kept = Kept()
        assert log_place(kept.logger(), tmp_path / name) == 1
        assert {search.study for search, _ in kept.trials} == {name}


def test_no_study_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="there is no study"):
        log_place(Kept().logger(), tmp_path)


def test_a_search_has_a_path_that_leads_nowhere_else():
    assert Search("random+asha", 3).name == "random_asha-3"
    assert Search("../../etc", 0, "..").name == "_/_.._etc-0"


def test_numbers_are_finite_and_minutes_add_up():
    minute = 60_000_000_000
    metrics = {"loss": 0.5, "bad": math.nan, "text": "a", "a/../b": 2}
    curve = (Observation(1, 0.1, minute), Observation(2, 0.2, minute // 2, 0, metrics))
    trial = Trial(0, {}, 0, 2, curve=curve)
    assert numbers_of(trial, curve[1]) == {
        "score": 0.2,
        "device_minutes": 1.5,
        "metrics/loss": 0.5,
        "metrics/a_.._b": 2.0,
    }


def test_knobs_have_plain_names_and_text():
    trial = Trial(0, {"a b": True, "a/b": None, "a_b": "x\x1b[31m", "é": 1}, 0, 1)
    assert knobs_of(trial) == {"a b": True, "a_b": "None", "a_b_2": "x\\x1b[31m", "é": 1}


@given(st.lists(st.text(max_size=200), unique=True, max_size=30))
def test_plain_names_are_different_and_lead_nowhere(names):
    found = plain_names(names)
    assert len(found) == len(set(found)) == len(names)
    for name in found:
        assert name
        assert not set(name) & set("/\\\0\n:")
        assert name.strip(".") == name
