"""What an incumbent is worth, and that no file ever holds what is no JSON."""

import io
import json
import math

import pytest
from rich.console import Console

from tests.helpers import search
from tuner.budget import Kind, to_ns
from tuner.reader import RunRow
from tuner.report import Outcome, main_knobs, pace, worth, write_files
from tuner.terminal import closing_table, luck_lines, pace_line


class Landscape:
    """Says the same of every configuration."""

    def __init__(self, says):
        self._says = says

    def value(self, config, replicate):
        return self._says


def test_an_incumbent_is_worth_what_it_gives_when_it_is_trained_again():
    scheduler = search(make_smooth(), budget_ns=to_ns(5))
    scheduler.run()
    best = scheduler.history.best
    assert worth(Landscape(0.83), best, 0) == 0.83
    assert worth(Landscape(math.nan), best, 0) == 0.0  # it breaks off: a user would get nothing
    assert worth(Landscape(0.83), None, 0) == 0.0  # nothing was found
    assert worth(Landscape(None), best, 0) is None  # nobody can know


def test_where_scores_are_below_zero_nothing_found_is_not_the_best():
    landscape = Landscape(math.nan)
    landscape.lowest = -1.4
    scheduler = search(make_smooth(), budget_ns=to_ns(5))
    scheduler.run()
    best = scheduler.history.best
    assert worth(landscape, None, 0) == worth(landscape, best, 0) == -1.4
    landscape.lowest = 0.3
    assert worth(landscape, None, 0) == 0.0


def make_smooth():
    from landscapes.synthetic import make_landscape

    return make_landscape("smooth", 3)


def test_the_files_of_a_race_without_a_single_score_are_json(tmp_path):
    smooth = make_smooth()
    row = RunRow(1, "random", 0, smooth.space, 12, to_ns(5), 0, None, None)
    scheduler = search(smooth, budget_ns=to_ns(5))  # never run
    outcome = Outcome(row, scheduler.history, scheduler.budget.ledger, None, None)
    settings = {"landscape": "smooth", "measure": "noise-free accuracy", "budget_minutes": 5.0}
    write_files(tmp_path, settings, [outcome])
    text = (tmp_path / "summary.json").read_text()
    json.loads(text, parse_constant=lambda name: 1 / 0)  # NaN and Infinity would raise


def test_the_main_knobs_are_those_that_scores_depend_on():
    from landscapes.synthetic import make_landscape

    ridge = make_landscape("ridge", 4)
    scheduler = search(ridge, budget_ns=to_ns(200))
    scheduler.run()
    row = RunRow(1, "random", 0, ridge.space, 12, to_ns(200), 0, None, None)
    outcome = Outcome(row, scheduler.history, scheduler.budget.ledger, None, None)
    assert main_knobs([outcome])[0] == "learning_rate"


def test_the_pace_is_what_a_minute_bought():
    scheduler = search(make_smooth(), budget_ns=to_ns(5))
    scheduler.run()
    trained = scheduler.history.trained
    spent = sum(scheduler.budget.ledger.values())
    row = RunRow(1, "random", 0, make_smooth().space, 12, to_ns(5), 0, None, None)
    ledger = {**scheduler.budget.ledger, Kind.SEARCH: spent}  # idle for as long again
    outcome = Outcome(row, scheduler.history, ledger, None)
    found = pace([outcome, outcome], {"layout": "1 process", "share_ns": 4, "alone_ns": 10})
    minutes = 2 * spent / 60e9  # of each of the two
    assert found["trials_per_minute"] == pytest.approx(len(trained) / minutes)
    epochs = sum(len(t.curve) for t in trained)
    assert found["epochs_per_minute"] == pytest.approx(epochs / minutes)
    assert found["idle_share"] == pytest.approx(0.5)
    assert found["alone_ratio"] == 2.5
    assert "a training alone would hold it 2.50 times its share" in pace_line({"pace": found})
    uncalibrated = pace([outcome], None)
    assert uncalibrated["layout"] is uncalibrated["alone_ratio"] is None
    assert "alone" not in pace_line({"pace": uncalibrated})


def test_a_race_that_trained_nothing_has_no_pace():
    scheduler = search(make_smooth(), budget_ns=to_ns(5))
    row = RunRow(1, "random", 0, make_smooth().space, 12, to_ns(5), 0, None, None)
    outcome = Outcome(row, scheduler.history, scheduler.budget.ledger, None)
    assert pace([outcome], None) is None
    assert pace_line({"pace": None}) == "Nothing was trained."


@pytest.mark.parametrize(
    ("trainings", "by", "words"),
    [
        (0, "model", "a Gaussian process on all; the budget ended its own training early"),
        (1, "model", "a Gaussian process on all, 1 training of it, which --confirm would measure"),
        (3, "model", "a Gaussian process on all, 3 trainings of it"),
        (3, "trainings", "mean and standard error of its 3 trainings"),
    ],
)
def test_what_a_winner_may_be_expected_to_score_says_by_what(trainings, by, words):
    expected = {"mean": 0.87, "sd": 0.01, "trainings": trainings, "by": by}
    run = {"searcher": "bayes", "seed": 0, "best_trial": 4, "best_score": 0.9}
    (line,) = luck_lines({"runs": [{**run, "expected_score": expected}]})
    assert line == (
        f"bayes 0: expect 0.8700 ± 0.0100 of trial 4 ({words}); the best score seen was 0.9000"
    )


def test_a_narrow_terminal_shows_every_number_whole():
    config = {f"a_knob_with_a_name_{i}": 0.123456 for i in range(6)}
    run = {"searcher": "bayes", "seed": 0, "trials": 40, "best_config": config, "value": 0.8712}
    run |= {"best_trial_score": 0.8765, "minutes_spent": 59.998, "test_score": None}
    console = Console(width=70, file=io.StringIO())
    console.print(closing_table({"landscape": "bumpy", "runs": [run]}))
    text = console.file.getvalue()
    assert all(number in text for number in ("40", "0.8765", "0.8712", "+0.53", "59.998"))
    assert text.count("=0.123") == 6
