"""Rungs, Hyperband's table as in the paper, and who may be promoted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.brackets import halving_bracket, hyperband_brackets, rung_epochs
from tuner.fidelity import Asha, Resume
from tuner.history import History
from tuner.trial import Observation, Trial, TrialState


@pytest.mark.parametrize(
    ("arguments", "rungs"),
    [
        ((1, 81, 3), (1, 3, 9, 27, 81)),
        ((1, 243, 3), (1, 3, 9, 27, 81, 243)),  # log(243, 3) is 4.999… in floating point
        ((1, 1000, 10), (1, 10, 100, 1000)),  # and log(1000, 10) is 2.999…
        ((1, 125, 5), (1, 5, 25, 125)),
        ((2, 52, 3), (2, 6, 17, 52)),
        ((1, 52, 2), (1, 2, 3, 7, 13, 26, 52)),  # 52, 26, 13, 6.5, 3.25, 1.6, 0.8
        ((2, 52, 2), (2, 3, 7, 13, 26, 52)),
        ((3, 81, 3), (3, 9, 27, 81)),
        ((4, 81, 3), (9, 27, 81)),
        ((2, 12, 3), (4, 12)),
        ((81, 81, 3), (81,)),
        ((1, 1, 2), (1,)),
        ((1, 2, 2), (1, 2)),
        ((1, 3, 100), (3,)),
        ((1, 10**9, 10), tuple(10**k for k in range(10))),
    ],
)
def test_rungs(arguments, rungs):
    assert rung_epochs(*arguments) == rungs


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(2, 20))
def test_rungs_ascend_to_the_last_and_are_eta_apart(one, other, eta):
    least, most = sorted((one, other))
    rungs = rung_epochs(least, most, eta)
    assert rungs[-1] == most
    assert rungs[0] >= least
    assert all(a < b for a, b in pairwise(rungs))
    for k, rung in enumerate(reversed(rungs)):
        assert abs(rung * eta**k - most) * 2 <= eta**k  # most / eta^k to the nearest epoch
    below = (2 * most + eta ** len(rungs)) // (2 * eta ** len(rungs))
    assert below < least or below == rungs[0] == 1  # no rung is missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 81, 1), "one in 2 or more, got 1"),
        ((1, 81, 0), "one in 2 or more"),
        ((1, 81, -3), "one in 2 or more"),
        ((0, 81, 3), "at least 1 and at most the full length, 81, got 0"),
        ((82, 81, 3), "at most the full length, 81, got 82"),
        ((1, 0, 3), "at least 1"),
    ],
)
def test_rungs_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rung_epochs(*arguments)


def test_the_brackets_of_hyperband_are_those_of_the_paper():
    # Li et al. (2018), algorithm 1, R = 81, eta = 3, by hand: s_max = 4, B = 5 R,
    # n = ceil(5 * 3^s / (s + 1)): 5*81/5 = 81, 5*27/4 = 33.75, 5*9/3 = 15, 5*3/2 = 7.5, 5;
    # n_i = floor(n / 3^i), r_i = 81 / 3^(s - i).
    brackets = hyperband_brackets(rung_epochs(1, 81, 3), 3)
    assert [tuple(zip(b.sizes, b.epochs, strict=True)) for b in brackets] == [
        ((81, 1), (27, 3), (9, 9), (3, 27), (1, 81)),
        ((34, 3), (11, 9), (3, 27), (1, 81)),
        ((15, 9), (5, 27), (1, 81)),
        ((8, 27), (2, 81)),
        ((5, 81),),
    ]


@given(st.integers(1, 300), st.integers(2, 6))
def test_brackets_only_get_smaller_and_end_with_a_full_training(most, eta):
    rungs = rung_epochs(1, most, eta)
    for bracket in (*hyperband_brackets(rungs, eta), halving_bracket(rungs, eta)):
        assert bracket.epochs[-1] == most
        assert bracket.sizes[-1] >= 1
        for above, below in pairwise(bracket.sizes):
            assert below == above // eta  # floor(n / eta^i) is the same by steps


def test_successive_halving_ends_with_one():
    assert halving_bracket((2, 6, 17, 52), 3).sizes == (27, 9, 3, 1)
    assert halving_bracket((5,), 3).sizes == (1,)


# -- promotions ----------------------------------------------------------------------------------


def promotable(scores, promoted, eta):
    """Whom ASHA lets go on from a rung, one after another, by the numbers in `scores`."""
    history = History(2)
    numbers = sorted(scores)
    for place, number in enumerate(numbers):
        history.start(Trial(place, {"x": 0.5}, seed=0, target=1 + (number in promoted)))
        history.observe(place, Observation(1, scores[number], 1), state=TrialState.PAUSED)
    found = []
    while isinstance(action := Asha((1, 2), eta).next_action(history.view()), Resume):
        found.append(numbers[action.number])
        history.update(action.number, target=action.until_epoch)
    return found


NINE = {0: 0.10, 1: 0.90, 2: 0.30, 3: 0.80, 4: 0.50, 5: 0.60, 6: 0.20, 7: 0.70, 8: 0.40}


def test_the_best_third_may_go_on_less_those_that_did():
    assert promotable(NINE, (), 3) == [1, 3, 7]
    # 1 and 3 went on. Of nine trials three may: that leaves 7. The best third of the seven that
    # are left would be 7 and 5; of the rest, round after round, everybody's turn would come.
    assert promotable(NINE, {1, 3}, 3) == [7]
    assert promotable(NINE, {1, 3, 7}, 3) == []


def test_one_that_went_on_early_takes_no_place_from_the_better_that_came_later():
    # 0 was the best of three once, and went on. Now it is the worst of nine, and three better
    # ones may go on too: who went on is not counted against the quota but removed from it.
    assert promotable(NINE, {0}, 3) == [1, 3, 7]


def test_nobody_goes_on_from_fewer_than_eta():
    assert promotable({}, (), 3) == []
    assert promotable({0: 1.0, 1: 2.0}, (), 3) == []
    assert promotable({0: 1.0, 1: 2.0, 2: 0.0}, (), 3) == [1]
    assert promotable({0: 1.0, 1: 2.0}, (), 2) == [1]


def test_of_equal_scores_the_earlier_trial_goes_first():
    assert promotable({4: 0.5, 2: 0.5, 9: 0.5}, (), 3) == [2]
    assert promotable({n: 0.5 for n in range(6)}, {0}, 3) == [1]


@given(st.dictionaries(st.integers(0, 30), st.floats(0, 1)), st.integers(2, 5), st.data())
def test_a_promotion_is_always_of_the_best_and_within_the_quota(scores, eta, data):
    promoted = data.draw(st.sets(st.sampled_from(sorted(scores)))) if scores else set()
    found = promotable(scores, promoted, eta)
    assert len(found) <= len(scores) // eta
    assert not promoted & set(found)
    waiting = scores.keys() - promoted
    assert all(scores[n] >= scores[m] for n in found for m in waiting - set(found))
