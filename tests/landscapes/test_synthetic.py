"""The formulas: known optima, cliffs, curves that rise to the final score, and what each is for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.synthetic import CHANCE, FORMULAS, make_landscape, ridge_at

NAMES = ["bumpy", "cliff", "deceptive", "flat", "ridge", "smooth"]
LARGEST = {name: 9 if name == "ridge" else 12 for name in NAMES}
SMALLEST = {name: 2 if name == "ridge" else 1 for name in NAMES}
units = st.floats(0.0, 1.0)


@pytest.fixture(params=NAMES)
def landscape(request):
    return make_landscape(request.param)


def at(landscape, *coordinates):
    """The configuration at unit coordinates; the last is repeated for the knobs that are left."""
    row = [*coordinates, *[coordinates[-1]] * (len(landscape.space) - len(coordinates))]
    return landscape.space.from_unit(np.array([row]))[0]


def test_there_are_six():
    assert sorted(FORMULAS) == NAMES


# -- optimum and dimensions -----------------------------------------------------------------------


def test_nothing_on_a_fine_lattice_beats_the_optimum(landscape):
    config, best = landscape.optimum()
    assert landscape.space.contains(config)
    assert landscape.value(config) == best
    values = [landscape.value(c) for c in landscape.space.grid(81)]
    assert np.nanmax(values) <= best + 1e-12
    assert np.nanmax(values) > best - 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ridge"])
def test_nothing_on_a_fine_line_beats_the_optimum_in_one_dimension(name):
    landscape = make_landscape(name, 1)
    _, best = landscape.optimum()
    values = [landscape.value(c) for c in landscape.space.grid(4_001)]
    assert np.nanmax(values) <= best + 1e-12
    assert np.nanmax(values) > best - 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_largest", [False, True], ids=["3d", "largest"])
def test_no_random_point_far_or_near_beats_the_optimum_in_more_dimensions(name, is_largest):
    d = LARGEST[name] if is_largest else 3
    landscape = make_landscape(name, d)
    config, best = landscape.optimum()
    generator = np.random.default_rng(d)
    near = landscape.space.to_unit([config]) + 0.03 * generator.standard_normal((10_000, d))
    points = np.concatenate([generator.random((10_000, d)), np.clip(near, 0, 1)])
    values = [landscape.value(c) for c in landscape.space.from_unit(points)]
    assert np.nanmax(values) <= best + 1e-12
    assert np.nanmax(values[10_000:]) > best - 0.1  # near it there is something


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_comes_in_as_many_dimensions_as_it_says_and_in_no_others(name):
    for d in range(SMALLEST[name], LARGEST[name] + 1):
        landscape = make_landscape(name, d)
        assert len(landscape.space) == d
        assert next(iter(landscape.space)) == "learning_rate"
        scores, seconds = landscape.curve(landscape.optimum()[0], 0)
        assert scores.shape == seconds.shape == (landscape.epochs,)
    for d in (SMALLEST[name] - 1, LARGEST[name] + 1, -1):
        with pytest.raises(ValueError, match=f"{LARGEST[name]} dimensions.*got {d}"):
            make_landscape(name, d)


def test_an_unknown_formula_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'bumpy'"):
        make_landscape("bumppy")


def test_known_values_at_known_places():
    # Plain 0.55; the hill's height is added at its top; far from the cliff the cliff is nothing.
    assert make_landscape("smooth").value(at(make_landscape("smooth"), 0.68, 0.55)) == (
        pytest.approx(0.92, abs=1e-5)
    )
    bumpy = make_landscape("bumpy")
    assert bumpy.value(at(bumpy, 0.70, 0.18)) == pytest.approx(0.92, abs=1e-5)
    assert bumpy.value(at(bumpy, 0.45, 0.70)) == pytest.approx(0.81, abs=1e-9)
    assert bumpy.value(at(bumpy, 0.12, 0.80)) == pytest.approx(0.71, abs=1e-9)
    cliff = make_landscape("cliff")
    assert cliff.value(at(cliff, 0.4, 0.5)) == pytest.approx(0.55 + 0.45 * 0.4)
    assert cliff.value(at(cliff, 0.4, 0.9)) == pytest.approx(0.55 + 0.45 * 0.4 - 0.15 * 0.16)
    # On the edge itself half of what was learnt is left.
    assert cliff.value(at(cliff, 0.8, 0.5)) == pytest.approx((0.1 + 0.55 + 0.45 * 0.8) / 2)
    ridge = make_landscape("ridge")
    assert ridge.value(at(ridge, 0.63, 0.1)) == pytest.approx(0.92)
    assert ridge.value(at(ridge, 0.68, 0.1)) == pytest.approx(0.55 + 0.37 * math.exp(-0.5))
    deceptive = make_landscape("deceptive")
    assert deceptive.value(at(deceptive, 0.25, 0.5)) == pytest.approx(0.92)
    assert deceptive.value(at(deceptive, 0.75, 0.5)) == pytest.approx(0.82)


def test_every_name_of_a_knob_and_every_card_says_what_it_is(landscape):
    assert landscape.card["badge"] == "a formula"
    assert landscape.card["about"].endswith(".")


# -- curves, noise and cost -----------------------------------------------------------------------


def test_a_curve_ends_near_the_noise_free_value_and_costs_time(landscape):
    config = {**landscape.optimum()[0], "learning_rate": 0.003}  # far from the cliff
    ends = [landscape.curve(config, replicate)[0][-1] for replicate in range(200)]
    error = landscape.noise / 200**0.5
    assert abs(np.mean(ends) - landscape.value(config)) < 4 * error
    assert 0.8 * landscape.noise < np.std(ends) < 1.2 * landscape.noise
    scores, seconds = landscape.curve(config, 0)
    assert len(scores) == len(seconds) == landscape.epochs
    assert (seconds > 0).all()
    again = landscape.curve(dict(config), 0)
    assert (again[0] == scores).all()
    assert (again[1] == seconds).all()
    assert (landscape.curve(config, 1)[0] != scores).all()
    assert landscape.value(config, 7) == landscape.value(config)


def test_without_noise_a_curve_is_the_documented_rise(landscape):
    quiet = replace(landscape, noise=0.0)
    for u in (0.1, 0.35, 0.6):
        config = at(landscape, u, 0.4)
        rate = 0.2 + 9 * u if landscape.name == "deceptive" else 1.5 + 4 * u
        final = landscape.value(config)
        expected = [
            0.1 + (final - 0.1) * (1 - math.exp(-rate * e / 12)) / (1 - math.exp(-rate))
            for e in range(1, 13)
        ]
        assert quiet.curve(config, 3)[0] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), units, units, st.integers(0, 2**40))
def test_scores_are_fractions_or_nan_and_seconds_follow_the_last_knob(name, u, v, replicate):
    landscape = make_landscape(name)
    config = at(landscape, u, v)
    scores, seconds = landscape.curve(config, replicate)
    assert np.isnan(scores).all() == math.isnan(landscape.value(config))
    assert np.isnan(scores).all() or ((scores >= 0) & (scores <= 1)).all()
    mean = 6.5 if name == "ridge" else 6.5 * (1 + 0.3 * v)
    assert (np.abs(seconds / mean - 1) <= 0.03 + 1e-9).all()


# -- what each is for -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smooth", "bumpy"])
def test_beyond_the_cliff_there_is_chance(name):
    landscape = make_landscape(name)
    for weight_decay in (1e-6, 1e-3, 1e-1):
        config = {"learning_rate": 1.0, "weight_decay": weight_decay}
        assert landscape.value(config) == pytest.approx(CHANCE, abs=1e-3)


@pytest.mark.parametrize("name", ["deceptive", "flat", "ridge"])
def test_the_others_have_no_cliff(name):
    landscape = make_landscape(name)
    for v in (0.0, 0.5, 1.0):
        assert landscape.value(at(landscape, 1.0, v)) >= 0.55


def test_the_best_hill_of_bumpy_is_the_narrowest():
    landscape = make_landscape("bumpy")
    best = at(landscape, 0.70, 0.18)
    assert landscape.optimum()[1] == pytest.approx(landscape.value(best), abs=1e-6)

    def height_left(u, v):  # a step of 0.12 down in the second knob, as a share of the height
        top, beside = at(landscape, u, v), at(landscape, u, v + 0.12)
        return (landscape.value(beside) - 0.55) / (landscape.value(top) - 0.55)

    others = [height_left(*top) for top in ((0.45, 0.70), (0.30, 0.30), (0.12, 0.80))]
    assert height_left(0.70, 0.18) == pytest.approx(math.exp(-0.5), abs=1e-4)
    assert height_left(0.70, 0.18) < min(others)


def test_well_beyond_the_edge_of_cliff_trainings_break_off():
    landscape = make_landscape("cliff")
    for v in (0.0, 0.5, 1.0):
        over, beyond = at(landscape, 0.9, v), at(landscape, 0.93, v)
        assert landscape.value(over) == pytest.approx(CHANCE, abs=1e-3)
        assert not np.isnan(landscape.curve(over, 0)[0]).any()
        assert math.isnan(landscape.value(beyond))
        scores, seconds = landscape.curve(beyond, 0)
        assert np.isnan(scores).all()
        assert (seconds > 0).all()  # and what it took to find out is not free


def test_the_optimum_of_cliff_is_a_step_from_the_edge():
    landscape = make_landscape("cliff")
    config, best = landscape.optimum()
    (u, v) = landscape.space.to_unit([config])[0]
    assert 0.7 < u < 0.8
    assert v == pytest.approx(0.5)
    assert landscape.value(at(landscape, u + 0.03, 0.5)) < best - 0.3


def test_the_idle_knobs_of_a_ridge_change_neither_score_nor_cost():
    landscape = replace(make_landscape("ridge", 9), noise=0.0)
    generator = np.random.default_rng(0)
    points = generator.random((300, 9))
    points[:, 0] = 0.6
    configs = landscape.space.from_unit(points)
    assert len({landscape.value(c) for c in configs}) == 1
    curves = [landscape.curve(c, 0) for c in configs]
    scores = np.array([s for s, _ in curves])
    assert (np.ptp(scores, axis=0) < 1e-12).all()
    # The cost varies by 3 % either way, and for no knob is it dearer at one end than at the other.
    cost = np.array([seconds.mean() for _, seconds in curves])  # n
    assert abs(cost.mean() / landscape.base_seconds - 1) < 0.002
    for column in points.T[1:]:
        difference = cost[column > 0.5].mean() - cost[column <= 0.5].mean()
        spread = landscape.base_seconds * 0.06 / 12**0.5 / 12**0.5  # of a mean of 12 uniforms
        assert abs(difference) < 5 * spread * 2 / 300**0.5


def test_the_one_knob_of_a_ridge_that_matters_does():
    landscape = make_landscape("ridge", 3)
    values = [landscape.value(at(landscape, u, 0.5)) for u in np.linspace(0, 1, 101)]
    assert max(values) - min(values) > 0.3


def test_a_ridge_can_run_anywhere():
    for place in (0.0, 0.2, 0.5, 1.0):
        landscape = ridge_at(place, 3)
        config, best = landscape.optimum()
        assert landscape.space.to_unit([config])[0, 0] == pytest.approx(place, abs=1e-4)
        assert best == pytest.approx(0.92, abs=1e-5)
    assert ridge_at(0.63).optimum() == make_landscape("ridge").optimum()
    with pytest.raises(ValueError, match="got 1"):
        ridge_at(0.5, 1)


def test_the_curves_of_deceptive_cross():
    landscape = replace(make_landscape("deceptive"), noise=0.0)
    slow, _ = landscape.curve(at(landscape, 0.25, 0.5), 0)
    fast, _ = landscape.curve(at(landscape, 0.75, 0.5), 0)
    is_behind = slow < fast
    assert is_behind[: landscape.epochs // 3].all()  # a third of the way it still looks worse
    assert slow[-1] > fast[-1] + 0.05
    assert np.abs(np.diff(is_behind.astype(int))).sum() == 1  # they cross once
    # Whoever picks by the first epoch picks a fast one and loses in the end.
    line = [at(landscape, u, 0.5) for u in np.linspace(0, 1, 101)]
    after_one = line[int(np.argmax([landscape.curve(c, 0)[0][0] for c in line]))]
    assert landscape.value(after_one) < landscape.optimum()[1] - 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(units, min_size=1, max_size=6))
def test_flat_is_flat(point):
    landscape = make_landscape("flat", len(point))
    assert landscape.value(at(landscape, *point)) == pytest.approx(0.85, abs=1e-12)
    assert landscape.optimum()[1] == pytest.approx(0.85, abs=1e-12)
