"""The benchmarks run, write what they measured with how, and agree with what must be so."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scripts import benchmark

ROOT = Path(__file__).parents[2]


def call(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_idle_knobs_hurt_a_grid_and_not_random_search(tmp_path):
    done = call("benchmark.py", "papers", "--seeds", 4, "--minutes", 40, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "papers.json").read_text())
    assert [row["idle_knobs"] for row in found["rows"]] == list(range(1, 9))
    for row in found["rows"]:
        assert all(regret >= -1e-9 for some in row["regret"].values() for regret in some)
        difference = row["mean_regret"]["grid"] - row["mean_regret"]["random"]
        assert row["random_ahead_by"] == pytest.approx(difference)
    # Random search does not notice idle knobs: its draws of the one that matters are the same.
    assert found["rows"][7]["mean_regret"]["grid"] > found["rows"][0]["mean_regret"]["grid"]
    assert found["machine"]["device"]
    assert "papers --seeds 4" in found["command"]
    assert (tmp_path / "papers.png").stat().st_size > 10_000


def test_a_replay_foretells_a_replay_exactly(tmp_path):
    run = tmp_path / "run"
    done = call(
        *("tune.py", "--landscape", "cnn_sample_2d", "--searchers", "grid,random", "--seeds", 2),
        *("--budget-minutes", 1.5, "--out", run, "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    done = call("benchmark.py", "replay", run, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "replay.json").read_text())
    assert set(found["best_validation"]) == {"grid", "random"}
    for scores in found["best_validation"].values():
        assert scores["real"] == scores["replayed"]
    assert found["spearman_rho_of_settings"] > 0.8  # both are noisy readings of one landscape


def test_a_race_of_other_knobs_is_refused(tmp_path):
    run = tmp_path / "run"
    done = call(
        *("tune.py", "--landscape", "bumpy", "--searchers", "random", "--budget-minutes", 3),
        *("--out", run, "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    done = call("benchmark.py", "replay", run, "--landscape", "ridge", "--out", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "other knobs" in done.stderr


def test_the_page_refuses_in_one_line(tmp_path):
    for arguments, words in (
        ([tmp_path], "there is no study"),
        (["--port", "70000"], "--port is 0 to 65535"),
    ):
        done = call("page.py", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr


def test_a_port_that_is_taken_is_said_to_be():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call("page.py", "--port", taken.getsockname()[1])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be used" in done.stderr


def test_how_well_early_scores_foretell_the_last_ones(monkeypatch, capsys):
    from landscapes.synthetic import make_landscape
    from scripts.rungs_benchmark import rungs

    monkeypatch.setenv("COLUMNS", "120")
    rungs(landscapes="deceptive", settings=30)
    name, *shown = capsys.readouterr().out.splitlines()[1].split()
    assert name == "deceptive"
    landscape = make_landscape("deceptive")
    units = np.random.default_rng(0).random((30, 2))
    curves = np.array([landscape.curve(c, 0)[0] for c in landscape.space.from_unit(units)])
    ranks = curves.argsort(0).argsort(0)
    by_hand = [np.corrcoef(ranks[:, e - 1], ranks[:, -1])[0, 1] for e in (1, 2, 3, 4, 6, 9)]
    np.testing.assert_allclose([float(value) for value in shown], by_hand, atol=0.006)


def test_all_goes_on_when_one_benchmark_fails_and_says_which(monkeypatch, tmp_path):
    asked = []

    def run(command):
        asked.append(command[2:])
        return subprocess.CompletedProcess(command, int(command[2] == "suggest"))

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    found = CliRunner().invoke(benchmark.app, ["all", "--out", str(tmp_path)])
    names = ("training", "suggest", "loop", "startup")
    assert asked == [[name, "--out", str(tmp_path)] for name in names]
    assert found.exit_code == 1
    assert "not measured: suggest\n" in found.output
