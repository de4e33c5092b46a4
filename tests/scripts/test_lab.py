"""Ask and tell on the command line, as a lab would use them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.scripts.command_line import ROOT, SCRIPT
from tuner import Choice, Float, SearchSpace, Study
from tuner.page.follow import Follow

SPACE = SearchSpace(
    heat=Float(40.0, 120.0), minutes=Float(1.0, 20.0, log=True), base=Choice(("K2CO3", "Et3N"))
)
TOML = """
[heat]
low = 40.0
high = 120.0
[minutes]
low = 1.0
high = 20.0
log = true
[base]
options = ["K2CO3", "Et3N"]
"""


def lab(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    if code == 2:
        assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def place(tmp_path, space):
    lab("ask", tmp_path / "lab", "-q", 4, "--space", space)
    return tmp_path / "lab"


def waiting(place):
    return [t["trial"] for t in json.loads(lab("list", place, "--json"))]


def test_a_batch_is_what_the_library_would_ask_for(place):
    asked = json.loads(lab("list", place, "--json"))
    study = Study(SPACE, "bayes", 0)
    assert [t["config"] for t in asked] == [dict(study.ask().config) for _ in range(4)]
    more = json.loads(lab("ask", place, "-q", 2, "--json"))
    assert [t["config"] for t in more] == [dict(study.ask().config) for _ in range(2)]
    assert waiting(place) == [0, 1, 2, 3, 4, 5]


def test_results_come_in_any_order_and_some_are_none(place):
    lab("tell", place, 2, "--score", 0.4)
    lab("tell", place, 0, "--failed", "the flask broke")
    lab("tell", place, 3, "--infeasible", "it boiled over")
    assert waiting(place) == [1]
    (best,) = json.loads(lab("best", place, "--json"))
    assert (best["trial"], best["score"]) == (2, 0.4)
    with Study(SPACE, "bayes", 0, place / "study.sqlite") as study:
        states = [t.state.name for t in study.trials]
        assert study.trials[3].reason == "it boiled over"
    assert states == ["FAILED", "RUNNING", "COMPLETED", "INFEASIBLE"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, "--score", 1), "experiment 7 does not wait for a result; those that do: 0, 1, 2, 3"),
        ((0, "--score", "nan"), "a score is a finite number, got nan"),
        ((0,), "say one of --score"),
        ((0, "--score", 1, "--failed", "x"), "say one of --score"),
        ((0, "--score", 1, "--minutes", -1), "minutes are 0 or more"),
        ((), "needs an experiment's number"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(place, arguments, message):
    assert message in lab("tell", place, *arguments, code=2)
    assert waiting(place) == [0, 1, 2, 3]


def test_telling_twice_is_refused(place):
    lab("tell", place, 1, "--score", 0.5)
    assert "does not wait" in lab("tell", place, 1, "--score", 0.6, code=2)
    (best,) = json.loads(lab("best", place, "--json"))
    assert best["score"] == 0.5


def test_a_sheet_is_printed_filled_in_and_handed_in_bit_by_bit(tmp_path, space):
    place, sheet = tmp_path / "lab", tmp_path / "sheet.csv"
    lab("ask", place, "-q", 3, "--space", space, "--sheet", sheet)
    with open(sheet, newline="") as file:
        rows = list(csv.DictReader(file))
    asked = json.loads(lab("list", place, "--json"))
    for row, one in zip(rows, asked, strict=True):
        assert float(row["heat"]) == one["config"]["heat"]  # to the last digit
        assert row["base"] == one["config"]["base"]

    def hand_in(**changes):
        for number, cells in changes.items():
            rows[int(number[1:])].update(cells)
        with open(sheet, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return lab("tell", place, "--csv", sheet)

    assert hand_in(_0={"score": "0.25"}) == "1 told, 2 waiting\n"
    assert hand_in(_2={"state": "infeasible", "reason": "=cmd()"}) == "1 told, 1 waiting\n"
    assert hand_in() == "0 told, 1 waiting\n"
    with Study(SPACE, "bayes", 0, place / "study.sqlite") as study:
        assert study.trials[0].score == 0.25
        study.to_csv(tmp_path / "out.csv")
    assert "\n=cmd()" not in (tmp_path / "out.csv").read_text().replace(",=cmd()", "\n=cmd()")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trial,score\n0,0.5\n1,x\n", "line 3: could not convert"),
        (b"trial,score\n0,0.5\n9,0.5\n", "experiment 9 does not wait"),
        (b"trial,score\n0,0.5\n0,0.6\n", "experiment 0 does not wait"),
        (b"trial,score\n0,0.5\n1,inf\n", "a score is a finite number"),
        (b"trial,score,state\n0,0.5,\n1,,lost\n", "line 3: a state is one of"),
        (b"number,score\n0,0.5\n", "has no column trial"),
        (b"trial,score\n0,\xff\xfe\n", "is no CSV in UTF-8"),
        (b'trial,score\n0,"0.5', "is no CSV in UTF-8"),
        (b"trial,score\n0," + b"1" * 200_000 + b"\n", "field larger than field limit"),
    ],
)
def test_of_a_sheet_with_a_mistake_nothing_is_told(tmp_path, place, content, message):
    (tmp_path / "sheet.csv").write_bytes(content)
    assert message in lab("tell", place, "--csv", tmp_path / "sheet.csv", code=2)
    assert waiting(place) == [0, 1, 2, 3]


def test_results_from_before_are_taken_over_all_or_none(tmp_path, space):
    table, place = tmp_path / "before.csv", tmp_path / "lab"
    table.write_text("heat,minutes,base,yield\n50,2,K2CO3,0.3\n400,3,Et3N,0.4\n")
    words = lab("import", place, table, "--score", "yield", "--space", space, code=2)
    assert "line 3" in words
    assert "400" in words
    assert not place.exists()
    table.write_text("heat,minutes,base,yield,colour\n50,2,K2CO3,0.3,red\n60,3,Et3N,0.4,\n")
    lab("import", place, table, "--score", "yield", "--space", space, "--mode", "min")
    (best,) = json.loads(lab("best", place, "--json"))
    assert best["score"] == 0.3
    assert best["config"] == {"heat": 50.0, "minutes": 2.0, "base": "K2CO3"}


def test_a_space_that_is_used_up_says_so(tmp_path):
    (tmp_path / "space.toml").write_text("[a]\noptions = [1, 2, 3]\n")
    place = tmp_path / "lab"
    asked = json.loads(lab("ask", place, "-q", 9, "--space", tmp_path / "space.toml", "--json"))
    assert len({t["config"]["a"] for t in asked}) == 3
    assert "nothing left" in lab("ask", place, code=2)


def test_a_kill_between_asking_and_telling_loses_nothing(place):
    process = subprocess.Popen([sys.executable, SCRIPT, "ask", place, "-q", "200"], cwd=ROOT)
    before = len(waiting(place))
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    after = waiting(place)
    assert after[:before] == list(range(before))
    lab("tell", place, after[-1], "--score", 0.5)


def test_a_study_that_somebody_has_open_is_left_alone(place):
    with Study(SPACE, "bayes", 0, place / "study.sqlite"):
        assert "in use" in lab("ask", place, code=2)
    lab("ask", place)


def test_a_race_is_no_study_of_a_lab(tmp_path):
    out = tmp_path / "race"
    flags = ["--landscape", "smooth", "--searchers", "random", "--budget-minutes", 5, "--quiet"]
    lab(*flags, "--out", out)
    assert "is a race" in lab("ask", out, code=2)


def test_a_study_that_is_not_there_wants_a_space(tmp_path):
    assert "needs --space" in lab("ask", tmp_path / "lab", code=2)
    assert not (tmp_path / "lab").exists()


def test_the_page_counts_experiments_where_nobody_counted_minutes(place):
    lab("tell", place, 1, "--score", 0.4)
    film = Follow(place).film()
    assert (film["unit"], film["budget"], film["badge"]) == ("experiments", 4.0, "a study")
    (run,) = film["runs"]
    assert run["spent"] == 1.0
    curves = {frame["number"]: frame["curve"] for _, frame in film["trials"]}
    assert curves[1] == [[1, 0.4, 2.0]]
    with Study(SPACE, "bayes", 0, place / "study.sqlite") as study:
        study.tell(2, score=0.5, minutes=30.0)
    assert Follow(place).film()["unit"] != "experiments"
