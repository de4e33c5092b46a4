"""The region in which a model of many knobs proposes: its side by hand, and that it is kept to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import Choice, Float, SearchSpace, Study
from tuner.searchers.bayes import BayesSearcher
from tuner.searchers.surrogate import START
from tuner.searchers.trust_region import FEWEST_KNOBS, WHOLE, side, trust_region

MANY = SearchSpace({f"x{i}": Float(0.0, 1.0) for i in range(FEWEST_KNOBS)})
MIDDLE = np.full(FEWEST_KNOBS, 0.5)


@pytest.mark.parametrize(
    ("outcomes", "knobs", "expected"),
    [
        ("", 8, 0.8),
        ("++", 8, 0.8),
        ("+++", 8, 1.6),
        ("++++++", 8, 1.6),  # it grows no more
        ("++-++", 8, 0.8),  # three in a row
        ("-------", 8, 0.8),
        ("--------", 8, 0.4),
        ("--------+++", 8, 0.8),
        ("-------+--------", 8, 0.4),
        ("----", 2, 0.4),  # at least four
        ("-" * 12, 12, 0.4),
        ("-" * 8 * 6, 8, 0.0125),
        ("-" * 8 * 7, 8, 0.8),  # smaller than 2^-7: anew
    ],
)
def test_the_side_follows_successes_and_failures(outcomes, knobs, expected):
    assert side([o == "+" for o in outcomes], knobs) == pytest.approx(expected)


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 30))
def test_the_side_is_never_out_of_its_bounds(outcomes, knobs):
    assert 0.5**7 <= side(outcomes, knobs) <= 1.6


def told(space, scores):
    study = Study(space, "random")
    for score in scores:
        study.tell(study.ask().number, score=score)
    return study.history.view()


def test_the_box_is_long_where_the_model_is_smooth_and_of_the_side_s_volume():
    history = told(MANY, [0.5] * START + [0.4] * 16)  # two halvings: 0.2
    lengths = np.geomspace(0.5, 2.0, FEWEST_KNOBS)
    box = trust_region(MANY, history, MIDDLE, lengths)
    width = box.high - box.low
    assert np.prod(width) == pytest.approx(0.2**FEWEST_KNOBS)
    assert width / width[0] == pytest.approx(lengths / lengths[0])
    assert (box.high + box.low) / 2 == pytest.approx(MIDDLE)
    corner = trust_region(MANY, history, np.zeros(FEWEST_KNOBS), lengths)
    assert corner.low == pytest.approx(np.zeros(FEWEST_KNOBS))
    assert corner.high == pytest.approx(width / 2)


def test_what_was_not_proposed_by_the_model_neither_succeeds_nor_fails():
    drawn = told(MANY, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert trust_region(MANY, drawn, MIDDLE, np.ones(8)).low == pytest.approx(MIDDLE - 0.4)
    better = told(MANY, [0.1] * START + [0.2, 0.3, 0.4])
    assert trust_region(MANY, better, MIDDLE, np.ones(8)).low == pytest.approx(np.zeros(8))
    hardly = told(MANY, [0.5] * START + [0.5 + 1e-4 * i for i in range(1, 9)])
    assert trust_region(MANY, hardly, MIDDLE, np.ones(8)).low == pytest.approx(MIDDLE - 0.2)
    study = Study(MANY, "random")
    for i in range(40):
        study.add(dict.fromkeys(MANY, i / 40), 0.9 - i / 100)
    taken = study.history.view()
    assert trust_region(MANY, taken, MIDDLE, np.ones(8)).low == pytest.approx(MIDDLE - 0.4)


def test_of_few_knobs_or_of_options_alone_it_is_the_whole_space():
    few = SearchSpace({f"x{i}": Float(0.0, 1.0) for i in range(FEWEST_KNOBS - 1)})
    assert trust_region(few, told(few, [0.5] * 30), MIDDLE[1:], np.ones(7)) is WHOLE
    options = SearchSpace({f"c{i}": Choice(("a", "b")) for i in range(FEWEST_KNOBS)})
    assert trust_region(options, told(options, [0.5] * 30), MIDDLE, np.ones(0)) is WHOLE


def test_bayes_proposes_within_it_and_any_option():
    space = SearchSpace(
        {**{f"x{i}": Float(0.0, 1.0) for i in range(7)}, "c": Choice(("a", "b", "c"))}
    )
    study, options, sizes = Study(space, "bayes", 1), set(), []
    for n in range(40):
        box = WHOLE
        if n >= START:
            outlook = BayesSearcher(space, 1)._look(study.history)
            lengths = outlook.posterior.covariance.lengths
            box = trust_region(space, study.history, outlook.centres[0], lengths)
            sizes.append(float(np.prod(box.high - box.low)))
        trial = study.ask()
        options.add(trial.config["c"])
        units = space.to_unit([trial.config])
        assert box.clipped(units)[:, :7] == pytest.approx(units[:, :7])
        study.tell(trial.number, score=-float(((units[0, :7] - 0.7) ** 2).sum()))
    assert min(sizes) < 0.5
    assert options == {"a", "b", "c"}


@pytest.mark.parametrize("knobs", [FEWEST_KNOBS, 12])
def test_with_many_knobs_it_finds_what_draws_do_not(knobs):
    space = SearchSpace({f"x{i}": Float(0.0, 1.0) for i in range(knobs)})
    top = 0.2 + 0.6 * np.modf(np.arange(knobs) * 0.618)[0]

    def off(searcher):
        study = Study(space, searcher, 0)
        for _ in range(50):
            trial = study.ask()
            miss = np.array(list(trial.config.values())) - top
            study.tell(trial.number, score=-float(miss @ miss))
        return -study.best.score

    assert off("bayes") < 0.2 * off("random")
