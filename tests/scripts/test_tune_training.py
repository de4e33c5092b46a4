"""The command line in real training: its ledger, and what survives being killed or stopped."""

import json
import shlex
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import replace

import pytest

from tests.helpers import alter
from tests.scripts.command_line import LEDGER, SCRIPT, read, start, summary_of, wait_for_epochs
from tuner.budget import Kind
from tuner.history import History
from tuner.searchers import make_searcher
from tuner.store import Store, held_ns
from tuner.trial import TrialState


@pytest.fixture(scope="module")
def real(small_data):
    return ["--data", "fashion_mnist", "--data-root", small_data, "--epochs", 3, "--device", "cpu"]


def check_ledgers(summary, folder):
    db = sqlite3.connect(folder / "study.sqlite")
    for row, run in enumerate(summary["runs"], 1):
        assert sum(run["ledger"].values()) == pytest.approx(run["minutes_spent"], abs=1e-12)
        columns = "+".join(LEDGER)
        (charged,) = db.execute(f"SELECT SUM({columns}) FROM charge WHERE run={row}").fetchone()  # noqa: S608
        assert charged / 60e9 == run["minutes_spent"]
        (observed,) = db.execute(
            "SELECT SUM(device_ns) FROM observation WHERE run = ?", (row,)
        ).fetchone()
        assert observed <= charged
    db.close()


@pytest.fixture(scope="module")
def race(tmp_path_factory, real):
    """A finished race that several tests look at, or resume in a copy; and what it printed."""
    out = tmp_path_factory.mktemp("race") / "run"
    request = [*real, "--budget-minutes", 0.2, "--knobs", "learning_rate,layers"]
    process = start(*request, "--slots", 1, "--confirm", 2, "--out", out)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors == ""
    return out, output


def test_a_real_race_on_small_data(race):
    out, output = race
    summary = summary_of(out)
    assert (summary["device"], summary["unit"]) == ("cpu", "device minutes (cpu)")
    assert summary["data"] == "fashion_mnist"
    assert [run["searcher"] for run in summary["runs"]] == ["grid", "random", "bayes"]
    check_ledgers(summary, out)
    for run in summary["runs"]:
        assert run["states"]["COMPLETED"] >= 3
        assert 0 < run["test_score"] < 1
        assert run["best_score"] > 0.6
        assert run["ledger"]["warm_up"] > 0
    assert "where the device minutes (cpu) went" in " ".join(output.lower().split())


def test_the_winners_of_real_confirmations_are_tested(race):
    runs = summary_of(race[0])["runs"]
    # On a machine that stalls for a second the twelve of one run may not pay for one.
    assert sum(run["confirmations"] for run in runs) >= 1
    assert all(0 < run["test_score"] < 1 for run in runs)


def test_resuming_a_finished_race_changes_nothing_and_tests_only_a_winner_that_changed(
    tmp_path, race
):
    out = shutil.copytree(race[0], tmp_path / "run")
    names = ("trials.csv", "curves.csv", "summary.json")
    before = {name: (out / name).read_bytes() for name in names}
    # A score that no test can give, of the same winner; and one of another winner.
    alter(out / "study.sqlite", "UPDATE run SET test_score = 2.0 WHERE id = 1")
    alter(out / "study.sqlite", "UPDATE run SET test_score = 3.0, tested = 'other' WHERE id = 2")
    assert start("--resume", out, "--quiet").wait(timeout=180) == 0
    assert [(out / name).read_bytes() for name in names[:2]] == [before[n] for n in names[:2]]
    runs = json.loads((out / "summary.json").read_bytes())["runs"]
    whole = json.loads(before["summary.json"])["runs"]
    assert runs[0].pop("test_score") == 2.0  # read once
    assert whole[0].pop("test_score") < 1
    assert runs == whole  # tested again, it scores what it scored


@pytest.mark.nightly
def test_a_real_race_killed_now_and_then_loses_no_epoch_and_charges_none_twice(tmp_path, real):
    out = tmp_path / "run"
    request = [*real, "--searchers", "random,bayes", "--slots", 1, "--seed", 5]
    process = start(*request, "--budget-minutes", 0.2, "--out", out)
    observed, proposed = {}, {}
    epochs = "SELECT run, number, epoch, score, device_ns FROM observation"
    lost = {}  # by run: what a killed driver had held and not charged
    for delay in (0.013, 0.26):
        wait_for_epochs(process, out, len(observed) + 8)
        time.sleep(delay)
        process.kill()
        process.communicate()
        now = {row[:3]: row[3:] for row in read(out, epochs)}
        assert {key: now[key] for key in observed} == observed
        observed = now
        kept = {row[:2]: row[2] for row in read(out, "SELECT run, number, config FROM trial")}
        assert {key: kept[key] for key in proposed} == proposed
        proposed = kept
        for run, ns in held_and_not_charged(out).items():
            lost[run] = lost.get(run, 0) + ns
        process = start("--resume", out)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    summary = summary_of(out)
    check_ledgers(summary, out)
    for number, run in enumerate(summary["runs"], start=1):
        assert run["ledger"]["lost"] * 60e9 >= lost[number] - 1
    check_proposals(out)


def held_and_not_charged(folder):
    """By run, in ns, as a driver that was killed left it."""
    words = memoryview((folder / "study.sqlite.held").read_bytes()).cast("q")
    kinds = " + ".join(kind.value for kind in Kind)
    charged = dict(read(folder, f"SELECT run, SUM({kinds}) FROM charge GROUP BY run"))  # noqa: S608
    return {run: max(0, held_ns(words, run) - charged.get(run, 0)) for run in (1, 2)}


def check_proposals(folder):
    """Every proposal is the one that a searcher which nobody killed makes of the same results."""
    store = Store(folder / "study.sqlite", create=False)
    for row in store.runs():
        searcher = make_searcher(row.searcher, row.space, row.seed)
        twin = History(row.max_epochs, row.budget_ns)
        for trial in store.history(row):
            assert searcher.propose(twin.view()) == trial.config
            twin.start(replace(trial, state=TrialState.RUNNING, curve=()))
            for observation in trial.curve:
                twin.observe(trial.number, observation)
            twin.update(trial.number, state=trial.state)
        assert len(twin) >= 5
    store.close()


def test_ctrl_c_in_real_training_pauses_with_a_checkpoint_and_resumes(tmp_path, real):
    out = tmp_path / "run"
    request = [*real, "--searchers", "random", "--epochs", 40, "--budget-minutes", 0.3]
    process = start(*request, "--out", out)
    wait_for_epochs(process, out, 3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert f"--resume {out}" in output
    db = sqlite3.connect(out / "study.sqlite")
    states = db.execute("SELECT state, checkpoint, partial_ns FROM trial").fetchall()
    lost = db.execute("SELECT SUM(lost) FROM charge").fetchone()[0]
    db.close()
    paused = [row for row in states if row[0] == "PAUSED"]
    assert paused
    assert all((out / "checkpoints" / name).exists() for _, name, _ in paused)
    assert lost == 0
    process = start("--resume", out, "--quiet")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    check_ledgers(summary_of(out), out)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_signal_while_workers_start_says_how_to_go_on(tmp_path, real, number):
    out = tmp_path / "a [bold] name"
    process = start(*real, "--budget-minutes", 0.3, "--searchers", "random", "--out", out)
    while not (out / "checkpoints").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert errors == ""
    assert output.splitlines()[-1].strip() == shlex.join(
        [sys.executable, str(SCRIPT), "--resume", str(out)]
    )


def test_a_budget_too_small_for_one_epoch_is_refused(tmp_path, real):
    process = start(*real, "--budget-minutes", 0.0001, "--slots", 1, "--out", tmp_path / "run")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "is too small: starting up took" in errors
    assert errors.count("\n") == 1
