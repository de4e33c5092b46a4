"""Rules in any order, against a model that is simple enough to be right by sight.

The lease of a study, the money of a search, and a search whose driver comes and goes.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.torture.lease import Lease
from tests.torture.scripted import quick_store
from tests.torture.twins import Countable, Killed, Mixed, Twin, outcome
from tuner.budget import Budget, Kind
from tuner.meter import DeviceMeter

FEW = settings(max_examples=15, stateful_step_count=15, deadline=None)
drivers = st.integers(0, 3)


class Money(RuleBasedStateMachine):
    """A pool and the meter of one device, against sums."""

    TOTAL = 1_000

    def __init__(self):
        super().__init__()
        self.budget, self.meter, self.now = Budget(self.TOTAL), DeviceMeter(7), 7
        self.reserved, self.active, self.spent, self.idle = {}, set(), 0, 0

    @rule(number=drivers, ns=st.integers(0, 400))
    def launch(self, number, ns):
        if number in self.active:
            return
        fits = ns <= self.TOTAL - self.spent - sum(self.reserved.values())
        assert self.budget.reserve(number, ns) == fits
        if fits:
            self.reserved[number] = ns
            self.meter.claim(number, self.now)
            self.active.add(number)

    @rule(ns=st.integers(-20, 100))
    def pass_time(self, ns):
        self.now += ns  # messages of several workers come in whatever order

    @rule(number=drivers, ends=st.booleans())
    def report(self, number, ends):
        if number not in self.active:
            return
        used = (self.meter.drop if ends else self.meter.settle)(number, self.now)
        self.budget.charge({Kind.TRAIN: used}, number)
        self.spent += used
        self.reserved[number] = max(0, self.reserved[number] - used)
        if ends:
            self.budget.release(number)
            self.active.remove(number)
            del self.reserved[number]

    @rule()
    def charge_idle(self):
        idle = self.meter.take_idle()
        self.budget.charge({Kind.SEARCH: idle}, None)
        self.spent += idle

    @invariant()
    def the_parts_add_up(self):
        assert self.budget.spent_ns == self.spent == sum(self.budget.ledger.values())
        assert self.budget.remaining_ns == self.TOTAL - self.spent
        held_back = sum(self.reserved.values())
        assert self.budget.available_ns == self.TOTAL - self.spent - held_back

    def teardown(self):
        rest = sum(self.meter.drop(number, self.now) for number in self.active)
        assert self.spent + rest + self.meter.take_idle() == self.meter.held_ns


class Search(RuleBasedStateMachine):
    """A search on a virtual clock, whose driver is killed and told to stop, and its twin."""

    ENTRIES = ("random+asha", "grid+full", "bohb", "random+hyperband", "random+asha-stop")

    @initialize(
        entry=st.sampled_from(ENTRIES),
        make=st.sampled_from([Mixed, Countable]),
        slots=st.sampled_from([1, 3, 10]),
        seed=st.integers(0, 10**6),
        equal=st.booleans(),
    )
    def begin(self, entry, make, slots, seed, equal):
        self.twin = Twin(entry, make(4, 50, equal=equal), slots, 2_000, seed)
        self.path = Path(tempfile.mkdtemp(), "study.sqlite")
        store, row = quick_store(self.path, create=True), self.twin.row
        store.add_run(row.searcher, row.seed, row.space, row.max_epochs, row.budget_ns)
        store.commit()
        store.close()
        self.run = None

    def live(self, after, *, is_killed):
        """One driver's life; it ends after so many changes, or with the search."""
        if self.is_over:
            return
        store, left = quick_store(self.path, create=False), after

        def on_change():
            nonlocal left
            left -= 1
            if left == 0 and is_killed:
                raise Killed
            if left == 0:
                self.run.scheduler.interrupt()

        self.run = self.twin.run_in(store, on_change)
        try:
            self.run.scheduler.run()
            store.close()
        except Killed:
            store._db.close()
            store._lock.release()

    @property
    def is_over(self):
        return self.run is not None and self.run.scheduler.finished

    @rule(after=st.integers(1, 60))
    def kill(self, after):
        self.live(after, is_killed=True)

    @rule(after=st.integers(1, 60))
    def stop(self, after):
        self.live(after, is_killed=False)

    @invariant()
    def what_is_on_disk_makes_sense(self):
        if self.run is None:
            return
        store = quick_store(self.path, create=False)
        (row,) = store.runs()
        history, budget = store.history(row), store.budget(row)
        store.close()
        assert sum(budget.ledger.values()) == budget.spent_ns <= row.budget_ns
        assert [t.number for t in history] == list(range(len(history)))
        paid = sum(t.device_ns + t.partial_ns for t in history)
        assert paid == budget.ledger[Kind.TRAIN]
        for trial in history:
            scores, _ = self.twin.landscape.curve(trial.config, self.twin.seed)
            assert [o.score for o in trial.curve] == scores[: trial.epoch].tolist()
        if row.space.cardinality is not None:
            assert len({repr(t.config) for t in history}) == len(history)

    def teardown(self):
        if not hasattr(self, "twin"):
            return
        while not self.is_over:
            self.live(1 << 60, is_killed=False)
        alone = self.twin.run_in(None)
        alone.scheduler.run()
        assert outcome(self.run) == outcome(alone)
        shutil.rmtree(self.path.parent)


@pytest.mark.parametrize("machine", [Lease, Money, Search])
def test_rules_in_any_order_keep_what_is_promised(machine):
    run_state_machine_as_test(machine, settings=FEW)
