"""P6: setting the clock changes no charge, no lease and no decision."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from models.layout import Layout
from tests.helpers import SPACE
from tests.torture.campaign import Campaign, Found
from tests.torture.scripted import SECOND, Habits, ScriptedPool, WatchedRunner, World, quick_store
from tuner.entry import make_entry
from tuner.files import HeldElsewhereError
from tuner.race import enter
from tuner.reader import Snapshot
from tuner.seeding import derive_seed
from tuner.store import Store

EPOCHS = 4
DAY = 86_400 * SECOND
_REAL = time.time_ns
HABITS = Habits(
    batch=SECOND // 50,
    start=SECOND,
    tail=2.0,
    batches=5,
    scorings=1,
    life=60 * SECOND,
    thinking=20_000,
    broken=0.05,
)
JUMPS = {
    "a day forward": DAY,
    "a day back": -DAY,
    "an hour forward, as summer begins": DAY // 24,
    "an hour back, as it ends": -DAY // 24,
    "20 ms back": -SECOND // 50,
    "where it stands still": 0,
}


class WallClock:
    """The wall clock, which anybody may set."""

    def __init__(self) -> None:
        self._offset = 0
        self._stands_at: int | None = None
        self.jumps = 0

    def time_ns(self) -> int:
        """What it shows."""
        return _REAL() + self._offset if self._stands_at is None else self._stands_at

    def jump(self, how: str) -> None:
        """Set it."""
        now, self._stands_at = self.time_ns(), None
        self.jumps += 1
        self._offset += JUMPS[how]
        if not JUMPS[how]:
            self._stands_at = now

    @contextmanager
    def set(self) -> Iterator[None]:
        """The clock of this process, within the block."""
        with patch("time.time_ns", self.time_ns), patch("time.time", lambda: self.time_ns() / 1e9):
            yield


def jumps(n: int, seed: int) -> Found:
    """Studies whose wall clock jumps at every change, against the same ones in peace."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    done, study = 0, 0
    while done < n:
        peaceful, _ = _study(derive_seed(seed, "jumps", study), None, failures)
        clock = WallClock()
        with clock.set():
            found, refused = _study(derive_seed(seed, "jumps", study), clock, failures)
        if found != peaceful:
            failures.append(f"study {study} ends otherwise where the clock jumps")
        notes["second drivers refused"] += refused
        done, study = done + clock.jumps, study + 1
    return Found(done, tuple(failures), {"studies": study, **notes})


def _study(seed: int, clock: WallClock | None, failures: list[str]) -> tuple[object, int]:
    """All that a simulated study comes to, and how often a second driver was refused."""
    generator = np.random.default_rng(seed)
    world, refused = World(HABITS, generator), 0
    with tempfile.TemporaryDirectory() as folder, world.clock():
        path = Path(folder, "study.sqlite")
        store = quick_store(path, create=True)
        row = store.add_run("random+asha", 0, SPACE, EPOCHS, 8 * SECOND)
        store.commit()
        pool = ScriptedPool(world, Layout(2), 1, Path(folder))
        changes = 0

        def on_change() -> None:
            nonlocal changes, refused
            changes += 1
            if clock is None:
                return
            how = list(JUMPS)[changes % len(JUMPS)]
            clock.jump(how)
            if changes % 10 == 0:
                try:
                    Store(path, create=False).close()
                    failures.append(f"a clock set {how} cost a driver its lease")
                except HeldElsewhereError:
                    refused += 1

        searcher, policy = make_entry("random+asha", SPACE, 0, epochs=EPOCHS, min_epochs=1)
        runner = WatchedRunner(pool, "run")
        run = enter(
            store, row, searcher, runner, policy=policy, is_replay=False, on_change=on_change
        )
        run.scheduler.run()
        pool.close()
        store.close()
        if clock is not None:
            failures += _unreadable(path)
        return (run.scheduler.history.trials, dict(run.recorder.budget.ledger)), refused


def _unreadable(path: Path) -> list[str]:
    """Whoever reads a study waits a moment longer at most, whatever the time."""
    found = []
    for how in JUMPS:
        clock = WallClock()
        clock.jump(how)
        with clock.set():
            try:
                Snapshot(path).close()
            except ValueError as error:
                found.append(f"a clock set {how}: {error}")
    return found


CAMPAIGNS = (
    Campaign(
        "P6",
        "a wall clock that is set, at every change of a study, moves no charge and no lease",
        jumps,
        nightly=2_000,
        short=200,
    ),
)
