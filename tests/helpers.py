"""What several test files share: a landscape of random costs, and a search on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress

import numpy as np

from landscapes.replay_runner import ReplayRunner
from tuner.budget import Budget
from tuner.fidelity import FullFidelity
from tuner.history import History
from tuner.scheduler import Recorder, Scheduler
from tuner.schema import COLUMNS, checksum
from tuner.searchers import make_searcher
from tuner.seeding import derive_seed
from tuner.space import Float, SearchSpace

SPACE = SearchSpace(x=Float(0.0, 1.0), y=Float(0.0, 1.0))


class RandomCosts:
    """Scores and whole-nanosecond costs that are a function of the configuration."""

    name = "random-costs"
    space = SPACE

    def __init__(self, epochs=4, highest_ns=50, equal=False):
        self.epochs, self._highest, self._equal = epochs, highest_ns, equal

    def curve(self, config, replicate, repeat=0):
        path = [*map(repr, config.values()), *([repeat] if repeat else [])]
        generator = np.random.default_rng(derive_seed(replicate, *path))
        costs = generator.integers(1, self._highest + 1, self.epochs)
        if self._equal:
            costs[:] = self._highest
        return generator.random(self.epochs), costs / 1e9


def search(landscape, *, budget_ns, slots=1, seed=0, name="random", on_change=lambda: None):
    """A scheduler in memory, ready to run on a landscape."""
    history = History(landscape.epochs, budget_ns)
    return Scheduler(
        make_searcher(name, landscape.space, seed),
        FullFidelity(),
        ReplayRunner(landscape, seed, slots),
        history,
        Recorder(Budget(budget_ns)),
        seed=seed,
        on_change=on_change,
    )


def alter(path, statement, *values):
    """Change rows of a study as another program would, with checksums that are right again."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement, values)
        set_checksums_right(db)
        db.commit()


def set_checksums_right(db):
    """Of every row of those tables of a study that are still there."""
    for table, names in COLUMNS.items():
        same = " AND ".join(f"{name} IS ?" for name in names)
        with suppress(sqlite3.Error):
            for row in db.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall():  # noqa: S608
                put = f"UPDATE {table} SET crc = ? WHERE {same}"  # noqa: S608
                db.execute(put, (checksum(row), *row))
