"""The virtual device: shared equally, exact to the nanosecond, first in first out."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.replay_runner import ReplayRunner
from tests.helpers import SPACE, RandomCosts, search
from tuner.budget import Kind
from tuner.fidelity import Done, Sample
from tuner.runner import EventKind
from tuner.trial import Trial, TrialState


def shared_device(costs, slots):
    """When each epoch ends on a device shared equally: an oracle in exact fractions.

    `costs[i]` are the epochs of trial i; trials start in order as slots fall free. Returns
    (device time, trial, epoch) in the order of ending, ties by when the epoch began, then trial.
    """
    waiting, active, now, ended = list(range(len(costs))), {}, Fraction(0), []
    while waiting or active:
        while waiting and len(active) < slots:
            trial = waiting.pop(0)
            active[trial] = [Fraction(costs[trial][0]), 0, now]
        least = min(left for left, _, _ in active.values())
        now += least * len(active)
        done = sorted((began, t) for t, (left, _, began) in active.items() if left == least)
        for trial in active:
            active[trial][0] -= least
        for _, trial in done:
            _, epoch, _ = active[trial]
            ended.append((now, trial, epoch + 1))
            if epoch + 1 < len(costs[trial]):
                active[trial] = [Fraction(costs[trial][epoch + 1]), epoch + 1, now]
            else:
                del active[trial]
    return ended


class AtMost:
    """Full trainings, but no more than so many."""

    def __init__(self, trials, epochs):
        self._trials, self._epochs = trials, epochs

    def next_action(self, history):
        return Sample(self._epochs) if len(history) < self._trials else Done()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_epochs_end_when_an_equally_shared_device_ends_them(slots, epochs, highest, seed, equal):
    landscape = RandomCosts(epochs, highest, equal)
    scheduler = search(landscape, budget_ns=10**7, slots=slots, seed=seed)
    scheduler._policy = AtMost(9, epochs)
    scheduler.run()
    costs = [
        [round(c * 1e9) for c in landscape.curve(t.config, seed)[1]] for t in scheduler.history
    ]
    seen = sorted(
        ((o.at_ns, t.number, o.epoch) for t in scheduler.history for o in t.curve),
        key=lambda row: row[0],
    )
    expected = shared_device(costs, slots)
    assert sorted(seen) == sorted((int(at), t, e) for at, t, e in expected)
    assert scheduler.budget.spent_ns == sum(map(sum, costs))


def events_until_idle(runner):
    events = []
    while runner.free_slots < runner.slots:
        events += runner.wait()
    return events


def test_what_a_trial_is_charged_does_not_depend_on_who_shares_the_device():
    for slots in (1, 3):
        runner = ReplayRunner(RandomCosts(3), replicate=1, slots=slots)
        runner.hold(10**9, 0)
        configs = [{"x": 0.1 * i, "y": 0.5} for i in range(slots)]
        for number, config in enumerate(configs):
            runner.launch(Trial(number, config, 0, 3), 3)
        for event in events_until_idle(runner):
            epoch_costs = [
                round(s * 1e9) for s in RandomCosts(3).curve(configs[event.number], 1)[1]
            ]
            assert sum(event.costs.values()) in epoch_costs


def test_ties_are_reported_in_the_order_in_which_epochs_began():
    runner = ReplayRunner(RandomCosts(2, 10, equal=True), replicate=0, slots=3)
    runner.hold(10**9, 0)
    for number in (2, 0, 1):
        runner.launch(Trial(number, {"x": number / 3, "y": 0.0}, 0, 2), 2)
    assert [e.number for e in runner.wait()] == [0, 1, 2]
    assert [e.held_ns for e in runner.wait()] == [60, 60, 60]


def test_the_deadline_cuts_to_the_nanosecond():
    runner = ReplayRunner(RandomCosts(1, 100, equal=True), replicate=0, slots=3)
    runner.hold(200, 0)
    for number in range(3):
        runner.launch(Trial(number, {"x": number / 3, "y": 0.0}, 0, 1), 1)
    events = runner.wait()
    assert [e.kind for e in events] == [EventKind.CUT] * 3
    assert [e.costs[Kind.LOST] for e in events] == [66, 66, 66]  # 200 // 3, never more than 200
    assert runner.held_ns == 198


def test_an_interrupted_replay_keeps_the_reading_at_which_each_epoch_began():
    runner = ReplayRunner(RandomCosts(2, 10, equal=True), replicate=0, slots=2)
    runner.hold(10**9, 0)
    runner.launch(Trial(0, {"x": 0.1, "y": 0.0}, 0, 2), 2)
    runner.wait()
    runner.launch(Trial(1, {"x": 0.2, "y": 0.0}, 0, 2), 2)
    runner.interrupt()
    events = runner.wait()
    assert [(e.number, e.kind, e.clock) for e in events] == [
        (0, EventKind.PAUSED, 10),
        (1, EventKind.PAUSED, 10),
    ]


def test_searching_costs_nothing_on_the_virtual_clock():
    scheduler = search(RandomCosts(), budget_ns=5_000, name="bayes")
    scheduler.run()
    assert scheduler.budget.ledger[Kind.SEARCH] == 0
    assert len(scheduler.history) > 20
    assert all(SPACE.contains(t.config) for t in scheduler.history)


def test_stopping_a_trial_ends_it_with_its_epoch_in_flight():
    runner = ReplayRunner(RandomCosts(3), replicate=0)
    runner.hold(10**9, 0)
    runner.launch(Trial(0, {"x": 0.1, "y": 0.0}, 0, 3), 3)
    runner.stop(0)
    (event,) = runner.wait()
    assert (event.kind, event.ends) == (EventKind.EPOCH, True)
    assert runner.free_slots == 1


def test_no_slot_is_refused():
    with pytest.raises(ValueError, match="at least 1 slot"):
        ReplayRunner(RandomCosts(), 0, slots=0)


def test_states_after_a_replay_are_final_or_paused_for_want_of_budget():
    scheduler = search(RandomCosts(), budget_ns=2_000, slots=3)
    scheduler.run()
    for trial in scheduler.history:
        assert trial.state in (TrialState.COMPLETED, TrialState.PAUSED)
        assert (trial.reason == "budget spent") == (trial.state is TrialState.PAUSED)


class BreaksOff:
    """A training that diverges in its third epoch where x is above a half."""

    name, space, epochs = "breaks-off", SPACE, 4

    def curve(self, config, replicate, repeat=0):
        scores = np.array([0.5, 0.6, 0.7, 0.8])
        if config["x"] > 0.5:
            scores[2:] = np.nan
        return scores, np.array([3, 4, 5, 6]) / 1e9


def test_a_curve_that_turns_nan_is_infeasible_with_the_cost_of_its_last_attempt():
    runner = ReplayRunner(BreaksOff(), replicate=0)
    runner.hold(1_000, 0)
    runner.launch(Trial(0, {"x": 0.9, "y": 0.0}, 0, 4), 4)
    events = events_until_idle(runner)
    assert [(e.kind, e.ends, e.score, dict(e.costs), e.held_ns) for e in events[:2]] == [
        (EventKind.EPOCH, False, 0.5, {Kind.TRAIN: 3}, 3),
        (EventKind.EPOCH, False, 0.6, {Kind.TRAIN: 4}, 7),
    ]
    last = events[2]
    assert (last.kind, last.ends, dict(last.costs)) == (EventKind.INFEASIBLE, True, {Kind.TRAIN: 5})
    assert (last.held_ns, len(events), runner.free_slots) == (12, 3, 1)


def test_a_search_pays_for_trainings_that_break_off_and_goes_on():
    scheduler = search(BreaksOff(), budget_ns=1_000, slots=2)
    scheduler.run()
    history = scheduler.history
    broken = [t for t in history if t.state is TrialState.INFEASIBLE]
    complete = [t for t in history if t.state is TrialState.COMPLETED]
    assert len(broken) > 10
    assert len(complete) > 10
    for trial in broken:
        assert trial.config["x"] > 0.5
        assert [o.score for o in trial.curve] == [0.5, 0.6]
        assert (trial.score, trial.device_ns, trial.partial_ns) == (None, 7, 5)
        assert trial.reason
    assert all(t.config["x"] <= 0.5 and t.score == 0.8 for t in complete)
    assert history.best.state is TrialState.COMPLETED
    open_ns = sum(t.device_ns + t.partial_ns for t in history if not t.state.is_final)
    lost = scheduler.budget.ledger[Kind.LOST]
    assert scheduler.budget.spent_ns == 12 * len(broken) + 18 * len(complete) + open_ns + lost
    assert scheduler.budget.ledger[Kind.SEARCH] == 0
    assert history.finished[-1].number > broken[0].number


def test_one_that_breaks_off_does_not_change_what_its_neighbour_is_charged():
    runner = ReplayRunner(BreaksOff(), replicate=0, slots=2)
    runner.hold(1_000, 0)
    runner.launch(Trial(0, {"x": 0.9, "y": 0.0}, 0, 4), 4)
    runner.launch(Trial(1, {"x": 0.1, "y": 0.0}, 0, 4), 4)
    events = events_until_idle(runner)
    costs = {n: [sum(e.costs.values()) for e in events if e.number == n] for n in (0, 1)}
    assert costs == {0: [3, 4, 5], 1: [3, 4, 5, 6]}
    assert runner.held_ns == 12 + 18
