"""Each fidelity policy does what its paper says, by hand; the library; and entries by name."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts
from tests.tuner.entries import ENTRIES, OWN_MINDS, Few, begin, check_curves
from tests.tuner.test_scheduler import Scripted, epoch
from tuner import fidelity
from tuner.brackets import rung_epochs
from tuner.budget import Budget
from tuner.entry import Entry, make_entry
from tuner.fidelity import (
    POLICIES,
    Asha,
    AshaStopping,
    Done,
    FirstRung,
    Halving,
    MedianStopping,
    Resume,
    Sample,
    Stop,
    default_min_epochs,
    first_rung,
)
from tuner.history import History
from tuner.runner import EventKind, FunctionRunner
from tuner.scheduler import Recorder, Scheduler
from tuner.search import tune
from tuner.searchers import make_searcher
from tuner.space import Choice, Float, SearchSpace
from tuner.study import Study
from tuner.trial import Checkpoint, Observation, Trial, TrialState


class Formula:
    """Scores by x alone, a nanosecond an epoch."""

    name, space = "formula", SearchSpace(x=Float(0.0, 1.0))

    def __init__(self, epochs):
        self.epochs = epochs

    def curve(self, config, replicate, repeat=0):
        return config["x"] * np.arange(1, self.epochs + 1), np.full(self.epochs, 1e-9)


# -- by hand -------------------------------------------------------------------------------------

LETTERS = {
    "P": TrialState.PAUSED,
    "R": TrialState.RUNNING,
    "C": TrialState.COMPLETED,
    "S": TrialState.STOPPED,
    "I": TrialState.INFEASIBLE,
    "F": TrialState.FAILED,
}


def history_of(*rows, budget_ns=None, max_epochs=9, is_exhausted=False):
    """A history of trials given as a state's letter, the scores and, if need be, the target."""
    history = History(max_epochs, budget_ns)
    for number, (letter, scores, *target) in enumerate(rows):
        curve = tuple(Observation(e, s, 10) for e, s in enumerate(scores, 1))
        until = target[0] if target else len(scores)
        history.restore(Trial(number, {"x": 0.5}, 0, until, LETTERS[letter], curve))
    history.is_exhausted = is_exhausted
    return history.view()


MEDIAN = [("C", [0.1 * k, 0.1 * k + 0.2, 0.9, 0.0]) for k in range(1, 6)]
"""Five of means 0.2, 0.3, 0.4, 0.5, 0.6 up to epoch 2 and (… + 0.9) / 3 up to epoch 3."""


@pytest.mark.parametrize(
    ("scores", "action"),
    [
        ([0.1, 0.39], Stop(5)),
        ([0.1, 0.41], Resume(5, 3)),
        ([0.41, 0.1], Resume(5, 3)),  # its best, not its last
        ([0.1, 0.2, 0.56], Stop(5)),  # the median of the means is 1.7 / 3 = 0.567
        ([0.1, 0.2, 0.57], Resume(5, 4)),
    ],
)
def test_median_stopping_by_hand(scores, action):
    policy = MedianStopping((2, 4), 3)
    assert policy.next_action(history_of(*MEDIAN, ("P", scores), max_epochs=4)) == action


def test_median_stopping_stops_nobody_before_five_have_completed():
    policy = MedianStopping((2, 4), 3)
    assert policy.next_action(history_of(max_epochs=4)) == Sample(2)
    four, hopeless = MEDIAN[:4], ("P", [0.0, 0.0])
    assert policy.next_action(history_of(*four, hopeless, max_epochs=4)) == Resume(4, 3)
    # Stopped and broken ones are not completed ones.
    others = [("S", [0.9, 0.9]), ("I", [0.9, 0.9]), ("F", [0.9, 0.9])]
    assert policy.next_action(history_of(*four, *others, hopeless, max_epochs=4)) == Resume(7, 3)
    # However many began before the fifth had completed, they are judged once it has.
    begun = [hopeless, ("R", [0.1], 2), hopeless]
    assert policy.next_action(history_of(*begun, *MEDIAN, max_epochs=4)) == Stop(0)
    assert policy.next_action(history_of(*MEDIAN, max_epochs=4)) == Sample(2)
    assert policy.next_action(history_of(*MEDIAN, max_epochs=4, is_exhausted=True)) == Done()


RUNGS = (1, 3, 9)


def ones(*scores):
    return [("P", [score]) for score in scores]


def test_asha_promotes_in_the_order_of_the_paper():
    asha = Asha(RUNGS, 3)

    def action(*rows):
        return asha.next_action(history_of(*rows))

    assert action() == Sample(1)
    assert action(*ones(0.5, 0.9)) == Sample(1)  # floor(2 / 3) = 0
    assert action(*ones(0.5, 0.9, 0.1)) == Resume(1, 3)
    gone = ("R", [0.9], 3)
    assert action(*ones(0.5), gone, *ones(0.1)) == Sample(1)
    assert action(*ones(0.5), gone, *ones(0.1, 0.2, 0.3)) == Sample(1)
    # The sixth, though a bad one, makes room for a second: for the oldest of all.
    assert action(*ones(0.5), gone, *ones(0.1, 0.2, 0.3, 0.0)) == Resume(0, 3)
    # A late one that is better than all goes before it.
    assert action(*ones(0.5), gone, *ones(0.1, 0.2, 0.3, 0.6)) == Resume(5, 3)
    # One that is at its first epoch has not finished the rung; one that broke off in it has.
    assert action(*ones(0.5), gone, *ones(0.1, 0.2, 0.3), ("R", [], 1)) == Sample(1)
    assert action(*ones(0.5), gone, *ones(0.1, 0.2, 0.3), ("I", [], 1)) == Resume(0, 3)


def test_asha_promotes_from_the_highest_rung_first():
    higher = [("P", [0.9, 0.9, score]) for score in (0.4, 0.6, 0.5)]
    lower = ones(*[0.1] * 5, 0.95, *[0.1] * 9)
    history = history_of(*higher, *lower)
    assert Asha(RUNGS, 3).next_action(history) == Resume(1, 9)
    higher[1] = ("C", [0.9, 0.9, 0.6] + [0.6] * 6)
    assert Asha(RUNGS, 3).next_action(history_of(*higher, *lower)) == Resume(8, 3)


def test_asha_never_promotes_what_broke_off_nor_the_next_in_its_place():
    asha = Asha(RUNGS, 3)
    # The best broke off on its way up: it had its promotion.
    broken = ("I", [0.9, 0.9], 3)
    assert asha.next_action(history_of(broken, *ones(0.5, 0.4))) == Sample(1)
    assert asha.next_action(history_of(broken, *ones(0.5, 0.4, 0.3, 0.2, 0.1))) == Resume(1, 3)
    none = [("I", [], 1)] * 9
    assert asha.next_action(history_of(*none)) == Sample(1)


def test_what_broke_in_a_lower_rung_promotes_nobody_in_a_higher_one():
    asha, below = Asha(RUNGS, 3), [("I", [], 1)] * 9
    assert asha.next_action(history_of(*below, ("P", [0.9] * 3))) == Sample(1)
    up = [("I", [0.8], 3)] * 2  # these two were sent to it
    assert asha.next_action(history_of(*below, *up, ("P", [0.9] * 3))) == Resume(11, 9)


def test_asha_gives_what_is_left_to_the_best_when_there_is_nothing_new():
    asha = Asha(RUNGS, 3)
    assert asha.next_action(history_of(*ones(0.5, 0.9), is_exhausted=True)) == Resume(1, 3)
    rest = [*ones(0.5), ("P", [0.9, 0.9, 0.9])]
    assert asha.next_action(history_of(*rest, is_exhausted=True)) == Resume(1, 9)
    rest = [*ones(0.5), ("C", [0.9] * 9)]
    assert asha.next_action(history_of(*rest, is_exhausted=True)) == Resume(0, 3)
    rest = [("C", [0.5] * 9), ("I", [0.9])]
    assert asha.next_action(history_of(*rest, is_exhausted=True)) == Done()


def test_asha_gives_up_whom_the_rest_of_the_budget_cannot_promote():
    asha = Asha(RUNGS, 3)
    rows = [("R", [0.95], 3), *ones(0.5, 0.7, 0.6, 0.2)]  # 5 epochs of 10 ns; promoting takes 2
    # With 39 ns left only one promotion and part of a second are possible: two may hope.
    assert asha.next_action(history_of(*rows, budget_ns=89)) == Stop(4)
    rows[4] = ("S", [0.2])
    assert asha.next_action(history_of(*rows, budget_ns=89)) == Stop(1)
    rows[1] = ("S", [0.5])
    assert asha.next_action(history_of(*rows, budget_ns=89)) == Sample(1)
    rows = [("R", [0.95], 3), *ones(0.5, 0.7, 0.6, 0.2)]
    assert asha.next_action(history_of(*rows, budget_ns=109)) == Stop(4)
    assert asha.next_action(history_of(*rows, budget_ns=110)) == Sample(1)
    assert asha.next_action(history_of(*rows)) == Sample(1)  # no limit, no end of hope


class NeverGivesUp(Asha):
    def _hopeless(self, history):
        return None


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([2, 4, 9, 12]),
    st.integers(2, 4),
    st.integers(1, 4),
    st.one_of(st.integers(1, 30), st.integers(1, 200)),
    st.integers(0, 10**6),
    st.sampled_from([RandomCosts, Few]),
)
def test_whom_asha_gives_up_would_not_have_been_promoted(epochs, eta, slots, affords, seed, make):
    landscape, rungs = make(epochs, 7, equal=True), rung_epochs(1, epochs, eta)
    both = []
    for policy in (Asha(rungs, eta), NeverGivesUp(rungs, eta)):
        scheduler = begin(
            "random+asha",
            landscape,
            budget_ns=7 * affords + 3,
            slots=slots,
            seed=seed,
            policy=policy,
        )
        scheduler.run()
        both.append(scheduler.history)
    asha, oracle = both
    assert len(asha) == len(oracle)
    for mine, other in zip(asha, oracle, strict=True):
        assert (mine.config, mine.curve, mine.target) == (other.config, other.curve, other.target)
        given_up = (TrialState.STOPPED, TrialState.PAUSED)
        assert mine.state is other.state or (mine.state, other.state) == given_up


def test_asha_gives_most_up_by_the_end_and_few_at_the_beginning():
    landscape = RandomCosts(9, 10, equal=True)
    scheduler = begin("random+asha", landscape, budget_ns=10 * 600)
    waiting = []

    def count():
        paused = [t for t in scheduler.history if t.state is TrialState.PAUSED]
        waiting.append(len(paused))

    scheduler._on_change = count
    scheduler.run()
    stopped = sum(t.state is TrialState.STOPPED for t in scheduler.history)
    assert waiting[-1] <= 2 * (len(RUNGS) - 1)  # one, and one in part, at each rung but the last
    assert stopped > len(scheduler.history) / 2
    assert max(waiting) > 50


def test_asha_keeps_no_more_than_so_many_checkpoints(monkeypatch):
    monkeypatch.setattr(fidelity, "_MOST_PAUSED", 5)
    rows = [*ones(0.5, 0.1, 0.3, 0.1), ("P", [0.0, 0.0, 0.0]), ("R", [0.99], 3), ("R", [0.98], 3)]
    asha = Asha(RUNGS, 3)
    assert asha.next_action(history_of(*rows)) == Sample(1)
    rows += ones(0.2)
    # The lowest rung first, there the worst, of equals the later.
    assert asha.next_action(history_of(*rows)) == Stop(3)
    scheduler = begin("random+asha", RandomCosts(9, 10), budget_ns=10_000, slots=3)
    most = []
    scheduler._on_change = lambda: most.append(
        sum(t.state is TrialState.PAUSED for t in scheduler.history)
    )
    scheduler.run()
    assert 5 < max(most) <= 5 + 3  # as many as there are slots may come in at once


@pytest.mark.parametrize(
    ("rows", "action"),
    [
        ([("P", [0.1])], Resume(0, 3)),  # the first of all has nobody before it
        ([("R", [0.5], 3), ("P", [0.6])], Resume(1, 3)),
        ([("R", [0.5], 3), ("P", [0.5])], Resume(1, 3)),
        ([("R", [0.5], 3), ("P", [0.4])], Stop(1)),
        ([("R", [0.5], 3), ("S", [0.4]), ("P", [0.45])], Stop(2)),
        ([("S", [0.1])] * 4 + [("R", [0.5], 3), ("P", [0.45])], Resume(5, 3)),  # 2nd of 6
        ([("S", [0.1])] * 3 + [("R", [0.5], 3), ("P", [0.45])], Stop(4)),  # 2nd of 5
        ([("I", [], 1)] * 4 + [("R", [0.5], 3), ("P", [0.45])], Resume(5, 3)),
        ([("P", [0.1, 0.1, 0.1])], Resume(0, 9)),
        ([("C", [0.5] * 9), ("P", [0.9, 0.9, 0.4])], Stop(1)),
        ([("I", [], 1)] * 6 + [("C", [0.5] * 9), ("P", [0.9, 0.9, 0.4])], Stop(7)),
        ([("I", [0.1], 3)] * 4 + [("C", [0.5] * 9), ("P", [0.9, 0.9, 0.4])], Resume(5, 9)),
        ([("C", [0.5] * 9)], Sample(1)),
        ([("S", [0.5]), ("R", [], 1)], Sample(1)),
    ],
)
def test_asha_that_stops_by_hand(rows, action):
    assert AshaStopping(RUNGS, 3).next_action(history_of(*rows)) == action


def test_a_rung_of_successive_halving_waits_for_all_and_stops_before_it_promotes():
    halving = Halving.successive((1, 3), 3)  # three trials, of which one goes on

    def action(*rows, **more):
        return halving.next_action(history_of(*rows, max_epochs=3, **more))

    assert action() == action(*ones(0.1, 0.9)) == Sample(1)
    # One is still on its way: the slot begins the next bracket.
    assert action(*ones(0.1, 0.9), ("R", [], 1)) == Sample(1)
    assert action(*ones(0.1, 0.9, 0.5)) == Stop(2)
    assert action(*ones(0.1, 0.9), ("S", [0.5])) == Stop(0)
    assert action(("S", [0.1]), *ones(0.9), ("S", [0.5])) == Resume(1, 3)
    done = [("S", [0.1]), ("C", [0.9] * 3), ("S", [0.5])]
    assert action(*done) == Sample(1)
    # The second bracket knows nothing of the first.
    assert action(*done, *ones(0.2, 0.1), ("S", [0.15])) == Stop(4)
    # The older bracket goes first, and a broken one is never the best.
    assert action(*ones(0.1), ("S", [0.05]), ("I", []), *ones(0.9, 0.8, 0.7)) == Resume(0, 3)
    # What is left of a finite space makes a smaller bracket.
    assert action(*ones(0.1, 0.9), is_exhausted=True) == Stop(0)
    assert action(("S", [0.1]), *ones(0.9), is_exhausted=True) == Resume(1, 3)
    assert action(*done, is_exhausted=True) == Done()


TABLE = [  # Li et al. (2018): R = 81, eta = 3
    ((81, 1), (27, 3), (9, 9), (3, 27), (1, 81)),
    ((34, 3), (11, 9), (3, 27), (1, 81)),
    ((15, 9), (5, 27), (1, 81)),
    ((8, 27), (2, 81)),
    ((5, 81),),
]
CYCLE = sum(
    n * (until - before)
    for bracket in TABLE
    for (n, until), before in zip(bracket, [0, *(until for _, until in bracket)], strict=False)
)


@pytest.mark.parametrize(("slots", "more"), [(1, 0), (3, 81 * 9)])
def test_a_cycle_of_hyperband_trains_what_the_papers_table_says(slots, more):
    assert CYCLE == 1581  # in epochs: about 5 R for each of the five brackets, less the rounding
    scheduler = begin("hyperband", Formula(81), budget_ns=CYCLE + more, slots=slots)
    scheduler.run()
    trials = scheduler.history.trials
    if not more:
        assert scheduler.budget.remaining_ns == 0
        assert len(trials) == 81 + 34 + 15 + 8 + 5
    first = 0
    for bracket in TABLE:
        members = trials[first : first + bracket[0][0]]
        first += bracket[0][0]
        assert [sum(t.epoch >= until for t in members) for _, until in bracket] == [
            n for n, _ in bracket
        ]
        ranked = sorted(members, key=lambda t: -t.config["x"])
        for n, until in bracket:
            assert all(t.epoch >= until for t in ranked[:n])  # the right ones
        ended = {t.epoch: t.state for t in members}
        assert ended.pop(81) is TrialState.COMPLETED
        assert set(ended.values()) <= {TrialState.STOPPED}


def test_paused_trials_go_on_where_they_were():
    launches = []

    class Noted(ReplayRunner):
        def launch(self, trial, until_epoch):
            launches.append((trial.number, trial.epoch, until_epoch))
            super().launch(trial, until_epoch)

    landscape = RandomCosts(9, 50)
    scheduler = begin("random+asha", landscape, budget_ns=15_000, slots=3, runner=Noted)
    scheduler.run()
    check_curves(scheduler, landscape, 0)
    for trial in scheduler.history:
        mine = [(a, b) for n, a, b in launches if n == trial.number]
        assert mine[0][0] == 0
        assert all(b == c for (_, b), (c, _) in pairwise(mine))
        assert mine[-1][1] >= trial.epoch
    assert any(t.state is TrialState.COMPLETED for t in scheduler.history)
    assert len(launches) > len(scheduler.history)


def test_of_equal_scores_the_checkpoint_of_the_earlier_trial_is_kept():
    # The later trial ends first; the earlier one is the incumbent all the same.
    marks = [Checkpoint(f"c{i}", "0") for i in range(4)]
    runner = Scripted(
        epoch(0.3, checkpoint=marks[0], ends=True),
        epoch(0.4, checkpoint=marks[1]),
        epoch(0.5, checkpoint=marks[2], ends=True),
        epoch(0.5, checkpoint=marks[3], ends=True),
    )
    actions = iter([Sample(1), Sample(2), Resume(0, 2)])

    class Follows:
        def next_action(self, history):
            return next(actions, Done())

    budget = Budget(10**6)
    searcher = make_searcher("random", RandomCosts.space, 0)
    history = History(2, 10**6)
    scheduler = Scheduler(searcher, Follows(), runner, history, Recorder(budget), seed=0)
    scheduler.run()
    assert [t.score for t in history] == [0.5, 0.5]
    assert history.best.number == 0
    assert runner.discarded == [1, 0, 1]  # superseded, superseded, beaten


def test_a_training_that_says_itself_that_it_is_complete_is_not_waited_for():
    # As a user's generator may, before it has come to the rung.
    short = {"kind": EventKind.EXHAUSTED, "ends": True}
    for name in ENTRIES:
        answers = [epoch(0.5), short, *[epoch(0.4, ends=True), epoch(0.3, ends=True)] * 2]
        searcher, policy = make_entry(
            name, SearchSpace(a=Choice(("p", "q", "r"))), 0, epochs=3, min_epochs=3
        )
        scheduler = Scheduler(
            searcher, policy, Scripted(*answers), History(3, 10**6), Recorder(Budget(10**6)), seed=0
        )
        scheduler.run()
        assert scheduler.finished
        assert all(t.state is TrialState.COMPLETED for t in scheduler.history), name


# -- the library ---------------------------------------------------------------------------------


def rising(config):
    for number in range(1, 10):
        yield config["x"] * number


@pytest.mark.parametrize("name", ["random+asha", "hyperband", "random+median", "asha-stop"])
def test_tune_pauses_generators_and_goes_on_with_them(name):
    space = {"x": Float(0.0, 1.0)}
    study = tune(rising, space, searcher=name, max_epochs=9, budget_minutes=0.003, seed=1)
    assert len(study.trials) > 9
    for trial in study.trials:
        assert [o.score for o in trial.curve] == list(rising(trial.config))[: trial.epoch]
    ends = Counter(t.epoch for t in study.trials)
    assert ends[9] >= 1
    assert ends[3] >= 1  # of 9: the first rung by default
    assert study.best.epoch == 9


@pytest.mark.parametrize("name", ["random+asha", "hyperband", "random+median"])
def test_what_pauses_trials_needs_their_full_length_and_no_asking(name):
    with pytest.raises(ValueError, match="needs max_epochs"):
        tune(rising, {"x": Float(0.0, 1.0)}, searcher=name, budget_minutes=1)
    study = Study({"x": Float(0.0, 1.0)}, searcher=name, max_epochs=9)
    with pytest.raises(ValueError, match=r"needs tune\(\)"):
        study.ask()
    assert study.trials == ()


# -- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fidelity_flag", "entry", "name"),
    [
        ("random", "full", ("random", "full"), "random"),
        ("random", "asha", ("random", "asha"), "random+asha"),
        ("random+asha", "hyperband", ("random", "asha"), "random+asha"),
        ("asha", "full", ("random", "asha"), "random+asha"),
        ("hyperband", "full", ("random", "hyperband"), "random+hyperband"),
        ("random+full", "asha", ("random", "full"), "random"),
        ("bohb", "asha", ("bohb", "hyperband"), "bohb"),
        ("bohb+full", "full", ("bohb", "full"), "bohb+full"),
        ("bayes+asha-stop", "full", ("bayes", "asha-stop"), "bayes+asha-stop"),
    ],
)
def test_what_an_entry_stands_for(text, fidelity_flag, entry, name):
    parsed = Entry.parse(text, fidelity_flag)
    assert parsed == Entry(*entry)
    assert str(parsed) == name
    assert Entry.parse(name) == parsed


@pytest.mark.parametrize(
    ("text", "fidelity_flag", "message"),
    [
        ("randon", "full", "no searcher 'randon'; did you mean 'random'"),
        ("hyperbnad", "full", "no searcher 'hyperbnad'; did you mean 'hyperband'"),
        ("random+ahsa", "full", "no fidelity 'ahsa'; did you mean 'asha'"),
        ("randon+asha", "full", "did you mean 'random'"),
        ("asha+random", "full", "no searcher 'asha'"),
        ("random+asha+sh", "full", "no fidelity 'asha.sh'"),
        ("random+", "full", "no fidelity ''"),
        ("+asha", "full", "no searcher ''"),
        ("full", "full", "no searcher 'full'"),
        ("random", "ahsa", "did you mean 'asha'"),
        ("random+asha", "ahsa", "did you mean 'asha'"),  # though it is not needed
        ("hyperband", "ahsa", "did you mean 'asha'"),
    ],
)
def test_an_entry_that_there_is_not(text, fidelity_flag, message):
    with pytest.raises(ValueError, match=message):
        Entry.parse(text, fidelity_flag)


@pytest.mark.parametrize("name", OWN_MINDS)
def test_who_decides_itself_takes_no_policy(name):
    with pytest.raises(ValueError, match=r"leave out \+asha"):
        Entry.parse(f"{name}+asha")
    assert Entry.parse(name, "asha") == Entry(name, "full")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random+asha", {"epochs": None}, "needs max_epochs"),
        ("random+median", {"epochs": None}, "needs max_epochs"),
        ("random+asha", {"epochs": 9, "min_epochs": 10}, "full length, 9, got 10"),
        ("random+asha", {"epochs": 9, "eta": 1}, "2 or more, got 1"),
        ("random", {"epochs": 9, "eta": 1}, "2 or more, got 1"),
        ("random", {"epochs": 9, "min_epochs": 0}, "at least 1"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_entry(name, RandomCosts.space, 0, **options)


def test_the_first_rung_by_default():
    assert [default_min_epochs(n) for n in (1, 2, 3, 27, 54, 81, 270)] == [1, 2, 2, 2, 2, 3, 10]


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_trainings_of_one_or_two_epochs_have_one_rung(name, epochs):
    landscape = RandomCosts(epochs, 10)
    _, policy = make_entry(f"random+{name}", landscape.space, 0, epochs=epochs)
    scheduler = begin("random", landscape, budget_ns=200, policy=policy)
    scheduler.run()
    assert all(t.epoch == epochs for t in scheduler.history.trials[:-1])


def test_a_live_generator_is_not_charged_for_what_another_had_to_catch_up():
    """Trial 0 was lost at epoch 2 with its process; trial 1 lives, and is promoted after it."""

    def train(config):
        yield from (0.1, 0.2, 0.3, 0.4)

    def trial(number, epochs):
        curve = tuple(Observation(e, 0.1 * e, 1) for e in range(1, epochs + 1))
        return Trial(number, {"x": 0.5}, 0, 4, curve=curve)

    def events(number, epochs, until):
        runner.launch(trial(number, epochs), until)
        found = []
        while runner.free_slots == 0:
            found += [e for e in runner.wait() if e.number is None or e.number == number]
        return [e.score for e in found if e.number == number]

    runner = FunctionRunner(train)
    runner.hold(10**12, 0)
    assert events(1, 0, 1) == [0.1]
    assert events(0, 2, 3) == [0.3]  # its first two are paid for again, and not told again
    assert events(1, 1, 3) == [0.2, 0.3]


def test_a_first_rung_that_foretells_nothing_is_warned_of():
    def history(pairs, more=4):
        made = History(9, None)
        for number in range(len(pairs) + more):
            made.start(Trial(number, {"x": 0.1}, 0, 9))
            first, last = pairs[number] if number < len(pairs) else (0.0, None)
            for at in range(1, 10 if last is not None else 4):
                made.observe(number, Observation(at, last if at == 9 else first, 1))
            made.close(number, TrialState.STOPPED if last is None else TrialState.COMPLETED)
        return made.view()

    falling = [(0.1 * i, 0.9 - 0.1 * i) for i in range(8)]
    found = first_rung([history(falling[:4]), history(falling[4:])])
    assert (found.epoch, found.trials) == (3, 8)
    assert found.rank_correlation == pytest.approx(-1.0)
    assert "after epoch 3 hardly foretold" in found.warning
    rising = first_rung([history([(0.1 * i, 0.2 * i) for i in range(8)])])
    assert rising.rank_correlation == pytest.approx(1.0)
    assert not rising.warning
    assert first_rung([history(falling, more=0)]) is None
    assert first_rung([history(falling[:4])]).rank_correlation is None
    assert not first_rung([history(falling[:4])]).warning


@pytest.mark.parametrize("trials", [3, 40])
def test_of_a_first_rung_where_all_scored_alike_nothing_is_said(trials):
    assert FirstRung(2, trials, None).warning == ""
    assert "hardly foretold" in FirstRung(2, 40, 0.0).warning
