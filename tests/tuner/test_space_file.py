"""Search spaces that people write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.space import Choice, Conditional, Float, Int, SearchSpace
from tuner.space_file import read_space

HANGING = "[a]\noptions = [1, 2]\nwhen = "


def written(tmp_path, text):
    path = tmp_path / "space.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_space_is_read_in_its_order(tmp_path):
    path = written(
        tmp_path,
        """
        [rate]
        low = 1e-5
        high = 1.0
        log = true
        [layers]
        low = 2
        high = 8
        [share]
        low = 0
        high = 1
        type = "float"
        [tile]
        options = [8, 16, "all", true, 0.5]
        """,
    )
    assert list(read_space(path).items()) == [
        ("rate", Float(1e-5, 1.0, log=True)),
        ("layers", Int(2, 8)),
        ("share", Float(0, 1)),
        ("tile", Choice((8, 16, "all", True, 0.5))),
    ]


def test_a_knob_may_hang_on_one_above_it(tmp_path):
    path = written(
        tmp_path,
        """
        [kind]
        options = ["sgd", "adam"]
        [momentum]
        low = 0.0
        high = 0.99
        when = { knob = "kind", values = ["sgd"] }
        """,
    )
    momentum = Conditional(Float(0.0, 0.99), "kind", ("sgd",))
    assert read_space(path) == SearchSpace(kind=Choice(("sgd", "adam")), momentum=momentum)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("[a", "is no TOML file"),
        (b"\xff\xfe", "is no TOML file"),
        ("a = 3", "the knob 'a': expected a table"),
        ("[a]\nlow = 1", "the knob 'a': a range needs low and high"),
        ("[a]\nlow = 3\nhigh = 1", "the knob 'a': "),
        ("[a]\nlow = 0.0\nhigh = 1.0\nlog = true", "the knob 'a': "),
        ("[a]\nlow = 0.0\nhigh = nan", "the knob 'a': "),
        ('[a]\nlow = "0"\nhigh = 1', "the knob 'a': "),
        ("[a]\nlow = 1\nhigh = 2\nlog = 1", "log is true or false, got 1"),
        ('[a]\nlow = 1\nhigh = 2\ntype = "whole"', 'type is "int" or "float"'),
        ("[a]\nlow = 1.5\nhigh = 2.5\ntype = 'int'", "the knob 'a': "),
        ("[a]\nlow = 1\nhigh = 2\nlogg = true", "logg is nothing that it may say"),
        ("[a]\noptions = 3", "options is a list"),
        ("[a]\noptions = []", "the knob 'a': "),
        ("[a]\noptions = [[1], [2]]", "the knob 'a': "),
        ("[a]\noptions = [2026-11-26, 2]", "the knob 'a': "),
        ("[a]\noptions = [1]\nlow = 3", "low is nothing that it may say"),
        (HANGING + "3", "when is written {"),
        (
            HANGING + '{ knob = "b", values = 1 }',
            "the values of when are a list",
        ),
        (
            HANGING + '{ knob = "b", values = [1] }',
            "which is no knob before it",
        ),
    ],
)
def test_what_is_no_space_is_refused_by_its_name(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"space\.toml") as found:
        read_space(path)
    assert message in str(found.value)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_space(tmp_path / "gone.toml")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.one_of(
            st.tuples(st.integers(-99, 0), st.integers(1, 99)).map(lambda e: Int(*e)),
            st.tuples(st.floats(-9, 0), st.floats(1, 9)).map(lambda e: Float(*e)),
            st.lists(st.integers(0, 99), min_size=2, unique=True).map(lambda o: Choice(tuple(o))),
        ),
        min_size=1,
    )
)
def test_whatever_is_written_down_is_read_back(tmp_path_factory, knobs):
    lines = []
    for name, domain in knobs.items():
        lines.append(f"[{name}]")
        if isinstance(domain, Choice):
            lines.append(f"options = {list(domain.options)}")
        else:
            lines += [f"low = {domain.low!r}", f"high = {domain.high!r}"]
    path = written(tmp_path_factory.mktemp("space"), "\n".join(lines))
    assert read_space(path) == SearchSpace(knobs)
