"""BOHB's model against its formulas, worked out by hand or by scipy."""

import numpy as np
import pytest
from scipy.stats import kstest, norm, truncnorm

from tuner.history import History
from tuner.searchers import make_searcher
from tuner.searchers.bohb import BohbSearcher, Density, bandwidths, model_epoch, split_sizes
from tuner.searchers.random import draw_new
from tuner.space import Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

LINE = SearchSpace(x=Float(0.0, 1.0))
PLANE = SearchSpace(x=Float(0.0, 1.0), y=Float(1.0, 10.0, log=True))


def record(rows, max_epochs=9):
    """A history of (configuration, scores by epoch, state) rows."""
    history = History(max_epochs)
    for number, (config, scores, state) in enumerate(rows):
        history.start(Trial(number, config, 0, max_epochs))
        for epoch, score in enumerate(scores, start=1):
            history.observe(number, Observation(epoch, score, 1))
        if state.is_final:
            history.close(number, state)
        else:
            history.update(number, state=state)
    return history


def on_line(xs, scores, state=TrialState.COMPLETED):
    return [({"x": x}, [score], state) for x, score in zip(xs, scores, strict=True)]


# -- densities -----------------------------------------------------------------------------------


def test_the_density_is_the_mean_of_products_of_kernels():
    data = np.array([[0.2, 0.5, 0.0], [0.7, 0.1, 2.0]])
    density = Density(data, np.array([0.1, 0.3, 0.2]), np.array([0, 0, 3]))
    points = np.array([[0.25, 0.4, 0.0], [0.9, 0.9, 1.0]])
    expected = [
        np.mean(
            [
                norm.pdf(x, a, 0.1) * norm.pdf(y, b, 0.3) * (0.8 if k == c else 0.1)
                for a, b, c in data
            ]
        )
        for x, y, k in points
    ]
    np.testing.assert_allclose(np.exp(density.log_pdf(points)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        # Data 0, 0, 1 of three options: (0.7 + 0.7 + 0.15) / 3 and so on.
        (0.3, [1.55 / 3, 1.0 / 3, 0.45 / 3]),
        (0.9, [1 / 3, 1 / 3, 1 / 3]),  # capped at 2/3, where nothing is known
    ],
)
def test_the_categorical_kernel_is_aitchison_and_aitkens(width, expected):
    density = Density(np.array([[0.0], [0.0], [1.0]]), np.array([width]), np.array([3]))
    pdf = np.exp(density.log_pdf(np.array([[0.0], [1.0], [2.0]])))
    np.testing.assert_allclose(pdf, expected, rtol=1e-12)


def test_a_choice_of_one_option_changes_no_density():
    one = Density(np.array([[0.3, 0.0]]), np.array([0.1, 1e-3]), np.array([0, 1]))
    pdf = np.exp(one.log_pdf(np.array([[0.35, 0.0]])))
    assert pdf == pytest.approx(norm.pdf(0.05, 0, 0.1))
    assert (one.sample(20, 3.0, np.random.default_rng(0))[:, 1] == 0).all()


def test_bandwidths_follow_the_normal_reference_rule():
    data = np.array([[0.0, 0.0, 0.4], [1.0, 0.0, 0.4], [0.0, 1.0, 0.4], [1.0, 2.0, 0.4]])
    # n^(-1/(4 + d)) = 4^(-1/7) = 0.820335; sigma 1/2; sqrt((1 - 6/16) / 2) = 0.559017; 0.
    expected = [1.06 * 0.5 * 0.820335, 1.06 * 0.559017 * 0.820335, 1e-3]
    np.testing.assert_allclose(bandwidths(data, np.array([0, 3, 0])), expected, rtol=1e-5)


def test_samples_are_normal_around_the_data_and_cut_off_at_the_ends():
    density = Density(np.array([[0.1]]), np.array([0.1]), np.array([0]))
    drawn = density.sample(2000, 3.0, np.random.default_rng(0))[:, 0]
    law = truncnorm(-0.1 / 0.3, 0.9 / 0.3, loc=0.1, scale=0.3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert kstest(drawn, law.cdf).pvalue > 1e-3


def test_samples_of_a_choice_stay_with_one_minus_the_widened_bandwidth():
    density = Density(np.array([[1.0]]), np.array([0.1]), np.array([3]))
    drawn = density.sample(4000, 3.0, np.random.default_rng(0))[:, 0].astype(int)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.15, 0.7, 0.15], atol=0.03)


# -- what is good and what is bad ----------------------------------------------------------------


def test_the_model_is_of_the_largest_epoch_that_enough_trials_reached():
    def reached(*epochs, state=TrialState.PAUSED):
        return [({"x": 0.5, "y": 2.0}, [0.5] * epoch, state) for epoch in epochs]

    assert model_epoch(record(reached(9, 9, 3, 3)), 5) is None
    assert model_epoch(record(reached(9, 9, 3, 3, 0)), 5) is None
    assert model_epoch(record(reached(9, 9, 9, 9, 3, 1, 1)), 5) == 3
    assert model_epoch(record(reached(9, 9, 9, 9, 9, 1, 1)), 5) == 9
    ill = reached(9, 9, state=TrialState.INFEASIBLE)  # no scores of theirs count
    assert model_epoch(record(reached(9, 9, 9, 1, 1) + ill), 5) == 1


@pytest.mark.parametrize(
    ("n", "least", "sizes"), [(5, 3, (3, 3)), (19, 3, (3, 16)), (40, 3, (6, 34)), (8, 5, (5, 5))]
)
def test_the_split_is_equation_3(n, least, sizes):
    assert split_sizes(n, least) == sizes


def test_good_and_bad_data_are_the_best_and_the_worst_at_that_epoch():
    xs = [0.1, 0.2, 0.3, 0.4, 0.5]
    history = record(on_line(xs, [0.1, 0.9, 0.5, 0.8, 0.7]))
    good, bad = BohbSearcher(LINE, 0).densities(history)  # N_min is 2: 2 good and 3 bad
    np.testing.assert_allclose(good.data[:, 0], [0.2, 0.4])
    np.testing.assert_allclose(bad.data[:, 0], [0.5, 0.3, 0.1])
    short = record(on_line(xs[:3], [0.1, 0.9, 0.5]))
    assert BohbSearcher(LINE, 0).densities(short) is None


def test_infeasible_trials_are_bad_data_whatever_they_scored_before():
    ill = on_line([0.9] * 20, [1.0] * 20, TrialState.INFEASIBLE)
    history = record(ill + on_line([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]))
    good, bad = BohbSearcher(LINE, 0).densities(history)  # 24 data: floor(0.15 * 24) = 3 good
    np.testing.assert_allclose(good.data[:, 0], [0.4, 0.3, 0.2])
    np.testing.assert_allclose(bad.data[:, 0], [0.1] + [0.9] * 20)


# -- proposals -----------------------------------------------------------------------------------


def test_a_third_of_the_proposals_is_random_and_the_rest_is_near_the_good():
    xs = np.linspace(0, 1, 41)
    history = record(on_line(xs, -abs(xs - 0.3)))
    is_random, near = [], []
    for seed in range(300):
        config = BohbSearcher(LINE, seed).propose(history)
        is_random.append(config == draw_new(LINE, seed, "bohb-random", history))
        near.append(abs(config["x"] - 0.3) < 0.2)
    assert 0.25 < np.mean(is_random) < 0.42  # 3 standard deviations either way
    assert np.mean(np.array(near)[~np.array(is_random)]) > 0.95


def test_a_model_that_draws_only_what_is_tried_gives_way_and_says_so():
    space = SearchSpace(n=Int(1, 50))
    rows = [({"n": 10}, [0.9], TrialState.COMPLETED)] * 5
    rows += [({"n": n}, [0.1], TrialState.COMPLETED) for n in range(30, 50)]
    history = record(rows)
    said = set()
    for seed in range(12):
        searcher = BohbSearcher(space, seed)
        config = searcher.propose(history)
        assert config["n"] != 10
        assert config["n"] not in range(30, 50)
        said.add(searcher.fallback)
    assert said == {"", "the model drew only what has been tried: random"}


def test_bohb_nears_the_top_of_a_hill_more_than_random_does():
    """In eight dimensions: in one or two, drawing at random is hard to beat in so few trials."""
    space = SearchSpace({f"x{i}": Float(0.0, 1.0) for i in range(8)})

    def regret(name, seed):
        history = History(1)
        searcher = make_searcher(name, space, seed)
        for number in range(60):
            config = searcher.propose(history.view())
            score = -float(((space.to_unit([config])[0] - 0.3) ** 2).sum())
            history.start(Trial(number, config, 0, 1))
            history.observe(number, Observation(1, score, 1))
            history.close(number, TrialState.COMPLETED)
        return -history.best.score

    regrets = {name: [regret(name, seed) for seed in range(5)] for name in ("random", "bohb")}
    assert np.mean(regrets["bohb"]) < 0.5 * np.mean(regrets["random"])
