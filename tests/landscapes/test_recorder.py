"""Recording: designs, and tables made of histories."""

import math

import numpy as np
import pytest

from landscapes.recorder import DesignSearcher, lattice, make_table, sobol
from tests.helpers import RandomCosts, search
from tuner.history import History
from tuner.searchers import SpaceExhausted
from tuner.space import Choice, Conditional, Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

SPACE = SearchSpace(lr=Float(1e-4, 1.0, log=True), n=Int(1, 5), act=Choice(("relu", "gelu")))
NAN = float("nan")


# -- designs --------------------------------------------------------------------------------------


def test_a_lattice_is_all_combinations_with_the_ends_included():
    found = lattice(SPACE, [3, 2, 2])
    expected = [
        {"lr": lr, "n": n, "act": act}
        for lr in (1e-4, 1e-2, 1.0)
        for n in (1, 5)
        for act in ("relu", "gelu")
    ]
    assert [{**c, "lr": pytest.approx(c["lr"])} for c in found] == expected
    assert found[0]["lr"] == 1e-4  # the ends exactly
    assert found[-1]["lr"] == 1.0


def test_a_lattice_has_no_more_integers_than_there_are_and_always_all_options():
    found = lattice(SPACE, [1, 40, 1])
    assert len(found) == 1 * 5 * 2
    assert [c["n"] for c in found[::2]] == [1, 2, 3, 4, 5]
    assert [c["lr"] for c in found] == pytest.approx([1e-2] * 10)  # one value is the middle


@pytest.mark.parametrize("points", [[3, 2], [3, 2, 2, 2], [0, 2, 2], [3, -1, 2], []])
def test_counts_that_do_not_fit_the_knobs_are_refused(points):
    with pytest.raises(ValueError, match=r"each of the 3 knobs \(lr, n, act\), each at least 1"):
        lattice(SPACE, points or [0, 0, 0])


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_sobol_design_covers_evenly(seed):
    # Of 2^k points of a scrambled sequence each of the 2^k equal parts of every axis has one, and
    # so has each cell of a 2^a x 2^b chessboard with a + b = k.
    plane = SearchSpace(x=Float(0.0, 1.0), lr=Float(1e-4, 1.0, log=True))
    found = sobol(plane, 64, seed)
    u = np.array([[c["x"], (math.log10(c["lr"]) + 4) / 4] for c in found])
    for a in range(7):
        cells = np.floor(u * [2**a, 2 ** (6 - a)]).astype(int)
        assert len({tuple(cell) for cell in cells.tolist()}) == 64


def test_a_sobol_design_begins_as_a_shorter_one_and_depends_on_its_seed():
    assert sobol(SPACE, 40, 3)[:10] == sobol(SPACE, 10, 3)
    assert sobol(SPACE, 10, 3) != sobol(SPACE, 10, 4)
    assert all(SPACE.contains(c) for c in sobol(SPACE, 40, 3))


def test_no_two_settings_of_a_sobol_design_are_alike():
    finite = SearchSpace(n=Int(1, 3), act=Choice(("a", "b")))
    found = sobol(finite, 500, 0)
    assert len(found) == 6
    assert len({tuple(c.values()) for c in found}) == 6
    with pytest.raises(ValueError, match="at least 1 point, got 0"):
        sobol(finite, 0, 0)


def test_a_design_is_proposed_in_its_order_and_then_nothing_is_left():
    design = [{"x": 0.1 * i, "y": 0.5} for i in range(4)]
    scheduler = search(RandomCosts(), budget_ns=10**6)
    scheduler._searcher = DesignSearcher(design)
    scheduler.run()
    assert [t.config for t in scheduler.history] == design
    assert scheduler.history.is_exhausted
    with pytest.raises(SpaceExhausted):
        DesignSearcher(design).propose(scheduler.history)
    assert DesignSearcher(design).propose(History()) == design[0]


# -- tables of histories --------------------------------------------------------------------------


def history_of(*trials):
    """A history of (config, [(score, ns), ...], state or None, partial ns)."""
    history = History(3, None)
    for number, (config, curve, state, partial_ns) in enumerate(trials):
        history.start(Trial(number, config, 0, 3))
        for epoch, (score, ns) in enumerate(curve, 1):
            history.observe(number, Observation(epoch, score, ns))
        if partial_ns:
            history.update(number, partial_ns=partial_ns)
        if state is not None:
            history.close(number, state)
    return history


A = {"lr": 0.01, "n": 2, "act": "gelu"}
B = {"lr": 1.0, "n": 5, "act": "relu"}
C = {"lr": 1e-4, "n": 1, "act": "relu"}
SECOND = 10**9
FULL = [(0.1, SECOND), (0.2, 2 * SECOND), (0.3, 3 * SECOND)]


def row(table, config):
    return table.settings.index(config)


def test_trials_of_a_setting_are_its_replicates_in_the_order_of_the_histories():
    again = [(0.5, SECOND), (0.6, SECOND), (0.7, SECOND)]
    one = history_of((A, FULL, TrialState.COMPLETED, 0), (B, again, TrialState.COMPLETED, 0))
    two = history_of((B, FULL, TrialState.COMPLETED, 0), (A, again, TrialState.COMPLETED, 0))
    table = make_table("two", SPACE, 3, [one, two], {"about": "Two."})
    assert (table.name, table.space, table.epochs) == ("two", SPACE, 3)
    assert table.card["about"] == "Two."
    assert sorted(map(str, table.settings)) == sorted(map(str, [A, B]))
    assert table.scores[row(table, A)].tolist() == [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]
    assert table.scores[row(table, B)].tolist() == [[0.5, 0.6, 0.7], [0.1, 0.2, 0.3]]
    assert table.seconds[row(table, A)].tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    assert not table.infeasible.any()


def test_a_setting_with_fewer_replicates_has_none_in_place_of_the_others():
    histories = [
        history_of((A, scored(0.1, 0.1, 0.1), TrialState.COMPLETED, 0)),
        history_of(
            (A, scored(0.2, 0.2, 0.2), TrialState.COMPLETED, 0),
            (B, scored(0.9, 0.9, 0.9), TrialState.COMPLETED, 0),
        ),
        history_of((A, scored(0.3, 0.3, 0.3), TrialState.COMPLETED, 0)),
    ]
    table = make_table("t", SPACE, 3, histories, {})
    assert table.scores[row(table, A), :, 0].tolist() == [0.1, 0.2, 0.3]
    assert np.array_equal(table.scores[row(table, B), :, 0], [0.9, NAN, NAN], equal_nan=True)
    for seed in range(20):  # whoever asks is shown the only one there is
        assert table.curve(B, seed)[0].tolist() == [0.9, 0.9, 0.9]


def scored(*scores):
    return [(score, SECOND) for score in scores]


def test_the_same_setting_with_the_same_seed_is_the_same_training_and_counts_once():
    first, second = scored(0.1, 0.2, 0.3), scored(0.5, 0.6, 0.7)
    done = TrialState.COMPLETED
    histories = [
        history_of((A, first, done, 0), (B, first, done, 0), (A, first, done, 0)),
        history_of((A, first, done, 0)),  # another searcher's, of the same seed
        history_of((A, second, done, 0), (B, second, done, 0)),
    ]
    table = make_table("t", SPACE, 3, histories, {}, [4, 4, 9])
    assert table.scores[row(table, A), :, 0].tolist() == [0.1, 0.5]
    assert table.seeds[row(table, A)].tolist() == [4, 9]
    for config in (A, B):
        assert table.curve(config, 4)[0].tolist() == [0.1, 0.2, 0.3]
        assert table.curve(config, 9)[0].tolist() == [0.5, 0.6, 0.7]
        assert table.value(config, 4) == 0.7  # what others were shown
        assert table.value(config, 9) == 0.3


def test_of_one_training_that_two_searches_saw_the_longer_part_is_kept():
    short = history_of((A, FULL[:1], None, 0), (B, FULL, TrialState.COMPLETED, 0))  # out of budget
    long = history_of((A, FULL, TrialState.COMPLETED, 0))
    for histories in ([long, short], [short, long]):
        table = make_table("t", SPACE, 3, histories, {}, [0, 0])
        assert table.scores[row(table, A), 0].tolist() == [0.1, 0.2, 0.3]


def test_a_repeated_training_does_not_count_for_the_seed_that_saw_it_nor_twice():
    done = TrialState.COMPLETED
    histories = [
        history_of((A, scored(0.1, 0.1, 0.2), done, 0), (B, FULL, done, 0)),
        history_of((A, scored(0.1, 0.1, 0.8), done, 0), (B, FULL, done, 0)),
        history_of((B, FULL, done, 0)),
    ]
    table = make_table("t", SPACE, 3, histories, {}, [0, 1, 2])
    assert table.scores.shape == (2, 3, 3)
    assert table.value(A, 0) == pytest.approx(0.8)
    assert table.value(A, 1) == pytest.approx(0.2)
    assert table.value(A) == pytest.approx(0.5)


def test_partial_trainings_keep_what_they_have_and_those_without_an_epoch_are_left_out():
    history = history_of(
        (A, FULL[:2], None, 7),  # still open, and paid for a part of its next epoch
        (B, [], None, 5),  # never finished an epoch: nobody knows what it would score
        (C, [], TrialState.FAILED, 5),
        (A | {"n": 3}, FULL[:1], TrialState.FAILED, 0),
    )
    table = make_table("t", SPACE, 3, [history], {})
    assert table.settings == [A, A | {"n": 3}]
    assert np.array_equal(table.scores[:, 0], [[0.1, 0.2, NAN], [0.1, NAN, NAN]], equal_nan=True)
    assert np.array_equal(table.seconds[:, 0], [[1.0, 2.0, NAN], [1.0, NAN, NAN]], equal_nan=True)
    assert not table.infeasible.any()


def test_what_broke_off_is_kept_with_what_its_last_attempt_cost():
    history = history_of(
        (A, FULL[:1], TrialState.INFEASIBLE, SECOND // 2),
        (B, [], TrialState.INFEASIBLE, 0),  # out of memory before anything was paid
        (C, FULL, TrialState.COMPLETED, 0),
    )
    table = make_table("t", SPACE, 3, [history], {})
    assert table.infeasible[:, 0].tolist() == [True, True, False]
    assert np.array_equal(table.scores[:2, 0], [[0.1, NAN, NAN], [NAN] * 3], equal_nan=True)
    assert np.array_equal(table.seconds[:2, 0], [[1.0, 0.5, NAN], [1e-9, NAN, NAN]], equal_nan=True)
    assert math.isnan(table.value(A))
    assert table.optimum() == (C, 0.3)


def test_where_nothing_is_left_there_is_no_table():
    for histories in ([], [History()], [history_of((A, [], TrialState.FAILED, 9))]):
        with pytest.raises(ValueError, match="nothing to make a landscape of"):
            make_table("t", SPACE, 3, histories, {})
    with pytest.raises(ValueError, match=r"\w"):
        make_table("t", SPACE, 3, [history_of((A, [], TrialState.INFEASIBLE, 9))], {})


def test_a_table_of_a_search_replays_what_the_search_saw():
    landscape = RandomCosts(epochs=3, highest_ns=10**9)
    first = search(landscape, budget_ns=30 * 10**9, seed=4)
    first.run()
    complete = [t for t in first.history if t.state is TrialState.COMPLETED]
    assert len(complete) > 10
    table = make_table("t", landscape.space, 3, [first.history], {})
    for trial in complete:
        scores, seconds = table.curve(trial.config, 99)
        assert scores.tolist() == [o.score for o in trial.curve]
        assert [round(s * 1e9) for s in seconds] == [o.device_ns for o in trial.curve]
    again = search(table, budget_ns=30 * 10**9, seed=4)
    again._searcher = DesignSearcher([t.config for t in complete])
    again.run()
    for one, other in zip(complete, again.history, strict=False):
        assert [o.score for o in one.curve][: len(other.curve)] == [o.score for o in other.curve]


def test_what_was_taken_over_is_not_recorded_and_a_knob_that_may_be_absent_is_refused():
    space, histories = SearchSpace(x=Float(0, 1)), []
    for seed in range(2):
        history = History(1)
        for number, (x, source) in enumerate([(0.1, "earlier"), (0.2 + seed / 10, "")]):
            curve = (Observation(1, 0.5, 10, 10),)
            state = TrialState.COMPLETED
            history.restore(Trial(number, {"x": x}, 0, 1, state, curve, source=source))
        histories.append(history.view())
    table = make_table("mine", space, 1, histories, {})
    assert sorted(config["x"] for config in table.settings) == pytest.approx([0.2, 0.3])
    there_or_not = SearchSpace(a=Choice((1, 2)), b=Conditional(Float(0, 1), "a", (1,)))
    with pytest.raises(ValueError, match="there is not always a b"):
        make_table("mine", there_or_not, 1, [History(1).view()], {})
