"""The search benchmark: arithmetic by hand, peers that pay as a replay does, files that grow."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from landscapes.surrogate import Surrogate
from scripts.peers import PEERS, Device, Seen, Stopwatch, play_peer
from scripts.search_benchmark import (
    check_entries,
    make_tables,
    measure,
    read_file,
    resolve_landscapes,
    time_to_reach,
)
from scripts.search_runs import (
    Job,
    Yardstick,
    improvements,
    measure_yardstick,
    play,
    play_entry,
    regrets,
)
from tuner.budget import Budget
from tuner.fidelity import FullFidelity
from tuner.history import History
from tuner.scheduler import Recorder, Scheduler
from tuner.space import Float, SearchSpace

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
YARDSTICK = Yardstick(best=0.9, median=0.5, training_ns=100)


class Scripted:
    """Worth its knob; each epoch costs 10 ns; at x > 0.95 it diverges in its second epoch."""

    name, epochs, space = "scripted", 4, SearchSpace(x=Float(0.0, 1.0))

    def value(self, config, replicate=None):
        return math.nan if config["x"] > 0.95 else config["x"]

    def curve(self, config, replicate, repeat=0):
        scores = config["x"] * np.arange(1, 5) / 4
        if config["x"] > 0.95:
            scores[1:] = np.nan
        return scores, np.full(4, 10e-9)


TIMELINE = [
    Seen(10, 0.3, {"x": 0.6}, 1),
    Seen(20, 0.2, {"x": 0.1}, 1),  # no improvement
    Seen(50, 0.7, {"x": 0.97}, 2),  # will diverge
    Seen(75, 0.8, {"x": 0.8}, 4),
    Seen(90, 0.8, {"x": 0.9}, 4),  # a tie: the first one stays
    Seen(101, 0.9, {"x": 0.9}, 4),  # too late
]


def test_regret_by_hand():
    best = improvements(TIMELINE)
    assert [s.ns for s in best] == [10, 50, 75, 101]
    # At 5, 10, 25, 50, 75 and 100 of 100 ns: nothing, 0.6, 0.6, NaN, 0.8, 0.8 without noise.
    noisy = regrets(best, 100, YARDSTICK, Scripted())
    assert noisy == pytest.approx([1, 0.75, 0.75, 1, 0.25, 0.25])
    surrogate = Surrogate.__new__(Surrogate)  # what is seen is what counts; 0.3 is under median
    seen = regrets(best, 100, YARDSTICK, surrogate)
    assert seen == pytest.approx([1, 1, 1, 0.5, 0.25, 0.25])


def test_time_to_reach_by_hand():
    run = {"best_seen": [[0.1, 0.3], [0.5, 0.7], [0.75, 0.8]]}
    assert [time_to_reach(run, t) for t in (0.2, 0.7, 0.75)] == [0.1, 0.5, 0.75]
    assert time_to_reach(run, 0.9) == math.inf


def test_the_table_by_hand():
    def run(entry, seed, regret, best):
        return {
            **{"entry": entry, "landscape": "one", "seed": seed, "regret": [regret] * 6},
            **{"best_seen": best, "proposals": 2, "thinking_mean_s": 0.5, "thinking_90th_s": 0.7},
        }

    runs = [run("other", 0, 0.1, [[0.25, 0.8]]), run("other", 1, 0.3, [[0.5, 0.6], [0.75, 0.71]])]
    line = make_tables(runs, {"one": 0.7}).splitlines()[-1].split()
    assert line[:3] == ["other", "20.0", "±10.0"]
    assert line[-4:] == ["50%", "0/2", "500.00", "700.00"]


def test_thinking_counts_for_the_next_proposal_and_at_the_end_for_the_last(monkeypatch):
    clock = iter([0, 1, 10, 12, 20, 25])
    monkeypatch.setattr("scripts.peers.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.thinking():
        pass
    watch.proposed()
    with watch.thinking():
        pass
    watch.proposed()
    with watch.thinking():
        pass
    assert watch.seconds == [1, 7]


def test_a_device_is_paid_as_a_replay_is():
    """The same settings in the same order cost and score the same, to the nanosecond."""

    class Fixed:
        fallback = ""

        def propose(self, history):
            return configs[len(history)]

    landscape = open_landscape("cliff")  # some diverge
    generator = np.random.default_rng(0)
    configs = [landscape.space.sample(generator) for _ in range(40)]
    device = Device(landscape, 3, 10**12)
    for config in configs:
        list(device.train(config))
        if device.is_spent:
            break
    history, budget = History(landscape.epochs, 10**12), Budget(10**12)
    runner = ReplayRunner(landscape, 3)
    recorder = Recorder(budget)
    Scheduler(Fixed(), FullFidelity(), runner, history, recorder, seed=0).run()
    replayed = [Seen(o.at_ns, o.score, t.config, o.epoch) for t in history for o in t.curve]
    assert len(replayed) > 100
    assert device.seen[: len(replayed)] == replayed  # which stops where a next epoch may not fit
    assert len(device.seen) - len(replayed) < landscape.epochs


@pytest.mark.parametrize("name", sorted(PEERS.keys() - {"optuna:gp", "smac:multifidelity"}))
def test_a_peer_never_overspends_and_pays_what_the_landscape_says(name):
    if name.startswith("smac"):
        pytest.importorskip("smac")
    device, watch = Device(Scripted(), 0, 475), Stopwatch()
    PEERS[name](device, 1, watch)
    assert device.is_spent
    assert device.spent_ns == 470  # no budget is left for another epoch
    diverged = sum(s.epoch == 1 and s.config["x"] > 0.95 for s in device.seen)
    assert len(device.seen) in (47 - diverged, 48 - diverged)  # a divergence is paid for too
    assert all(s.score == s.config["x"] * s.epoch / 4 for s in device.seen)
    for one, other in itertools.pairwise(device.seen):
        assert other.ns - one.ns == (20 if one.config["x"] > 0.95 else 10)
    assert len(watch.seconds) >= 47 / 4
    assert min(watch.seconds) > 0
    if "+" in name:
        assert len(watch.seconds) > 13  # some were pruned


def test_what_smac_promotes_goes_on_from_where_it_was():
    pytest.importorskip("smac")
    device = Device(Scripted(), 0, 1_000)
    PEERS["smac:multifidelity"](device, 1, Stopwatch())
    assert device.is_spent
    assert device.spent_ns in (990, 1_000)
    curves = {}
    for one in device.seen:
        curves.setdefault(one.config["x"], []).append(one.epoch)
    assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in curves.values())
    lengths = [len(epochs) for epochs in curves.values()]
    assert {1, 4} <= set(lengths)
    assert lengths.count(1) > lengths.count(4) > 3


@pytest.mark.parametrize("name", ["optuna:tpe+hyperband", "botorch"])
def test_a_peer_is_seeded(name):
    (one, _), (same, _), (other, _) = (
        play_peer(name, Scripted(), 0, 475, seed) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_our_entries_are_played_within_the_budget_too():
    seen, seconds = play_entry("random", Scripted(), 0, 475, seed=1)
    assert 400 < seen[-1].ns <= 475
    assert len(seconds) >= 11


def test_a_yardstick_on_a_formula():
    yardstick = measure_yardstick("smooth")
    assert yardstick.best == open_landscape("smooth").optimum()[1]
    assert 0.55 < yardstick.median < yardstick.best
    assert yardstick.training_ns == pytest.approx(12 * 6.5e9 * 1.15, rel=0.02)
    with pytest.raises(ValueError, match="nothing to find"):
        measure_yardstick("flat")


def test_a_search_in_one_command(tmp_path):
    out = tmp_path / "search.json"
    command = [sys.executable, "scripts/benchmark.py", "search", "--landscapes", "smooth"]
    command += ["--entries", "random,optuna:tpe,botorch", "--seeds", "2", "--trainings", "4"]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("optuna:tpe") == 1
    content = json.loads(out.read_text())
    assert len(content["runs"]) == 6
    assert content["machines"][0]["versions"]["botorch"]
    assert str(tmp_path) not in out.read_text()  # of paths only the last part
    for run in content["runs"]:
        assert len(run["regret"]) == 6
        assert all(0 <= r <= 1 for r in run["regret"])
        assert 4 <= run["proposals"] <= 6


class Here:
    """A pool that is this process."""

    def __init__(self, processes):
        self.played = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def map(self, work, items):
        return [work(item) for item in items]

    def imap_unordered(self, work, jobs):
        self.played += [(job.entry, job.seed) for job in jobs]
        return map(work, jobs)


def test_what_was_measured_is_not_run_again_unless_asked(tmp_path, monkeypatch):
    pools = []

    class Context:
        def Pool(self, processes):
            pools.append(Here(processes))
            return pools[-1]

    monkeypatch.setattr("scripts.search_benchmark.get_context", lambda _: Context())
    out = tmp_path / "search.json"
    places = resolve_landscapes("smooth")
    first = measure(places, ["random"], 2, 4.0, 1, out)
    both = measure(places, ["random", "optuna:tpe"], 2, 4.0, 1, out)
    assert [run["entry"] for run in both] == ["random"] * 2 + ["optuna:tpe"] * 2
    assert both[:2] == first
    measure(places, ["random", "optuna:tpe"], 2, 4.0, 1, out, again=["random"])
    measure(places, ["random"], 1, 5.0, 1, out)
    assert [pool.played for pool in pools] == [
        [("random", 0), ("random", 1)],
        [("optuna:tpe", 0), ("optuna:tpe", 1)],
        [("random", 0), ("random", 1)],
        [("random", 0)],
    ]
    content = read_file(out)
    assert len(content["runs"]) == 5
    assert [run["machine"] for run in content["runs"]] == [1, 1, 2, 3, 2]
    content["landscapes"]["smooth"]["best"] = 0.8
    out.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not what it was"):
        measure(places, ["random"], 1, 5.0, 1, out)


def test_a_run_is_the_same_again():
    job = Job("bumpy", "bumpy", "random", 0, 3.0, Yardstick(0.92, 0.55, 90 * 10**9))
    once, again = play(job), play(job)
    assert (once["regret"], once["best_seen"]) == (again["regret"], again["best_seen"])


def test_mistakes_are_told(tmp_path):
    for entry, words in (("optuna:tpa", "did you mean 'optuna:tpe'?"), ("randon", "there is no")):
        with pytest.raises(ValueError, match=re.escape(words)):
            check_entries([entry])
    with pytest.raises(ValueError, match=r"no \.onnx file"):
        resolve_landscapes(str(tmp_path))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="not written by this command"):
        read_file(tmp_path / "a.json")
