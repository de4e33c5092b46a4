"""The loop's benchmark runs, and its tables are of what it measured."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.loop_runs import EPOCHS, Job, file_system_s, measure

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_the_tables_are_of_the_runs_in_the_file(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "benchmark.py", "loop", "--trials", "40"),
            *("--optuna-trials", "5", "--durable-trials", "3", "--repeats", "2", "--out", tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "loop.json").read_text())
    growth, disk, peers = found["tables"]
    assert [(row[0], row[1], row[-1]) for row in growth["rows"]] == [
        (who, n, repeats)
        for who in ("random", "random+asha")
        for n, repeats in (("4", "2"), ("40", "2"), ("400", "1"))
    ]
    runs = found["runs"]["random 40 memory"]
    assert [run["epochs"] for run in runs] == [40 * EPOCHS] * 2
    rate = statistics.median(40 / run["cpu_s"] for run in runs)
    assert growth["rows"][1][2] == f"{rate:,.0f}"
    batches, every = disk["rows"]
    assert int(batches[2]) < 10
    assert int(every[2]) > 3 * EPOCHS  # each epoch is durable before the next
    assert [row[1] for row in peers["rows"]] == ["5", "3"]
    assert "| random | 40 |" in (tmp_path / "README.md").read_text()


def test_a_replay_is_measured_to_its_end():
    found = measure(Job("random+asha", 12))
    assert 12 < found["epochs"] < 12 * EPOCHS
    assert found["cpu_s"] > 0


def test_a_place_that_there_is_not():
    with pytest.raises(ValueError, match="memory, batches, every, got 'tape'"):
        measure(Job("random", 1, "tape"))


def test_the_file_systems_own_commits_leave_what_they_wrote(tmp_path):
    assert file_system_s(tmp_path, 3, 1_000) > 0
    assert (tmp_path / "a").stat().st_size == 0
    assert (tmp_path / "b").stat().st_size == 1_500
