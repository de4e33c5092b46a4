"""What several test files share: a landscape of random costs, and a search on it."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing

import numpy as np

from landscapes.replay_runner import ReplayRunner
from models.data import SAMPLE
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


def write_small_data(root):
    """Fashion-MNIST of 1,200 + 300 real images, in the packed idx layout."""
    with np.load(SAMPLE, allow_pickle=False) as file:
        for part, prefix, n in (("train", "train", 1200), ("test", "t10k", 300)):
            for what, array in (
                ("images-idx3", file[f"{part}_images"][:n]),
                ("labels-idx1", file[f"{part}_labels"][:n]),
            ):
                head = b"\x00\x00\x08" + bytes([array.ndim])
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                packed = root / f"{prefix}-{what}-ubyte.gz"
                packed.write_bytes(gzip.compress(head + sizes + array.tobytes(), 1))


def alter(path, statement, *values):
    """Change rows of a study as another program would, with checksums that are right again."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement, values)
        for table, names in COLUMNS.items():
            same = " AND ".join(f"{name} IS ?" for name in names)
            for row in db.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall():  # noqa: S608
                put = f"UPDATE {table} SET crc = ? WHERE {same}"  # noqa: S608
                db.execute(put, (checksum(row), *row))
        db.commit()
