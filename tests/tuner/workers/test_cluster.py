"""Workers on a real Ray cluster of several nodes, all on this machine, some of which are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs Ray")

import ray
from ray.cluster_utils import Cluster

from tests.scripts.command_line import ROOT, epochs_of, summary_of
from tests.scripts.command_line import tune as tune_py
from tests.small_data import SAMPLE
from tests.tuner.workers import trainings
from tests.tuner.workers.test_functions import HALVING, SPACE, charges, curves
from tuner import tune
from tuner.budget import Kind
from tuner.files import CannotWriteError
from tuner.meter import DeviceMeter
from tuner.store import Store
from tuner.trial import TrialState
from tuner.workers.control import YIELD
from tuner.workers.functions import Workers, locate
from tuner.workers.host import Host
from tuner.workers.pool import WorkerPool, WorkerStartError

NODES = 3
PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture(scope="module")
def lasting():
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def cluster(lasting):
    """As many nodes as ever, whichever of them the last test killed."""
    for node in [n for n in lasting.worker_nodes if not n.remaining_processes_alive()]:
        lasting.remove_node(node, allow_graceful=False)
    while len(lasting.worker_nodes) < NODES:
        lasting.add_node(num_cpus=1)
    lasting.wait_for_nodes()
    return lasting


def search(train, cluster, *, minutes=0.2, epochs=trainings.EPOCHS, **options):
    options = {"searcher": "random", "seed": 3, "device": "cpu", **options}
    return tune(
        train,
        SPACE,
        budget_minutes=minutes,
        max_epochs=epochs,
        cluster=cluster.address,
        **options,
    )


def test_all_devices_of_a_cluster_draw_on_one_budget(tmp_path, cluster):
    study = search(trainings.saving, cluster, minutes=0.3, directory=tmp_path, **HALVING)
    ledger = charges(tmp_path)
    assert sum(ledger.values()) == round(study.minutes_spent * 60e9)
    assert 0.29 < study.minutes_spent < 0.3 + 0.1 * NODES / 60
    done = curves(study)
    assert len(done) > 5
    for x, totals in done.values():
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)])
    assert any(t.epoch == 1 for t in study.trials)
    assert len(list((tmp_path / "checkpoints").glob("device-*-worker-0.log"))) == NODES
    kept = {t.checkpoint.name for t in study.trials if t.checkpoint}
    assert {p.name for p in (tmp_path / "checkpoints").glob("*.checkpoint")} <= kept


def test_a_node_that_dies_is_an_interruption_and_the_others_have_what_is_left(tmp_path, cluster):
    killed = []

    def kill_one(node, trials):
        if len(trials) > 20 and not killed:
            killed.append(time.monotonic())
            kill(node, cluster)

    seen = []
    victim = cluster.worker_nodes and next(iter(cluster.worker_nodes))
    study = search(
        trainings.saving,
        cluster,
        minutes=0.4,
        directory=tmp_path,
        on_change=lambda: (seen.append(None), kill_one(victim, seen)),
    )
    assert killed
    assert not [t for t in study.trials if t.state is TrialState.FAILED]
    for x, totals in curves(study).values():  # those that were interrupted went on
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)])
    assert not any(t.faults for t in study.trials)  # it was no trial's
    ledger = charges(tmp_path)
    assert sum(ledger.values()) == round(study.minutes_spent * 60e9)
    assert 0.35 < study.minutes_spent < 0.4 + 0.1 * NODES / 60
    assert ledger[Kind.LOST] < 15e9  # what it held until it was found to be gone


def kill(node, cluster):
    """Pull the plug of a node: all of its processes at once."""
    parent = node.all_processes["raylet"][0].process.pid
    children = subprocess.run(
        ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False
    )
    for pid in [parent, *map(int, children.stdout.split())]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.nightly
def test_a_worker_that_is_killed_costs_one_epoch_and_no_node(cluster):
    study = search(trainings.killing, cluster, epochs=2, minutes=0.3)
    large = [t for t in study.trials if t.state is TrialState.FAILED]
    assert large
    assert all(t.config["x"] > 0.7 and "SIGKILL" in t.reason for t in large)
    assert any(t.state is TrialState.COMPLETED for t in study.trials)


@pytest.mark.nightly
def test_ctrl_c_reaches_every_node(tmp_path, cluster):
    timer = threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        search(trainings.saving, cluster, minutes=20, directory=tmp_path)
    study = search(trainings.saving, cluster, minutes=0.4, directory=tmp_path)
    for x, totals in curves(study).values():
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)])


def test_devices_that_are_not_there_are_refused(cluster):
    for options, message in (
        ({"device": "cuda"}, "the cluster has 0 GPUs and 3 nodes with a CPU: not 1 for 'cuda'"),
        ({"device_count": 4}, "not 4 for 'cpu'"),
        ({"device": "cuda:1"}, "on a cluster a device is auto, cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            search(trainings.saving, cluster, **options)


@pytest.mark.nightly
def test_when_the_last_node_is_gone_the_search_ends_with_that(tmp_path, cluster):
    nodes = list(cluster.worker_nodes)
    seen = []

    def kill_all():
        seen.append(None)
        if len(seen) > 10:
            while nodes:
                kill(nodes.pop(), cluster)

    with pytest.raises(WorkerStartError, match="no device of the cluster is left"):
        search(trainings.saving, cluster, minutes=5, directory=tmp_path, on_change=kill_all)


def curves_of(folder):
    """The scores of a race's trials, epoch by epoch, by the setting and which training of it."""
    with closing(Store(folder / "study.sqlite", create=False)) as store:
        trials = [t for row in store.runs() for t in store.trials(row) if t.config and t.curve]
    return {tuple(t.config.values()): t.curve for t in trials if t.confirms is None}


@pytest.fixture
def images(tmp_path):
    """A user's own, which take no torchvision to read: nodes that wait for imports cost minutes."""
    with np.load(SAMPLE, allow_pickle=False) as file:
        arrays = {name: file[name][:1500] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


def few_networks(images, folder):
    """A race that ends with its six settings, however slowly the nodes start."""
    knobs = ["learning_rate=0.01,0.03,0.1", "weight_decay=1e-5,1e-3"]
    asked = [word for knob in knobs for word in ("--knob", knob)]
    asked += ["--epochs", 4, "--min-epochs", 1, "--slots", 1, "--budget-minutes", 10, "--quiet"]
    return [*asked, "--data", images, "--data-root", folder, "--device", "cpu"]


def test_networks_train_on_a_cluster_as_they_do_at_home(tmp_path, cluster, images):
    """ASHA moves them from node to node with their checkpoints; the winner is tested on one."""
    asked = [*few_networks(images, tmp_path / "data"), "--searchers", "random+asha"]
    away, home = tmp_path / "away", tmp_path / "home"
    for place in (["--cluster", cluster.address, "--out", away], ["--out", home]):
        result = tune_py(*asked, *place)
        assert result.exit_code == 0, result.stderr
    summary = summary_of(away)
    (run,) = summary["runs"]
    assert summary["device"].count("cpu:") == summary["slots"] == NODES
    assert run["trials"] == 6
    assert sum(run["ledger"].values()) == pytest.approx(run["minutes_spent"], abs=1e-12)
    assert 0.5 < run["test_score"] < 1
    known, found = curves_of(home), curves_of(away)
    assert known.keys() == found.keys()
    both = [(known[config], found[config]) for config in known]
    assert any(min(map(len, pair)) == 4 for pair in both)  # which went on from checkpoints
    for ours, theirs in both:
        n = min(len(ours), len(theirs))
        assert [o.score for o in ours[:n]] == [o.score for o in theirs[:n]]


@pytest.mark.nightly
def test_networks_outlive_the_node_that_they_train_on(tmp_path, cluster, images):
    victim = cluster.worker_nodes and next(iter(cluster.worker_nodes))
    out = tmp_path / "run"

    def kill_in_the_middle():
        while epochs_of(out) < 8:
            time.sleep(0.1)
        kill(victim, cluster)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    asked = [*few_networks(images, tmp_path / "data"), "--searchers", "random"]
    result = tune_py(*asked, "--cluster", cluster.address, "--out", out)
    assert not killer.is_alive()
    assert result.exit_code == 0, result.stderr
    (run,) = summary_of(out)["runs"]
    assert run["states"] == {"COMPLETED": 6}
    assert run["ledger"]["lost"] > 0
    assert sum(run["ledger"].values()) == pytest.approx(run["minutes_spent"], abs=1e-12)
    assert 0.5 < run["test_score"] < 1
    result = tune_py("--resume", out, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert summary_of(out)["runs"][0]["best_so_far"] == run["best_so_far"]


def test_a_program_runs_on_a_cluster(tmp_path, cluster):
    space, out = tmp_path / "space.toml", tmp_path / "run"
    space.write_text("[x]\noptions = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]\n")
    command = f"{sys.executable} {PROGRAM} train {{x}} {{checkpoint_dir}}"
    asked = ["--command", command, "--space", space, "--metric", "val_acc=([0-9.]+)", "--quiet"]
    asked += ["--searchers", "random", "--budget-minutes", 10, "--cluster", cluster.address]
    result = tune_py(*asked, "--out", out)
    assert result.exit_code == 0, result.stderr
    summary = summary_of(out)
    assert summary["slots"] == NODES
    assert summary["runs"][0]["states"] == {"COMPLETED": 6}
    logs = [p.read_text() for p in (out / "checkpoints").glob("device-*.log")]
    assert all("val_acc=" in text for text in logs)
    assert len(logs) == NODES


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path):
    where = ["--cluster", "127.0.0.1:1", "--out", tmp_path / "run"]
    code = f"from tests.scripts.command_line import tune; r = tune(*{[str(w) for w in where]})"
    code += "; print(r.exit_code, r.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("2 tune: there is no Ray cluster at '127.0.0.1:1': ")
    assert not (tmp_path / "run").exists()


def test_a_host_that_is_polled_while_it_closes_starts_no_worker_anew():
    host = Host(partial(WorkerPool, per_device=2), setup_of(trainings.saving))
    started = host.start()
    with ThreadPoolExecutor() as pool:
        polls = pool.submit(poll_until_it_is_closed, host, said := [])
        time.sleep(0.1)
        logs = host.close()
        polls.result(10)
    assert (len(logs), [m["is"] for m in started.ready], said) == (2, ["ready", "ready"], [])


@pytest.fixture
def host():
    found = Host(partial(WorkerPool, per_device=1), setup_of(trainings.saving))
    found.start()
    yield found
    found.close()


def setup_of(train):
    return Workers("cpu").setup(locate(train), 1, Path("unused"))


def order(job, goes_on_from=None):
    about = {"key": "k", "number": job, "config": {"x": 0.5}, "seed": 1, "until": 1, "place": 0}
    return {"do": "train", "id": job, "epoch": 0, "from": goes_on_from, **about}


def said_by(host):
    while not (said := host.poll(5.0)):
        pass
    return said


def test_a_host_says_what_it_cannot_do(host, monkeypatch):
    host.give(0, 0, order(1, ["k-gone.checkpoint", "0" * 64]), {})
    ((index, message, files),) = said_by(host)
    assert (index, message["is"], message["job"], files) == (0, "unusable", 1, {})
    assert "did not come along" in message["reason"]

    def refused(*_):
        raise CannotWriteError("/there", 28, "No space left on device")

    monkeypatch.setattr("tuner.workers.host.write_files", refused)
    host.give(0, 0, order(2, ["k.checkpoint", "0" * 64]), {"file": b"data"})
    ((_, message, _),) = said_by(host)
    assert (message["is"], message["path"], message["number"]) == ("unwritable", "/there", 28)


def test_what_is_meant_for_a_worker_that_died_does_not_reach_the_next(host):
    os.kill(host._pool.workers[0].process.pid, signal.SIGKILL)
    while not any(message["is"] == "died" for _, message, _ in said_by(host)):
        pass
    while not host._pool.workers[0].is_ready:
        host.poll(5.0)
    host.give(0, 0, order(1), {})
    host.set_words(0, 0, {YIELD: 7})
    assert host._pool.workers[0].jobs == {}
    assert host._pool.workers[0].block.words[YIELD] == 0
    host.give(0, 1, order(2), {})
    ((_, message, files),) = said_by(host)
    assert (message["is"], message["job"], message["ends"]) == ("epoch", 2, True)
    assert files

    name, sha256 = message["checkpoint"]
    host.give(0, 1, {**order(3, [name, sha256]), "epoch": 1, "until": 2}, files)
    ((_, message, _),) = said_by(host)
    assert (message["is"], message["job"]) == ("epoch", 3)
    assert not list(host._pool.setup.directory.glob("*.checkpoint"))  # the driver has them


def test_what_a_disk_refused_is_said_in_another_process_as_well():
    error = CannotWriteError("/there", 28, "No space left on device")
    again = copy(error)  # as pickle makes it
    assert (str(again), again.path, again.number) == (str(error), "/there", 28)


@pytest.mark.nightly
def test_a_host_that_says_nothing_is_given_up(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("tuner.workers.cluster._SILENT_S", 2.0)
    stopped = []

    def stop_one():
        if not stopped:
            found = subprocess.run(["pgrep", "-f", "ray::Host"], capture_output=True, text=True)
            stopped.append(int(found.stdout.split()[0]))
            os.kill(stopped[0], signal.SIGSTOP)

    study = search(trainings.saving, cluster, minutes=1, directory=tmp_path, on_change=stop_one)
    assert stopped
    assert 0.9 < study.minutes_spent < 1 + 0.1 * NODES / 60
    assert any(t.state is TrialState.COMPLETED for t in study.trials)
    assert not [t for t in study.trials if t.state is TrialState.FAILED]


def poll_until_it_is_closed(host, said):
    while not host._is_closed:
        said += [message for _, message, _ in host.poll(5.0)]


def test_a_device_that_is_gone_is_held_no_more():
    meter = DeviceMeter(100)
    meter.claim(1, 110)
    meter.end(150)
    assert meter.held_at(1000) == meter.held_ns == 50
    assert meter.drop(1, 1000) == 40
    meter.advance(2000)
    assert (meter.held_ns, meter.take_idle()) == (50, 10)
