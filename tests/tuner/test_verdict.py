"""The verdict on a race: its statistics against exact ones, its words, how often it is wrong."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from landscapes.synthetic import make_landscape
from tests.helpers import search
from tuner.verdict import ALPHA, POWER, compare, describe, holm, seeds_needed, verdict

p_lists = st.lists(st.integers(0, 1_000).map(lambda n: n / 1_000), min_size=1, max_size=6)


# -- Holm -----------------------------------------------------------------------------------------


def test_holm_by_hand():
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(p_lists)
def test_holm_is_the_closed_test_of_bonferronis(p):
    # A hypothesis is rejected where every intersection that it belongs to is rejected.
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    expected = [
        max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s)
        for i in range(len(p))
    ]
    assert holm(p) == pytest.approx(expected, abs=1e-12)


@given(p_lists)
def test_holm_keeps_the_order_and_makes_nothing_smaller(p):
    corrected = holm(p)
    for (a, x), (b, y) in itertools.product(zip(p, corrected, strict=True), repeat=2):
        assert a > b or x <= y
    for a, x in zip(p, corrected, strict=True):
        assert a <= x <= min(1.0, len(p) * a)


@given(p_lists, st.data())
def test_holm_never_falls_where_a_p_value_rises(p, data):
    i = data.draw(st.integers(0, len(p) - 1))
    risen = [*p[:i], data.draw(st.floats(p[i], 1.0)), *p[i + 1 :]]
    assert all(x <= y + 1e-12 for x, y in zip(holm(p), holm(risen), strict=True))


# -- the permutation test -------------------------------------------------------------------------


def exact(differences):
    """Share of all sign changes whose sum is at least as far from 0; of whole numbers, exactly."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(differences))))  # 2^n x n
    sums = np.abs(flips @ np.array(differences, dtype=np.int64))
    return float((sums >= abs(sum(differences))).mean())


counts = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=2, max_size=10
)
near_counts = st.lists(
    st.tuples(st.integers(8_700, 8_706), st.integers(8_700, 8_706)), min_size=2, max_size=10
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(counts, near_counts))
def test_p_is_the_share_of_all_sign_changes_that_are_as_extreme(pairs):
    # Rewards are test accuracies: counts of 10,000. Ties among sign changes are exact in counts,
    # and must stay ties where the differences of the fractions are a rounding error apart.
    rewards = {"a": [a / 10_000 for a, _ in pairs], "b": [b / 10_000 for _, b in pairs]}
    (found,) = compare(rewards)
    assert found.p == pytest.approx(exact([a - b for a, b in pairs]), abs=1e-12)


def test_p_by_hand():
    # All six differences have one sign: 2 of 64 sign changes are as extreme.
    (found,) = compare({"a": [0.9] * 6, "b": [0.8, 0.81, 0.82, 0.83, 0.84, 0.85]})
    assert (found.ahead, found.behind, found.seeds) == ("a", "b", 6)
    assert found.p == pytest.approx(2 / 64)
    assert found.difference == pytest.approx(0.075)
    assert found.is_resolved
    # Differences 3, 2, -1: of 8 sums, |6|, |4|, 2, 0 twice each; 4 or more: four.
    (found,) = compare({"a": [3.0, 2.0, 0.0], "b": [0.0, 0.0, 1.0]})
    assert found.p == pytest.approx(4 / 8)
    assert found.standard_error == pytest.approx(math.sqrt(13 / 3 / 3))
    (found,) = compare({"a": [0.5] * 8, "b": [0.5] * 8})
    assert (found.p, found.difference, found.standard_error) == (1.0, 0.0, 0.0)
    assert not found.is_resolved


def test_with_many_seeds_p_is_near_the_exact_one_and_always_the_same():
    generator = np.random.default_rng(3)
    flips = np.array(list(itertools.product((1, -1), repeat=16)))  # 65,536, more than are tried
    for shift in (0.0, 0.3, 0.6):
        differences = generator.normal(shift, 1, 16)
        rewards = {"a": differences.tolist(), "b": [0.0] * 16}
        (found,) = compare(rewards)
        sums = np.abs(flips @ differences)
        p = float((sums >= abs(differences.sum()) - 1e-9).mean())
        # Twice the smaller of two one-sided shares of 9,999.
        assert abs(found.p - p) < 2 * 5 * math.sqrt(p / 2 / 9_999) + 2e-4
        assert compare(rewards) == [found]


def test_no_difference_is_ever_impossible():
    (found,) = compare({"a": np.linspace(1, 2, 30).tolist(), "b": [0.0] * 30})
    assert 0 < found.p < 1e-3


# -- all pairs ------------------------------------------------------------------------------------


def test_pairs_are_corrected_together_and_come_most_clearly_different_first():
    rewards = {
        "a": [0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56],
        "b": [0.60, 0.61, 0.62, 0.63, 0.64, 0.65, 0.66],
        "c": [0.51, 0.50, 0.53, 0.52, 0.55, 0.54, 0.57],
    }
    found = compare(rewards)
    # b is ahead of a and of c in all 7 seeds: p = 2/128 each, and thrice that is the first step.
    assert [(c.ahead, c.behind) for c in found] == [("b", "a"), ("b", "c"), ("c", "a")]
    assert [c.p for c in found[:2]] == pytest.approx([6 / 128] * 2)
    raw = exact([1, -1, 1, -1, 1, -1, 1])
    assert found[2].p == pytest.approx(max(6 / 128, raw))
    assert [c.is_resolved for c in found] == [True, True, False]
    assert [c.difference for c in found] == pytest.approx([0.1, 0.1 - 0.01 / 7, 0.01 / 7])


@given(
    st.dictionaries(
        st.sampled_from(["grid", "random", "bayes"]),
        st.lists(st.integers(0, 64), min_size=5, max_size=5),
        min_size=2,
    )
)
@settings(max_examples=40, deadline=None)
def test_corrected_p_is_holms_of_the_exact_ones(counts_by_name):
    rewards = {n: [c / 64 for c in counts] for n, counts in counts_by_name.items()}
    pairs = list(itertools.combinations(rewards, 2))
    raw = [
        exact([x - y for x, y in zip(counts_by_name[a], counts_by_name[b], strict=True)])
        for a, b in pairs
    ]
    expected = dict(zip(map(frozenset, pairs), holm(raw), strict=True))
    found = compare(rewards)
    assert len(found) == len(pairs)
    for c in found:
        assert c.p == pytest.approx(expected[frozenset((c.ahead, c.behind))], abs=1e-12)
        assert np.mean(rewards[c.ahead]) >= np.mean(rewards[c.behind]) - 1e-12
    assert [c.p for c in found] == sorted(c.p for c in found)


def test_a_tie_is_told_in_the_order_of_the_race():
    (found,) = compare({"z": [0.5, 0.6], "a": [0.6, 0.5]})
    assert (found.ahead, found.behind) == ("z", "a")


def test_a_seed_counts_for_a_pair_where_both_have_a_reward():
    nothing = float("nan")
    rewards = {
        "a": [0.9, None, 0.7, 0.6],
        "b": [0.8, 0.7, nothing, 0.7],
        "c": [None, None, None, 0.1],
        "d": [None, None, None, None],
    }
    found = {(c.ahead, c.behind): c for c in compare(rewards)}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"].seeds == 2
    assert found["a", "b"].difference == pytest.approx(0.0)
    assert found["a", "c"].seeds == found["b", "c"].seeds == 1
    assert found["a", "c"].p is None
    assert found["a", "c"].standard_error is None
    assert found["a", "c"].detectable is None
    assert not found["a", "c"].is_resolved


# -- how many seeds, and what they can tell -------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "seeds"),
    # 2 pairs/2^n at most 1/20: 40 pairs at most 2^n.
    [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (10, 9), (12, 9), (13, 10), (15, 10), (45, 11)],
)
def test_seeds_needed_by_hand(pairs, seeds):
    assert seeds_needed(pairs) == seeds


@pytest.mark.parametrize("searchers", [2, 3, 4])
def test_the_seeds_needed_can_resolve_and_one_fewer_never_can(searchers):
    enough = seeds_needed(searchers * (searchers - 1) // 2)

    def apart(n):  # differences as clear as they can be
        names = [f"s{i}" for i in range(searchers)]
        return compare({m: [10.0 * i + k / 100 for k in range(n)] for i, m in enumerate(names)})

    assert all(c.is_resolved for c in apart(enough))
    fewer = apart(enough - 1)
    assert not fewer[0].is_resolved
    assert all(c.detectable is None for c in fewer)
    assert all(c.detectable is not None for c in apart(enough))


def power_of(seeds, searchers, trials):
    """How often a true difference as large as `detectable` says is resolved, by simulation.

    The difference is the one for a standard error of the size it truly has. Of more searchers
    than two, the others' pairs are kept from mattering: Holm's first step is what is asked about.
    """
    generator = np.random.default_rng(seeds)
    pairs = searchers * (searchers - 1) // 2
    sample = generator.normal(size=seeds)
    sample = (sample - sample.mean()) / sample.std(ddof=1)  # mean 0, standard deviation 1
    names = [f"s{i}" for i in range(searchers)]
    found = compare({n: (i * sample).tolist() for i, n in enumerate(names)})
    unit = next(c for c in found if {c.ahead, c.behind} == {"s0", "s1"})
    assert unit.standard_error == pytest.approx(1 / math.sqrt(seeds))
    flips = np.array(list(itertools.product((1, -1), repeat=seeds)), dtype=np.float32)
    drawn = generator.normal(unit.detectable, 1, size=(trials, seeds)).astype(np.float32)
    sums = np.abs(drawn @ flips.T)  # trials x 2^n
    observed = np.abs(drawn.sum(1, keepdims=True))
    p = (sums >= observed * (1 - 1e-5)).mean(1)
    return float((p * pairs <= ALPHA).mean())


@pytest.mark.parametrize(
    ("seeds", "searchers"),  # the fewest seeds that can resolve anything, and more
    [(6, 2), (8, 2), (12, 2), (7, 3), (9, 3), (12, 3), (8, 4), (12, 4)],
)
def test_what_is_called_detectable_is_found_about_as_often_as_is_said(seeds, searchers):
    assert power_of(seeds, searchers, 3_000) == pytest.approx(POWER, abs=0.08)


def test_through_the_verdict_itself_a_detectable_difference_is_found_about_as_often():
    generator, seeds, found = np.random.default_rng(1), 10, 0
    scale = np.linspace(-1, 1, seeds)
    scale = scale / scale.std(ddof=1)
    (unit,) = compare({"a": scale.tolist(), "b": [0.0] * seeds})
    for _ in range(300):
        drawn = generator.normal(unit.detectable, 1, seeds).tolist()
        (one,) = compare({"a": drawn, "b": [0.0] * seeds})
        found += one.is_resolved
    assert found / 300 == pytest.approx(POWER, abs=4 * math.sqrt(0.16 / 300))


def test_more_seeds_tell_smaller_differences_and_noise_hides_them():
    def detectable(n, noise):
        (one,) = compare({"a": [noise * (-1) ** i for i in range(n)], "b": [0.0] * n})
        return one.detectable

    line = [detectable(n, 0.1) for n in (6, 8, 12, 20)]
    assert line == sorted(line, reverse=True)
    assert detectable(12, 0.2) == pytest.approx(2 * detectable(12, 0.1))
    # With many seeds it is the textbook's (z of alpha / 2 + z of the power) standard errors.
    (many,) = compare({"a": [(-1.0) ** i for i in range(300)], "b": [0.0] * 300})
    textbook = (norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * many.standard_error
    assert many.detectable == pytest.approx(textbook, rel=0.01)


# -- the words ------------------------------------------------------------------------------------


def words(rewards, validations=None, minutes=10.0):
    found = verdict(rewards, validations or rewards, measure="test accuracy", minutes=minutes)
    json.dumps(found, allow_nan=False)
    return found


def test_one_searcher_has_nothing_to_be_compared_with():
    found = words({"bayes": [0.9, 0.8]})
    assert found["text"] == "One searcher alone: there is nothing to compare it with."
    assert found["pairs"] == []
    assert len(found["standings"]) == 1


def test_from_one_seed_nothing_is_concluded():
    found = words({"grid": [0.8], "random": [0.8123], "bayes": [0.9]})
    assert found["text"] == (
        "Nothing can be concluded from one seed; it takes at least 7 (--seeds 7) "
        "to tell 3 searchers apart."
    )
    assert [p["resolved"] for p in found["pairs"]] == [False] * 3
    assert found["pairs"][0]["text"] == (
        "bayes came out 10.0 points over grid, in one seed: nothing follows from that."
    )
    assert found["pairs"][2]["text"].startswith("random came out 1.2 points over grid")


def test_from_few_seeds_nothing_is_concluded():
    found = words({"a": [0.1] * 5, "b": [0.9, 0.8, 0.9, 0.8, 0.9]})
    assert found["text"] == (
        "Nothing can be concluded from 5 seeds; it takes at least 6 (--seeds 6) "
        "to tell 2 searchers apart."
    )
    assert found["pairs"][0]["text"] == (
        "b and a are not resolved: with 5 seeds no difference, however large, can be told."
    )


def test_a_resolved_difference_is_told_with_its_error_seeds_and_p():
    # Eight differences of 0.02 + k/500, k = 0..7: mean 0.027, sd sqrt(6)/500, all of one sign.
    found = words({"a": [0.5] * 8, "b": [0.52 + k / 500 for k in range(8)]}, minutes=2.5)
    error = math.sqrt(6) / 500 / math.sqrt(8)  # 0.17 points
    assert found["pairs"][0]["standard_error"] == pytest.approx(error)
    assert found["text"] == (
        "Compared by test accuracy: b is ahead of a by 2.7 ± 0.2 points after 2.5 minutes "
        "(paired permutation test over 8 seeds, Holm-corrected p = 0.008)."
    )
    assert found["pairs"][0]["resolved"]
    assert (found["measure"], found["alpha"]) == ("test accuracy", 0.05)


def test_an_unresolved_difference_is_told_with_what_could_have_been():
    a = [0.50, 0.60, 0.50, 0.60, 0.50, 0.60, 0.50, 0.60]
    b = [0.60, 0.50, 0.60, 0.50, 0.60, 0.50, 0.60, 0.51]
    found = words({"b": b, "a": a})
    pair = found["pairs"][0]
    points = 100 * pair["detectable"]
    assert found["text"] == (
        "Compared by test accuracy: b and a are not resolved: with these 8 seeds a difference "
        f"under {points:.1f} points cannot be told."
    )
    assert points > 10
    assert not pair["resolved"]


def test_where_no_seed_differs_it_is_said():
    found = words({"a": [0.5, 0.6] * 4, "b": [0.5, 0.6] * 4})
    assert found["text"] == (
        "Compared by test accuracy: a and b are not resolved: no difference at all in 8 seeds."
    )


def test_small_and_large_numbers_are_legible():
    # 0.05 points in 8 seeds, and a p of 1e-4 size.
    found = words({"a": [0.5005 + k * 1e-9 for k in range(8)], "b": [0.5] * 8})
    assert "a is ahead of b by 0.05 ± " in found["text"]
    many = words({"a": [0.6 + k * 1e-4 for k in range(30)], "b": [0.5] * 30})
    assert re.search(r"p = 0\.000[12]\)", many["text"])  # 1 or 2 in 10,000


def test_without_rewards_nothing_is_concluded():
    found = words({"a": [None, None], "b": [0.5, 0.6]})
    assert found["text"] == "No two runs have a known test accuracy: nothing can be concluded."
    assert found["pairs"] == []
    assert [s["searcher"] for s in found["standings"]] == ["b", "a"]
    assert found["standings"][1]["reward"] is None
    assert found["standings"][1]["text"] == "a has no known test accuracy"


def test_standings_tell_the_reward_and_how_much_validation_flatters_it():
    found = words(
        {"a": [0.80, 0.82, None], "b": [0.90, 0.92, 0.94], "c": [None] * 3},
        {"a": [0.83, 0.85, 0.87], "b": [0.91, 0.90, 0.92], "c": [None, 0.3, 0.5]},
    )
    b, a, c = found["standings"]
    assert (b["searcher"], a["searcher"], c["searcher"]) == ("b", "a", "c")
    assert (a["seeds"], b["seeds"]) == (3, 3)
    assert a["reward"] == pytest.approx(0.81)
    assert a["best_validation"] == pytest.approx(0.84)  # over the seeds that have a reward
    assert a["gap"] == pytest.approx(0.03)
    assert a["text"] == (
        "a: test accuracy 0.8100 on average, 3.0 points under its best validation score, 0.8400"
    )
    assert b["gap"] == pytest.approx(-0.01)
    assert b["text"].endswith("1.0 points over its best validation score, 0.9100")
    assert (c["reward"], c["gap"]) == (None, None)
    assert c["best_validation"] == pytest.approx(0.4)


def test_a_standing_without_validation_tells_the_reward_alone():
    found = words({"a": [0.5, 0.7], "b": [0.4, 0.4]}, {"a": [None, None], "b": [None, 0.5]})
    assert found["standings"][0]["text"] == "a: test accuracy 0.6000 on average"


# -- calibration ----------------------------------------------------------------------------------

SEEDS, SEARCHERS = 8, ("grid", "random", "bayes")


class Remembering:
    """A landscape that works each curve out once; a search asks for the first guess's often."""

    def __init__(self, landscape):
        self.name, self.space, self.epochs = landscape.name, landscape.space, landscape.epochs
        self._landscape, self._curves = landscape, {}

    def curve(self, config, replicate, repeat=0):
        key = (*config.values(), replicate)
        if key not in self._curves:
            self._curves[key] = self._landscape.curve(config, replicate)
        return self._curves[key]


@pytest.fixture(scope="module")
def flat_rewards(request):
    """Rewards of 250 races, nightly 1,000, SEARCHERS x SEEDS each, where all settings are as good.

    Real searches on a replay, of two trials each; bayes is in its Sobol start. The reward
    is what a real training would give: the incumbent's score in a training of its own.
    """
    landscape = replace(make_landscape("flat"), epochs=1)
    races = 1_000 if request.config.getoption("--nightly") else 250
    rewards = np.empty((races, len(SEARCHERS), SEEDS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for race, (column, name), i in itertools.product(
            range(races), enumerate(SEARCHERS), range(SEEDS)
        ):
            seed = race * SEEDS + i
            device = Remembering(landscape)
            scheduler = search(device, budget_ns=18 * 10**9, seed=seed, name=name)
            scheduler.run()
            assert len(scheduler.history.finished) == 2
            config = scheduler.history.best.config
            rewards[race, column, i] = landscape.curve(config, replicate=10**6 + seed)[0][-1]
    finally:
        torch.set_num_threads(threads)
    return rewards


def resolved(rewards):
    """Pairs that are claimed to differ, by race; rewards are SEARCHERS x SEEDS a race."""
    return [
        [
            {c.ahead, c.behind}
            for c in compare(dict(zip(SEARCHERS, r, strict=True)))
            if c.is_resolved
        ]
        for r in rewards.tolist()
    ]


def test_where_there_is_nothing_to_find_a_race_claims_a_difference_at_most_as_often_as_it_says(
    flat_rewards,
):
    false = sum(map(bool, resolved(flat_rewards)))
    assert false <= binom.ppf(0.999, len(flat_rewards), ALPHA)
    # It is not that nothing is ever claimed. The least p-value of 8 seeds is 2/256, and the first
    # step claims at up to 4/256: each of three pairs does so by chance in 1.6 % of races.
    assert false >= binom.ppf(0.001, len(flat_rewards), 4 / 256)


def test_before_holm_the_p_values_of_a_pair_are_as_they_should_be(flat_rewards):
    # The chance of p <= k/256 is k/256 for even k.
    pairs = [compare({"a": r[0], "b": r[1]})[0] for r in flat_rewards.tolist()]
    p = np.array([c.p for c in pairs])
    for k in (12, 64, 128):
        count = int((p <= k / 256 + 1e-9).sum())
        least, most = binom.ppf([0.0005, 0.9995], len(p), k / 256)
        assert least <= count <= most


def test_where_there_is_something_to_find_it_is_found(flat_rewards):
    shifted = flat_rewards[:200].copy()
    shifted[:, 2] += 0.02  # five standard deviations of one training
    found = resolved(shifted)
    both = [{"grid", "bayes"} in pairs and {"random", "bayes"} in pairs for pairs in found]
    assert np.mean(both) > 0.95
    small = flat_rewards[:200].copy()
    small[:, 2] += 0.001
    assert np.mean([bool(pairs) for pairs in resolved(small)]) < 0.5


def test_seeds_that_are_left_out_are_named():
    rewards = {"a": [0.9 + 0.001 * i for i in range(10)], "b": [0.5] * 8 + [None, None]}
    (pair,) = compare(rewards)
    assert (pair.seeds, pair.of_seeds) == (8, 10)
    assert "over 8 of 10 seeds" in describe(pair, 10)


def test_the_gap_is_taken_over_the_seeds_that_have_both():
    found = verdict(
        {"a": [0.8, None], "b": [0.7, 0.7]},
        {"a": [0.9, 0.1], "b": [0.7, 0.7]},
        measure="test accuracy",
        minutes=1,
    )
    standing = next(s for s in found["standings"] if s["searcher"] == "a")
    assert standing["gap"] == pytest.approx(0.1)
