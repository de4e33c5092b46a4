import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.space import Choice, Conditional, Float, Int, SearchSpace

floats = st.tuples(st.floats(1e-6, 1e3, allow_nan=False), st.floats(1.001, 1e4), st.booleans()).map(
    lambda t: Float(t[0], t[0] * t[1], t[2])
)
ints = st.tuples(st.integers(1, 50), st.integers(1, 500), st.booleans()).map(
    lambda t: Int(t[0], t[0] + t[1], t[2])
)
choices = st.lists(
    st.one_of(st.text(max_size=4), st.integers(-9, 9), st.none()),
    min_size=1,
    max_size=6,
    unique=True,
).map(lambda options: Choice(tuple(options)))
spaces = st.lists(st.one_of(floats, ints, choices), min_size=1, max_size=5).map(
    lambda domains: SearchSpace({f"k{i}": domain for i, domain in enumerate(domains)})
)


@st.composite
def trees(draw):
    """Spaces of which most knobs are there only where one before them has some of its values."""
    knobs = {}
    small = st.one_of(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()).map(
            lambda t: Int(t[0], t[0] + t[1], t[2])
        ),
        st.lists(st.sampled_from(["a", "b", 1, True, 2.5]), min_size=2, max_size=4)
        .map(lambda o: list({(type(v), v): v for v in o}.values()))
        .map(lambda o: Choice(tuple(o))),
    )
    for i in range(draw(st.integers(2, 5))):
        domain = draw(small if i < 3 else st.one_of(small, floats))
        parents = [n for n, k in knobs.items() if not isinstance(domain_of(k), Float)]
        if parents and draw(st.integers(0, 3)):
            parent = draw(st.sampled_from(parents))
            values = domain_of(knobs[parent]).grid(9)
            count = draw(st.integers(1, len(values)))
            knobs[f"k{i}"] = Conditional(domain, parent, tuple(values[:count]))
        else:
            knobs[f"k{i}"] = domain
    return SearchSpace(knobs)


def domain_of(knob):
    return knob.domain if isinstance(knob, Conditional) else knob


def all_configs(space):
    """Every configuration of a finite space, one decision after the other."""
    found = [{}]
    for name, domain in space.items():
        condition = space.conditions.get(name)
        grown = []
        for config in found:
            there = condition is None or any(
                config[condition.parent] is value
                or (
                    type(config[condition.parent]) is type(value)
                    and config[condition.parent] == value
                )
                for value in condition.values
            )
            values = domain.grid(99) if there else [None]
            grown += [{**config, name: value} for value in values]
        found = grown
    return found


def typed(config):
    return tuple((name, type(value).__name__, value) for name, value in config.items())


@given(trees())
def test_a_conditional_space_has_each_configuration_once(space):
    if space.cardinality is None:
        return
    expected = [typed(config) for config in all_configs(space)]
    assert sorted(map(typed, space.grid(99)), key=repr) == sorted(expected, key=repr)
    assert space.cardinality == len(expected) == space.size(space.axes(99))


@given(trees(), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_what_is_not_there_is_none_and_has_one_coordinate(space, point):
    units = np.array([point[: len(space)]])
    config = space.from_unit(units)[0]
    space.check(config)
    assert space.contains(config)
    assert list(config) == list(space)
    back = space.to_unit([config])[0]
    for name, unit in zip(space, back, strict=True):
        assert (config[name] is None) == (not space.is_there(name, config))
        assert config[name] is not None or unit == 0.5
    np.testing.assert_allclose(space.snap(units)[0], back, atol=1e-12)
    assert SearchSpace.from_json(space.to_json()) == space
    known = {name: value for name, value in config.items() if value is not None}
    assert space.completed(known) == config
    filled = space.filled(config)
    assert all(domain.contains(filled[name]) for name, domain in space.items())
    assert space.pruned(filled) == config


def test_a_conditional_knob_is_there_with_its_parents_value_and_only_then():
    space = SearchSpace(
        optimizer=Choice(("sgd", "adam")),
        momentum=Conditional(Float(0.0, 0.9), "optimizer", ("sgd",)),
    )
    space.check({"optimizer": "adam", "momentum": None})
    space.check({"optimizer": "sgd", "momentum": 0.5})
    with pytest.raises(ValueError, match="momentum = None is not in"):
        space.check({"optimizer": "sgd", "momentum": None})
    with pytest.raises(ValueError, match="with optimizer = 'adam' there is no momentum"):
        space.check({"optimizer": "adam", "momentum": 0.5})
    assert space["momentum"] == Float(0.0, 0.9)
    assert space != SearchSpace(optimizer=Choice(("sgd", "adam")), momentum=Float(0.0, 0.9))


@given(spaces, st.integers(0, 2**32))
def test_a_sample_lies_in_the_space_and_survives_the_unit_cube(space, seed):
    config = space.sample(np.random.default_rng(seed))
    assert space.contains(config)
    units = space.to_unit([config])
    assert units.shape == (1, len(space))
    assert units.dtype == np.float64
    assert ((units >= 0) & (units <= 1)).all()
    back = space.from_unit(units)[0]
    for name, domain in space.items():
        if isinstance(domain, Float):
            assert back[name] == pytest.approx(config[name], rel=1e-9)
        else:
            assert back[name] == config[name]


@given(spaces, st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_every_point_of_the_unit_cube_is_a_legal_configuration(space, point):
    config = space.from_unit(np.array([point[: len(space)]]))[0]
    assert space.contains(config)


@given(spaces)
def test_json_gives_an_equal_space(space):
    assert SearchSpace.from_json(space.to_json()) == space


@given(ints)
def test_every_integer_owns_a_cell_around_its_coordinate(domain):
    for value in (domain.low, (domain.low + domain.high) // 2, domain.high):
        assert domain.from_unit(domain.to_unit(value)) == value
    assert domain.from_unit(0.0) == domain.low
    assert domain.from_unit(1.0) == domain.high


def test_a_log_range_is_uniform_in_the_logarithm():
    assert Float(1e-4, 1.0, log=True).from_unit(0.25) == pytest.approx(1e-3)
    assert Float(1e-4, 1.0, log=True).to_unit(0.1) == pytest.approx(0.75)
    assert Float(-1.0, 3.0).from_unit(0.75) == pytest.approx(2.0)


def test_integers_are_drawn_equally_often():
    generator = np.random.default_rng(0)
    space = SearchSpace(n=Int(2, 5))
    counts = np.bincount([space.sample(generator)["n"] for _ in range(4000)], minlength=6)[2:]
    assert counts.sum() == 4000
    assert (abs(counts - 1000) < 120).all()  # over four standard deviations


def test_a_grid_is_the_product_of_its_axes():
    space = SearchSpace(
        lr=Float(1e-2, 1.0, log=True), p=Float(0.0, 0.4), n=Int(1, 3), act=Choice(("relu", "gelu"))
    )
    expected = [
        dict(zip(("lr", "p", "n", "act"), values, strict=True))
        for values in itertools.product(
            (0.01, 0.1, 1.0), (0, 0.2, 0.4), (1, 2, 3), ("relu", "gelu")
        )
    ]
    got = space.grid(3)
    assert len(got) == 54
    for one, other in zip(got, expected, strict=True):
        assert one["lr"] == pytest.approx(other["lr"])
        assert one["p"] == pytest.approx(other["p"])
        assert (one["n"], one["act"]) == (other["n"], other["act"])


@given(st.one_of(floats, ints), st.integers(2, 40))
def test_a_refined_lattice_holds_the_coarse_one_to_the_bit(domain, points):
    assert set(domain.grid(points)) <= set(domain.grid(2 * points - 1))


@given(floats, st.integers(1, 64))
def test_the_three_point_lattice_is_in_every_odd_one(domain, half):
    assert set(domain.grid(3)) <= set(domain.grid(2 * half + 1))


def test_integer_axes_have_no_value_twice():
    assert Int(1, 4).grid(9) == [1, 2, 3, 4]
    assert Int(1, 100, log=True).grid(3) == [1, 10, 100]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(1.0, 1.0), "empty range"),
        (lambda: Float(2.0, 1.0), "empty range"),
        (lambda: Float(0.0, 1.0, log=True), "low > 0"),
        (lambda: Float(math.nan, 1.0), "finite"),
        (lambda: Float(0.0, math.inf), "finite"),
        (lambda: Float("a", 1.0), "finite numbers"),
        (lambda: Float(-1e308, 1e308), "can span"),
        (lambda: Int(0, 10**400), "finite numbers"),
        (lambda: Int(3, 2), "empty range"),
        (lambda: Int(0, 9, log=True), "low > 0"),
        (lambda: Int(0.5, 9), "whole"),
        (lambda: Choice(()), "at least one"),
        (lambda: Choice("relu"), "sequence"),
        (lambda: Choice(("a", "a")), "twice"),
        (lambda: Choice(([1],)), "text, numbers"),
        (lambda: Choice((1, 1.0)), "twice"),
        (lambda: Choice((1.0, math.inf)), "write it as text, 'inf'"),
        (lambda: Choice((math.nan,)), "finite"),
        (lambda: Int(10**17, 10**17 + 5), r"up to 2\^52"),
        (lambda: SearchSpace(), "at least one knob"),
        (lambda: SearchSpace(x=Conditional(Float(0, 1), "n", (1,))), "no knob before it"),
        (lambda: hanging(Float(0, 1), (0.5,)), "must be a Choice or an Int"),
        (lambda: hanging(Int(0, 10_000), (1,)), "at most 10,000 values"),
        (lambda: hanging(Int(1, 3), (4,)), "'n' is never '4'"),
        (lambda: hanging(Choice((1, 2)), (True,)), "'n' is never 'True'"),
        (lambda: hanging(Int(1, 3), ()), "needs the values of 'n'"),
        (lambda: hanging(Choice(("a", "b")), "a"), "needs the values of 'n'"),
        (lambda: hanging(Int(1, 3), (1,), Choice((None, 1))), "cannot have the option None"),
        (
            lambda: SearchSpace.from_json({"x": {"type": "int", "low": 1, "high": 2, "when": 3}}),
            "x",
        ),
        (lambda: SearchSpace(act=("relu", "gelu")), r"Choice\(options\)"),
        (lambda: SearchSpace({"": Float(0, 1)}), "non-empty"),
        (lambda: SearchSpace.from_json({"x": {"type": "real"}}), "float, int or choice"),
        (lambda: SearchSpace.from_json({"x": {"type": "float", "min": 1}}), "x"),
        (lambda: SearchSpace(x=Float(0, 1)).from_unit(np.zeros((1, 2))), "n x 1"),
        (lambda: SearchSpace(x=Float(0, 1)).grid(0), "at least 1"),
        (lambda: Choice(("a",)).to_unit("b"), "none of the options"),
    ],
)
def test_bad_input_is_a_value_error_that_says_what(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def hanging(parent, values, domain=Float(0, 1)):  # noqa: B008
    return SearchSpace(n=parent, x=Conditional(domain, "n", values))


def test_check_names_the_knob_that_is_off():
    space = SearchSpace(lr=Float(0.1, 1.0), n=Int(1, 3))
    with pytest.raises(ValueError, match="lr = 2"):
        space.check({"lr": 2.0, "n": 1})
    with pytest.raises(ValueError, match=r"missing: \['n'\], unknown: \['m'\]"):
        space.check({"lr": 0.5, "m": 1})
    assert not space.contains({"lr": 0.5, "n": True})
    assert not space.contains({"lr": 0.5, "n": 1.5})


def test_a_space_is_frozen_ordered_and_hashable():
    space = SearchSpace(b=Float(0, 1), a=Int(1, 2))
    assert list(space) == ["b", "a"]
    assert space != SearchSpace(a=Int(1, 2), b=Float(0, 1))
    assert hash(space) == hash(SearchSpace({"b": Float(0, 1), "a": Int(1, 2)}))
    with pytest.raises(TypeError):
        space["b"] = Float(0, 2)
    assert SearchSpace(a=Int(1, 4), c=Choice(("x", "y"))).cardinality == 8
    assert space.cardinality is None


@given(ints)
def test_a_grid_of_as_many_points_as_there_are_integers_has_them_all(domain):
    assert domain.grid(domain.cardinality) == list(range(domain.low, domain.high + 1))


def test_a_knob_that_hangs_on_a_logarithmic_one_is_counted():
    space = SearchSpace(n=Int(1, 64, log=True), k=Conditional(Int(0, 1), "n", (64,)))
    assert space.cardinality == 65


def test_spaces_are_equal_where_the_same_values_are_in_them():
    assert Choice((0, 1)) != Choice((False, True))
    assert Choice((1, "a")) == Choice([1.0, "a"])
    assert hash(Choice((1, "a"))) == hash(Choice([1.0, "a"]))
    one, other = (Conditional(Float(0, 1), "n", values) for values in ((1,), (True,)))
    assert one != other
    assert one == Conditional(Float(0, 1), "n", [1])
    assert hash(one) == hash(Conditional(Float(0, 1), "n", [1]))


def test_true_is_not_the_number_one():
    choice = Choice((1, True, 0, False))
    assert [choice.from_unit(choice.to_unit(option)) for option in choice.options] == [
        1,
        True,
        0,
        False,
    ]
    assert [type(choice.from_unit(choice.to_unit(o))) for o in choice.options] == [
        int,
        bool,
        int,
        bool,
    ]
