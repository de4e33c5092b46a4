"""How far each searcher had come by when: step functions, quantiles, ranks, minutes to a target."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.progress import at, minutes_to, progress, race_progress

NAN = float("nan")


@st.composite
def lines(draw):
    """A line: minutes rise, and so does the best score so far."""
    n = draw(st.integers(0, 6))
    minutes = sorted(draw(st.lists(st.integers(0, 40), min_size=n, max_size=n, unique=True)))
    scores = sorted(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    return [(m / 4, s / 10) for m, s in zip(minutes, scores, strict=True)]


@st.composite
def races(draw):
    seeds = draw(st.integers(1, 5))
    names = "abc"[: draw(st.integers(1, 3))]
    return {name: [draw(lines()) for _ in range(seeds)] for name in names}


def best_at(line, minute):
    """The best score by then, looked for from the start; None for none."""
    return max((score for m, score in line if m <= minute), default=None)


# -- one line -------------------------------------------------------------------------------------


def test_a_line_holds_from_its_step_on():
    line = [(1.0, 0.3), (2.5, 0.5), (4.0, 0.8)]
    minutes = np.array([0.0, 0.999, 1.0, 2.0, 2.5, 3.9, 4.0, 99.0])
    expected = [NAN, NAN, 0.3, 0.3, 0.5, 0.5, 0.8, 0.8]
    assert np.array_equal(at(line, minutes), expected, equal_nan=True)
    assert np.isnan(at([], minutes)).all()


def test_of_two_steps_at_one_minute_the_later_counts():
    assert at([(1.0, 0.3), (1.0, 0.4)], np.array([1.0])).tolist() == [0.4]


@given(lines(), st.lists(st.integers(0, 48), min_size=1))
def test_a_line_is_the_best_score_by_each_minute(line, quarters):
    minutes = np.array(quarters) / 4
    found = at(line, minutes).tolist()
    for minute, score in zip(minutes, found, strict=True):
        expected = best_at(line, minute)
        assert math.isnan(score) if expected is None else score == expected


def test_minutes_to_a_target_are_those_of_the_first_step_that_reaches_it():
    line = [(1.0, 0.3), (2.5, 0.5), (4.0, 0.8)]
    assert minutes_to(line, 0.1) == 1.0
    assert minutes_to(line, 0.5) == 2.5  # reaching it is enough
    assert minutes_to(line, 0.51) == 4.0
    assert minutes_to(line, 0.81) is None
    assert minutes_to([], 0.0) is None


# -- several searchers and seeds ------------------------------------------------------------------


def test_progress_is_on_common_minutes_from_none_to_all():
    found = progress({"a": [[(1.0, 0.5)]], "b": [[]]}, until=8.0)
    for name in "ab":
        minutes = found[name].minutes
        assert (minutes[0], minutes[-1]) == (0.0, 8.0)
        assert np.diff(minutes) == pytest.approx(8.0 / (len(minutes) - 1))
    assert (np.isnan(found["a"].scores[0]) == (found["a"].minutes < 1)).all()
    assert np.isnan(found["b"].scores).all()


def test_quantiles_are_over_the_seeds_and_wait_for_the_last_of_them():
    seeds = [[(0.0, 0.1)], [(0.0, 0.2)], [(0.0, 0.4)], [(0.0, 0.8)], [(4.0, 0.9)]]
    found = progress({"a": seeds}, until=8.0)["a"]
    late = found.minutes >= 4
    assert (np.isnan(found.quantile(0.5)) == ~late).all()
    assert found.quantile(0.5)[late] == pytest.approx(0.4)
    assert found.quantile(0.25)[late] == pytest.approx(0.2)
    assert found.quantile(0.75)[late] == pytest.approx(0.8)


def test_ranks_by_hand():
    # Seed 0: a and b tie from the start, c has nothing until minute 5 and is then the best.
    # Seed 1: b, then a, then c, from the start.
    found = progress(
        {
            "a": [[(0.0, 0.5)], [(0.0, 0.6)]],
            "b": [[(0.0, 0.5)], [(0.0, 0.7)]],
            "c": [[(5.0, 0.9)], [(0.0, 0.1)]],
        },
        until=10.0,
    )
    early = found["a"].minutes < 5
    for name, before, after in (
        ("a", (1.5 + 2) / 2, (2.5 + 2) / 2),
        ("b", (1.5 + 1) / 2, (2.5 + 1) / 2),
        ("c", (3 + 3) / 2, (1 + 3) / 2),
    ):
        assert found[name].rank[early] == pytest.approx(before)
        assert found[name].rank[~early] == pytest.approx(after)


def test_those_without_a_score_share_the_last_ranks():
    found = progress({"a": [[]], "b": [[(0.0, 0.0)]], "c": [[]]}, until=1.0)
    assert found["b"].rank == pytest.approx(1.0)
    assert found["a"].rank == pytest.approx(2.5)
    assert found["c"].rank == pytest.approx(2.5)


@given(races())
def test_ranks_add_up_and_are_one_more_than_who_is_ahead_and_half_of_who_ties(race):
    found = progress(race, until=10.0)
    names, seeds = list(race), len(race["a"])
    minutes = found["a"].minutes
    assert sum(found[n].rank for n in names) == pytest.approx(len(names) * (len(names) + 1) / 2)
    for i in (0, 37, 100, 200):
        for name in names:
            expected = 0.0
            for seed in range(seeds):
                scores = {n: best_at(race[n][seed], minutes[i]) for n in names}
                known = {n: -1.0 if s is None else s for n, s in scores.items()}
                ahead = sum(known[n] > known[name] for n in names)
                ties = sum(known[n] == known[name] for n in names) - 1
                expected += (1 + ahead + ties / 2) / seeds
            assert found[name].rank[i] == pytest.approx(expected)


# -- what goes into the summary -------------------------------------------------------------------


def flat_line(minute, score):
    return [(minute, score)]


def test_a_race_by_hand():
    # Three seeds each. a's middle score is 0.6, b's is 0.7: the target is 0.6.
    race = {
        "a": [
            [(1.0, 0.5), (6.0, 0.6)],
            [(2.0, 0.7)],
            [(3.0, 0.4)],
        ],
        "b": [
            [(1.0, 0.2), (4.0, 0.7)],
            [(1.0, 0.1), (2.0, 0.9)],
            [(1.0, 0.3), (9.0, 0.65)],
        ],
    }
    found = race_progress(race, 10.0)
    json.dumps(found, allow_nan=False)
    assert found["target"] == 0.6
    a, b = found["searchers"]["a"], found["searchers"]["b"]
    assert (a["minutes_to_target"], a["seeds_at_target"]) == (6.0, 2)  # two of three, by minute 6
    assert (b["minutes_to_target"], b["seeds_at_target"]) == (4.0, 3)
    assert (found["minutes"][0], found["minutes"][-1]) == (0.0, 10.0)
    assert a["median"][0] is None
    assert (a["low"][-1], a["median"][-1], a["high"][-1]) == (0.5, 0.6, 0.65)
    assert (b["low"][-1], b["median"][-1], b["high"][-1]) == (0.675, 0.7, 0.8)
    assert a["mean_rank"][-1] == pytest.approx((2 + 2 + 2) / 3, abs=1e-6)
    assert all(len(a[k]) == len(found["minutes"]) for k in ("low", "median", "high", "mean_rank"))


def test_where_a_searcher_found_nothing_there_is_no_target():
    found = race_progress({"a": [[(1.0, 0.5)]], "b": [[]]}, 4.0)
    assert found["target"] is None
    for name in "ab":
        assert found["searchers"][name]["minutes_to_target"] is None
        assert found["searchers"][name]["seeds_at_target"] == 0
    assert set(found["searchers"]["b"]["median"]) == {None}
    json.dumps(found, allow_nan=False)


def test_the_target_is_what_half_of_an_even_number_of_seeds_have_reached():
    # 0.3 and more: two of four.
    race = {"a": [flat_line(m, s) for m, s in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4))]}
    found = race_progress(race, 10.0)
    assert found["target"] == 0.3
    assert found["searchers"]["a"]["seeds_at_target"] == 2
    assert found["searchers"]["a"]["minutes_to_target"] == 4


def test_one_seed_without_a_score_does_not_keep_the_others_from_a_target():
    race = {"a": [[(1.0, 0.5)], [(2.0, 0.6)], []], "b": [[(1.0, 0.7)], [(3.0, 0.8)], [(1.0, 0.9)]]}
    found = race_progress(race, 10.0)
    assert found["target"] == 0.5
    assert found["searchers"]["a"]["minutes_to_target"] == 2.0
    assert found["searchers"]["b"]["seeds_at_target"] == 3


@given(races())
def test_the_target_is_the_highest_that_half_of_everyones_seeds_have_reached(race):
    found = race_progress(race, 10.0)
    json.dumps(found, allow_nan=False)
    ends = {name: [best_at(line, 10.0) for line in many] for name, many in race.items()}

    def is_reached(target):
        return all(
            2 * sum(s is not None and s >= target for s in many) >= len(many)
            for many in ends.values()
        )

    reached = [s for many in ends.values() for s in many if s is not None and is_reached(s)]
    assert found["target"] == max(reached, default=None)


@given(races())
def test_by_the_minutes_to_the_target_half_of_the_seeds_were_there_and_not_before(race):
    found = race_progress(race, 10.0)
    target = found["target"]
    if target is None:
        return
    for name, many in race.items():
        one = found["searchers"][name]
        first = sorted(
            min(m for m, s in line if s >= target)
            for line in many
            if (line and line[-1][1] >= target)
        )
        assert one["seeds_at_target"] == len(first)
        there = sum(m <= one["minutes_to_target"] for m in first)
        before = sum(m < one["minutes_to_target"] for m in first)
        assert 2 * before < len(many) <= 2 * there
