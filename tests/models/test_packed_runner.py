"""Workers that train packs: the same searches as with one trial at a time, to rounding."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import asdict
from multiprocessing.connection import Connection

import pytest
import torch

from models.data import prepare
from models.knobs import make_space
from models.layout import Layout
from models.packed import Pack
from models.pool import TrainingPool, TrainingSetup, accuracy_on_test
from models.worker import Worker
from tuner.budget import Budget, Kind, to_ns
from tuner.fidelity import Asha, Done, FullFidelity, Sample
from tuner.history import History
from tuner.scheduler import Recorder, Scheduler
from tuner.searchers import make_searcher
from tuner.trial import TrialState
from tuner.workers.control import DEADLINE, ControlBlock
from tuner.workers.messages import receive, send
from tuner.workers.runner import WorkerRunner

EPOCHS = 3
SPACE = make_space(["learning_rate", "momentum"], ["learning_rate=0.003:0.1:log"])
ALONE, PACKED = Layout(1), Layout(1, width=3)


@pytest.fixture(scope="module")
def pools(small_data, tmp_path_factory):
    """One pool that trains one trial at a time, and one with packs of three."""
    prepare("fashion_mnist", small_data)

    def pool(layout):
        folder = tmp_path_factory.mktemp("run")
        setup = TrainingSetup(
            devices=("cpu",),
            slots=None,
            data="fashion_mnist",
            root=small_data,
            epochs=EPOCHS,
            directory=folder,
        )
        return TrainingPool(setup, layout)

    with pool(ALONE) as alone, pool(PACKED) as packed:
        alone.start()
        packed.start()
        yield alone, packed


class AtMost:
    def __init__(self, trials, policy=None):
        self._trials, self._policy = trials, policy or FullFidelity()

    def next_action(self, history):
        action = self._policy.next_action(history)
        return Done() if isinstance(action, Sample) and len(history) >= self._trials else action


def search(pool, key, *, trials=7, policy=None, minutes=10.0, space=SPACE, on_change=None):
    return Scheduler(
        make_searcher("random", space, 0),
        AtMost(trials, policy),
        WorkerRunner(pool, key),
        History(EPOCHS, to_ns(minutes)),
        Recorder(Budget(to_ns(minutes))),
        seed=0,
        on_change=on_change or (lambda: None),
    )


@pytest.fixture(scope="module")
def twin(pools):
    scheduler = search(pools[0], "twin")
    scheduler.run()
    assert [t.state for t in scheduler.history] == [TrialState.COMPLETED] * 7
    return scheduler


def assert_same(scheduler, twin):
    """The same trials with the same curves, as far as single precision goes."""
    for trial, other in zip(scheduler.history, twin.history, strict=True):
        assert (trial.config, trial.seed) == (other.config, other.seed)
        losses = [[o.metrics["loss"] for o in t.curve] for t in (trial, other)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        scores = [[o.score for o in t.curve] for t in (trial, other)]
        assert scores[0] == pytest.approx(scores[1], abs=0.06)  # of 166 images


def assert_exact(scheduler):
    ledger = scheduler.budget.ledger
    assert sum(ledger.values()) == scheduler.budget.spent_ns
    paid = sum(o.device_ns for t in scheduler.history for o in t.curve)
    paid += sum(t.partial_ns for t in scheduler.history)
    assert ledger[Kind.TRAIN] + ledger[Kind.EVALUATE] + ledger[Kind.CHECKPOINT] == paid


def test_packs_train_the_same_trials_three_at_once(pools, twin):
    most = [0]
    scheduler = search(pools[1], "packed", on_change=lambda: most.append(len(scheduler.in_flight)))
    scheduler.run()
    assert [t.state for t in scheduler.history] == [TrialState.COMPLETED] * 7
    assert max(most) == 3
    assert_same(scheduler, twin)
    assert_exact(scheduler)
    assert scheduler.budget.ledger[Kind.LOST] == 0
    best = scheduler.history.best
    same = accuracy_on_test(pools[0], twin.history[best.number])
    assert accuracy_on_test(pools[1], best) == pytest.approx(same, abs=0.05)


def test_a_killed_worker_costs_its_trials_their_epochs_in_flight(pools, twin):
    killed = []

    def on_change():
        if not killed and len(scheduler.history) == 3 and scheduler.history[1].epoch == 1:
            killed.append(pools[1].workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    scheduler = search(pools[1], "killed", on_change=on_change)
    scheduler.run()
    assert killed
    assert_same(scheduler, twin)
    assert_exact(scheduler)
    # One of three may be at fault, so none is blamed: each was alone for an epoch without harm.
    assert sum(t.faults for t in scheduler.history) == 0
    assert scheduler.budget.ledger[Kind.WARM_UP] > 0


def test_an_interruption_saves_every_trial_in_the_middle_of_its_epoch(pools, twin):
    def on_change():
        if len(scheduler.history) == 4 and scheduler.history[3].clock is not None:
            scheduler.interrupt()

    scheduler = search(pools[1], "interrupted", on_change=on_change)
    scheduler.run()
    assert not scheduler.finished
    waiting = [t for t in scheduler.history if t.state is TrialState.PAUSED]
    assert waiting
    assert all(t.midway or t.checkpoint for t in waiting)
    assert scheduler.budget.ledger[Kind.LOST] == 0
    for worker in pools[1].workers:
        worker.block.words[1] = 0
    rest = Scheduler(
        make_searcher("random", SPACE, 0),
        AtMost(7),
        WorkerRunner(pools[1], "interrupted"),
        scheduler.history,
        Recorder(scheduler.budget),
        seed=0,
    )
    rest.run()
    assert_same(rest, twin)
    assert_exact(rest)


def test_promoted_trials_go_on_in_other_company(pools, twin):
    scheduler = search(pools[1], "asha", policy=Asha((1, 3), 2))
    scheduler.run()
    assert {t.epoch for t in scheduler.history} == {1, 3}
    for trial, other in zip(scheduler.history, twin.history, strict=True):
        losses = [o.metrics["loss"] for o in trial.curve]
        expected = [o.metrics["loss"] for o in other.curve[: len(losses)]]
        assert losses == pytest.approx(expected, rel=0.02)
    assert_exact(scheduler)


def test_turns_and_the_end_of_the_budget_end_every_trial_of_a_pack(pools):
    scheduler = search(pools[1], "turns", trials=50, minutes=0.03)
    while not scheduler.finished:
        scheduler.run(turn_ns=to_ns(0.005))
        assert not scheduler.in_flight
    assert_exact(scheduler)
    longest = max(o.device_ns for t in scheduler.history for o in t.curve)
    assert -scheduler.budget.remaining_ns < 3 * longest  # a share of the time is a third of it


def test_trials_that_diverge_and_shapes_that_differ_share_a_worker(pools):
    space = make_space(["layers", "dropout"], ["layers=1:3", "learning_rate=0.01:1e30:log"])
    scheduler = search(pools[1], "mixed", trials=9, space=space)
    scheduler.run()
    states = [t.state for t in scheduler.history]
    assert TrialState.COMPLETED in states
    assert TrialState.INFEASIBLE in states
    assert set(states) <= {TrialState.COMPLETED, TrialState.INFEASIBLE}
    for trial in scheduler.history:
        if trial.state is TrialState.INFEASIBLE:
            assert trial.reason == "the loss is not finite"
    assert_exact(scheduler)


# -- memory ----------------------------------------------------------------------------------------


class Driver:
    """Speaks with a worker that runs in a thread of this process."""

    def __init__(self, small_data, folder, layout):
        prepare("fashion_mnist", small_data)
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        self.block = ControlBlock()
        self.block.words[DEADLINE] = (1 << 63) - 1
        setup = {
            "device": "cpu",
            "data": "fashion_mnist",
            "root": str(small_data),
            "epochs": EPOCHS,
            "augment": False,
            "merged": False,
            "fetches": False,
            "directory": str(folder),
            "layout": asdict(layout),
        }
        send(self.connection, setup)
        worker = Worker(Connection(theirs.detach()), self.block)
        torch.set_flush_denormal(False)  # a worker's own process may keep it, the tests' may not
        self.thread = threading.Thread(target=worker.run)
        self.thread.start()
        assert receive(self.connection)["is"] == "ready"

    def train(self, job, **config):
        order = {"do": "train", "key": "k", "number": job, "seed": job, "from": None}
        send(
            self.connection,
            {**order, "config": config, "id": job, "place": job - 1, "until": EPOCHS},
        )

    def hear(self):
        assert self.connection.poll(60)
        return receive(self.connection)

    def close(self):
        self.connection.close()
        self.thread.join(60)


def test_a_pack_that_memory_does_not_hold_is_halved_and_no_trial_is_lost(
    small_data, tmp_path, monkeypatch
):
    widths = []
    compute = Pack._compute

    def scarce(self):
        widths.append(self.lanes)
        if self.lanes > 2:
            raise torch.OutOfMemoryError("no room for 4")
        compute(self)

    monkeypatch.setattr(Pack, "_compute", scarce)
    threads = torch.get_num_threads()
    driver = Driver(small_data, tmp_path, Layout(1, width=4))
    for job in range(1, 5):
        driver.train(job, learning_rate=0.02)
    ends = {}
    while len(ends) < 4:
        message = driver.hear()
        assert message["is"] == "epoch"
        if message["ends"]:
            ends[message["job"]] = message["score"]
    driver.train(5, learning_rate=0.02)
    assert driver.hear()["is"] == "epoch"
    driver.close()
    torch.set_num_threads(threads)
    assert 4 in widths
    assert max(widths[widths.index(4) + 1 :]) == 2


def test_scores_that_memory_does_not_hold_together_are_taken_in_parts(
    small_data, tmp_path, monkeypatch
):
    accuracy, counts = Pack.accuracy, []

    def scarce(self, lanes, split, halt):
        counts.append(len(lanes))
        if len(lanes) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return accuracy(self, lanes, split, halt)

    monkeypatch.setattr(Pack, "accuracy", scarce)
    threads = torch.get_num_threads()
    driver = Driver(small_data, tmp_path, Layout(1, width=3))
    for job in range(1, 4):
        driver.train(job, learning_rate=0.02)
    ends = set()
    while len(ends) < 3:
        message = driver.hear()
        assert message["is"] == "epoch"
        ends |= {message["job"]} if message["ends"] else set()
    driver.close()
    torch.set_num_threads(threads)
    assert max(counts) > 1


def test_where_memory_does_not_hold_a_wider_pack_another_narrow_one_is_made(
    small_data, tmp_path, monkeypatch
):
    enter, widths = Pack.enter, set()

    def scarce(self, *arguments):
        widths.add(self.lanes)
        if self.lanes > 1:
            raise torch.OutOfMemoryError("no room for two")
        return enter(self, *arguments)

    monkeypatch.setattr(Pack, "enter", scarce)
    threads = torch.get_num_threads()
    driver = Driver(small_data, tmp_path, Layout(1, width=2))
    driver.train(1, learning_rate=0.02)
    driver.train(2, learning_rate=0.03)
    ends = {}
    while len(ends) < 2:
        message = driver.hear()
        assert message["is"] == "epoch"
        if message["ends"]:
            ends[message["job"]] = message["score"]
    driver.close()
    torch.set_num_threads(threads)
    assert widths == {2}
    assert sorted(ends) == [1, 2]


def test_a_trial_for_which_there_is_no_memory_at_all_is_infeasible(
    small_data, tmp_path, monkeypatch
):
    def none(self, halt):
        raise torch.OutOfMemoryError("no room at all")

    monkeypatch.setattr("models.crew.Trainer.run_epoch", none)
    threads = torch.get_num_threads()
    driver = Driver(small_data, tmp_path, Layout(1))
    driver.train(1, width=32)
    message = driver.hear()
    driver.close()
    torch.set_num_threads(threads)
    assert (message["is"], message["job"]) == ("infeasible", 1)
    assert message["reason"] == "out of memory: no room at all"
