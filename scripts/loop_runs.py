"""Replays whose bookkeeping is measured: ours and Optuna's, and what a file system asks of both."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from landscapes.landscape import Curve
from landscapes.replay_runner import ReplayRunner
from tuner.entry import make_entry
from tuner.fidelity import Action, Done, FidelityPolicy, Sample
from tuner.history import HistoryView
from tuner.race import enter
from tuner.reader import RunRow
from tuner.space import Config, Float, SearchSpace
from tuner.store import Store

EPOCHS = 10
BATCH_S = 0.5
"""How far apart the commits of a replay are."""

_KINDS = ("memory", "batches", "every")
_RISE = 1 - np.exp(-3 * np.arange(1, EPOCHS + 1) / EPOCHS)
_SECONDS = np.full(EPOCHS, 6.0)


@dataclass(frozen=True)
class Job:
    """One replay, small enough to be sent to another process.

    Attributes:
        who: an entry as `tune.py` takes it, or `optuna`.
        trials: how many begin.
        keeps: where: in `memory`, or on disk with a commit every half second (`batches`) or
            before each next step (`every`); Optuna's journal knows the last alone.
        seed: of the searcher.
    """

    who: str
    trials: int
    keeps: str = "memory"
    seed: int = 0

    @property
    def name(self) -> str:
        """What all repeats of it have in common."""
        return f"{self.who} {self.trials} {self.keeps}"


class Formula:
    """A landscape that costs next to nothing: what is left of a replay's time is bookkeeping."""

    name, epochs = "formula", EPOCHS
    space = SearchSpace(learning_rate=Float(1e-4, 1.0, log=True), dropout=Float(0.0, 0.6))

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Score and device seconds of every epoch."""
        rate, dropout = float(config["learning_rate"]), float(config["dropout"])  # type: ignore
        return (1.0 - (rate**0.25 - 0.6) ** 2 - 0.1 * dropout) * _RISE, _SECONDS


class UpTo:
    """Has another policy decide until so many trials have begun."""

    def __init__(self, inner: FidelityPolicy, trials: int) -> None:
        self._inner, self._trials = inner, trials

    def next_action(self, history: HistoryView) -> Action:
        """What the other says, but no further trial."""
        action = self._inner.next_action(history)
        return Done() if isinstance(action, Sample) and len(history) >= self._trials else action


def measure(job: Job) -> dict[str, Any]:
    """Run it here, once a few trials have warmed the process up, and say what it took."""
    _measure(replace(job, trials=20, keeps="memory"))
    return _measure(job)


def _measure(job: Job) -> dict[str, Any]:
    # Here and not in /tmp, which may be in memory, where nothing waits for a disk.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        work = _optuna(job, Path(folder)) if job.who == "optuna" else _ours(job, Path(folder))
        with work as run:
            memory, written = _resident_bytes(), _written_bytes()
            began, began_cpu = time.perf_counter(), time.process_time()
            epochs = run()
            took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            found = {
                **asdict(job),
                "epochs": epochs,
                "wall_s": took,
                "cpu_s": took_cpu,
                "grown_bytes": _resident_bytes() - memory,
            }
        written = _written_bytes() - written
        path = Path(folder, "study.sqlite")
        if path.exists():
            commits = int.from_bytes(path.read_bytes()[24:28], "big")
            found |= {"commits": commits, "written_bytes": written}
            found["file_system_s"] = file_system_s(Path(folder), commits, written // commits)
    return found


def curves_s(trials: int) -> float:
    """CPU seconds of so many curves, which are no bookkeeping."""
    landscape = Formula()
    config = {"learning_rate": 0.1, "dropout": 0.3}
    began = time.process_time()
    for _ in range(trials):
        landscape.curve(config, 0)
    return time.process_time() - began


def file_system_s(folder: Path, commits: int, each_bytes: int) -> float:
    """Seconds that so many commits take by themselves, as a rollback journal has to write them.

    Half of what a commit writes goes to a journal and half to the file: each has to be on the
    disk before the next, the journal's header once more, and the journal's end after all.
    """
    flush: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # as SQLite has it
    half = bytes(max(1, each_bytes // 2))
    journal, file = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in "ab")
    began = time.perf_counter()
    for i in range(commits):
        os.pwrite(journal, half, 0)
        flush(journal)
        os.pwrite(journal, b"head", 0)
        flush(journal)
        os.pwrite(file, half, i * len(half))
        flush(file)
        os.ftruncate(journal, 0)
        flush(journal)
    took = time.perf_counter() - began
    os.close(journal)
    os.close(file)
    return took


@contextmanager
def _ours(job: Job, folder: Path) -> Iterator[Callable[[], int]]:
    if job.keeps not in _KINDS:
        raise ValueError(f"a replay is kept in {', '.join(_KINDS)}, got {job.keeps!r}")
    landscape = Formula()
    searcher, policy = make_entry(job.who, landscape.space, job.seed, epochs=EPOCHS)
    budget_ns = 1 << 60
    row = RunRow(1, job.who, job.seed, landscape.space, EPOCHS, budget_ns, 0, None, None)
    store = None
    if job.keeps != "memory":
        every_s = BATCH_S if job.keeps == "batches" else 0.0
        store = Store(folder / "study.sqlite", create=True, commit_every_s=every_s)
        row = store.add_run(job.who, job.seed, landscape.space, EPOCHS, budget_ns)
    run = enter(
        store,
        row,
        searcher,
        ReplayRunner(landscape, job.seed),
        policy=UpTo(policy, job.trials),
        is_replay=True,
        on_change=lambda: None,
    )

    def go() -> int:
        run.scheduler.run()
        if store is not None:
            store.commit(force=True)
        return run.scheduler.history.epochs_seen

    yield go
    if store is not None:
        store.close()


@contextmanager
def _optuna(job: Job, folder: Path) -> Iterator[Callable[[], int]]:
    """The same scores in Optuna: a report and a question after each epoch, as its users write."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    if job.keeps != "memory":
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=job.seed),
        pruner=optuna.pruners.NopPruner(),
    )
    landscape = Formula()

    def objective(trial: Any) -> float:
        config = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
            "dropout": trial.suggest_float("dropout", 0.0, 0.6),
        }
        scores = landscape.curve(config, 0)[0].tolist()
        for epoch, score in enumerate(scores, 1):
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(scores[-1])

    def go() -> int:
        study.optimize(objective, n_trials=job.trials)
        return job.trials * EPOCHS

    yield go


def _resident_bytes() -> int:
    """What this process has in memory now; where the system does not say, the most it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return pages * resource.getpagesize()


def _written_bytes() -> int:
    """What this process has given to the file system; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))
