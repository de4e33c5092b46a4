"""Recorded tables: what was recorded comes back exactly, what lies between is interpolated."""

import hashlib
import io
import itertools
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import binom

from landscapes.table import Table, load_table, save_table, to_row
from tuner.space import Choice, Float, Int, SearchSpace

PLANE = SearchSpace(lr=Float(1e-4, 1.0, log=True), batch=Int(8, 512, log=True))
MIXED = SearchSpace(
    lr=Float(1e-4, 1.0, log=True),
    layers=Int(1, 9),
    act=Choice(("relu", "gelu", "tanh")),
    p=Float(0.0, 0.5),
)
LINE = SearchSpace(x=Float(0.0, 1.0))


def unit(space, row):
    """Unit coordinates of a row of `configs`, written out for the spaces of these tests."""

    def of(name, x):
        if name == "lr":
            return (math.log10(x) + 4) / 4
        if name == "batch":  # the middle, in the logarithm, of the cell from x - 1/2 to x + 1/2
            return math.log(math.sqrt((x - 0.5) * (x + 0.5)) / 7.5) / math.log(512.5 / 7.5)
        if name == "layers":
            return (x - 0.5) / 9
        if name == "act":
            return (x + 0.5) / 3
        return x / 0.5 if name == "p" else x

    return [of(name, x) for name, x in zip(space, row, strict=True)]


def config_of(space, row):
    values = zip(space.items(), row, strict=True)
    return {
        name: domain.options[int(x)]
        if isinstance(domain, Choice)
        else int(x)
        if isinstance(domain, Int)
        else float(x)
        for (name, domain), x in values
    }


def table_of(space, configs, replicates=1, epochs=3, seed=0, **arrays):
    """Random scores and seconds at the given rows, in random order."""
    generator = np.random.default_rng(seed)
    configs = generator.permutation(np.array(configs, dtype=np.float64))
    shape = (len(configs), replicates, epochs)
    full = {
        "scores": generator.random(shape),
        "seconds": generator.uniform(1.0, 9.0, shape),
        "infeasible": np.zeros(shape[:2], dtype=bool),
        **arrays,
    }
    return Table("t", space, configs, **full)


AXES = {
    "plane": (PLANE, [[1e-4, 2e-3, 0.05, 1.0], [8, 11, 64, 300, 512]]),
    "mixed": (MIXED, [[1e-4, 3e-3, 0.2, 1.0], [1, 4, 9], [0, 1, 2], [0.0, 0.1, 0.5]]),
}


@pytest.fixture(params=sorted(AXES))
def lattice(request):
    space, axes = AXES[request.param]
    return space, axes, table_of(space, list(itertools.product(*axes)), replicates=3)


@pytest.fixture
def scattered():
    generator = np.random.default_rng(5)
    rows = MIXED.from_unit(generator.random((40, 4)))
    return table_of(MIXED, [to_row(MIXED, c) for c in rows], replicates=3)


def which_replicate(table, i, seed):
    """Which of the recorded replicates of setting i a seed is shown, found by its scores."""
    shown = table.curve(config_of(table.space, table.configs[i]), seed)[0]
    (r,) = [r for r in range(table.scores.shape[1]) if (table.scores[i, r] == shown).all()]
    return r


# -- recorded settings ----------------------------------------------------------------------------


def test_recorded_settings_come_back_exactly(lattice, scattered):
    for table in (lattice[2], scattered):
        for i, row in enumerate(table.configs):
            config = config_of(table.space, row)
            scores, seconds = table.curve(config, 4)
            r = which_replicate(table, i, 4)
            assert (scores == table.scores[i, r]).all()
            assert (seconds == table.seconds[i, r]).all()
            assert table.value(config) == pytest.approx(table.scores[i, :, -1].mean(), abs=1e-14)
            assert table.settings[i] == config
            assert to_row(table.space, config) == tuple(row)


def test_options_that_python_takes_for_equal_are_told_apart():
    space = SearchSpace(flag=Choice((0, False, 1, True, None, "x")))
    rows = [to_row(space, {"flag": option}) for option in (0, False, 1, True, None, "x")]
    assert rows == [(0.0,), (1.0,), (2.0,), (3.0,), (4.0,), (5.0,)]
    table = table_of(space, rows)
    assert {(type(c["flag"]), c["flag"]) for c in table.settings} == {
        (type(option), option) for option in (0, False, 1, True, None, "x")
    }


def test_everyone_within_a_seed_sees_the_same_and_two_seeds_differ_at_most_settings():
    n, r = 300, 4
    table = table_of(LINE, np.linspace(0, 1, n)[:, None], replicates=r, epochs=1)
    seen = np.array([[which_replicate(table, i, seed) for i in range(n)] for seed in (0, 1)])
    again = [which_replicate(table, i, 0) for i in reversed(range(n))]
    assert again[::-1] == seen[0].tolist()
    assert (
        binom.ppf(1e-5, n, 1 - 1 / r)
        < (seen[0] != seen[1]).sum()
        < binom.ppf(1 - 1e-5, n, 1 - 1 / r)
    )
    for count in np.bincount(seen.ravel(), minlength=r):  # none is favoured
        assert binom.ppf(1e-5, 2 * n, 1 / r) < count < binom.ppf(1 - 1e-5, 2 * n, 1 / r)


def test_a_seed_is_shown_the_training_that_was_its_own():
    n = 60
    generator = np.random.default_rng(0)
    seeds = np.array([generator.permutation([3, 5, 8]) for _ in range(n)])
    scores = generator.random((n, 3, 2))
    positions = np.linspace(0, 1, n)[:, None]
    ones, flags = np.ones_like(scores), np.zeros((n, 3), dtype=bool)
    table = Table("t", LINE, positions, scores, ones, flags, {}, seeds)
    for i in range(n):
        for r, seed in enumerate(seeds[i].tolist()):
            assert which_replicate(table, i, seed) == r
            left = [q for q in range(3) if q != r]
            found = table.value({"x": float(positions[i, 0])}, seed)
            assert found == pytest.approx(scores[i, left, -1].mean(), abs=1e-14)
    # A seed that trained nothing is shown any of them.
    assert len({int(seeds[i, which_replicate(table, i, 4)]) for i in range(n)}) == 3


def test_the_value_for_a_seed_leaves_out_the_replicate_that_it_was_shown(lattice, scattered):
    for table in (lattice[2], scattered):
        for i, row in enumerate(table.configs):
            config = config_of(table.space, row)
            for seed in (0, 1, 2):
                left = [r for r in range(3) if r != which_replicate(table, i, seed)]
                expected = table.scores[i, left, -1].mean()
                assert table.value(config, seed) == pytest.approx(expected, abs=1e-14)


def test_what_a_setting_that_was_trained_once_is_worth_to_the_seed_that_saw_it_nobody_knows():
    table = table_of(LINE, [[0.0], [0.4], [1.0]], replicates=1)
    for x in (0.0, 0.2, 0.4, 0.9):
        assert table.value({"x": x}, 3) is None
        assert table.value({"x": x}) is not None
        assert not math.isnan(table.value({"x": x}))


def test_the_optimum_is_the_best_mean_and_nothing_between_is_higher(lattice, scattered):
    for table in (lattice[2], scattered):
        config, best = table.optimum()
        means = table.scores[:, :, -1].mean(1)
        assert best == pytest.approx(means.max(), abs=1e-14)
        assert config == config_of(table.space, table.configs[int(means.argmax())])
        points = np.random.default_rng(0).random((500, len(table.space)))
        assert max(map(table.value, table.space.from_unit(points))) <= best + 1e-12


# -- between them ---------------------------------------------------------------------------------


def queries(space, axes, n, seed):
    """Random rows, some of their knobs on a recorded value, none beyond the ends."""
    generator = np.random.default_rng(seed)
    for config in space.from_unit(generator.random((n, len(space)))):
        row = [
            float(generator.choice(axis)) if generator.random() < 0.3 else x
            for x, axis in zip(to_row(space, config), axes, strict=True)
        ]
        yield [min(max(x, axis[0]), axis[-1]) for x, axis in zip(row, axes, strict=True)]


def on_grid(space, axes, table, values):
    """SciPy's multilinear interpolator of `values`, n x ..., in the unit cube."""
    unit_axes = [
        [unit(SearchSpace({name: space[name]}), [x])[0] for x in axis]
        for name, axis in zip(space, axes, strict=True)
    ]
    lengths = [len(axis) for axis in axes]
    grid = np.full((*lengths, *values.shape[1:]), np.nan)
    for row, value in zip(table.configs.tolist(), values, strict=True):
        grid[tuple(axis.index(x) for x, axis in zip(row, axes, strict=True))] = value
    return RegularGridInterpolator(unit_axes, grid)


def test_a_lattice_is_interpolated_as_scipy_does_it(lattice):
    space, axes, table = lattice
    assert table.is_lattice
    seed = 2
    shown = [which_replicate(table, i, seed) for i in range(len(table.configs))]
    rest = [[r for r in range(3) if r != s] for s in shown]
    at = np.arange(len(shown))
    scores = on_grid(space, axes, table, table.scores[at, shown])
    seconds = on_grid(space, axes, table, table.seconds[at, shown])
    mean = on_grid(space, axes, table, table.scores[:, :, -1].mean(1))
    others = on_grid(space, axes, table, table.scores[at[:, None], rest, -1].mean(1))
    for row in queries(space, axes, 200, seed=1):
        config, u = config_of(space, row), unit(space, row)
        found = table.curve(config, seed)
        assert found[0] == pytest.approx(scores(u)[0], abs=1e-9)
        assert found[1] == pytest.approx(seconds(u)[0], abs=1e-9)
        assert table.value(config) == pytest.approx(float(mean(u)[0]), abs=1e-9)
        assert table.value(config, seed) == pytest.approx(float(others(u)[0]), abs=1e-9)


def test_beyond_the_ends_of_a_lattice_it_goes_on_as_at_the_ends():
    space = SearchSpace(x=Float(0.0, 1.0), n=Int(0, 10))
    rows = list(itertools.product([0.2, 0.8], [3, 7]))
    table = table_of(space, rows)
    for x, n, near_x, near_n in (
        (0.0, 0, 0.2, 3),
        (1.0, 10, 0.8, 7),
        (0.1, 7, 0.2, 7),
        (0.8, 1, 0.8, 3),
        (0.5, 0, 0.5, 3),
        (0.0, 5, 0.2, 5),
    ):
        found, ends = (table.curve({"x": a, "n": b}, 0) for a, b in ((x, n), (near_x, near_n)))
        assert found[0] == pytest.approx(ends[0], abs=1e-12)
        assert found[1] == pytest.approx(ends[1], abs=1e-12)


def test_one_recorded_setting_stands_for_all():
    table = table_of(MIXED, [[0.01, 3, 1, 0.2]])
    for config in MIXED.from_unit(np.random.default_rng(0).random((20, 4))):
        assert (table.curve(config, 0)[0] == table.scores[0, 0]).all()
        assert table.value(config) == table.scores[0, 0, -1]


def test_one_setting_short_of_a_lattice_is_no_lattice():
    space, axes = AXES["plane"]
    rows = list(itertools.product(*axes))
    assert table_of(space, rows).is_lattice
    assert not table_of(space, rows[:-1]).is_lattice


def shepard(table, row):
    """Rows and weights by the formula: 2 d + 4 nearest, distance to the power -(d + 1)."""
    space, d = table.space, len(table.space)
    u = unit(space, row)
    distances = []
    for other in table.configs:
        v = unit(space, other)
        squares = [
            float(a != b) if name == "act" else (a - b) ** 2
            for name, a, b in zip(space, u, v, strict=True)
        ]
        distances.append(math.sqrt(sum(squares)))
    nearest = sorted(range(len(distances)), key=lambda i: distances[i])[: 2 * d + 4]
    weights = [distances[i] ** -(d + 1) for i in nearest]
    return nearest, [w / sum(weights) for w in weights]


def test_scattered_settings_are_interpolated_by_shepards_formula(scattered):
    table, seed = scattered, 1
    assert not table.is_lattice
    axes = [[1e-4, 1.0], [1, 9], [0, 1, 2], [0.0, 0.5]]
    for row in queries(MIXED, axes, 150, seed=3):
        config = config_of(MIXED, row)
        nearest, weights = shepard(table, row)
        shown = [which_replicate(table, i, seed) for i in nearest]
        chosen = list(zip(weights, nearest, shown, strict=True))
        scores, seconds = table.curve(config, seed)
        assert scores == pytest.approx(sum(w * table.scores[i, r] for w, i, r in chosen))
        assert seconds == pytest.approx(sum(w * table.seconds[i, r] for w, i, r in chosen))
        rest = [(table.scores[i, :, -1].sum() - table.scores[i, r, -1]) / 2 for _, i, r in chosen]
        assert table.value(config, seed) == pytest.approx(float(np.dot(weights, rest)))
        means = [table.scores[i, :, -1].mean() for i in nearest]
        assert table.value(config) == pytest.approx(float(np.dot(weights, means)))


def test_fewer_settings_than_the_nearest_that_are_asked_for_all_count():
    space = SearchSpace(x=Float(0.0, 1.0), p=Float(0.0, 0.5))
    table = table_of(space, [[0.0, 0.0], [1.0, 0.1], [0.3, 0.5]])
    nearest, weights = shepard(table, [0.5, 0.2])
    assert len(nearest) == 3
    expected = sum(w * table.scores[i, 0] for w, i in zip(weights, nearest, strict=True))
    assert table.curve({"x": 0.5, "p": 0.2}, 0)[0] == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["lattice", "scattered"])
def test_near_a_recorded_setting_everything_is_near_what_was_recorded(shape):
    space = SearchSpace(x=Float(0.0, 1.0), p=Float(0.0, 0.5))
    rows = [[0.0, 0.0], [0.0, 0.5], [1.0, 0.0], [1.0, 0.5]]
    table = table_of(space, rows if shape == "lattice" else rows[:3])
    at = table.configs.tolist().index([0.0, 0.0])
    for exponent in (4, 8, 16, 50, 100, 150, 200, 300):
        scores, seconds = table.curve({"x": 10.0**-exponent, "p": 0.0}, 0)
        assert scores == pytest.approx(table.scores[at, 0], abs=1e-3)
        assert seconds == pytest.approx(table.seconds[at, 0], abs=1e-2)


BETWEEN = {
    is_lattice: table_of(
        MIXED,
        list(itertools.product(*AXES["mixed"][1]))[: None if is_lattice else -9],
        replicates=2,
    )
    for is_lattice in (True, False)
}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_what_is_interpolated_lies_within_what_was_recorded(seed, is_lattice, point):
    table = BETWEEN[is_lattice]
    scores, seconds = table.curve(MIXED.from_unit(np.array([point]))[0], seed)
    for found, recorded in ((scores, table.scores), (seconds, table.seconds)):
        assert (found >= recorded.min((0, 1)) - 1e-12).all()
        assert (found <= recorded.max((0, 1)) + 1e-12).all()


# -- trainings that ended early -------------------------------------------------------------------

NAN = float("nan")


def line(scores, seconds, infeasible, positions=(0.0, 1.0)):
    """A table in one dimension with one replicate."""
    return Table(
        "line",
        LINE,
        np.array(positions)[:, None],
        np.array(scores)[:, None, :],
        np.array(seconds)[:, None, :],
        np.array(infeasible)[:, None],
    )


def test_a_training_recorded_in_part_keeps_its_last_score_at_its_mean_cost():
    table = line(
        [[0.2, 0.4, NAN, NAN], [0.1, 0.2, 0.3, 0.9]],
        [[1.0, 3.0, NAN, NAN], [5.0, 5.0, 5.0, 5.0]],
        [False, False],
    )
    scores, seconds = table.curve({"x": 0.0}, 0)
    assert scores.tolist() == [0.2, 0.4, 0.4, 0.4]
    assert seconds.tolist() == [1.0, 3.0, 2.0, 2.0]
    assert table.value({"x": 0.0}) == 0.4
    assert table.value({"x": 0.25}) == pytest.approx(0.75 * 0.4 + 0.25 * 0.9)
    assert table.curve({"x": 0.25}, 0)[1] == pytest.approx([2.0, 3.5, 2.75, 2.75])


def test_where_most_of_the_weight_broke_off_so_does_what_is_interpolated():
    table = line(
        [[0.3, NAN, NAN], [0.5, 0.6, 0.8]], [[1.0, 2.0, NAN], [4.0, 4.0, 4.0]], [True, False]
    )
    scores, seconds = table.curve({"x": 0.0}, 0)
    assert scores == pytest.approx([0.3, NAN, NAN], nan_ok=True)
    assert seconds.tolist() == [1.0, 2.0, 1.5]
    scores, seconds = table.curve({"x": 0.4}, 0)  # weight 0.6 on what broke off
    assert scores == pytest.approx([0.3, NAN, NAN], nan_ok=True)
    assert seconds == pytest.approx([0.6 + 1.6, 1.2 + 1.6, 0.9 + 1.6])
    assert math.isnan(table.value({"x": 0.4}))
    for x in (0.5, 0.7, 1.0):  # no more than half: what broke off has no say in the score
        scores, seconds = table.curve({"x": x}, 0)
        assert scores == pytest.approx([0.5, 0.6, 0.8])
        assert seconds[0] == pytest.approx((1 - x) * 1.0 + x * 4.0)
        assert table.value({"x": x}) == pytest.approx(0.8)


def test_one_that_broke_off_at_once_has_no_score_at_all():
    table = line([[NAN, NAN], [0.5, 0.6]], [[2.0, NAN], [4.0, 4.0]], [True, False])
    scores, seconds = table.curve({"x": 0.1}, 0)
    assert np.isnan(scores).all()
    assert seconds == pytest.approx([0.9 * 2 + 0.1 * 4] * 2)
    assert table.optimum() == ({"x": 1.0}, 0.6)


def test_scattered_trainings_that_broke_off_count_by_their_weight():
    # Distances to 0.5 are 0.4, 0.1, 0.3; weights, their inverse squares: 6.25, 100, 11.11.
    positions = (0.1, 0.4, 0.8)
    nine = [[float(x) for x in range(3)]] * 3
    space = SearchSpace(x=Float(0.0, 1.0), p=Float(0.0, 0.5))
    configs = np.array([[x, 0.25 + 1e-3 * i] for i, x in enumerate(positions)])
    scores = np.array([[[0.1, 0.2, 0.3]], [[0.4, NAN, NAN]], [[0.5, 0.6, 0.7]]])
    seconds = np.array(nine)[:, None, :] + 1
    seconds[1, 0, 2] = NAN
    infeasible = np.array([[False], [True], [False]])
    table = Table("s", space, configs, scores, seconds, infeasible)
    assert not table.is_lattice
    found, _ = table.curve({"x": 0.5, "p": 0.25}, 0)
    assert found == pytest.approx([0.4, NAN, NAN], nan_ok=True)
    assert math.isnan(table.value({"x": 0.5, "p": 0.25}))
    found, _ = table.curve({"x": 0.75, "p": 0.25}, 0)
    near, far = shepard(table, [0.75, 0.25])
    weight = dict(zip(near, far, strict=True))
    total = weight[0] + weight[2]
    assert found == pytest.approx(
        [(weight[0] * a + weight[2] * b) / total for a, b in ((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))]
    )


def test_of_replicates_only_those_that_did_not_break_off_have_a_final_score():
    scores = np.array([[[0.2, NAN], [0.3, 0.6], [0.3, 0.8]], [[0.1, 0.1]] * 3])
    seconds = np.ones_like(scores)
    infeasible = np.array([[True, False, False], [False] * 3])
    table = Table("t", LINE, np.array([[0.0], [1.0]]), scores, seconds, infeasible)
    assert table.value({"x": 0.0}) == pytest.approx(0.7)
    shown = [
        1 if s[-1] == 0.6 else 2 if s[-1] == 0.8 else 0
        for s, _ in (table.curve({"x": 0.0}, seed) for seed in range(30))
    ]
    assert set(shown) == {0, 1, 2}
    left_out = {0: 0.7, 1: 0.8, 2: 0.6}
    for seed, r in enumerate(shown):
        assert table.value({"x": 0.0}, seed) == pytest.approx(left_out[r])
        assert np.isnan(table.curve({"x": 0.0}, seed)[0]).any() == (r == 0)


# -- files ----------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_again(tmp_path, scattered):
    scores, seconds = scattered.scores.copy(), scattered.seconds.copy()
    infeasible = scattered.infeasible.copy()
    scores[3, 1, 1:], seconds[3, 1, 2:], infeasible[3, 1] = NAN, NAN, True
    card = {"about": "Ein Versuch.", "badge": "recorded on a µ-device, today", "seeds": [0, 1]}
    seeds = np.arange(120).reshape(40, 3)
    table = Table("other", MIXED, scattered.configs, scores, seconds, infeasible, card, seeds)
    path = tmp_path / "mine.npz"
    save_table(path, table)
    loaded = load_table(path)
    assert loaded.name == "mine"
    assert loaded.space == MIXED
    for name in ("configs", "scores", "seconds", "infeasible", "seeds"):
        assert np.array_equal(
            getattr(loaded, name), getattr(table, name), equal_nan=name in ("scores", "seconds")
        ), name
    written = json.loads((tmp_path / "mine.json").read_text())
    assert loaded.card == written
    assert {key: written[key] for key in card} == card
    assert (written["settings"], written["replicates"], written["epochs"]) == (40, 3, 3)
    assert written["between_settings"].startswith("Shepard")
    assert written["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.npz"]
    config = MIXED.from_unit(np.full((1, 4), 0.4))[0]
    for seed in range(3):
        for one, other in zip(loaded.curve(config, seed), table.curve(config, seed), strict=True):
            assert np.array_equal(one, other, equal_nan=True)


def test_the_card_names_the_rule(tmp_path, lattice):
    save_table(tmp_path / "l.npz", lattice[2])
    assert "multilinear" in load_table(tmp_path / "l.npz").card["between_settings"]


def arrays(**changes):
    """The arrays of a good file: two settings of two knobs, two replicates, three epochs."""
    space = {
        "x": {"type": "float", "low": 0.0, "high": 1.0, "log": False},
        "n": {"type": "int", "low": 1, "high": 4, "log": False},
        "c": {"type": "choice", "options": ["a", "b"]},
    }
    scores = np.linspace(0.1, 0.9, 12).reshape(2, 2, 3)
    return {
        "space": np.array(json.dumps(space)),
        "configs": np.array([[0.0, 1.0, 0.0], [0.5, 3.0, 1.0]]),
        "scores": scores,
        "seconds": scores + 1,
        "infeasible": np.zeros((2, 2), dtype=bool),
        **changes,
    }


def write(path, **changes):
    contents = {k: v for k, v in arrays(**changes).items() if v is not None}
    np.savez_compressed(path, **contents)
    return path


def changed(name, index, value):
    array = np.array(arrays()[name])
    array[index] = value
    return {name: array}


def refusal(path):
    """The message with which a file is refused, by a ValueError and none of its subclasses."""
    with pytest.raises(ValueError, match=r"is no landscape: .") as caught:
        load_table(path)
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_of_the_schema_without_a_card_or_flags_is_loaded(tmp_path):
    table = load_table(write(tmp_path / "bare.npz", infeasible=None))
    assert table.settings == [{"x": 0.0, "n": 1, "c": "a"}, {"x": 0.5, "n": 3, "c": "b"}]
    assert not table.infeasible.any()
    assert table.seeds is None
    assert table.card["badge"] == "of unknown origin"


REFUSED = {
    "no space": ({"space": None}, "no array 'space'"),
    "no configs": ({"configs": None}, "no array 'configs'"),
    "no scores": ({"scores": None}, "no array 'scores'"),
    "no seconds": ({"seconds": None}, "no array 'seconds'"),
    "space is no json": ({"space": np.array("{")}, "Expecting"),
    "space is a list": ({"space": np.array("[1]")}, "."),
    "space is a number": ({"space": np.array("7")}, "."),
    "space of no knobs": ({"space": np.array("{}")}, "at least one knob"),
    "space of odd type": ({"space": np.array('{"x": {"type": "real"}}')}, "float, int or choice"),
    "knob is a number": ({"space": np.array('{"x": 3}')}, "."),
    "configs are text": ({"configs": np.array([["a", "b", "c"]] * 2)}, "."),
    "configs are flat": ({"configs": np.zeros(6)}, "n x d"),
    "a knob is missing": ({"configs": np.zeros((2, 2))}, "3 knobs, but configs has 2 columns"),
    "scores are flat": ({"scores": np.zeros(12)}, "n x r x e"),
    "scores of more settings": ({"scores": np.zeros((3, 2, 3))}, "n x r x e"),
    "no epochs": ({"scores": np.zeros((2, 2, 0)), "seconds": np.zeros((2, 2, 0))}, "n x r x e"),
    "no settings": (
        {
            "configs": np.zeros((0, 3)),
            "scores": np.zeros((0, 2, 3)),
            "seconds": np.zeros((0, 2, 3)),
            "infeasible": np.zeros((0, 2), dtype=bool),
        },
        "n x r x e",
    ),
    "fewer seconds": ({"seconds": np.ones((2, 2, 2))}, "seconds must be"),
    "seeds of an odd shape": ({"seeds": np.zeros(2, dtype=np.int64)}, "seeds must be"),
    "seeds are text": ({"seeds": np.array([["a", "b"]] * 2)}, "."),
    "flags of an odd shape": ({"infeasible": np.zeros((2, 3), dtype=bool)}, "infeasible"),
    "real beyond the range": (changed("configs", (0, 0), 1.5), "recorded x is 1.5"),
    "real is nan": (changed("configs", (0, 0), NAN), "recorded x is nan"),
    "real is infinite": (changed("configs", (0, 0), math.inf), "recorded x is inf"),
    "integer beyond the range": (changed("configs", (0, 1), 5.0), "recorded n is 5"),
    "integer in between": (changed("configs", (0, 1), 2.5), "recorded n is 2.5"),
    "integer is nan": (changed("configs", (0, 1), NAN), "."),
    "integer is infinite": (changed("configs", (0, 1), math.inf), "."),
    "option beyond the last": (changed("configs", (0, 2), 2.0), "recorded c is 2"),
    "option below the first": (changed("configs", (0, 2), -1.0), "recorded c is -1"),
    "option in between": (changed("configs", (0, 2), 0.5), "recorded c is 0.5"),
    "a setting twice": ({"configs": np.array([[0.5, 3.0, 1.0]] * 2)}, "twice"),
    "score is infinite": (changed("scores", (0, 0, 1), math.inf), "finite"),
    "a gap in a curve": (changed("scores", (0, 0, 1), NAN), "from where it ended"),
    "no score and no reason": (changed("scores", 0, NAN), "not marked as infeasible"),
    "nothing is feasible": ({"infeasible": np.ones((2, 2), dtype=bool)}, "."),
    "score without seconds": (changed("seconds", (1, 1, 2), NAN), "needs its seconds"),
    "no time": (changed("seconds", (1, 1, 2), 0.0), "more than 0"),
    "negative time": (changed("seconds", (1, 1, 2), -1.0), "more than 0"),
    "endless time": (changed("seconds", (1, 1, 2), math.inf), "finite"),
    "never timed": (
        {
            **changed("scores", (0, 0), NAN),
            **changed("seconds", (0, 0), NAN),
            **changed("infeasible", (0, 0), True),
        },
        "seconds",
    ),
    "pickled scores": ({"scores": np.array([{"a": 1}] * 2, dtype=object)}, "pickle"),
    "pickled space": ({"space": np.array({"x": 1}, dtype=object)}, "pickle"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_of_the_schema_is_refused(tmp_path, name):
    changes, why = REFUSED[name]
    message = refusal(write(tmp_path / "bad.npz", **changes))
    with pytest.raises(ValueError, match=why):
        raise ValueError(message.partition("is no landscape: ")[2])


class Explodes:
    """Whoever unpickles it finds out."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    path = tmp_path / "p.npz"
    path.write_bytes(pickle.dumps(Explodes()))
    refusal(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Explodes()], dtype=object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())
    refusal(path)
    write(path, scores=np.array([Explodes()], dtype=object))
    refusal(path)


def test_what_is_no_npz_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    refusal(path)  # there is no such file
    for data in (b"", b"PK\x03\x04", b"no zip at all", b"\x93NUMPY" + bytes(100)):
        path.write_bytes(data)
        refusal(path)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path.write_bytes(buffer.getvalue())  # a single array
    refusal(path)
    path.unlink()
    path.mkdir()
    refusal(path)


def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path):
    data = write(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        refusal(path)


def test_a_file_with_a_wrong_byte_is_refused_or_says_the_same(tmp_path):
    data = write(tmp_path / "whole.npz").read_bytes()
    whole = load_table(tmp_path / "whole.npz")
    path, refused = tmp_path / "wrong.npz", 0
    places = range(0, len(data), 2)
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            loaded = load_table(path)
        except ValueError:
            refused += 1
            continue
        assert loaded.space == whole.space
        assert (loaded.scores == whole.scores).all()
        assert (loaded.seconds == whole.seconds).all()
    assert refused > len(places) / 2


def test_with_a_card_every_wrong_byte_is_noticed(tmp_path):
    path = tmp_path / "t.npz"
    save_table(path, load_table(write(tmp_path / "plain.npz")))
    data = path.read_bytes()
    for at in range(0, len(data), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert "SHA-256" in refusal(path)
    path.write_bytes(data)
    load_table(path)


def test_a_card_that_cannot_be_read_or_speaks_of_another_file_is_refused(tmp_path):
    path = tmp_path / "t.npz"
    save_table(path, load_table(write(tmp_path / "plain.npz")))
    card = tmp_path / "t.json"
    good = card.read_text()
    for text in ("", "{", "[]", '"text"', "null", "3", good.replace('"sha256": "', '"sha256": "0')):
        card.write_text(text)
        refusal(path)
    card.write_bytes(b"\xff\xfe\x00")
    refusal(path)
    card.write_text(json.dumps({**json.loads(good), "sha256": 5}))
    assert "SHA-256" in refusal(path)
    card.write_text('{"about": "By hand."}')  # a card need not vouch for the file
    assert load_table(path).card == {"about": "By hand."}
