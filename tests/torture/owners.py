"""P3: one trial, one owner, however many drivers would like to be it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import seed as seeded
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts, search
from tests.torture.campaign import Campaign, Found
from tests.torture.lease import Lease
from tests.torture.scripted import quick_store
from tuner.files import HeldElsewhereError
from tuner.race import enter
from tuner.searchers import make_searcher
from tuner.seeding import derive_seed
from tuner.store import Store

DRIVERS = 8
LANDSCAPE = RandomCosts(3, 50)


def races(n: int, seed: int) -> Found:
    """Eight processes race for a study, the holder is stopped, woken and killed."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    for i in range(n):
        with tempfile.TemporaryDirectory() as folder:
            race = _Race(Path(folder), derive_seed(seed, "races", i), 200 if n >= 20 else 20)
            try:
                failures += [f"race {i}: {what}" for what in race.go()]
            finally:
                race.end()
            notes += race.notes
    return Found(n, tuple(failures), dict(notes))


class _Race:
    def __init__(self, folder: Path, seed: int, trials: int) -> None:
        self._folder, self._seed, self._budget_ns = folder, seed % 2**31, trials * 75
        self._generator = np.random.default_rng(seed)
        self._drivers: list[multiprocessing.process.BaseProcess] = []
        self._stopped: dict[int, float] = {}
        self.notes: Counter[str] = Counter()

    def go(self) -> list[str]:
        """What is wrong, in words."""
        store = quick_store(self._folder / "study.sqlite", create=True)
        store.add_run("random", self._seed, LANDSCAPE.space, LANDSCAPE.epochs, self._budget_ns)
        store.commit()
        store.close()
        for _ in range(DRIVERS):
            self._spawn()
        until = time.monotonic() + 120
        while any(d.is_alive() for d in self._drivers):
            if time.monotonic() > until:
                return ["it did not end within two minutes"]
            time.sleep(float(self._generator.exponential(0.04)))
            self._disturb()
        return self._compare()

    def _spawn(self) -> None:
        # Forked, for nothing has to be loaded; what a driver is does not depend on it.
        driver = multiprocessing.get_context("fork").Process(
            target=_drive, args=(self._folder, os.getpid())
        )
        driver.start()
        self._drivers.append(driver)

    def _disturb(self) -> None:
        """Stop, wake or kill whoever holds the study."""
        now = time.monotonic()
        for pid in [pid for pid, wake in self._stopped.items() if wake < now]:
            del self._stopped[pid]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        with suppress(OSError, ValueError):
            pid = int(json.loads((self._folder / "study.sqlite.lock").read_text())["pid"])
            holder = next((d for d in self._drivers if d.pid == pid and d.is_alive()), None)
            if holder is None or pid in self._stopped:
                return
            if self._generator.random() < 0.7:
                os.kill(pid, signal.SIGSTOP)
                self._stopped[pid] = now + float(self._generator.exponential(0.04))
                self.notes["stopped and woken"] += 1
            else:
                holder.kill()
                holder.join()
                self.notes["killed"] += 1
                self._spawn()

    def _compare(self) -> list[str]:
        twin = search(LANDSCAPE, budget_ns=self._budget_ns, seed=self._seed)
        twin.run()
        store = Store(self._folder / "study.sqlite", create=False)
        (row,) = store.runs()
        history, budget = store.history(row), store.budget(row)
        store.close()
        found = [path.read_text() for path in self._folder.glob("violation-*")]
        if history.trials != twin.history.trials:
            found.append("the trials are not those of one driver alone")
        if budget.ledger != twin.budget.ledger:
            found.append("the ledger is not that of one driver alone")
        self.notes["trials"] += len(history)
        self.notes["refused by name"] += len(list(self._folder.glob("refused-*")))
        return found

    def end(self) -> None:
        """Leave nobody behind."""
        for driver in self._drivers:
            driver.kill()
            driver.join()


def _drive(folder: Path, parent: int) -> None:
    """A driver that wants the study until it is finished."""
    owner, me = folder / "owner", os.getpid()
    while os.getppid() == parent:
        try:
            store = quick_store(folder / "study.sqlite", create=False)
        except HeldElsewhereError as error:
            if '"pid": ' in str(error):
                (folder / f"refused-{me}").touch()
            else:
                (folder / f"violation-{me}").write_text(f"the holder has no name: {error}")
            time.sleep(0.02)
            continue
        other = owner.read_text() if owner.exists() else ""
        if other and _lives(int(other)):
            (folder / f"violation-{me}").write_text(f"{other} and {me} own the study")
        owner.write_text(str(me))
        row = store.runs()[0]
        run = enter(
            store,
            row,
            make_searcher("random", row.space, row.seed),
            ReplayRunner(LANDSCAPE, row.seed),
            is_replay=True,
            on_change=lambda: time.sleep(0.0005),
        )
        run.scheduler.run()
        owner.unlink()
        store.close()
        return


def leases(n: int, seed: int) -> Found:
    """Opening, writing, closing, dying and a lock file that is removed, in any order."""
    try:
        run_state_machine_as_test(
            seeded(seed)(Lease),
            settings=settings(max_examples=n, stateful_step_count=20, deadline=None, database=None),
        )
    except (AssertionError, pytest.fail.Exception) as error:
        return Found(n, (f"{type(error).__name__}: {error}",))
    return Found(n)


def _lives(pid: int) -> bool:
    """Whether a process is there after a moment in which a dead one is buried."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True


CAMPAIGNS = (
    Campaign(
        "P3",
        "eight processes race for a study whose holder is stopped, woken and killed",
        races,
        nightly=20,
        short=1,
    ),
    Campaign(
        "P3",
        "drivers open, write, close, die and lose the lock's file in any order: one may write",
        leases,
        nightly=10_000,
        short=10,
    ),
)
