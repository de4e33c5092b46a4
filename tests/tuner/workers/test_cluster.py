"""Workers on a real Ray cluster of several nodes, all on this machine, some of which are killed."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs Ray")

import ray
from ray.cluster_utils import Cluster

from tests.tuner.workers import trainings
from tests.tuner.workers.test_functions import HALVING, SPACE, charges, curves
from tuner import tune
from tuner.budget import Kind
from tuner.meter import DeviceMeter
from tuner.trial import TrialState
from tuner.workers.functions import Workers, locate
from tuner.workers.host import Host
from tuner.workers.pool import WorkerStartError

NODES = 3


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
    assert sum(t.faults for t in study.trials) <= 1
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


def test_a_host_that_is_polled_while_it_closes_starts_no_worker_anew():
    setup = Workers("cpu").setup(locate(trainings.saving), 1, Path("unused"))
    host = Host("cpu", 2, setup.to_json())
    host.start()
    with ThreadPoolExecutor() as pool:
        polls = pool.submit(poll_until_it_is_closed, host, said := [])
        while len(said) < 2:  # both are ready
            time.sleep(0.01)
        logs = host.close()
        polls.result(10)
    assert (len(logs), [m["is"] for m in said]) == (2, ["ready", "ready"])


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
