"""The command line: what it writes, what it refuses, and what survives being killed."""

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from scripts.errors import DISK_EXIT
from tests.scripts.command_line import (
    LEDGER,
    SCRIPT,
    epochs_of,
    read,
    start,
    summary_of,
    tune,
    wait_for_epochs,
)
from tuner.store import Store

REPLAY = ["--landscape", "bumpy", "--budget-minutes", 60]


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """They take most of a short race's time; what is drawn is tested where it is named."""
    if "pictures" not in request.keywords:
        for name in ("draw_race", "draw_effects"):
            monkeypatch.setattr(f"tuner.plots.{name}", lambda *_: None)


# -- replay --------------------------------------------------------------------------------------


@pytest.mark.pictures
def test_a_replay_writes_what_the_plan_says(tmp_path):
    out = tmp_path / "run"
    result = tune(*REPLAY, "--searchers", "grid,random", "--seeds", 2, "--out", out)
    assert result.exit_code == 0, result.stderr
    names = {p.name for p in out.iterdir()}
    assert {"summary.json", "trials.csv", "curves.csv", "race.png", "best_config.json"} <= names
    summary = summary_of(out)
    assert (summary["device"], summary["unit"]) == ("simulated", "simulated minutes")
    assert (summary["budget_minutes"], summary["epochs"]) == (60, 12)
    assert [(r["searcher"], r["seed"]) for r in summary["runs"]] == [
        ("grid", 0),
        ("random", 0),
        ("grid", 1),
        ("random", 1),
    ]
    trials = list(csv.DictReader((out / "trials.csv").open()))
    curves = list(csv.DictReader((out / "curves.csv").open()))
    assert list(trials[0]) == [
        *("searcher", "seed", "trial", "state", "epochs", "score", "minutes"),
        *("started_at_minute", "learning_rate", "weight_decay", "reason"),
    ]
    assert list(curves[0]) == ["searcher", "seed", "trial", "epoch", "score", "minutes"]
    for run in summary["runs"]:
        mine = [
            t for t in trials if (t["searcher"], t["seed"]) == (run["searcher"], str(run["seed"]))
        ]
        assert len(mine) == run["trials"] == sum(run["states"].values())
        assert list(run["ledger"]) == LEDGER
        assert sum(run["ledger"].values()) == pytest.approx(run["minutes_spent"], abs=1e-12)
        assert run["ledger"]["train"] == pytest.approx(sum(float(t["minutes"]) for t in mine))
        assert 59 < run["minutes_spent"] <= 60
        assert run["best_score"] == max(float(t["score"]) for t in mine if t["score"])
        best = mine[run["best_trial"]]
        assert float(best["learning_rate"]) == run["best_config"]["learning_rate"]
        line = run["best_so_far"]
        assert line == sorted(line)
        assert line[-1][1] == run["best_score"]
    chosen = json.loads((out / "best_config.json").read_text())
    assert chosen["score"] == max(r["best_score"] for r in summary["runs"])
    assert (out / "race.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_replay_run_twice_is_the_same_to_the_byte(tmp_path):
    for name in ("one", "two"):
        result = tune(*REPLAY[:2], "--budget-minutes", 12, "--slots", 2, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
    for name in ("summary.json", "trials.csv", "curves.csv", "best_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_json_prints_the_summary_and_nothing_else(tmp_path):
    process = start(*REPLAY, "--searchers", "random", "--json", "--out", tmp_path / "run")
    output, errors = process.communicate(timeout=60)
    assert json.loads(output) == summary_of(tmp_path / "run")
    assert errors == ""
    assert process.returncode == 0


def test_quiet_prints_only_the_result(tmp_path):
    result = tune(*REPLAY, "--searchers", "random", "--quiet", "--out", tmp_path / "run")
    assert result.stdout.splitlines()[0].startswith("searcher")


@pytest.mark.parametrize(
    ("seeds", "kills", "at_least"), [(1, 2, 1), pytest.param(3, 5, 3, marks=pytest.mark.nightly)]
)
def test_kills_of_the_driver_change_nothing_in_a_replay(tmp_path, seeds, kills, at_least):
    request = ["--searchers", "random,grid", "--seeds", seeds, "--slots", 2, "--quiet"]
    request += ["--landscape", "smooth", "--budget-minutes", 600]
    assert tune(*request, "--out", tmp_path / "twin").exit_code == 0
    out = tmp_path / "killed"
    process = start(*request, "--out", out)
    instants = random.Random(7)
    on_record = []
    while len(on_record) < kills:
        # Not before there is more than the last one left: starting up takes longer than a replay
        # does for thousands of epochs, and a kill that finds nothing done shows nothing.
        while process.poll() is None and epochs_of(out) <= max(on_record, default=0):
            time.sleep(0.02)
        time.sleep(instants.uniform(0.0, 0.4))
        if process.poll() is not None:
            break  # checked below: the race must outlast some kills
        process.kill()
        process.communicate()
        on_record.append(epochs_of(out))
        process = start("--resume", out, "--quiet")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert on_record == sorted(set(on_record))
    in_between = [count for count in on_record if 0 < count < epochs_of(out)]
    assert len(in_between) >= at_least  # on a quick machine the race ends before the last
    for name in ("summary.json", "trials.csv", "curves.csv"):
        assert (out / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


def test_the_winner_of_a_search_with_a_model_is_its_choice_and_the_doctor_knows(tmp_path):
    request = ["--landscape", "flat", "--searchers", "random,bayes", "--seeds", 3]
    request += ["--budget-minutes", 30, "--quiet"]
    assert tune(*request, "--out", tmp_path / "run").exit_code == 0
    with (tmp_path / "run" / "trials.csv").open() as file:
        scores = {
            (row["searcher"], int(row["seed"]), int(row["trial"])): float(row["score"] or "-inf")
            for row in csv.DictReader(file)
        }
    ranks = {"random": [], "bayes": []}
    for run in summary_of(tmp_path / "run")["runs"]:
        key = run["searcher"], run["seed"]
        of_run = sorted((s for k, s in scores.items() if k[:2] == key), reverse=True)
        ranks[run["searcher"]].append(of_run.index(scores[(*key, run["best_trial"])]))
        assert run["best_score"] == of_run[0]
    assert ranks["random"] == [0] * 3  # which has no model
    assert max(ranks["bayes"]) in range(1, 5)  # of the best five, not always the luckiest
    doctor = subprocess.run(
        [sys.executable, SCRIPT.with_name("doctor.py"), tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (doctor.returncode, "warning" in doctor.stdout) == (0, False), doctor.stdout
    before = summary_of(tmp_path / "run")
    assert tune("--resume", tmp_path / "run", "--quiet").exit_code == 0
    assert summary_of(tmp_path / "run") == before


THINKING = ["--landscape", "smooth", "--searchers", "bayes", "--budget-minutes", 30, "--slots", 3]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """What a race whose searcher thinks, so that a signal finds it at work, comes to by itself."""
    out = tmp_path_factory.mktemp("runs") / "twin"
    assert tune(*THINKING, "--quiet", "--out", out).exit_code == 0
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_replay_stopped_by_a_signal_says_how_to_go_on_and_loses_nothing(tmp_path, number, twin):
    process = start(*THINKING, "--out", tmp_path / "run")
    wait_for_epochs(process, tmp_path / "run", 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"--resume {tmp_path / 'run'}" in output
    result = tune("--resume", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for name in ("summary.json", "trials.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (twin / name).read_bytes()


def test_a_full_disk_pauses_the_run_and_a_resume_ends_as_its_twin(tmp_path, twin):
    out = tmp_path / "a"
    # No file may be larger than this: the reserve fits, the page does not.
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, THINKING), "--quiet", "--out", str(out)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (DISK_EXIT, "")
    assert done.stderr == (
        f"paused: {out / 'report.html'} cannot be written: the disk is full (File too large); make "
        f"room there, then go on with: {sys.executable} {SCRIPT} --resume {out}\n"
    )
    assert read(out, "SELECT value FROM meta WHERE key = 'paused'")[0][0].startswith('"')
    assert tune("--resume", out).exit_code == 0
    for name in ("summary.json", "trials.csv", "report.html"):
        assert (out / name).read_bytes() == (twin / name).read_bytes()


def test_a_finished_run_is_resumed_to_the_same_files_and_a_larger_budget_goes_on(tmp_path):
    out = tmp_path / "run"
    assert tune(*REPLAY, "--searchers", "random", "--out", out).exit_code == 0
    before = (out / "trials.csv").read_bytes()
    assert tune("--resume", out).exit_code == 0
    assert (out / "trials.csv").read_bytes() == before
    assert tune("--resume", out, "--budget-minutes", 90).exit_code == 0
    after = (out / "trials.csv").read_bytes()
    assert after.startswith(before[: before.rindex(b"\nrandom")])
    assert summary_of(out)["runs"][0]["minutes_spent"] > 88


def test_a_second_driver_on_the_same_run_is_refused(tmp_path):
    out = tmp_path / "run"
    process = start("--landscape", "smooth", "--budget-minutes", 600, "--out", out)
    while not (out / "study.sqlite.lock").exists() or not (out / "study.sqlite").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    result = tune("--resume", out)
    process.kill()
    process.communicate()
    assert result.exit_code == 2
    assert f'"pid": {process.pid}' in result.stderr


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--searchers", "bayse"], "did you mean 'bayes'"),
        (["--searchers", ""], "at least one name"),
        (["--searchers", "random,random"], "names one twice"),
        (["--landscape", "bumby"], "did you mean 'bumpy'"),
        (["--knobs", "learning_rat"], "did you mean 'learning_rate'"),
        (["--knob", "learnin_rate=0:1"], "did you mean 'learning_rate'"),
        (["--data", "cifar11"], "did you mean 'cifar10'"),
        (["--knob", "learning_rate=1:0.1"], "empty range"),
        (["--knob", "learning_rate=0:1:log"], "low > 0"),
        (["--knob", "weight_decay=-1:1:log"], "low > 0"),
        (["--knob", "learning_rate=0.1"], "LOW:HIGH"),
        (["--knob", "dropout"], "NAME=LOW:HIGH"),
        (["--budget-minutes", "0"], "more than 0 and less than 1e8, got 0"),
        (["--budget-minutes", "-3"], "more than 0 and less than 1e8, got -3"),
        (["--budget-minutes", "nan"], "more than 0"),
        (["--epochs", "0"], "--epochs is at least 1"),
        (["--seeds", "0"], "--seeds is at least 1"),
        (["--slots", "0"], "--slots is at least 1"),
        (["--grid-points", "1"], "at least 2 points"),
        (["--device", "cuda"], "sees no CUDA GPU"),
        (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["--resume", "/nowhere"], "no study at /nowhere"),
        (["--seed", "10000000000000000000"], "--seed is a whole number"),
        (["--seed", "-1"], "--seed is a whole number"),
        (["--budget-minutes", "1e300"], "less than 1e8"),
        (["--landscape", "smooth", "--epochs", "3"], "leave out --epochs"),
        (["--landscape", "smooth", "--data", "mnist"], "leave out --data"),
        (["--resume", "/nowhere", "--seeds", "3"], "leave out --seeds"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuner.workers.devices._count_gpus", lambda: 0)
    result = tune(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_exit_code_2_without_a_traceback():
    process = start("--budget", "3")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "No such option" in errors
    assert "Traceback" not in errors


def test_a_replay_budget_too_small_for_one_epoch_is_refused(tmp_path):
    result = tune("--landscape", "bumpy", "--budget-minutes", 0.05, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "is too small" in result.stderr


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    result = tune(*REPLAY, "--out", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} is not an empty folder" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_damaged_study_is_refused_by_name_and_left_alone(tmp_path):
    out = tmp_path / "run"
    assert tune(*REPLAY, "--searchers", "random", "--out", out).exit_code == 0
    path = out / "study.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = tune("--resume", out)
    assert result.exit_code == 2
    assert "study.sqlite is damaged" in result.stderr
    after = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {k: v for k, v in after.items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }


def test_a_data_set_that_is_nowhere_is_one_line(tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("Error downloading train.tar.gz:\nno route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    result = tune("--data", "cifar10", "--data-root", tmp_path / "d", "--out", tmp_path / "r")
    assert result.exit_code == 2
    assert "'cifar10' was not found in" in result.stderr
    assert "--data-root" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_help_names_every_flag():
    result = tune("--help")
    assert result.exit_code == 0
    for flag in (
        "searchers",
        "seeds",
        "seed",
        "epochs",
        "budget-minutes",
        "device",
        "data",
        "knobs",
        "knob",
        "landscape",
        "out",
        "resume",
        "quiet",
        "json",
        "grid-points",
        "slots",
    ):
        assert f"--{flag}" in result.stdout


def test_the_script_runs_from_any_folder(tmp_path):
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, REPLAY), "--searchers", "random", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "summary.json").exists()


# -- fidelity ------------------------------------------------------------------------------------

PAUSING = ["--landscape", "smooth", "--budget-minutes", 20]


def searchers_of(folder):
    return [run["searcher"] for run in summary_of(folder)["runs"]]


def test_entries_that_pause_their_trials_race_under_the_names_that_were_given(tmp_path):
    out = tmp_path / "run"
    result = tune(*PAUSING, "--searchers", "random+asha,hyperband", "--slots", 2, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert searchers_of(out) == ["random+asha", "hyperband"]
    for run in summary_of(out)["runs"]:
        assert run["states"]["COMPLETED"] >= 1
        assert run["states"]["STOPPED"] >= 1
        assert 19 < run["minutes_spent"] <= 20
    trials = list(csv.DictReader((out / "trials.csv").open()))
    stopped = [t for t in trials if t["state"] == "STOPPED"]
    assert {t["epochs"] for t in stopped} == {"4"}  # 12 epochs, a third of them
    assert {t["reason"] for t in stopped} == {"stopped by the policy"}


def test_one_fidelity_for_all_names_every_entry_in_full(tmp_path):
    out = tmp_path / "run"
    request = [*PAUSING[:2], "--budget-minutes", 4, "--fidelity", "asha", "--out", out]
    result = tune(*request, "--searchers", "random,bayes,sh,grid+full")
    assert result.exit_code == 0, result.stderr
    assert searchers_of(out) == ["random+asha", "bayes+asha", "sh", "grid+full"]


def test_the_first_rung_and_eta_can_be_chosen(tmp_path):
    out = tmp_path / "run"
    request = [*PAUSING, "--searchers", "hyperband", "--min-epochs", 1, "--eta", 2, "--out", out]
    assert tune(*request).exit_code == 0
    trials = list(csv.DictReader((out / "trials.csv").open()))
    epochs = {int(t["epochs"]) for t in trials if t["state"] == "STOPPED"}
    assert epochs <= {1, 2, 3, 6}  # 12, 6, 3, 1.5 and 0.75, to the nearest
    assert 2 in epochs


def test_a_resumed_run_keeps_its_policy_and_rungs(tmp_path):
    request = [*PAUSING[:2], "--searchers", "random+asha", "--min-epochs", 1, "--eta", 2, "--quiet"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tune(*request, "--budget-minutes", 120, "--out", whole).exit_code == 0
    process = start(*request, "--budget-minutes", 120, "--out", parts)
    wait_for_epochs(process, parts, 20)
    process.kill()
    process.communicate()
    assert tune("--resume", parts, "--quiet").exit_code == 0
    for file in ("summary.json", "trials.csv", "curves.csv"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes()


def test_a_larger_budget_goes_on_with_what_was_paused(tmp_path):
    out = tmp_path / "run"
    assert tune(*PAUSING, "--searchers", "hyperband", "--out", out).exit_code == 0
    before = list(csv.DictReader((out / "trials.csv").open()))
    assert any(t["state"] == "PAUSED" for t in before)
    assert tune("--resume", out, "--budget-minutes", 40).exit_code == 0
    after = list(csv.DictReader((out / "trials.csv").open()))
    for old, new in zip(before, after, strict=False):
        assert old["learning_rate"] == new["learning_rate"]
        if old["state"] == "PAUSED":
            assert new["state"] in ("COMPLETED", "STOPPED")
        else:
            assert new == old
    assert len(after) > len(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--searchers", "random+ahsa"], "no fidelity 'ahsa'; did you mean 'asha'"),
        (["--searchers", "rnadom+asha"], "did you mean 'random'"),
        (["--searchers", "hyperbnad"], "did you mean 'hyperband'"),
        (["--searchers", "random+"], "no fidelity ''"),
        (["--fidelity", "hyperbnad"], "did you mean 'hyperband'"),
        (["--fidelity", "ahsa", "--searchers", "hyperband"], "did you mean 'asha'"),
        (["--searchers", "hyperband,random+hyperband"], "names one twice"),
        (["--searchers", "asha,random", "--fidelity", "asha"], "names one twice"),
        (["--searchers", "asha", "--min-epochs", "99"], "at most the full length, 12, got 99"),
        (["--searchers", "asha", "--min-epochs", "0"], "at least 1"),
        (["--searchers", "asha", "--eta", "1"], "2 or more, got 1"),
        (["--searchers", "random", "--eta", "1"], "2 or more, got 1"),
    ],
)
def test_a_fidelity_that_makes_no_sense_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    result = tune("--landscape", "smooth", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- confirming the winner -----------------------------------------------------------------------


def check_confirmed(folder, count):
    """By the rows alone: who was confirmed, and that the winner has the best mean of them."""
    trials = list(csv.DictReader((folder / "trials.csv").open()))
    (run,) = summary_of(folder)["runs"]
    again = [t for t in trials if t["reason"].startswith("confirms trial ")]
    assert run["confirmations"] == len(again) >= count
    means = {}
    for trial in again:
        first = int(trial["reason"].removeprefix("confirms trial "))
        mine = [t for t in again if t["reason"] == trial["reason"]]
        assert trial["learning_rate"] == trials[first]["learning_rate"]
        means[first] = sum(float(t["score"]) for t in [trials[first], *mine]) / (len(mine) + 1)
    assert run["best_trial"] == max(means, key=lambda number: (means[number], -number))
    assert run["expected_score"]["mean"] == pytest.approx(means[run["best_trial"]])
    chosen = json.loads((folder / "best_config.json").read_text())
    assert chosen["config"] == run["best_config"]
    assert chosen["expected_score"] == run["expected_score"]
    assert float(trials[run["best_trial"]]["learning_rate"]) == chosen["config"]["learning_rate"]
    return run


def test_the_best_are_confirmed_and_a_larger_budget_goes_on_searching(tmp_path):
    out = tmp_path / "run"
    request = [*REPLAY, "--searchers", "random", "--confirm", 3, "--out", out]
    result = tune(*request)
    assert result.exit_code == 0, result.stderr
    assert "the best score seen was" in result.stdout
    run = check_confirmed(out, 3)
    assert 56 < run["minutes_spent"] <= 60
    assert run["best_score"] == max(score for _, score in run["best_so_far"])
    before = (out / "trials.csv").read_bytes()
    assert tune("--resume", out).exit_code == 0
    assert (out / "trials.csv").read_bytes() == before
    assert tune("--resume", out, "--budget-minutes", 90).exit_code == 0
    assert (out / "trials.csv").read_bytes().startswith(before)
    more = check_confirmed(out, 3)
    assert more["trials"] - more["confirmations"] > run["trials"] - run["confirmations"]


def test_a_negative_number_of_confirmations_is_refused(tmp_path):
    result = tune(*REPLAY, "--confirm", -1, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--confirm is at least 0, got -1" in result.stderr


# -- results of earlier runs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished replay of thirty minutes by the name of `before`."""
    out = tmp_path_factory.mktemp("runs") / "before"
    assert (
        tune(*REPLAY[:2], "--budget-minutes", 30, "--searchers", "random", "--out", out).exit_code
        == 0
    )
    return out


def rows_of(folder, seed=0):
    with (folder / "trials.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["seed"] == str(seed)]


def test_a_race_begins_with_earlier_results_and_stays_a_race(tmp_path, earlier):
    request = [*REPLAY[:2], "--budget-minutes", 10, "--searchers", "random,grid", "--from", earlier]
    one, many = tmp_path / "one", tmp_path / "many"
    result = tune(*request, "--out", one)
    assert result.exit_code == 0, result.stderr
    known = [t for t in rows_of(earlier) if t["epochs"] != "0"]
    best = max(float(t["score"]) for t in known if t["score"])
    first = result.stdout.splitlines()[0]
    assert first == f"{len(known)} results from {earlier}, the best {best:.4f}"
    summary = summary_of(one)
    (told,) = summary["earlier"]
    assert (told["source"], told["trials"], told["best_score"]) == ("before", len(known), best)
    own_best = max(run["best_score"] for run in summary["runs"])
    assert told["is_ahead"] is (best > own_best)
    chosen = json.loads((one / "best_config.json").read_text())
    assert chosen["score"] == max(best, own_best)
    assert (chosen.get("source") == "before") is (best > own_best)
    assert (f"results from before; its best, {best:.4f}" in result.stdout) is (best > own_best)
    for run in summary["runs"]:
        rows = [t for t in rows_of(one) if t["searcher"] == run["searcher"]]
        mine = [t for t in rows if "from before" not in t["reason"]]
        assert [t["learning_rate"] for t in rows[: len(known)]] == [
            t["learning_rate"] for t in known
        ]
        assert {t["minutes"] for t in rows[: len(known)]} == {"0.0"}
        assert [int(t["trial"]) for t in rows] == list(range(len(rows)))
        assert len(mine) == run["trials"] == len(rows) - len(known)
        assert run["best_score"] == max(float(t["score"]) for t in mine if t["score"])
        assert run["best_so_far"][0][0] > 0
        assert run["ledger"]["train"] == pytest.approx(sum(float(t["minutes"]) for t in mine))
        assert run["minutes_spent"] <= 10
    page = (one / "report.html").read_text()
    assert f"knowing {len(known)} results of before" in page
    assert page.count('"state": "COMPLETED"') == sum(
        run["states"].get("COMPLETED", 0) for run in summary["runs"]
    )
    # Where there are many runs they are computed in processes of their own.
    assert tune(*request, "--seeds", 4, "--quiet", "--out", many).exit_code == 0
    assert rows_of(many) == rows_of(one)


def test_a_race_with_earlier_results_survives_a_kill(tmp_path, earlier):
    request = [*REPLAY[:2], "--budget-minutes", 150, "--searchers", "random+hyperband"]
    request += ["--quiet", "--from", earlier]
    assert tune(*request, "--out", tmp_path / "twin").exit_code == 0
    out = tmp_path / "killed"
    process = start(*request, "--out", out)
    taken = read(earlier, "SELECT COUNT(*) FROM observation")[0][0]
    wait_for_epochs(process, out, taken + 20)
    process.kill()
    process.communicate()
    assert tune("--resume", out, "--quiet").exit_code == 0
    for name in ("summary.json", "trials.csv", "curves.csv", "best_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()


def test_what_tells_an_earlier_race_apart_is_said_and_other_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = [*REPLAY[:2], "--searchers", "random", "--budget-minutes", 3, "--quiet", "--out"]
    assert tune(*old, "short").exit_code == 0
    store = Store(Path("short/study.sqlite"), create=False)
    store.set_meta("request", {**store.meta("request"), "epochs": 9})
    store.commit(force=True)
    store.close()
    result = tune(*REPLAY, "--searchers", "random", "--from", "short", "--out", "new")
    assert "--epochs was 9 and is 12" in result.stdout.splitlines()[0]
    Path("text").mkdir()
    Path("text/study.sqlite").write_text("no study" * 200)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        (["--from", "nowhere"], "there is no study at nowhere/study.sqlite"),
        (["--from", "text"], "is no study"),
        (["--from", "short", "--out", "short"], "--from short is where --out is to be"),
        (["--from", "short", "--from", "short"], "--from names one twice"),
        (["--from", "short", "--landscape", "smooth"], "with --landscape bumpy and this race is"),
        (["--resume", "new", "--from", "short"], "leave out --from"),
    ):
        if "--resume" not in arguments and "--landscape" not in arguments:
            arguments = [*REPLAY[:2], *arguments]
        result = tune(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


# -- ending early --------------------------------------------------------------------------------


def test_a_race_where_there_is_nothing_to_find_returns_its_minutes(tmp_path):
    out = tmp_path / "run"
    request = ["--landscape", "flat", "--searchers", "bayes", "--budget-minutes", 150]
    result = tune(*request, "--stop", "auto", "--out", out)
    assert result.exit_code == 0, result.stderr
    (run,) = summary_of(out)["runs"]
    assert run["trials"] >= 19
    assert run["minutes_returned"] > 75
    assert run["minutes_returned"] + run["minutes_spent"] == pytest.approx(150, abs=1e-9)
    spent, returned = f"{run['minutes_spent']:.1f}", f"{run['minutes_returned']:.1f}"
    assert f"bayes stopped after {spent} of 150 minutes" in result.stdout
    assert f"It returned {returned}." in result.stdout
    before = (out / "trials.csv").read_bytes()
    assert tune("--resume", out).exit_code == 0
    assert (out / "trials.csv").read_bytes() == before
    assert summary_of(out)["runs"] == [run]


def test_a_way_to_stop_that_there_is_not_is_refused(tmp_path):
    result = tune(*REPLAY, "--stop", "atuo", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "no way to stop 'atuo'; did you mean 'auto'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_killed_before_it_had_begun_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    Store(tmp_path / "run" / "study.sqlite", create=True).close()  # as far as it came
    refused = tune("--resume", tmp_path / "run")
    assert refused.exit_code == 2
    assert "was ended before it had begun, and holds nothing; delete the folder" in refused.stderr
