"""The rule that ends a search: when it may look, when it fires, and that it stays so."""

from dataclasses import replace

import pytest

from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from tests.helpers import RandomCosts, search
from tests.tuner.entries import Few
from tuner.budget import Budget, Kind
from tuner.confirm import with_confirmations
from tuner.entry import make_entry
from tuner.fidelity import Done, FullFidelity, Resume, Sample, Stop, Wait
from tuner.history import History
from tuner.race import enter
from tuner.scheduler import Recorder, Scheduler
from tuner.stop_rule import _IN_A_ROW, AutoStop, returned_ns, with_stop
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

FLAT = replace(make_landscape("flat"), epochs=2)
TRAINING_NS = round(2 * 6.5e9 * 1.15)
FIRST = 15  # scores before the first check, of two knobs


def begin(budget_ns, *, landscape=FLAT, name="random", slots=1, seed=0, confirm=0, stop="auto"):
    searcher, policy = make_entry(name, landscape.space, seed, epochs=landscape.epochs)
    policy = with_confirmations(with_stop(policy, stop, landscape.space, seed), confirm)
    return Scheduler(
        searcher,
        policy,
        ReplayRunner(landscape, seed, slots),
        History(landscape.epochs, budget_ns),
        Recorder(Budget(budget_ns)),
        seed=seed,
        keep=confirm,
    )


def history_of(count, budget_ns=10**6):
    """So many trials of one epoch, ten nanoseconds each, one after another."""
    history = History(1, budget_ns)
    for number in range(count):
        curve = (Observation(1, 0.5, 10, 10 * (number + 1)),)
        config = {"x": number / 100, "y": 0.5}
        history.restore(
            Trial(number, config, 0, 1, TrialState.COMPLETED, curve, started_ns=10 * number)
        )
    return history


class Scripted(AutoStop):
    """Gains by the number of trainings, instead of a model's."""

    def __init__(self, gains):
        super().__init__(FullFidelity(), RandomCosts.space, 0)
        self.gains, self.asked = gains, []

    def _gain(self, ended, trainings):
        self.asked.append((len(ended), trainings))
        return self.gains(len(ended))


# -- the rule, by hand ---------------------------------------------------------------------------


def test_it_looks_only_after_fifteen_scores_and_needs_checks_in_a_row():
    policy = Scripted(lambda n: -1.0)
    for count in range(FIRST + _IN_A_ROW - 1):
        assert policy.next_action(history_of(count)) == Sample(1)
    assert policy.next_action(history_of(FIRST + _IN_A_ROW - 1)) == Done()
    assert {n for n, _ in policy.asked} == set(range(FIRST, FIRST + _IN_A_ROW))
    # Each training costs ten of what is left: a million less what was spent at that time.
    assert all(left == (10**6 - 10 * n) / 10 for n, left in policy.asked)


def test_who_began_before_the_last_end_counts_whoever_ended_last():
    """An early trial that was paused ends after many that began later than it."""
    history = History(1, 10**6)
    for number in range(20):
        ends = 10 * (number + 1) if number != 3 else 10 * 20 + 5
        curve = (Observation(1, 0.5, 10, ends),)
        config = {"x": number / 100, "y": 0.5}
        history.restore(
            Trial(number, config, 0, 1, TrialState.COMPLETED, curve, started_ns=10 * number)
        )
    policy = Scripted(lambda n: -1.0)
    ended = sorted(history.view(), key=lambda t: t.curve[-1].at_ns)
    assert policy._is_idle(ended, FIRST, history.view())
    assert policy.asked == [(20, (10**6 - 205) / (205 / 20))]


def test_one_hope_in_between_begins_the_row_anew():
    policy = Scripted(lambda n: 1.0 if n == 17 else -1.0)
    fired = [n for n in range(30) if policy.next_action(history_of(n)) == Done()]
    assert fired[0] == 17 + _IN_A_ROW
    never = Scripted(lambda n: 1.0 if n % _IN_A_ROW == 0 else -1.0)
    assert all(never.next_action(history_of(n)) == Sample(1) for n in range(40))


def test_scores_alone_count_towards_the_first_check():
    history = history_of(FIRST + _IN_A_ROW - 1)
    broken = History(1, 10**6)
    for trial in history:
        if trial.number == 3:
            trial = replace(trial, state=TrialState.INFEASIBLE, curve=(), partial_ns=10)
        broken.restore(trial)
    assert Scripted(lambda n: -1.0).next_action(history) == Done()
    assert Scripted(lambda n: -1.0).next_action(broken) == Sample(1)


def test_what_was_in_flight_when_it_fired_takes_nothing_back():
    count = FIRST + _IN_A_ROW - 1
    policy = Scripted(lambda n: -1.0 if n <= count else 1.0)
    history = history_of(count)
    late = Trial(count, {"x": 0.9, "y": 0.5}, 0, 1, started_ns=10 * (count - 1))
    history.start(late)
    assert policy.next_action(history) == Done()
    history.observe(count, Observation(1, 0.9, 10, 10 * count + 5), state=TrialState.COMPLETED)
    assert policy.next_action(history) == Done()
    # A trial that began afterwards shows that it had not fired: with more minutes, for example.
    history.start(replace(late, number=count + 1, started_ns=10 * count + 5))
    assert policy.next_action(history) == Sample(1)


class Says:
    def __init__(self, action):
        self.action = action

    def next_action(self, history):
        return self.action


@pytest.mark.parametrize("action", [Stop(3), Wait(), Done()])
def test_what_costs_nothing_passes(action):
    policy = Scripted(lambda n: -1.0)
    policy._inner = Says(action)
    assert policy.next_action(history_of(30)) == action
    assert policy.asked == []
    policy._inner = Says(Resume(3, 1))
    assert policy.next_action(history_of(30)) == Done()


def test_without_a_limit_and_by_name():
    assert Scripted(lambda n: -1.0).next_action(history_of(40, None)) == Sample(1)
    policy = FullFidelity()
    assert with_stop(policy, "never", RandomCosts.space, 0) is policy
    with pytest.raises(ValueError, match="no way to stop 'atuo'; did you mean 'auto'"):
        with_stop(policy, "atuo", RandomCosts.space, 0)


def test_the_gain_is_bounded_by_one_training_and_by_all_there_is():
    scheduler = begin(20 * TRAINING_NS, stop="never")
    scheduler.run()
    ended = scheduler.history.trials
    policy = AutoStop(FullFidelity(), FLAT.space, 0)
    gains = [policy._gain(ended, n) for n in (0, 1, 2, 1e6, 1e9)]
    noise = -gains[0]
    assert 0 < noise < 0.008
    one, two = gains[1] + noise, gains[2] + noise
    assert 0 < one <= two <= 2 * one + 1e-12
    assert two <= gains[3] + noise == gains[4] + noise < 0.02  # of all there is


# -- searches ------------------------------------------------------------------------------------


def test_a_search_where_there_is_nothing_to_find_ends_and_stays_ended():
    scheduler = begin(200 * TRAINING_NS, name="bayes")
    scheduler.run()
    history, budget = scheduler.history, scheduler.budget
    assert scheduler.finished
    assert scheduler.next_ns is None
    assert FIRST + _IN_A_ROW - 1 <= len(history) < 60
    assert budget.spent_ns == budget.ledger[Kind.TRAIN] == sum(t.device_ns for t in history)
    returned = returned_ns(history, "auto")
    assert returned == 200 * TRAINING_NS - budget.spent_ns > 100 * TRAINING_NS
    assert returned_ns(history, "never") is None
    trials = history.trials
    scheduler.run()
    assert history.trials == trials


def test_a_space_that_was_tried_out_returns_nothing_by_this_rule():
    scheduler = search(Few(3, 10), budget_ns=10**6)
    scheduler.run()
    assert scheduler.history.is_exhausted
    assert returned_ns(scheduler.history, "auto") is None


def test_confirmations_come_after_the_end():
    scheduler = begin(200 * TRAINING_NS, confirm=3)
    scheduler.run()
    again = [t for t in scheduler.history if t.confirms is not None]
    searched = [t for t in scheduler.history if t.confirms is None]
    best = sorted(searched, key=lambda t: -t.score)[:3]
    assert sorted(t.confirms for t in again) == sorted(t.number for t in best)
    assert scheduler.history.trials[-3:] == tuple(again)
    assert returned_ns(scheduler.history, "auto") > 100 * TRAINING_NS


class Killed(Exception):
    pass


def test_a_search_killed_again_and_again_ends_where_its_twin_does(tmp_path):
    twin = begin(100 * TRAINING_NS, slots=2, seed=3)
    twin.run()
    assert len(twin.history) < 80
    path, kills = tmp_path / "study.sqlite", [9, 40, 3, 1, 2, None]
    for attempt, after in enumerate(kills):
        left = [after]

        def on_change(left=left):
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

        store = Store(path, create=attempt == 0)
        if attempt == 0:
            store.add_run("random", 3, FLAT.space, 2, 100 * TRAINING_NS)
            store.commit()
        searcher, policy = make_entry("random", FLAT.space, 3, epochs=2)
        run = enter(
            store,
            store.runs()[0],
            searcher,
            ReplayRunner(FLAT, 3, 2),
            policy=with_stop(policy, "auto", FLAT.space, 3),
            is_replay=True,
            on_change=on_change,
        )
        try:
            run.scheduler.run()
        except Killed:
            pass
        finally:
            store._db.close()
            store._lock.release()
    assert run.scheduler.history.trials == twin.history.trials
    assert run.scheduler.budget.ledger == twin.budget.ledger


def test_more_minutes_are_looked_at_anew():
    policy = Scripted(lambda n: -1.0)
    assert policy.next_action(history_of(40)) == Done()
    richer = Scripted(lambda n: 1.0)
    assert richer.next_action(history_of(40, 10**7)) == Sample(1)
    # The same policy does not take what it knew of the smaller budget for an answer.
    policy.gains = lambda n: 1.0
    assert policy.next_action(history_of(40, 10**7)) == Sample(1)
