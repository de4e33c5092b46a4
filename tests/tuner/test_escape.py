"""What strangers call things, made harmless: by hand, and against Unicode's own categories."""

import json
import sys
import unicodedata

import pytest

from tuner.escape import in_csv, in_json, in_picture, in_script, visible


def test_whatever_unicode_calls_control_or_format_is_shown_as_an_escape():
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if unicodedata.category(character) in hidden:
            shown = visible(character)
            assert shown != character, hex(point)
            assert shown.isascii()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é漢字🎲", "plain é漢字🎲"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\rd\0", r"a\nb\tc\rd\x00"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("[red]", "[red]"),
        ("x" * 201, "x" * 199 + "…"),
        ("x" * 200, "x" * 200),
    ],
)
def test_text_is_one_visible_line(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "＝", "\u00a0@"])
def test_a_formula_is_text_in_a_csv(start):
    assert in_csv(f"{start}1+1") == f"'{start}1+1"


def test_numbers_and_harmless_text_stay_what_they_are_in_a_csv():
    for cell in (-1, -0.5, None, True, "relu", "a=b", "'"):
        assert in_csv(cell) is cell or in_csv(cell) == cell
    assert in_csv("\t=1") == r"\t=1"


def test_json_has_the_same_meaning_and_nothing_hidden():
    content = {"a\u202e\U000e0041": ["\ud800", "\x7f", "é🎲", "\u2028"]}
    text = in_json(json.dumps(content, ensure_ascii=False, indent=1))
    assert json.loads(text) == content
    assert all(unicodedata.category(c) not in ("Cf", "Cs", "Zl") for c in text)
    assert "é🎲" in text


def test_json_ends_no_script():
    text = in_script(json.dumps("</script><!--"))
    assert "<" not in text
    assert json.loads(text) == "</script><!--"


def test_a_picture_reads_no_formula():
    from matplotlib.cbook import is_math_text

    for name in ("$\\frac{", "$$", "a$b$c", "\\$x$"):
        assert not is_math_text(in_picture(name))
