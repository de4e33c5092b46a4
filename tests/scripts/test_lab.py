"""Ask, tell, best, import and list by the real command line: what they do, refuse, and survive."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.cells import parse, shown
from tests.scripts.command_line import ROOT, RUN, SCRIPT, read
from tuner.escape import in_csv
from tuner.reader import Snapshot
from tuner.space import Choice, Float, Int
from tuner.study import Study
from tuner.warm_start import read_study

SPACE = """
[temperature]
low = 20.0
high = 100.0

[ratio]
low = 1e-4
high = 1.0
log = true

[ligand]
options = ["L1", "L2", "=L3"]
"""
TINY = '[a]\noptions = [1, 2]\n[b]\noptions = ["x", "y", "z"]\n'


def in_a_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


def lab(*arguments):
    """What the script does, without the seconds that its start takes."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", [str(SCRIPT), *map(str, arguments)]),
        redirect_stdout(output),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as end,
    ):
        RUN()
    code = end.value.code or 0
    return SimpleNamespace(returncode=code, stdout=output.getvalue(), stderr=errors.getvalue())


def ok(*arguments):
    done = lab(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(*arguments):
    """The one line with which it is refused."""
    done = lab(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def asked(*arguments):
    return json.loads(ok("ask", *arguments, "--json"))["trials"]


def waiting(study):
    return [trial["trial"] for trial in json.loads(ok("list", study, "--json"))["trials"]]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def space_of(place):
    snapshot = Snapshot(place / "study.sqlite")
    try:
        return snapshot.runs()[0].space
    finally:
        snapshot.close()


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def study(tmp_path, space):
    """Four experiments out, of a study of random draws."""
    ok("ask", tmp_path / "lab", "-q", 4, "--space", space, "--searcher", "random")
    return tmp_path / "lab"


# -- what they do ----------------------------------------------------------------------------------


def test_a_batch_is_what_the_library_proposes_with_the_others_pending(tmp_path, space):
    place = tmp_path / "lab"
    first = asked(place, "-q", 5, "--space", space)  # the Sobol start
    for trial in first[:4]:
        ok("tell", place, trial["trial"], "--score", trial["config"]["temperature"] / 100)
    second = asked(place, "-q", 3)  # of the model, with one from before still out
    assert waiting(place) == [4, 5, 6, 7]
    twin = Study(space_of(place))
    for _ in range(5):
        twin.ask()
    for trial in first[:4]:
        twin.tell(trial["trial"], trial["config"]["temperature"] / 100)
    expected = [dict(twin.ask().config) for _ in range(3)]
    assert [trial["config"] for trial in second] == expected
    assert len({json.dumps(trial["config"]) for trial in first + second}) == 8


def test_results_of_all_kinds_are_told_and_the_best_is_found(study):
    ok("tell", study, 2, "--score", "-0.5", "--minutes", 30)
    ok("tell", study, 0, "--failed", "the flask broke")
    ok("tell", study, 3, "--infeasible", "it does not dissolve")
    found = json.loads(ok("best", study, "--json"))
    assert (found["trial"], found["score"]) == (2, -0.5)
    assert waiting(study) == [1]
    assert read(study, "SELECT number, state, reason FROM trial ORDER BY number") == [
        (0, "FAILED", "the flask broke"),
        (1, "RUNNING", ""),
        (2, "COMPLETED", ""),
        (3, "INFEASIBLE", "it does not dissolve"),
    ]
    assert read(study, "SELECT SUM(train) FROM charge") == [(30 * 60 * 10**9,)]


def test_where_lower_is_better_scores_stay_as_they_were_told(tmp_path, space):
    place = tmp_path / "loss.sqlite"  # a file by its own name
    asked(place, "-q", 2, "--space", space, "--mode", "min", "--searcher", "random")
    ok("tell", place, 0, "--score", 3.5)
    assert "trial 1: 2.5" in ok("tell", place, 1, "--score", 2.5)
    assert json.loads(ok("best", place, "--json"))["score"] == 2.5
    assert "trial 1: 2.5" in ok("best", place)


def test_a_sheet_goes_out_is_filled_in_and_comes_back(study, tmp_path):
    sheet = tmp_path / "sheet.csv"
    ok("list", study, "--csv", sheet)
    rows = rows_of(sheet)
    configs = {t.number: t.config for t in read_study(study).runs[0][1]}
    for row in rows:  # exact values, and options that no spreadsheet runs
        config = configs[int(row["trial"])]
        assert float(row["ratio"]) == config["ratio"]
        assert row["ligand"] == in_csv(config["ligand"])
    rows[0] |= {"score": "0.7", "minutes": "12.5"}
    rows[1] |= {"state": "failed", "reason": "=cmd|' /C calc'!A0"}
    rows[2] |= {"state": "Infeasible"}
    rows = [row | {"operator": "Ada"} for row in reversed(rows)]
    out = ok("tell", study, "--csv", write_rows(sheet, rows))
    assert out.splitlines() == [
        "3 told (1 infeasible, 1 failed, 1 with a score); 1 still waits.",
        "Not read: the column operator",
        "The best so far is trial 0: 0.7",
    ]
    assert waiting(study) == [3]
    with Study(space_of(study), "random", path=study / "study.sqlite") as opened:
        opened.to_csv(tmp_path / "all.csv")
    assert rows_of(tmp_path / "all.csv")[1]["reason"].startswith("'=cmd")


def test_a_spreadsheet_may_round_and_use_semicolons(study, tmp_path):
    sheet = tmp_path / "sheet.csv"
    ok("list", study, "--csv", sheet)
    lines = ["trial;temperature;ratio;score"]
    for row in rows_of(sheet):
        lines.append(f"{row['trial']};{float(row['temperature']):.1f};{float(row['ratio']):.2E};1")
    sheet.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    ok("tell", study, "--csv", sheet)
    assert waiting(study) == []


def test_a_knob_called_minutes_is_no_cost(tmp_path):
    space, sheet = tmp_path / "space.toml", tmp_path / "sheet.csv"
    space.write_text("[minutes]\nlow = 1\nhigh = 99\n")
    ok("ask", tmp_path / "lab", "--space", space, "--csv", sheet)
    (row,) = rows_of(sheet)
    assert list(row) == ["trial", "minutes", "score", "state", "reason"]
    ok("tell", tmp_path / "lab", "--csv", write_rows(sheet, [row | {"score": 1}]))
    assert read(tmp_path / "lab", "SELECT COUNT(*) FROM charge") == [(0,)]
    space.write_text("[score]\nlow = 1\nhigh = 99\n")
    told = refused("ask", tmp_path / "b", "--space", space, "--csv", tmp_path / "b.csv")
    assert "it can have no such knob" in told


def test_results_from_before_are_imported_and_learnt_from(tmp_path, space):
    sheet = tmp_path / "before.csv"
    sheet.write_text(
        "ligand,yield,ratio,temperature,who\nL1,0.25,1e-3,50,A\n\n'=L3,0.75,0.5,99.5,B\n"
    )
    place = tmp_path / "lab"
    arguments = ("import", place, sheet, "--score", "yield")
    assert "--space FILE makes a new one" in refused(*arguments)
    assert ok(*arguments, "--space", space).splitlines() == [
        "2 results imported; 0 still wait.",
        "The best so far is trial 1: 0.75",
        "Not read: the column who",
    ]
    found = json.loads(ok("best", place, "--json"))
    assert found["config"] == {"temperature": 99.5, "ratio": 0.5, "ligand": "=L3"}
    assert found["source"] == "added"
    assert "are in" in refused(*arguments)  # they would count twice
    sheet.write_text(sheet.read_text() + "L2,0.5,0.1,70,C\n")
    assert ok(*arguments).splitlines()[:2] == [
        "1 results imported; 0 still wait.",
        "2 more are in the study already, and stay once",
    ]
    assert asked(place)[0]["trial"] == 3


def test_a_space_that_has_fewer_left_gives_those(tmp_path):
    space = tmp_path / "tiny.toml"
    space.write_text(TINY)
    place = tmp_path / "lab"
    first = asked(place, "-q", 4, "--space", space)
    done = ok("ask", place, "-q", 9)
    assert done.splitlines()[3] == "The space has no more: 2 of the 9 that were asked for."
    everything = read(place, "SELECT config FROM trial")
    assert len(set(everything)) == 6
    assert len(first) == 4
    assert "there is nothing left to ask for" in refused("ask", place)


# -- what they refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((7, "--score", 1), "trial 7 is not waiting for a result, there is none such"),
        ((-1, "--score", 1), "No such option"),
        ((0, "--score", "nan"), "needs a finite score, got nan"),
        ((0, "--score", "inf"), "needs a finite score, got inf"),
        ((0, "--score", 1, "--minutes", -2), "minutes are a number from 0 up"),
        ((0, "--score", 1, "--failed", "both"), "one of --score, --failed and --infeasible"),
        ((0,), "one of --score, --failed and --infeasible"),
        (("--score", 1), "tell needs a trial's NUMBER"),
    ],
)
def test_what_cannot_be_told(study, arguments, words):
    before = (study / "study.sqlite").read_bytes()
    done = lab("tell", study, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (study / "study.sqlite").read_bytes() == before


def test_a_trial_is_told_once(study):
    ok("tell", study, 1, "--score", 1)
    assert "trial 1 is not waiting for a result, it is COMPLETED" in refused(
        "tell", study, 1, "--score", 2
    )
    assert json.loads(ok("best", study, "--json"))["score"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trial,score\n0,0.5\n1,nan\n2,high\n9,1\n0,1\n", "4 rows do not fit"),
        ("trial,score\n0,0.5\n1,=1+1\n", "line 3: score is a number, got '=1+1'"),
        ("trial,score\n0,0.5\n1,0;5\n", "got '0;5'"),
        ("trial;score\n0;0,5\n", "write a point, not a comma"),
        ("trial,score\n0,0.5\n1," + 3_000 * "9" + "\n", "line 3: a cell of 3,000 characters"),
        ("trial,score\n0,0.5\n1," + 200_000 * "9" + "\n", "line 3, is no CSV"),
        ("trial,score\n0,0.5\n1\n", "line 3: 1 cells under 2 columns"),
        ('trial,score\n0,0.5\n1,"0.5\n', "is no CSV"),
        ("trial,score,state\n0,0.5,\n1,,perished\n", "state is completed, failed, infeasible"),
        ("trial,score,state\n0,0.5,\n1,0.5,failed\n", "has no score, got '0.5'"),
        ("trial,score,reason\n0,0.5,\n1,,broke\n", "line 3: a reason and no score"),
        ("trial,score,minutes\n0,0.5,\n1,0.5,-3\n", "minutes are a number from 0 up"),
        ("trial,score,score\n0,0.5,0.5\n", "has the column 'score' twice"),
        ("number,score\n0,0.5\n", "has no column trial; its first line has: number, score"),
        ("trial,score,ligand\n0,0.5,\n1,0.5,L9\n", "ligand is one of L1, L2, =L3"),
        ("trial,score\n", "has a header and no rows"),
        ("", "has no column trial, score; its first line has: none"),
        ("trial,score\n0,0.5\n1,\x1b]0;x\x07\n", r"got '\\x1b]0;x\\x07'"),
    ],
)
def test_a_sheet_with_a_bad_row_changes_nothing(study, tmp_path, text, words):
    sheet = tmp_path / "bad.csv"
    sheet.write_bytes(text.encode())
    before = (study / "study.sqlite").read_bytes()
    told = refused("tell", study, "--csv", sheet)
    assert words.replace("\\\\", "\\") in told.replace("\\\\", "\\")
    assert "\x1b" not in told
    assert (study / "study.sqlite").read_bytes() == before


def test_a_sheet_sorted_by_one_column_is_noticed(study, tmp_path):
    sheet = tmp_path / "sheet.csv"
    ok("list", study, "--csv", sheet)
    rows = rows_of(sheet)
    numbers = [row["trial"] for row in rows]
    moved = [
        row | {"trial": n, "score": "1"} for row, n in zip(rows, reversed(numbers), strict=True)
    ]
    assert "was asked for" in refused("tell", study, "--csv", write_rows(sheet, moved))
    assert waiting(study) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("temperature,ratio,ligand,y\n50,0.1,Ärger,1\n".encode("latin-1"), "line 2, is not UTF-8"),
        ("temperature,ratio,ligand,y\n".encode("utf-16"), "is UTF-16 text"),
        (b"temperature,ratio,ligand,y\n50,0.1,L1,1\n200,0.1,L1,1\n", "is 20 to 100, got 200"),
        (b"temperature,ratio,ligand,y\n50,0.1,L1,1\n50,,L1,1\n", "line 3: no ratio"),
        (b"temperature,ratio,ligand,y\n50,0.1,L1,\n", "line 2: no y"),
        (b"temperature,ratio,y\n50,0.1,1\n", "has no column ligand"),
        (b"\x00" * 50, "has no column"),
    ],
)
def test_an_import_with_a_bad_row_changes_nothing(study, tmp_path, data, words):
    sheet = tmp_path / "bad.csv"
    sheet.write_bytes(data)
    before = (study / "study.sqlite").read_bytes()
    assert words in refused("import", study, sheet, "--score", "y")
    assert (study / "study.sqlite").read_bytes() == before
    new = tmp_path / "new"
    refused("import", new, sheet, "--score", "y", "--space", tmp_path / "space.toml")
    assert not new.exists()


def test_what_is_no_file_of_a_sheet(study, tmp_path):
    link = tmp_path / "link.csv"
    link.symlink_to("/etc/passwd")
    assert "symbolic link" in refused("tell", study, "--csv", link)
    assert "cannot be read" in refused("tell", study, "--csv", tmp_path / "none.csv")
    assert "regular file" in refused("import", study, "/dev/zero", "--score", "y")
    huge = tmp_path / "huge.csv"
    with open(huge, "wb") as file:
        file.truncate(1 << 30)
    assert "at most" in refused("tell", study, "--csv", huge)


def test_a_sheet_that_is_there_is_never_written_over(study, tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("half filled in")
    assert "is there already" in refused("list", study, "--csv", sheet)
    assert "is there already" in refused("ask", study, "--csv", sheet)
    assert sheet.read_text() == "half filled in"
    assert waiting(study) == [0, 1, 2, 3]


def test_a_study_stays_what_it_is(study, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(TINY)
    assert "has other knobs" in refused("ask", study, "--space", other)
    assert "goes on with --searcher random" in refused("ask", study, "--searcher", "bayes")
    assert "goes on with --mode max" in refused("ask", study, "--mode", "min")
    assert "there is no study at" in refused("list", tmp_path / "nowhere")
    assert "there is no study at" in refused("tell", tmp_path / "nowhere", 0, "--score", 1)
    assert not (tmp_path / "nowhere").exists()


def test_a_searcher_that_trains_in_parts_makes_no_study(tmp_path, space):
    for name in ("freeze-thaw", "random+asha", "bohb", "baies"):
        refused("ask", tmp_path / "lab", "--space", space, "--searcher", name)
    assert not (tmp_path / "lab").exists()


def test_a_race_is_no_study_to_ask(tmp_path):
    arguments = ("--searchers", "random", "--landscape", "bumpy", "--quiet", "--out")
    assert lab(*arguments, tmp_path / "race").returncode == 0
    for command in (("ask",), ("list",), ("best",)):
        assert "is a race" in refused(*command, tmp_path / "race")


def test_a_study_in_use_can_be_read_and_not_told(study):
    with Study(space_of(study), "random", path=study / "study.sqlite"):
        for arguments in (("tell", study, 0, "--score", 1), ("ask", study)):
            done = in_a_process(*arguments)
            assert (done.returncode, done.stdout) == (2, "")
            assert "is in use by another process" in done.stderr
        assert waiting(study) == [0, 1, 2, 3]
    ok("tell", study, 0, "--score", 1)


# -- what they survive -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "there"), [("commit-before", 0), ("commit-written", 0), ("commit-after", 3)]
)
def test_a_kill_leaves_all_of_a_batch_or_none(study, place, there):
    # The first commit is that of opening the study.
    done = in_a_process("ask", study, "-q", 3, TUNER_FAILPOINT=f"{place}:2:kill")
    assert done.returncode == -9
    assert waiting(study) == list(range(4 + there))  # nothing that waits is forgotten
    ok("tell", study, 0, "--score", 1)
    assert asked(study)[0]["trial"] == 4 + there


@pytest.mark.parametrize(("place", "left"), [("commit-written", 4), ("commit-after", 1)])
def test_a_kill_leaves_all_of_a_sheet_or_nothing(study, tmp_path, place, left):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("trial,score\n0,1\n1,2\n3,3\n")
    done = in_a_process("tell", study, "--csv", sheet, TUNER_FAILPOINT=f"{place}:2:kill")
    assert done.returncode == -9
    assert len(waiting(study)) == left


def test_help_and_flags_without_a_word_are_the_race_s():
    assert "Race searchers" in in_a_process("--help").stdout
    for command in ("ask", "tell", "best", "import", "list"):
        assert f"tune.py {command}" in in_a_process(command, "--help").stdout


# -- values ----------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.sampled_from([Float(-3, 90), Float(0, 1e-3), Int(2, 900)]))
def test_a_value_is_read_as_it_was_written_and_shown_to_a_thousandth(unit, domain):
    value = domain.from_unit(unit)
    assert parse("x", domain, str(value)) == value
    assert abs(float(shown(value, domain)) - value) <= 1e-3 * (domain.high - domain.low)


@given(st.floats(0, 1))
def test_on_a_log_scale_four_digits_are_shown(unit):
    domain = Float(1e-6, 1, log=True)
    value = domain.from_unit(unit)
    assert parse("x", domain, repr(value)) == value
    assert float(shown(value, domain)) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("8", 8), ("8.0", 8), ("TRUE", True), ("true", True), ("relu", "relu"), ("", None)),
        *(("None", None), ("-x", "-x"), ("'-x", "-x"), ("0.001", 1e-3), ("1E-03", 1e-3)),
    ],
)
def test_an_option_is_read_as_a_spreadsheet_writes_it(text, value):
    domain = Choice((8, True, "relu", None, "-x", 1e-3))
    found = parse("x", domain, text)
    assert (type(found), found) == (type(value), value)


def test_an_option_that_may_be_two_is_refused():
    with pytest.raises(ValueError, match="may be any of"):
        parse("x", Choice(("1", 1)), "1")


# -- docs/lab.md -----------------------------------------------------------------------------------


def test_what_the_page_for_labs_says_can_be_done(tmp_path):
    text = (ROOT / "docs" / "lab.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL)
    shell = "\n".join(code for kind, code in blocks if kind == "sh")
    for script in ("tune.py", "doctor.py"):
        shell = shell.replace(
            f".venv/bin/python scripts/{script}", f"{sys.executable} {ROOT}/scripts/{script}"
        )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "The best is trial 0: 0.81" in done.stdout
    (code,) = (code for kind, code in blocks if kind == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0.81 ")
    assert waiting(tmp_path / "runs" / "coupling") == [9]


def test_a_knob_that_is_not_always_there_has_an_empty_cell(tmp_path):
    space = tmp_path / "space.toml"
    space.write_text(
        '[solvent]\noptions = ["water", "dmf"]\n[base]\nlow = 0.1\nhigh = 2.0\n'
        'when = { knob = "solvent", values = ["dmf"] }\n'
    )
    place, sheet = tmp_path / "lab", tmp_path / "sheet.csv"
    ok("ask", place, "-q", 4, "--space", space, "--csv", sheet)
    rows = rows_of(sheet)
    assert {row["solvent"] for row in rows} == {"water", "dmf"}
    assert all((row["base"] == "") == (row["solvent"] == "water") for row in rows)
    ok("tell", place, "--csv", write_rows(sheet, [{**row, "score": "0.5"} for row in rows]))
    before = tmp_path / "before.csv"
    before.write_text("solvent,base,score\nwater,,0.8\ndmf,1.0,0.7\n")
    ok("import", place, before, "--score", "score")
    assert "base = –" in ok("best", place)
    before.write_text("solvent,base,score\nwater,0.5,0.9\n")
    assert "line 2: base = 0.5, but" in refused("import", place, before, "--score", "score")
