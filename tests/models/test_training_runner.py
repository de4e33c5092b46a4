"""Workers that really train: crashes, interruptions, deadlines, and who pays for them."""

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from models.data import prepare
from models.knobs import make_space
from models.layout import Layout
from models.pool import TrainingPool, TrainingSetup, accuracy_on_test
from tuner.budget import Budget, Kind, to_ns
from tuner.fidelity import Asha, Done, FullFidelity, Halving, Sample
from tuner.files import CannotWriteError
from tuner.history import History
from tuner.scheduler import MAX_FAULTS, Recorder, Scheduler
from tuner.searchers import make_searcher
from tuner.trial import Checkpoint, TrialState
from tuner.workers.control import PROGRESS, ControlBlock
from tuner.workers.devices import find_devices
from tuner.workers.pool import PooledWorker
from tuner.workers.runner import WorkerRunner

EPOCHS = 4
SPACE = make_space(["learning_rate", "dropout"], ["learning_rate=0.003:0.1:log"])


@pytest.fixture(scope="module")
def setup(small_data, tmp_path_factory):
    prepare("fashion_mnist", small_data)
    return TrainingSetup(
        devices=("cpu",),
        slots=2,
        data="fashion_mnist",
        root=small_data,
        epochs=EPOCHS,
        augment=True,
        directory=tmp_path_factory.mktemp("run"),
    )


@pytest.fixture(scope="module")
def pool(setup):
    with TrainingPool(setup) as pool:
        assert pool.start() > 0
        yield pool


class AtMost:
    def __init__(self, trials):
        self._trials = trials

    def next_action(self, history):
        return Sample(EPOCHS) if len(history) < self._trials else Done()


def search(pool, key, *, policy, minutes=10.0, space=SPACE, seed=0, on_change=lambda: None):
    return Scheduler(
        make_searcher("random", space, seed),
        policy,
        WorkerRunner(pool, key),
        History(EPOCHS, to_ns(minutes)),
        Recorder(Budget(to_ns(minutes))),
        seed=seed,
        on_change=on_change,
    )


def numbers(worker):
    """The trials that a worker has."""
    return {job.trial.number for job in worker.jobs.values()}


def curves(scheduler):
    return [[(o.score, o.metrics) for o in t.curve] for t in scheduler.history]


@pytest.fixture(scope="module")
def twin(pool):
    """Four full trainings that nothing disturbed."""
    scheduler = search(pool, "twin", policy=AtMost(4))
    scheduler.run()
    assert [t.state for t in scheduler.history] == [TrialState.COMPLETED] * 4
    return scheduler


def test_the_ledger_is_the_time_held_and_every_epoch_is_in_it(twin):
    ledger = twin.budget.ledger
    paid = sum(o.device_ns for t in twin.history for o in t.curve)
    assert ledger[Kind.TRAIN] + ledger[Kind.EVALUATE] + ledger[Kind.CHECKPOINT] == paid
    assert ledger[Kind.LOST] == 0
    assert sum(ledger.values()) == twin.budget.spent_ns
    ends = sorted(o.at_ns for t in twin.history for o in t.curve)
    assert ends[-1] == twin.budget.spent_ns  # the device is held until the last epoch ended


def test_training_is_repeated_to_the_bit_on_a_cpu(pool, twin):
    again = search(pool, "again", policy=AtMost(4))
    again.run()
    assert curves(again) == curves(twin)
    assert [t.config for t in again.history] == [t.config for t in twin.history]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_costs_at_most_its_epoch_in_flight(pool, twin, number):
    killed = []

    def on_change():
        trial = scheduler.history.trials[0] if len(scheduler.history) else None
        if not killed and trial is not None and trial.epoch == 2:
            worker = next(
                w for w in pool.workers if any(j.trial.number == 0 for j in w.jobs.values())
            )
            os.kill(worker.process.pid, number)
            killed.append(worker.process.pid)

    scheduler = search(pool, f"killed-{number}", policy=AtMost(4), on_change=on_change)
    scheduler.run()
    assert killed
    assert curves(scheduler) == curves(twin)
    assert scheduler.history[0].faults == 1
    assert [t.state for t in scheduler.history] == [TrialState.COMPLETED] * 4
    assert killed[0] not in {w.process.pid for w in pool.workers}
    ledger = scheduler.budget.ledger
    assert ledger[Kind.WARM_UP] > 0  # the new worker's start
    last = max(o.at_ns for t in scheduler.history for o in t.curve)
    assert scheduler.budget.spent_ns == last  # the ledger is the time held


def test_a_trial_whose_workers_keep_dying_fails_with_the_reason(pool):
    killed = []

    def on_change():
        for worker in pool.workers:
            if worker.jobs and worker.process.pid not in killed:
                killed.append(worker.process.pid)
                os.kill(worker.process.pid, signal.SIGKILL)

    scheduler = search(pool, "doomed", policy=AtMost(1), on_change=on_change)
    scheduler.run()
    (trial,) = scheduler.history
    assert trial.state is TrialState.FAILED
    assert trial.faults == MAX_FAULTS + 1
    assert "SIGKILL" in trial.reason
    assert scheduler.history.best is None


def test_an_interruption_loses_nothing_not_even_half_an_epoch(pool, setup, twin):
    parts = []
    changes = [0]

    def on_change():
        changes[0] += 1
        if changes[0] == 5:
            first.interrupt()

    first = search(pool, "interrupted", policy=AtMost(4), on_change=on_change)
    first.run()
    assert not first.finished
    broken_off = [t for t in first.history if t.state is TrialState.PAUSED]
    assert broken_off
    assert all(t.checkpoint is not None for t in broken_off)
    parts.append(first.budget.spent_ns)
    assert first.budget.ledger[Kind.LOST] == 0
    for worker in pool.workers:  # what a new driver's workers would begin with
        worker.block.words[1] = 0
    second = Scheduler(
        make_searcher("random", SPACE, 0),
        AtMost(4),
        WorkerRunner(pool, "interrupted"),
        first.history,
        Recorder(first.budget),
        seed=0,
    )
    second.run()
    assert curves(second) == curves(twin)
    assert [t.config for t in second.history] == [t.config for t in twin.history]
    assert sum(o.device_ns for t in second.history for o in t.curve) == sum(
        ns for kind, ns in second.budget.ledger.items() if kind is not Kind.SEARCH
    )


def test_turns_end_with_an_epoch_and_change_no_result(pool, twin):
    scheduler = search(pool, "turns", policy=AtMost(4))
    turns = 0
    while not scheduler.finished:
        scheduler.run(turn_ns=to_ns(0.002))
        turns += 1
        assert not scheduler.in_flight
        assert turns < 100
    assert turns > 1
    assert curves(scheduler) == curves(twin)


def test_the_budget_ends_a_training_at_a_batch(pool):
    scheduler = search(pool, "budget", policy=FullFidelity(), minutes=0.02)
    scheduler.run()
    longest = max(o.device_ns for t in scheduler.history for o in t.curve)
    overspent = -scheduler.budget.remaining_ns
    # One batch is a fourteenth of an epoch here; a whole epoch is slack for a busy machine.
    assert -longest < overspent < longest
    assert all(t.state in (TrialState.COMPLETED, TrialState.PAUSED) for t in scheduler.history)


def test_a_loss_that_is_not_finite_makes_the_trial_infeasible(pool):
    space = make_space([], ["learning_rate=1e30:1e31"])
    scheduler = search(pool, "diverged", policy=AtMost(2), space=space)
    scheduler.run()
    for trial in scheduler.history:
        assert trial.state is TrialState.INFEASIBLE
        assert trial.reason == "the loss is not finite"


def test_a_damaged_checkpoint_is_never_gone_on_from(pool, setup):
    scheduler = search(pool, "damaged", policy=AtMost(1))
    scheduler.run(turn_ns=1)  # one epoch, then the end of the turn
    (trial,) = scheduler.history
    path = setup.directory / trial.checkpoint.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    scheduler.run()
    assert scheduler.history[0].state is TrialState.FAILED
    assert "is damaged" in scheduler.history[0].reason


def test_only_the_winners_checkpoint_is_kept(pool, setup, twin):
    kept = sorted(p.name for p in setup.directory.glob("twin-*.safetensors"))
    assert kept == [twin.history.best.checkpoint.name]


class FirstFour:
    """A policy that gets no more than four trials, so that its twin has them all."""

    def __init__(self, policy):
        self._policy = policy

    def next_action(self, history):
        action = self._policy.next_action(history)
        return Done() if isinstance(action, Sample) and len(history) == 4 else action


@pytest.mark.parametrize("policy", [Asha, Halving.successive])
def test_a_promoted_trial_goes_on_to_the_bit_as_if_it_had_never_waited(pool, setup, twin, policy):
    key = f"promoted-{policy.__name__}"
    counts = []

    def on_change():
        files = len(list(setup.directory.glob(f"{key}-*.safetensors")))
        # Of each unfinished trial one, and of the best that ended; a worker may be ahead by one.
        counts.append(files - len(scheduler.history.running) - len(pool.workers))

    policy = FirstFour(policy((1, 2, 4), 2))
    scheduler = search(pool, key, policy=policy, on_change=on_change)
    scheduler.run()
    ends = sorted(t.epoch for t in scheduler.history)
    assert ends[0] == 1
    assert ends[-1] == EPOCHS
    assert all(end in (1, 2, 4) for end in ends)
    for trial, straight in zip(scheduler.history, twin.history, strict=True):
        assert (trial.config, trial.seed) == (straight.config, straight.seed)
        for mine, its in zip(trial.curve, straight.curve, strict=False):
            assert (mine.score, mine.metrics) == (its.score, its.metrics)
    ledger = scheduler.budget.ledger
    assert ledger[Kind.CHECKPOINT] > 0
    assert ledger[Kind.LOST] == 0
    assert sum(ledger.values()) == scheduler.budget.spent_ns
    paid = sum(o.device_ns for t in scheduler.history for o in t.curve)
    assert ledger[Kind.TRAIN] + ledger[Kind.EVALUATE] + ledger[Kind.CHECKPOINT] == paid
    assert max(counts) <= 1
    best = scheduler.history.best
    needed = {t.checkpoint.name for t in [*scheduler.history.running, best]}
    ended = [t for t in scheduler.history.finished if t.checkpoint]
    top = max(ended, key=lambda t: (t.score, -t.number))
    kept = {p.name for p in setup.directory.glob(f"{key}-*.safetensors")}
    assert kept == needed | {top.checkpoint.name}
    if isinstance(policy._policy, Halving):
        assert ends == [1, 1, 2, 4]
        assert len(kept) == 1
    assert 0.5 < accuracy_on_test(pool, best) < 1.0


def test_the_winner_is_tested_on_images_that_no_training_saw(pool, twin):
    score = accuracy_on_test(pool, twin.history.best)
    assert 0.5 < score < 1.0
    assert accuracy_on_test(pool, twin.history.best) == score


def test_a_winner_whose_checkpoint_is_gone_takes_no_other_test_down(pool, twin):
    best = twin.history.best
    gone = replace(best, checkpoint=Checkpoint("gone.safetensors", "0"))
    with pytest.raises(ValueError, match=r"could not be tested: checkpoint gone\.safetensors"):
        accuracy_on_test(pool, gone)
    assert 0.5 < accuracy_on_test(pool, best) < 1.0


def test_a_worker_that_dies_at_the_end_of_the_budget_is_not_waited_for(setup, tmp_path):
    alone = replace(setup, slots=1, directory=tmp_path)
    with TrainingPool(alone) as pool:
        pool.start()
        killed = []

        def on_change():
            if not killed and scheduler.budget.spent_ns > to_ns(0.02):
                killed.append(True)
                pool.workers[0].process.kill()

        policy = FullFidelity()
        scheduler = search(pool, "end", policy=policy, minutes=0.03, on_change=on_change)
        scheduler.run()
        longest = max(o.device_ns for t in scheduler.history for o in t.curve)
        # Starting a worker takes seconds; the budget had under one left.
        assert -scheduler.budget.remaining_ns < 5 * longest + to_ns(0.01)


def test_a_full_disk_is_not_the_trials_fault(setup, tmp_path):
    alone = replace(setup, slots=1, directory=tmp_path)
    with TrainingPool(alone, Layout(1)) as pool:
        pool.start()
        limit = (1000, resource.RLIM_INFINITY)  # no larger file than this, a checkpoint neither
        resource.prlimit(pool.workers[0].process.pid, resource.RLIMIT_FSIZE, limit)
        scheduler = search(pool, "full", policy=AtMost(1))
        with pytest.raises(CannotWriteError, match=r"full-00000-00001-.*: the disk is full \("):
            scheduler.run()
        (trial,) = scheduler.history
        assert (trial.state, trial.faults, trial.curve) == (TrialState.RUNNING, 0, ())
        assert not list(tmp_path.glob(".*.tmp"))


def test_workers_die_with_their_driver(small_data, tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from models.pool import TrainingPool, TrainingSetup\n"
        f"here = Path({str(tmp_path)!r})\n"
        "setup = TrainingSetup(devices=('cpu',), slots=2, data='sample', root=here, epochs=3,"
        " directory=here)\n"
        "pool = TrainingPool(setup)\n"
        "pool.start()\nprint(*[w.process.pid for w in pool.workers], flush=True)\ntime.sleep(60)"
    )
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    )
    workers = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(workers) == 2
    assert all(is_alive(pid) for pid in workers)
    driver.kill()
    driver.wait()
    for _ in range(100):
        if not any(is_alive(pid) for pid in workers):
            break
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in workers)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_is_given_the_time_for_which_the_driver_itself_stood_still(tmp_path, monkeypatch):
    clock = [10**12]
    monkeypatch.setattr("tuner.workers.pool.time.monotonic_ns", lambda: clock[0])
    setup = TrainingSetup(
        devices=("cpu",), slots=1, data="sample", root=tmp_path, epochs=1, directory=tmp_path
    )
    pool = TrainingPool(setup, Layout(1))
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    worker = PooledWorker(0, 0, process, None, ControlBlock(), is_ready=True, jobs={1: None})
    worker.busy_since = worker.block.words[PROGRESS] = clock[0]
    pool.workers.append(worker)

    def pass_and_look(*seconds):
        for passed in seconds:
            clock[0] += int(passed * 1e9)
            pool._look_after_all()
        return worker.is_hung

    try:
        assert not pass_and_look(3600)  # suspended, or stopped, with all its workers
        assert not pass_and_look(*[4.0] * 13)
        worker.block.words[PROGRESS] = clock[0]
        assert not pass_and_look(*[6.0] * 12)  # of each a second was the driver's own
        assert pass_and_look(4.0)  # the minute is over
        assert process.wait(10) == -signal.SIGUSR1  # which a worker would dump its stacks for
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("wanted", ["gpu", "cpu:0", "cuda:x", "", "cuda:-1"])
def test_a_device_that_is_none_is_refused(wanted):
    with pytest.raises(ValueError, match="auto, cpu, cuda or cuda:N"):
        find_devices(wanted)


def test_no_gpu_where_one_was_asked_for(monkeypatch):
    monkeypatch.setattr("tuner.workers.devices._count_gpus", lambda: 0)
    assert find_devices("auto") == ["cpu"]
    with pytest.raises(ValueError, match="sees no CUDA GPU"):
        find_devices("cuda")
    monkeypatch.setattr("tuner.workers.devices._count_gpus", lambda: 2)
    assert find_devices("auto") == find_devices("cuda") == ["cuda:0", "cuda:1"]
    assert find_devices("cuda:1") == ["cuda:1"]
    with pytest.raises(ValueError, match="there is no cuda:2"):
        find_devices("cuda:2")
