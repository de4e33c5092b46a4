"""`tune.py --command`: a program's trainings, from the command line to the files."""

import csv
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.command_line import (
    LEDGER,
    SCRIPT,
    read,
    start,
    summary_of,
    tune,
    wait_for_epochs,
)

PROGRAM = Path(__file__).parents[1] / "tuner" / "workers" / "program.py"


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("[x]\nlow = 0.0\nhigh = 1.0\n")
    return path


def asked(mode, space, out, *more, metric="val_acc=([0-9.]+)"):
    command = f"{sys.executable} {PROGRAM} {mode} {{x}} {{checkpoint_dir}}"
    return ["--command", command, "--space", space, "--metric", metric, "--out", out, *more]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_minimised_measurement_is_told_as_it_was_measured(tmp_path, space):
    out = tmp_path / "run"
    flags = ["--minimize", "--replicates", 3, "--budget-minutes", 0.04, "--searchers", "random"]
    result = tune(*asked("noisy", space, out, *flags, metric="time ([0-9.]+) s"))
    assert result.exit_code == 0, result.stderr
    (run,) = summary_of(out)["runs"]
    trials, curves = rows_of(out / "trials.csv"), rows_of(out / "curves.csv")
    scores = [float(t["score"]) for t in trials if t["score"]]
    assert run["best_score"] == min(scores) > 0
    assert min(float(c["score"]) for c in curves) > 0
    best = json.loads((out / "best_config.json").read_text())
    assert best["config"]["x"] == pytest.approx(float(trials[best["trial"]]["x"]))
    assert run["best_so_far"][-1][1] == run["best_score"]
    assert sum(run["ledger"].values()) == pytest.approx(run["minutes_spent"], abs=1e-12)
    log = (out / "checkpoints" / "worker-0.log").read_text().splitlines()
    measured = [float(line.split()[1]) for line in log]
    assert scores[0] == pytest.approx(statistics.median(measured[:3]))
    for name in ("race.png", "knobs.png", "report.html"):
        assert (out / name).stat().st_size > 1000
    doctor = [sys.executable, SCRIPT.with_name("doctor.py"), out]
    check = subprocess.run(doctor, capture_output=True, text=True, check=True)
    assert "Fine" in check.stdout


def test_confirmations_say_what_another_run_may_be_expected_to_give(tmp_path, space):
    flags = ["--minimize", "--replicates", 1, "--budget-minutes", 0.06, "--confirm", 2]
    flags += ["--searchers", "random"]
    tune(*asked("noisy", space, tmp_path / "run", *flags, metric="time ([0-9.]+) s"))
    (run,) = summary_of(tmp_path / "run")["runs"]
    chosen = json.loads((tmp_path / "run" / "best_config.json").read_text())
    row = rows_of(tmp_path / "run" / "trials.csv")[chosen["trial"]]
    assert float(row["score"]) == chosen["score"] == run["best_trial_score"]
    assert float(row["x"]) == chosen["config"]["x"]
    assert run["confirmations"] >= 1
    assert run["expected_score"]["mean"] > run["best_score"] > 0


@pytest.mark.parametrize(
    "stop",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.nightly),
        pytest.param(signal.SIGKILL, marks=pytest.mark.nightly),
    ],
)
def test_what_is_stopped_goes_on_with_its_folder_alone(tmp_path, space, stop):
    out = tmp_path / "run"
    flags = ["--searchers", "random+asha", "--epochs", 4, "--min-epochs", 1, "--eta", 2]
    process = start(*asked("train", space, out, *flags, "--slots", 2, "--budget-minutes", 5))
    wait_for_epochs(process, out, 6)
    process.send_signal(stop)
    output, errors = process.communicate(timeout=30)
    if stop is not signal.SIGKILL:
        assert process.returncode == 128 + stop, errors
        assert f"--resume {out}" in output
    # How soon the signal came depends on the machine: what is left is as long on any.
    spent = read(out, f"SELECT SUM({' + '.join(LEDGER)}) FROM charge")[0][0] / 60e9  # noqa: S608
    budget = spent + 0.08
    process = start("--resume", out, "--budget-minutes", budget, "--quiet")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (run,) = summary_of(out)["runs"]
    assert run["minutes_spent"] <= budget + 0.1 / 60
    for row in rows_of(out / "trials.csv"):
        if row["state"] == "COMPLETED":
            assert float(row["score"]) == pytest.approx(10 * float(row["x"]), abs=1e-5)
    logs = [p.read_text() for p in (out / "checkpoints").glob("*.log")]
    assert any("going on from epoch 2" in log for log in logs)


def test_where_nothing_goes_well_the_reason_is_said(tmp_path, space):
    flags = ["--searchers", "random", "--budget-minutes", 0.05]
    result = tune(*asked("memory", space, tmp_path / "run", *flags))
    assert "no score; the last: out of memory: RuntimeError: CUDA out" in result.stdout
    result = tune(*asked("silent", space, tmp_path / "other", *flags))
    assert result.exit_code == 1
    assert "no line of the command matched" in result.stderr


def test_options_that_look_like_markup_are_shown_as_they_are(tmp_path):
    space = tmp_path / "space.toml"
    space.write_text('[x]\noptions = ["[/a]", "[bold]b"]\n')
    flags = ["--budget-minutes", 0.5, "--searchers", "random", "--epochs", 1]
    command = ["--command", "echo score=1 {x}", "--space", space, "--metric", "score=([0-9.]+)"]
    result = tune(*command, *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert any(f"x={option}" in result.stdout for option in ("[/a]", "[bold]b"))


@pytest.mark.parametrize("place", ["{file}/run", "{long}"])
def test_a_path_that_cannot_be_is_one_line(tmp_path, space, place):
    (tmp_path / "file").write_text("")
    out = place.format(file=tmp_path / "file", long=tmp_path / (300 * "n"))
    replay = ["--landscape", "bumpy", "--budget-minutes", 3, "--out", out]
    for request in (replay, asked("noisy", space, out, "--minimize")):
        result = tune(*request)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr


def test_a_search_is_repeated_with_its_seed(tmp_path, space):
    for name in ("one", "two"):
        flags = ["--epochs", 4, "--budget-minutes", 0.04, "--searchers", "random", "--seed", 7]
        tune(*asked("train", space, tmp_path / name, *flags))
    one, two = ([t["x"] for t in rows_of(tmp_path / n / "trials.csv")] for n in ("one", "two"))
    assert len(one) > 3
    assert one[: min(map(len, (one, two)))] == two[: min(map(len, (one, two)))]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric", "(x)"], "need a --command"),
        (["--command", "echo {x}", "--metric", "(x)"], "--command needs --space"),
        (["--command", "echo {x}", "--space", "SPACE"], "--command needs --metric"),
        (["--command", "echo {x}", "--data", "mnist"], "leave out --data"),
        (["--command", "echo", "--space", "SPACE", "--metric", "(x)"], "lacks {x}"),
        (
            [*("--command", "echo {x}", "--space", "SPACE", "--metric", "(x)"), "--replicates", 0],
            "--replicates is at least 1",
        ),
        (
            [
                *("--command", "echo {x}", "--space", "SPACE", "--metric", "(x)"),
                *("--replicates", 2, "--epochs", 2),
            ],
            "leave out --epochs",
        ),
        (
            [
                *("--command", "echo {x}", "--space", "SPACE", "--metric", "(x)"),
                *("--searchers", "hyperband"),
            ],
            "needs max_epochs",
        ),
        (
            [
                *("--command", "echo {x}", "--space", "SPACE", "--metric", "(x)"),
                *("--memory-gib", -1),
            ],
            "memory_gib is a number greater than 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, space, flags, message):
    out = tmp_path / "run"
    result = tune(*[space if flag == "SPACE" else flag for flag in flags], "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()
