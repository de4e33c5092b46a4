"""Knobs: default ranges, ranges in words, and everything that is refused."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.knobs import DEFAULT_KNOBS, KNOBS, Recipe, make_space, parse_domain
from tuner.space import Choice, Conditional, Float, Int

# What a training can use: low, whether low itself is out, and what a value must stay under.
USABLE = {
    "learning_rate": (0, True, float("inf")),
    "weight_decay": (0, False, float("inf")),
    "dropout": (0, False, 1),
    "layers": (1, False, 16),
    "width": (1, False, 4096),
    "batch_size": (1, False, 1048576),
    "momentum": (0, False, 1),
    "label_smoothing": (0, False, 1),
    "growth": (1, False, 8),
}


def is_usable(name, value):
    low, low_is_out, end = USABLE[name]
    return (value > low if low_is_out else value >= low) and value < end


def values_at_the_ends(domain):
    return domain.options if isinstance(domain, Choice) else (domain.low, domain.high)


# -- defaults --------------------------------------------------------------------------------------


def test_learning_rate_and_weight_decay_are_searched_by_default():
    space = make_space(DEFAULT_KNOBS)
    assert list(space.items()) == [
        ("learning_rate", Float(1e-4, 1.0, log=True)),
        ("weight_decay", Float(1e-6, 0.1, log=True)),
    ]


def test_every_knob_has_a_default_range():
    assert dict(make_space(KNOBS)) == {
        "learning_rate": Float(1e-4, 1.0, log=True),
        "weight_decay": Float(1e-6, 0.1, log=True),
        "dropout": Float(0.0, 0.6),
        "layers": Int(1, 4),
        "width": Int(4, 32, log=True),
        "batch_size": Int(32, 256, log=True),
        "momentum": Float(0.0, 0.98),
        "label_smoothing": Float(0.0, 0.2),
        "growth": Choice((1.0, 1.5, 2.0)),
    }


def test_default_ranges_hold_usable_values_of_the_recipes_own_kind():
    recipe = asdict(Recipe())
    assert set(recipe) == set(KNOBS) == set(USABLE)
    for name, domain in make_space(KNOBS).items():
        for value in (*values_at_the_ends(domain), domain.from_unit(0.0), domain.from_unit(1.0)):
            assert is_usable(name, value)
        assert domain.contains(recipe[name])
        assert type(domain.from_unit(0.5)) is type(recipe[name])


def test_named_knobs_come_in_the_order_of_their_names_and_blank_names_are_passed_over():
    assert list(make_space(["width", "", "dropout", "  "])) == ["width", "dropout"]


def test_growth_is_there_where_there_is_more_than_one_layer():
    space = make_space(["growth", "layers"])
    assert space.conditions == {"growth": Conditional(KNOBS["growth"].domain, "layers", (2, 3, 4))}
    assert Recipe.of({"layers": 1, "growth": None}) == Recipe(layers=1)
    assert not make_space(["growth"]).conditions
    assert not make_space(["layers", "growth"], ["layers=2:6"]).conditions
    assert make_space(["layers", "growth"], ["layers=1,3"]).conditions["growth"].values == (3,)


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "domain"),
    [
        ("dropout", "0:0.5", Float(0.0, 0.5, log=False)),
        ("learning_rate", "1e-3:2:log", Float(0.001, 2.0, log=True)),
        ("learning_rate", "0.25:0.5", Float(0.25, 0.5, log=False)),
        ("weight_decay", "0:1e-2", Float(0.0, 0.01, log=False)),
        ("momentum", "0:0.999", Float(0.0, 0.999, log=False)),
        ("layers", "1:15", Int(1, 15, log=False)),
        ("width", "8:64:log", Int(8, 64, log=True)),
        ("batch_size", "1:1024:log", Int(1, 1024, log=True)),
        ("batch_size", "32,64,128", Choice((32, 64, 128))),
        ("dropout", "0,0.25,0.5", Choice((0.0, 0.25, 0.5))),
        ("learning_rate", "0.5,0.1", Choice((0.5, 0.1))),
    ],
)
def test_a_range_or_choice_is_read_as_written(name, text, domain):
    read = parse_domain(name, text)
    assert read == domain
    ends, expected = values_at_the_ends(read), values_at_the_ends(domain)
    assert [type(v) for v in ends] == [type(v) for v in expected]  # 32 and 32.0 are equal, alas


def test_a_log_range_has_its_middle_at_the_geometric_mean():
    space = make_space([], ["learning_rate=0.01:1:log", "dropout=0.01:0.5"])
    assert space["learning_rate"].from_unit(0.5) == pytest.approx(0.1)
    assert space["dropout"].from_unit(0.5) == pytest.approx(0.255)


def test_a_range_replaces_the_default_in_place_and_adds_a_knob_that_was_not_named():
    space = make_space(DEFAULT_KNOBS, ["width=8,16", "learning_rate=0.01:0.1"])
    assert list(space.items()) == [
        ("learning_rate", Float(0.01, 0.1)),
        ("weight_decay", Float(1e-6, 0.1, log=True)),
        ("width", Choice((8, 16))),
    ]


def test_the_last_of_two_ranges_of_a_knob_holds():
    space = make_space([], ["dropout=0:0.1", "dropout=0.2:0.3"])
    assert dict(space) == {"dropout": Float(0.2, 0.3)}


# -- refusals --------------------------------------------------------------------------------------

REFUSED = [
    # text that is no number, or not a whole one
    ("learning_rate", "abc:1", "needs a number, got 'abc'"),
    ("learning_rate", "0.1:", "needs a number, got ''"),
    ("dropout", "0.1,x", "needs a number, got 'x'"),
    ("dropout", "0.1,", "needs a number, got ''"),
    ("layers", "1:two", "needs a whole number, got 'two'"),
    ("layers", "1.5:3", "needs a whole number, got '1.5'"),
    ("width", "8:16.0", "needs a whole number, got '16.0'"),
    ("width", "8,16.5", "needs a whole number, got '16.5'"),
    ("batch_size", "1e2:200", "needs a whole number, got '1e2'"),
    # no range at all
    ("dropout", "", "LOW:HIGH"),
    ("dropout", "0.5", "LOW:HIGH"),
    ("momentum", "1", "LOW:HIGH"),
    ("dropout", "0:0.5:linear", "LOW:HIGH"),
    ("learning_rate", "0.1:1:log:log", "LOW:HIGH"),
    ("width", "1:2:3", "LOW:HIGH"),
    # empty ranges
    ("learning_rate", "1:1e-4:log", "low < high"),
    ("dropout", "0.5:0.5", "low < high"),
    ("layers", "3:3", "low < high"),
    ("layers", "4:2", "low < high"),
    # logarithms of nothing
    ("weight_decay", "0:0.1:log", "zero has no logarithm"),
    ("learning_rate", "0:0.1:log", "zero has no logarithm"),
    ("width", "0:8:log", "zero has no logarithm"),
    # not finite
    ("learning_rate", "nan:1", "finite"),
    ("learning_rate", "0.1:inf", "finite"),
    ("weight_decay", "0.1,nan", "at least 0"),
    ("weight_decay", "0.1,inf", "at least 0"),
    # out of the knob's bounds
    ("learning_rate", "0:1", "over 0, got 0"),
    ("learning_rate", "-1:1", "over 0, got -1"),
    ("learning_rate", "0.1,0", "over 0, got 0"),
    ("weight_decay", "-0.1:1", "at least 0, got -0.1"),
    ("dropout", "0:1", "under 1, got 1"),
    ("dropout", "0,1", "under 1, got 1"),
    ("dropout", "-0.1:0.5", "at least 0 and under 1, got -0.1"),
    ("momentum", "0.5:1", "under 1, got 1"),
    ("momentum", "0.9,1", "under 1, got 1"),
    ("momentum", "-0.5:0.5", "at least 0"),
    ("label_smoothing", "0:1", "under 1, got 1"),
    ("growth", "0.5:2", "growth must be at least 1"),
    ("layers", "0:2", "at least 1 and under 16, got 0"),
    ("layers", "1:16", "under 16, got 16"),
    ("width", "0,4", "at least 1"),
    ("width", "8:4096", "under 4096, got 4096"),
    ("batch_size", "0:64", "at least 1"),
    ("batch_size", "-64,64", "at least 1"),
    ("batch_size", "1:1048576", "under 1.04858e+06, got 1048576"),
]


@pytest.mark.parametrize(("name", "text", "reason"), REFUSED)
def test_a_range_that_cannot_be_used_is_refused_by_the_knobs_name(name, text, reason):
    with pytest.raises(ValueError, match=name) as caught:
        make_space(DEFAULT_KNOBS, [f"{name}={text}"])
    assert reason in str(caught.value)


def test_an_unknown_knob_is_refused_with_its_near_miss_and_all_there_are():
    for attempt in (
        lambda: make_space(["learnin_rate"]),
        lambda: make_space([], ["learnin_rate=0.1:1"]),
    ):
        with pytest.raises(ValueError, match="'learnin_rate'") as caught:
            attempt()
        assert "did you mean 'learning_rate'?" in str(caught.value)
        assert all(name in str(caught.value) for name in USABLE)


def test_a_range_without_an_equals_sign_is_refused():
    with pytest.raises(ValueError, match=r"got 'dropout 0:0\.5'") as caught:
        make_space(DEFAULT_KNOBS, ["dropout 0:0.5"])
    assert "NAME=LOW:HIGH" in str(caught.value)


def test_no_knobs_at_all_are_refused():
    with pytest.raises(ValueError, match="at least one knob"):
        make_space(["", " "])


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(USABLE)),
    text=st.one_of(
        st.text("0123456789.,:-+e_naifilog ", max_size=16),
        st.lists(st.integers(-3, 20).map(str), min_size=1, max_size=4).map(",".join),
        st.tuples(st.floats(), st.floats(), st.sampled_from(["", ":log"])).map(
            lambda parts: f"{parts[0]}:{parts[1]}{parts[2]}"
        ),
    ),
)
def test_whatever_is_written_gives_a_usable_domain_or_a_value_error(name, text):
    try:
        domain = parse_domain(name, text)
    except ValueError:
        return
    assert all(is_usable(name, value) for value in values_at_the_ends(domain))


# -- recipe ----------------------------------------------------------------------------------------


def test_a_recipe_of_nothing_is_the_default_recipe():
    assert Recipe.of({}) == Recipe()


def test_a_recipe_takes_the_configurations_knobs_and_keeps_the_other_defaults():
    recipe = asdict(Recipe.of({"width": 8, "learning_rate": 0.3}))
    assert recipe == {**asdict(Recipe()), "width": 8, "learning_rate": 0.3}


def test_a_recipe_of_a_knob_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="no_such_knob"):
        Recipe.of({"no_such_knob": 1})
