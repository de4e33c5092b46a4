"""The lease of a study as a state machine, against a model that is right by sight."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.helpers import SPACE
from tests.torture.scripted import quick_store
from tuner.files import HeldElsewhereError
from tuner.trial import Trial

drivers = st.integers(0, 3)


class Lease(RuleBasedStateMachine):
    """Any driver may open a study that is free, and write while no other has written since."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(), "study.sqlite")
        with_run = quick_store(self.path, create=True)
        self.row = with_run.add_run("random", 0, SPACE, 2, 10**9)
        with_run.commit()
        with_run.close()
        self.stores, self.locker, self.late, self.written = {}, None, set(), []

    def teardown(self):
        for store in self.stores.values():
            store.close()
        store = quick_store(self.path, create=False)
        assert [t.seed for t in store.trials(self.row)] == self.written
        store.close()
        shutil.rmtree(self.path.parent)

    @rule()
    def open(self):
        driver = min(set(range(len(self.stores) + 1)) - self.stores.keys())
        if self.locker is None:
            self.stores[driver] = quick_store(self.path, create=False)
            self.locker = driver
            self.late.discard(driver)
        else:
            with pytest.raises(HeldElsewhereError, match=r'by another process: \{"pid": '):
                quick_store(self.path, create=False)

    @precondition(lambda self: self.stores)
    @rule(which=drivers, seed=st.integers(0, 999), asks_first=st.booleans())
    def write(self, which, seed, asks_first):
        driver = self._one(which)
        store = self.stores[driver]
        number = len(self.written)
        store.put_trial(self.row.id, Trial(number, {"x": 0.1, "y": 0.2}, seed, 2))
        if asks_first:  # which writes what is gathered, in the same transaction
            store.trials(self.row)
        if driver not in self.late:
            store.commit()
            self.written.append(seed)
            self.late = self.stores.keys() - {driver}
        else:
            with pytest.raises(HeldElsewhereError, match="taken over"):
                store.commit()
            self._end(driver, dies=asks_first)

    @precondition(lambda self: self.stores)
    @rule(which=drivers, dies=st.booleans())
    def end(self, which, dies):
        self._end(self._one(which), dies=dies)

    def _one(self, which):
        return sorted(self.stores)[which % len(self.stores)]

    def _end(self, driver, *, dies):
        store = self.stores.pop(driver)
        self.locker = None if self.locker == driver else self.locker
        if dies:
            store._db.close()
            store._lock.release()
        else:
            store.close()

    @precondition(lambda self: self.stores)
    @rule()
    def take_over(self):
        """Remove the lock's file, as if the lock were a leftover, and open the study."""
        self.path.with_name("study.sqlite.lock").unlink(missing_ok=True)
        self.locker = None
        self.open()
