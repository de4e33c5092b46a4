"""P4: an interrupted study ends with the trials and scores of an uninterrupted one."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts
from tests.torture.campaign import Campaign, Found
from tests.torture.scripted import quick_store
from tuner.entry import DECIDES_ITSELF, make_entry
from tuner.fidelity import POLICIES
from tuner.race import Run, enter
from tuner.reader import RunRow
from tuner.searchers import SEARCHERS
from tuner.seeding import derive_seed
from tuner.space import Choice, Float, Int, SearchSpace
from tuner.store import Store

INTERRUPTIONS = (0, 1, 3, 10)
OF_OPTUNA = sorted(s for s, where in SEARCHERS.items() if "optuna" in where)
OWN = sorted(SEARCHERS.keys() - {*OF_OPTUNA, "vizier"})  # a proposal takes that one seconds
OPTUNAS = OF_OPTUNA if importlib.util.find_spec("optuna") else []
ENTRIES = tuple(
    f"{searcher}+{policy}" if searcher not in DECIDES_ITSELF else searcher
    for searcher in OWN + OPTUNAS
    for policy in (POLICIES if searcher not in DECIDES_ITSELF else ["full"])
)


class Mixed(RandomCosts):
    """Costs and scores at random; now and then a training breaks off."""

    space = SearchSpace(
        x=Float(0.0, 1.0), y=Float(1e-3, 1.0, log=True), n=Int(1, 9), a=Choice(("p", "q", None))
    )

    def curve(self, config: Any, replicate: int, repeat: int = 0) -> Any:
        """As its parent's; one in six breaks off at an epoch of its own."""
        scores, costs = super().curve(config, replicate, repeat)
        source = np.random.default_rng(derive_seed(replicate, *map(repr, config.values()), 1))
        if source.random() < 1 / 6:
            scores[source.integers(self.epochs) :] = np.nan
        return scores, costs


class Countable(Mixed):
    """The same on a finite space, which is used up."""

    space = SearchSpace(n=Int(1, 5), a=Choice(("p", "q", "r", True, 1)))


class Killed(Exception):
    """The driver is killed here."""


@dataclass(frozen=True)
class Twin:
    """A study to be run twice: once as it is, and once with interruptions."""

    entry: str
    landscape: RandomCosts
    slots: int
    budget_ns: int
    seed: int

    @classmethod
    def drawn(cls, entry: str, seed: int) -> Twin:
        """One for that entry."""
        source = np.random.default_rng(seed)
        slots = int(source.choice([1, 1, 3, 4, 12]))
        make = Countable if source.random() < 0.3 else Mixed
        landscape = make(int(source.choice([2, 4, 9])), 50, equal=bool(source.random() < 0.3))
        trials = 8 + 3 * slots // 2
        return cls(entry, landscape, slots, trials * 25 * landscape.epochs, seed)

    @property
    def row(self) -> RunRow:
        """As it is on record."""
        space, epochs = self.landscape.space, self.landscape.epochs
        return RunRow(1, self.entry, self.seed, space, epochs, self.budget_ns, 0, None, None)

    def run_in(self, store: Store | None, on_change: Callable[[], None] = lambda: None) -> Run:
        """Ready to run: in memory, or as a store has it."""
        row = self.row if store is None else store.runs()[0]
        searcher, policy = make_entry(
            row.searcher, row.space, row.seed, epochs=row.max_epochs, min_epochs=1
        )
        runner = ReplayRunner(self.landscape, self.seed, self.slots)
        return enter(
            store, row, searcher, runner, policy=policy, is_replay=True, on_change=on_change
        )


def outcome(run: Run) -> str:
    """All that a search came to, as text: proposals, curves, states, ledger and the best."""
    history, budget = run.scheduler.history, run.recorder.budget
    best = history.best
    return json.dumps(
        {
            "trials": [repr(trial) for trial in history],
            "ledger": {kind.value: ns for kind, ns in budget.ledger.items()},
            "best": None if best is None else best.number,
            "exhausted": history.is_exhausted,
            "finished": run.scheduler.finished,
        }
    )


def interrupted(twin: Twin, moments: list[int], folder: Path, notes: Counter[str]) -> str:
    """Its outcome where after so many commits each the driver is killed, or told to stop."""
    path, row = folder / "study.sqlite", twin.row
    store = quick_store(path, create=True)
    store.add_run(row.searcher, row.seed, row.space, row.max_epochs, row.budget_ns)
    store.commit()
    store.close()
    lives = (_life(twin, path, moment, notes) for moment in [*moments, 1 << 60])
    run = next(run for run in lives if run is not None and run.scheduler.finished)
    reread = quick_store(path, create=False)
    on_disk = reread.history(reread.runs()[0])
    reread.close()
    is_same = on_disk.trials == run.scheduler.history.trials
    return outcome(run) if is_same else "what is on disk is not what was in memory"


def _life(twin: Twin, path: Path, left: int, notes: Counter[str]) -> Run | None:
    """One driver, to its end: of the search, or after so many commits. None where it was killed."""
    store = quick_store(path, create=False)
    run, commit = twin.run_in(store), store.commit
    end = ("killed before a commit", "killed after a commit", "told to stop")[left % 3]

    def happen(**options: bool) -> None:
        nonlocal left
        left -= 1
        notes[end] += left == 0
        if left == 0 and end == "killed before a commit":
            raise Killed
        commit(**options)
        if left == 0 and end == "killed after a commit":
            raise Killed
        if left == 0:
            run.scheduler.interrupt()

    store.commit = happen  # type: ignore[method-assign, assignment]
    try:
        run.scheduler.run()
        store.close()
    except Killed:  # what kill -9 leaves: nothing that was not committed
        store._db.close()
        store._lock.release()
        return None
    return run


def twins(n: int, seed: int) -> Found:
    """Every entry in turn, with 0, 1, 3 and 10 interruptions, against its uninterrupted twin."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    for i in range(n):
        entry = ENTRIES[i % len(ENTRIES)]
        count = INTERRUPTIONS[i % 4]
        twin = Twin.drawn(entry, derive_seed(seed, "twins", i))
        alone = twin.run_in(None)
        alone.scheduler.run()
        source = np.random.default_rng(derive_seed(seed, "moments", i))
        most = max(3, 3 * len(alone.scheduler.history) // (count + 1))
        moments = [int(moment) for moment in source.integers(1, most, count)]
        with tempfile.TemporaryDirectory() as folder:
            found = interrupted(twin, moments, Path(folder), notes)
        notes["trials"] += len(alone.scheduler.history)
        if found != outcome(alone):
            failures.append(f"study {i}: {entry}, {twin.slots} slots, interrupted at {moments}")
    return Found(n, tuple(failures), dict(notes))


CAMPAIGNS = (
    Campaign(
        "P4",
        "an interrupted study ends as its uninterrupted twin, byte for byte",
        twins,
        nightly=50 * len(INTERRUPTIONS) * len(ENTRIES),
        short=25,  # all but Optuna's
    ),
)
