"""Every fidelity policy keeps one contract: ledgers, twins of what was killed, finite spaces."""

import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from tests.helpers import RandomCosts
from tests.tuner.entries import (
    ENTRIES,
    ETA,
    FIRST,
    OWN_MINDS,
    POLICED,
    Few,
    begin,
    check_curves,
    entry_for,
)
from tuner.brackets import rung_epochs
from tuner.budget import Kind, to_ns
from tuner.entry import Entry
from tuner.fidelity import POLICIES
from tuner.history import History
from tuner.race import enter
from tuner.seeding import derive_seed
from tuner.store import Store
from tuner.trial import TrialState

WITH_GRID = [f"grid+{policy}" for policy in POLICIES]
MODELS = ["bayes+asha", "bohb", *OWN_MINDS]


class Breaks(RandomCosts):
    """Half of the configurations break off, each at an epoch of its own."""

    def curve(self, config, replicate, repeat=0):
        scores, costs = super().curve(config, replicate, repeat)
        generator = np.random.default_rng(derive_seed(replicate, *map(repr, config.values()), 1))
        if generator.random() < 0.5:
            scores[generator.integers(self.epochs) :] = np.nan
        return scores, costs


def check_ledger(scheduler, budget_ns):
    ledger = scheduler.budget.ledger
    assert sum(ledger.values()) == scheduler.budget.spent_ns <= budget_ns
    paid = sum(o.device_ns for t in scheduler.history for o in t.curve)
    broken = sum(
        t.partial_ns for t in scheduler.history if t.state is TrialState.INFEASIBLE
    )  # the epoch at which a training broke off has no score, but was paid for
    assert ledger[Kind.TRAIN] == paid + broken
    assert scheduler.budget.available_ns == scheduler.budget.remaining_ns


def check_stops(scheduler, name, slots):
    """Trainings end at rungs; fewer than there are slots where the budget ended."""
    epochs = scheduler.history.max_epochs
    stops = set(rung_epochs(FIRST, epochs, ETA))
    if name in OWN_MINDS or name.endswith("+median"):
        stops = set(range(FIRST, epochs + 1))
    cut_off = [
        t
        for t in scheduler.history
        if t.epoch not in stops and t.state is not TrialState.INFEASIBLE
    ]
    assert all(t.state is TrialState.PAUSED for t in cut_off)
    assert all(t.reason == "budget spent" for t in cut_off)
    assert len(cut_off) <= slots


class Busy(ReplayRunner):
    """Notes whenever it is left to wait with a free slot."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.scheduler, self.waited = None, []

    def wait(self):
        if self.free_slots:
            budget = self.scheduler.budget
            in_flight_ns = self.held_ns - budget.spent_ns  # may be more than was reserved
            self.waited.append(min(budget.available_ns, budget.remaining_ns - in_flight_ns))
        return super().wait()


sizes = st.tuples(
    st.sampled_from([1, 2, 4, 9, 10]),  # epochs
    st.integers(1, 60),  # highest cost of an epoch
    st.sampled_from([1, 3]),  # slots
    st.integers(1, 80),  # how many of the dearest epochs the budget buys
    st.integers(0, 10**6),  # seed
    st.sampled_from([RandomCosts, Breaks]),
)


@pytest.mark.parametrize("name", [*POLICED, *WITH_GRID])
@settings(max_examples=20, deadline=None)
@given(size=sizes)
def test_the_budget_is_spent_on_what_the_ledger_says_and_no_slot_waits(name, size):
    epochs, highest, slots, buys, seed, make = size
    budget_ns = highest * buys
    landscape = make(epochs, highest)
    scheduler = begin(name, landscape, budget_ns=budget_ns, slots=slots, seed=seed, runner=Busy)
    runner = scheduler._runner
    runner.scheduler = scheduler
    scheduler.run()
    assert scheduler.finished
    check_ledger(scheduler, budget_ns)
    check_curves(scheduler, landscape, seed)
    check_stops(scheduler, name, slots)
    # Neither a trial that waits nor one that broke off keeps the others from the device.
    dearest = max([highest, *(o.device_ns for t in scheduler.history for o in t.curve)])
    assert scheduler.budget.remaining_ns < dearest
    assert all(free_ns < dearest for free_ns in runner.waited)


@pytest.mark.parametrize("name", [*ENTRIES, *WITH_GRID])
def test_on_curves_that_mean_something_every_entry_finds_something(name):
    landscape = make_landscape("smooth")
    minutes = 12 if name in OWN_MINDS else 40  # a model takes its time
    scheduler = begin(name, landscape, budget_ns=to_ns(minutes), slots=3)
    scheduler.run()
    check_ledger(scheduler, to_ns(minutes))
    check_stops(scheduler, name, 3)
    assert scheduler.history.best.score > 0.85
    assert any(t.state is TrialState.COMPLETED for t in scheduler.history)


def recorded(folder, name, landscape, *, budget_ns, slots, seed):
    """Run to the end on a file; the run, and a copy of the file after every commit."""
    store = Store(folder / "study.sqlite", create=True)
    store._db.execute("COMMIT")
    store._db.execute("PRAGMA synchronous = OFF")  # nobody pulls the plug here
    store._db.execute("BEGIN")
    store.add_run(name, seed, landscape.space, landscape.epochs, budget_ns)
    copies = []
    commit = store.commit

    def copy_and_commit(**options):
        commit(**options)
        copies.append(folder / f"{len(copies)}.sqlite")
        shutil.copy(store.path, copies[-1])

    store.commit = copy_and_commit
    run = open_run(store, landscape, slots)
    run.scheduler.run()
    store.close()
    return run.scheduler, copies


def open_run(store, landscape, slots):
    row = store.runs()[0]
    searcher, policy = entry_for(row.searcher, landscape, row.seed)
    return enter(
        store,
        row,
        searcher,
        ReplayRunner(landscape, row.seed, slots),
        policy=policy,
        is_replay=True,
        on_change=lambda: None,
    )


def check_every_resume(folder, name, landscape, *, budget_ns, slots, seed, step=1):
    sizes = {"budget_ns": budget_ns, "slots": slots, "seed": seed}
    whole, copies = recorded(folder, name, landscape, **sizes)
    twin = begin(name, landscape, **sizes)
    twin.run()
    assert whole.history.trials == twin.history.trials
    for copy in copies[::step]:
        store = Store(copy, create=False, commit_every_s=1e9)
        resumed = open_run(store, landscape, slots).scheduler
        resumed.run()
        assert resumed.history.trials == twin.history.trials, copy
        assert resumed.budget.ledger == twin.budget.ledger, copy
        store.close()
    return twin


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", POLICED)
def test_killed_at_any_commit_a_search_ends_as_its_twin(tmp_path, name, slots):
    twin = check_every_resume(tmp_path, name, Breaks(9, 50), budget_ns=900, slots=slots, seed=slots)
    assert len(twin.history) > 3


@pytest.mark.parametrize("name", [*POLICED, "grid+asha"])
def test_killed_at_any_commit_a_search_of_a_finite_space_ends_as_its_twin(tmp_path, name):
    twin = check_every_resume(tmp_path, name, Few(4, 50), budget_ns=600, slots=2, seed=3)
    assert twin.history.is_exhausted == (name not in ("random+full", "random+median"))


@pytest.mark.parametrize("name", MODELS)
def test_killed_now_and_then_a_search_with_a_model_ends_as_its_twin(tmp_path, name):
    landscape = RandomCosts(4, 50)
    twin = check_every_resume(tmp_path, name, landscape, budget_ns=1_200, slots=2, seed=1, step=25)
    assert len(twin.history) > 10
    check_stops(twin, str(Entry.parse(name)), 2)
    check_curves(twin, landscape, 1)


def copy_of(history):
    """The same history by its trials alone."""
    other = History(history.max_epochs, history.budget_ns)
    for trial in history:
        other.restore(trial)
    other.is_exhausted = history.is_exhausted
    return other


@pytest.mark.parametrize("landscape", [Breaks(9, 50), Few(9, 50)], ids=["breaks", "few"])
@pytest.mark.parametrize("name", POLICED)
def test_a_policy_is_a_function_of_the_history_and_changes_nothing(name, landscape):
    actions = []

    class Checked:
        def __init__(self, policy):
            self._policy = policy

        def next_action(self, history):
            before = (history.trials, history.is_exhausted, history.running, history.best)
            action = self._policy.next_action(history)
            assert self._policy.next_action(history) == action
            fresh = entry_for(name, landscape, 0)[1]
            assert fresh.next_action(copy_of(history).view()) == action
            after = (history.trials, history.is_exhausted, history.running, history.best)
            assert after == before
            actions.append(action)
            return action

    policy = Checked(entry_for(name, landscape, 0)[1])
    begin(name, landscape, budget_ns=1_500, slots=3, policy=policy).run()
    assert len(actions) > 5


@pytest.mark.parametrize("name", POLICED)
def test_what_broke_off_is_never_launched_again_and_holds_up_nothing(name):
    launched = []

    class Noted(ReplayRunner):
        def launch(self, trial, until_epoch):
            assert not trial.state.is_final
            launched.append((trial.number, trial.epoch))
            super().launch(trial, until_epoch)

    scheduler = begin(name, Breaks(9, 50), budget_ns=20_000, slots=3, runner=Noted)
    scheduler.run()
    broken = [t for t in scheduler.history if t.state is TrialState.INFEASIBLE]
    assert len({t.epoch for t in broken}) > 3  # at all kinds of epochs
    assert any(t.state is TrialState.COMPLETED for t in scheduler.history)
    assert len(launched) == len(set(launched))  # nobody begins twice at the same epoch
    check_stops(scheduler, name, 3)


@pytest.mark.parametrize("name", ENTRIES)
def test_where_every_configuration_breaks_off_the_search_still_ends(name):
    class AllBreak(RandomCosts):
        def curve(self, config, replicate, repeat=0):
            scores, costs = super().curve(config, replicate)
            return np.full_like(scores, np.nan), costs

    scheduler = begin(name, AllBreak(9, 50), budget_ns=2_000, slots=2)
    scheduler.run()
    assert scheduler.finished
    assert {t.state for t in scheduler.history} == {TrialState.INFEASIBLE, TrialState.PAUSED} or (
        {t.state for t in scheduler.history} == {TrialState.INFEASIBLE}
    )
    assert scheduler.history.best is None
    assert len(scheduler.history) > 20


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", [*ENTRIES, *WITH_GRID])
def test_a_finite_space_is_used_up_and_the_search_ends(name, slots):
    scheduler = begin(name, Few(9, 50), budget_ns=10**6, slots=slots)
    scheduler.run()
    assert scheduler.finished
    history = scheduler.history
    assert len({t.config["a"] for t in history}) == len(history) == 7
    states = Counter(t.state for t in history)
    assert states.keys() <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert states[TrialState.COMPLETED] >= 1
    if name.endswith(("+full", "+asha")):  # there is money for all, and nothing else to buy
        assert states[TrialState.COMPLETED] == 7
    else:
        rungs = rung_epochs(FIRST, 9, ETA)
        most = max(o.score for t in history for o in t.curve if o.epoch == rungs[0])
        assert any(t.curve[rungs[0] - 1].score == most and t.epoch > 1 for t in history)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_a_finite_space_is_searched_to_its_end_where_no_model_can_be_fitted(monkeypatch, slots):
    from tuner.searchers import surrogate
    from tuner.searchers.fit import FitError

    def refuse(*_, **__):
        raise FitError("no fit")

    monkeypatch.setattr(surrogate, "fit", refuse)
    scheduler = begin("freeze-thaw", Few(9, 10), budget_ns=10_000, slots=slots)
    scheduler.run()
    assert scheduler.finished
    assert [t.state for t in scheduler.history] == [TrialState.COMPLETED] * 7
    notes = [t.note for t in scheduler.history if t.note]
    # With eight slots all seven have begun before there is anything to fit.
    assert bool(notes) == (slots < 7)
