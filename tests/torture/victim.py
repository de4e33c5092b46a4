"""Searches that are there to be killed.

`python -m tests.torture.victim` forks one for every job that it reads, so that a kill costs
milliseconds and not the start of an interpreter. A search leaves in its folder the study, a file
`acks` with all that it was told to be on record, a line each, and a file `ran` with the device time
that it really used: of each epoch of a user's function, or of each hold of a pool.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from landscapes.replay_runner import ReplayRunner
from models.data import prepare
from models.knobs import make_space
from models.layout import Layout
from models.pool import TrainingPool, TrainingSetup
from tests.helpers import SPACE, RandomCosts
from tests.small_data import write_small_data
from tuner import failpoints
from tuner.entry import make_entry
from tuner.fidelity import Done, Sample
from tuner.history import HistoryView
from tuner.race import enter
from tuner.runner import Event, Runner
from tuner.search import tune
from tuner.searchers import make_searcher
from tuner.seeding import derive_seed
from tuner.space import Choice, SearchSpace
from tuner.store import Store
from tuner.workers.pool import PooledWorker
from tuner.workers.runner import WorkerRunner

ROOT = Path(__file__).parents[2]
EPOCHS, TRIALS, WORKERS = 4, 6, 2
REPLAY_NS = 1_000
FINITE = SearchSpace(x=Choice((1, 2, 3)), y=Choice((1, 2)))
HOUR_NS = 3_600_000_000_000

STUB = "tests.torture.stub_worker"
_WRAPPER = """#!/bin/sh
for token in "{tokens}"/?; do
    if mv "$token" "$token.$$" 2>/dev/null; then
        export TUNER_FAILPOINT="$(cat "$token.$$")"
        break
    fi
done
exec "{python}" -m {module} "$3" "$4"
"""


@dataclass(frozen=True)
class Job:
    """A search, and how it is struck.

    Attributes:
        what: `replay`, `function`, `training` on worker processes that are stubs, or `real`.
        failpoint: of the driver, as TUNER_FAILPOINT has it.
        worker_failpoints: of its workers; each of them that starts takes one that is left.
        after_s: when the driver is killed, counted from its fork.
        worker_after_s: when its first worker is, counted from when all are ready.
        counting: write to `visits` how often each place was reached.
    """

    what: str
    folder: str
    seed: int
    failpoint: str | None = None
    worker_failpoints: tuple[str, ...] = ()
    after_s: float | None = None
    worker_after_s: float | None = None
    counting: bool = False


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """In memory where there is such a place: what a kill leaves there it leaves on a disk too."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


class Zygote:
    """The process that forks victims. A context manager."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, job: Job) -> int:
        """Run a victim to its end; its exit code, below zero where a signal killed it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def main() -> None:
    """Fork a victim for each job on the standard input, and say how it ended."""
    for line in sys.stdin:
        fields = json.loads(line)
        job = Job(**{**fields, "worker_failpoints": tuple(fields["worker_failpoints"])})
        pid = os.fork()
        if pid == 0:
            _be_victim(job)
        if job.after_s is not None:
            time.sleep(job.after_s)
            os.kill(pid, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _be_victim(job: Job) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    visits: Counter[str] = Counter()
    code = 1
    try:
        if job.counting:
            failpoints.watch(lambda place: visits.update([place.value]))
        elif job.failpoint is not None:
            os.environ[failpoints.VARIABLE] = job.failpoint
        _SEARCHES[job.what](job)
        if job.counting:
            Path(job.folder, "visits").write_text(json.dumps(visits))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Acks:
    """Writes down what a driver was told to be on record; a write that no kill takes back."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._known: set[tuple[object, ...]] = set()

    def add(self, *row: object) -> None:
        """One row."""
        if row not in self._known:
            self._known.add(row)
            os.write(self._fd, (json.dumps(row) + "\n").encode())


def _search(
    job: Job,
    runner: Runner,
    name: str,
    space: SearchSpace,
    *,
    budget_ns: int,
    trials: int | None = None,
) -> None:
    """Begin a search on a file, or go on with it: a replay, or so many real trials."""
    path, acks = Path(job.folder, "study.sqlite"), Acks(Path(job.folder))
    store = Store(path, create=not path.exists())
    rows = store.runs() or [store.add_run(name, job.seed, space, EPOCHS, budget_ns)]
    store.commit()
    if trials is None:
        searcher, policy = make_entry(name, space, job.seed, epochs=EPOCHS, min_epochs=1)
    else:
        searcher, policy = make_searcher(name, space, job.seed), _AtMost(trials)

    def note() -> None:
        for trial in run.scheduler.history:
            acks.add("trial", trial.number, json.dumps(dict(trial.config)))
            for o in trial.curve:
                acks.add("epoch", trial.number, o.epoch, o.score, o.device_ns, o.at_ns)

    is_replay = trials is None
    run = enter(
        store, rows[0], searcher, runner, policy=policy, is_replay=is_replay, on_change=note
    )
    run.scheduler.run()
    store.close()


def _replay(job: Job) -> None:
    runner = ReplayRunner(RandomCosts(EPOCHS), job.seed, slots=2)
    _search(job, runner, "random+asha", SPACE, budget_ns=REPLAY_NS)


def cost_of(config: dict[str, int], epoch: int) -> int:
    """Device time of an epoch of a user's function, in nanoseconds."""
    return int(np.random.default_rng([config["x"], config["y"], epoch]).integers(1, 1_000_000))


def _function(job: Job) -> None:
    """`tune` with a user's function, by a clock that moves only while the function runs."""
    now = 10**15
    time.monotonic_ns = lambda: now
    acks = Acks(Path(job.folder))
    ran = os.open(Path(job.folder, "ran"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def train(config: dict[str, int]) -> Iterator[float]:
        nonlocal now
        for epoch in range(1, EPOCHS + 1):
            cost = cost_of(config, epoch)
            os.write(ran, f"{cost}\n".encode())
            now += cost
            score = derive_seed(job.seed, config["x"], config["y"], epoch) / 2**64
            yield score
            acks.add("config", json.dumps(config), epoch, score, cost)  # asked for the next one

    tune(
        train,
        FINITE,
        budget_minutes=1000,
        searcher="random+asha",
        max_epochs=EPOCHS,
        min_epochs=1,
        seed=job.seed,
        directory=job.folder,
    )


class _AtMost:
    """So many full trainings."""

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def next_action(self, history: HistoryView) -> Sample | Done:
        return Sample(EPOCHS) if len(history) < self._trials else Done()


def _training(job: Job) -> None:
    """Trainings on worker processes: of CNNs, or on stubs, which need no PyTorch."""
    folder, is_real = Path(job.folder), job.what == "real"
    _be_started_by(folder, job.worker_failpoints, "models.worker" if is_real else STUB)
    workers, trials = (1, 2) if is_real else (WORKERS, TRIALS)
    space = make_space(["learning_rate", "dropout"], []) if is_real else SPACE
    if is_real and not (folder / "data").exists():
        _put_data(folder / "data")
    setup = TrainingSetup(
        devices=("cpu",),
        slots=workers,
        data="fashion_mnist",
        root=folder / "data",
        epochs=EPOCHS,
        directory=folder / "checkpoints",
    )
    if job.failpoint is not None:
        failpoints.watch(failpoints.Failpoint.parse(job.failpoint))
    os.environ.pop(failpoints.VARIABLE, None)  # which the workers would have too
    with _Pool(setup, Layout(workers)) as pool:
        pool.sweep(_named(folder))
        pool.start()
        if job.worker_after_s is not None:
            kill = pool.workers[0].process.kill
            threading.Timer(job.worker_after_s, kill).start()
        runner = _Runner(pool, "stub")
        _search(job, runner, "random", space, budget_ns=HOUR_NS, trials=trials)


def _put_data(root: Path) -> None:
    """Make a data root, whole or not at all."""
    making = root.with_name(f"data-{os.getpid()}")
    making.mkdir()
    prepare("fashion_mnist", write_small_data(making))
    making.rename(root)


class _Pool(TrainingPool):
    """Writes to `deaths` which workers were killed, and whether inside a write."""

    def cause_of_death(self, worker: PooledWorker) -> str:
        reason = super().cause_of_death(worker)
        pid, deaths = worker.process.pid, self.setup.directory.parent / "deaths"
        known = deaths.read_text() if deaths.exists() else ""
        if "SIGKILL" in reason and f"[{pid}, " not in known:
            is_in_write = any(self.setup.directory.glob(f".*.{pid}.tmp"))
            with open(deaths, "a") as file:
                file.write(json.dumps([pid, is_in_write]) + "\n")
        return reason


class _Runner(WorkerRunner):
    """Writes to `ran` how long it held its devices."""

    def release(self) -> list[Event]:
        meters = self._meters
        events = super().release()
        with open(self._pool.setup.directory.parent / "ran", "a") as file:
            file.write(f"{sum(meter.held_ns for meter in meters)}\n")
        return events


def _be_started_by(folder: Path, worker_failpoints: tuple[str, ...], module: str) -> None:
    """Have the pool start its workers as `module`, each with a failpoint while any is left."""
    tokens = folder / "failpoints"
    shutil.rmtree(tokens, ignore_errors=True)
    tokens.mkdir()
    for i, failpoint in enumerate(worker_failpoints):
        (tokens / str(i)).write_text(failpoint)
    wrapper = folder / "worker.sh"
    wrapper.write_text(_WRAPPER.format(tokens=tokens, python=sys.executable, module=module))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    sys.executable = str(wrapper)


def _named(folder: Path) -> set[str]:
    """The checkpoints that the study names."""
    if not (folder / "study.sqlite").exists():
        return set()
    store = Store(folder / "study.sqlite", create=False)
    try:
        trials = [t for row in store.runs() for t in store.trials(row)]
    finally:
        store.close()
    return {mark.name for t in trials for mark in (t.checkpoint, t.midway) if mark}


_SEARCHES = {
    "replay": _replay,
    "function": _function,
    "training": _training,
    "real": _training,
}

if __name__ == "__main__":
    main()
