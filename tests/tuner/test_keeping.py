"""A race that keeps minutes back for what comes after it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from tuner.confirm import chosen, training_ns, winner_ns
from tuner.entry import make_entry
from tuner.race import Race, enter
from tuner.reader import RunRow

SMOOTH = make_landscape("smooth", 2)


def race_of(name, budget_ns, seed, slots):
    row = RunRow(1, name, seed, SMOOTH.space, SMOOTH.epochs, budget_ns, 0, None, None)
    searcher, policy = make_entry(name, SMOOTH.space, seed, epochs=SMOOTH.epochs)
    runner = ReplayRunner(SMOOTH, seed, slots)
    run = enter(None, row, searcher, runner, policy=policy, is_replay=True, on_change=lambda: None)
    return Race([run], shares_device=True), run


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["random", "random+asha", "hyperband"]),
    st.floats(2, 60),
    st.floats(0, 0.9),
    st.integers(0, 99),
    st.sampled_from([1, 3]),
)
def test_what_is_kept_is_left_but_for_the_epochs_that_were_in_flight(
    name, minutes, share, seed, slots
):
    budget_ns = int(minutes * 60e9)
    kept_ns = int(share * budget_ns)
    race, run = race_of(name, budget_ns, seed, slots)
    race.go_keeping(lambda _: kept_ns)
    left_ns = run.scheduler.budget.remaining_ns
    longest_ns = max((o.device_ns for t in run.scheduler.history for o in t.curve), default=0)
    # An epoch that ends as the turn does is followed by the one that was begun meanwhile.
    assert left_ns >= kept_ns - 2 * slots * longest_ns
    assert left_ns <= kept_ns or run.scheduler.finished
    if kept_ns > SMOOTH.epochs * longest_ns:  # else what is left may buy no epoch anyway
        assert not run.scheduler.finished


def test_what_is_kept_follows_what_is_found():
    race, run = race_of("random", int(30 * 60e9), 0, 1)
    race.go_keeping(lambda of: 2 * (winner_ns(of.scheduler.history) or 0))
    history = run.scheduler.history
    assert 0 < run.scheduler.budget.remaining_ns <= 2 * winner_ns(history)
    assert run.scheduler.budget.remaining_ns > winner_ns(history)


def test_a_race_that_is_interrupted_stops_and_goes_on(monkeypatch):
    race, run = race_of("random", int(30 * 60e9), 0, 1)

    def interrupting(of):
        if len(of.scheduler.history) > 3:
            race.interrupt()
        return 0

    race.go_keeping(interrupting)
    assert not run.scheduler.finished
    assert race.current is None


def test_the_winner_s_training_is_priced_at_its_full_length():
    race, run = race_of("random+asha", int(12 * 60e9), 1, 1)
    race.go_keeping(lambda _: 0)
    history = run.scheduler.history
    winner = chosen(history)
    epoch_ns = winner.device_ns / winner.epoch
    assert winner_ns(history) == pytest.approx(
        max(training_ns(history), epoch_ns * SMOOTH.epochs), abs=SMOOTH.epochs
    )
