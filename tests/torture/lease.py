"""The lease of a study as a state machine, against a model that is right by sight."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

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

    @rule(driver=drivers)
    def open(self, driver):
        if driver in self.stores:
            return
        if self.locker is None:
            self.stores[driver] = quick_store(self.path, create=False)
            self.locker = driver
            self.late.discard(driver)
        else:
            with pytest.raises(HeldElsewhereError, match=r'by another process: \{"pid": '):
                quick_store(self.path, create=False)

    @rule(driver=drivers, seed=st.integers(0, 999), asks_first=st.booleans())
    def write(self, driver, seed, asks_first):
        store = self.stores.get(driver)
        if store is None:
            return
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
            self.close(driver)

    @rule(driver=drivers)
    def close(self, driver):
        if driver in self.stores:
            self.stores.pop(driver).close()
            self.locker = None if self.locker == driver else self.locker

    @rule(driver=drivers)
    def die(self, driver):
        if driver in self.stores:
            store = self.stores.pop(driver)
            store._db.close()
            store._lock.release()
            self.locker = None if self.locker == driver else self.locker

    @rule()
    def lose_the_file_of_the_lock(self):
        self.path.with_name("study.sqlite.lock").unlink(missing_ok=True)
        self.locker = None
