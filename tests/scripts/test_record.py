"""Recording: a design is trained and replayed, and a real race replays as it was."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from landscapes.replay_runner import ReplayRunner
from landscapes.table import load_table
from models.data import prepare
from models.knobs import make_space
from models.pool import TrainingPool, TrainingSetup
from scripts.record import app
from tuner.budget import Budget, to_ns
from tuner.fidelity import Done, Sample
from tuner.history import History
from tuner.race import enter
from tuner.scheduler import Recorder, Scheduler
from tuner.searchers import make_searcher
from tuner.store import Store
from tuner.workers.runner import WorkerRunner

ROOT = Path(__file__).parents[2]


def command(script, *arguments):
    return [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]


def call(script, *arguments):
    return subprocess.run(command(script, *arguments), capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def real(small_data):
    return ["--data", "fashion_mnist", "--data-root", small_data, "--device", "cpu"]


def test_a_design_is_trained_interrupted_resumed_and_written_with_its_card(tmp_path, real):
    out, folder = tmp_path / "small.npz", tmp_path / "study"
    recording = subprocess.Popen(
        command(
            *("record.py", *real, "--design", "lattice:3,2", "--epochs", 2, "--replicates", 2),
            *("--slots", 1, "--out", out, "--folder", folder, "--quiet"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    until = time.monotonic() + 90
    while not list(folder.glob("checkpoints/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    recording.send_signal(signal.SIGINT)
    output, errors = recording.communicate(timeout=90)
    assert (recording.returncode, errors) == (130, ""), errors
    assert f"--resume {folder}" in output
    assert not out.exists()
    resumed = call("record.py", "--resume", folder, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    table = load_table(out)
    assert table.scores.shape == (6, 2, 2)
    assert table.is_lattice
    assert np.isfinite(table.seconds).all()
    # Two trainings of a setting are two seeds: different, but of the same thing.
    assert (table.scores[:, 0] != table.scores[:, 1]).any()
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["data"], card["design"], card["seeds"]) == ("fashion_mnist", "lattice:3,2", [0, 1])
    assert card["device"].startswith("CPU")
    assert len(card["sha256"]) == 64
    again = call("record.py", *real, "--out", out)
    assert again.returncode == 2
    assert "exists already" in again.stderr


class AtMost:
    """Full trainings, but no more than so many."""

    def __init__(self, trials, epochs):
        self._trials, self._epochs = trials, epochs

    def next_action(self, history):
        return Sample(self._epochs) if len(history) < self._trials else Done()


TRIALS, EPOCHS, SEED = 13, 2, 5  # enough for Bayesian search to leave its starting points


@pytest.fixture(scope="module")
def pool(small_data, tmp_path_factory):
    prepare("fashion_mnist", small_data)
    folder = tmp_path_factory.mktemp("checkpoints")
    setup = TrainingSetup(
        devices=("cpu",),
        slots=1,
        data="fashion_mnist",
        root=small_data,
        epochs=EPOCHS,
        directory=folder,
    )
    with TrainingPool(setup) as pool:
        pool.start()
        yield pool


@pytest.mark.parametrize("searcher", ["random", "grid", "bayes"])
def test_a_real_race_replays_as_it_was(tmp_path, pool, searcher):
    space = make_space(["learning_rate", "layers"])
    store = Store(tmp_path / "study.sqlite", create=True)
    row = store.add_run(searcher, SEED, space, EPOCHS, to_ns(10))
    run = enter(
        store,
        row,
        make_searcher(searcher, space, SEED),
        WorkerRunner(pool, searcher),
        is_replay=False,
        on_change=lambda: None,
    )
    run.scheduler._policy = AtMost(TRIALS, EPOCHS)
    run.scheduler.run()
    real_history = store.history(row)
    store.close()
    out = tmp_path / "replayed.npz"
    made = call("record.py", "--from", tmp_path, "--out", out)
    assert made.returncode == 0, made.stderr

    landscape = load_table(out)
    history = History(landscape.epochs, row.budget_ns)
    replay = Scheduler(
        make_searcher(searcher, landscape.space, SEED),
        AtMost(TRIALS, EPOCHS),
        ReplayRunner(landscape, SEED),
        history,
        Recorder(Budget(row.budget_ns)),
        seed=SEED,
    )
    replay.run()
    assert len(history) == len(real_history) == TRIALS
    for then, now in zip(real_history, history, strict=True):
        assert now.config == then.config
        assert (now.seed, now.state) == (then.seed, then.state)
        assert [o.score for o in now.curve] == [o.score for o in then.curve]
        assert [o.device_ns for o in now.curve] == [o.device_ns for o in then.curve]
    # A replay neither starts up nor waits: what it spends is what the trainings cost.
    assert replay.budget.spent_ns == sum(t.device_ns for t in real_history)


def test_mistakes_are_one_line(tmp_path, real):
    for arguments, words in (
        ([], "--out is missing"),
        (["--out", tmp_path / "x.txt"], "ends in .npz"),
        (["--out", tmp_path / "x.npz", "--design", "lattice:3"], "a number of points for each"),
        (["--out", tmp_path / "x.npz", "--design", "spiral:3"], "a design is lattice"),
        (["--out", tmp_path / "no" / "x.npz"], "there is no folder"),
        (["--from", tmp_path, "--out", tmp_path / "x.npz"], "there is no study"),
        (["--resume", tmp_path], "there is no study"),
    ):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == 2, arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


def test_what_is_no_recording_is_refused_in_one_line(tmp_path):
    for arguments, words in (
        (("--out", tmp_path / "x.npz", "--seed", -1, "--data", "sample"), "--seed is a whole"),
        (("--from", tmp_path), "there is no study"),
    ):
        done = call("record.py", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == []
