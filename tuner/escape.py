"""Text that somebody else chose, made harmless where it is shown: one rule for each place.

A knob, an option, a reason, a folder: a study may come from anyone, and what it calls things is
shown in a terminal, drawn in a picture, opened in a spreadsheet, read by programs, and put on a
page. On the page itself text is only ever text (`textContent`), which the browser tests watch over.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

MOST_SHOWN = 200

# What a terminal obeys instead of showing it (controls), what reorders or hides its neighbours
# (bidi marks, zero widths, tags), and what no encoding can write (surrogates).
_HIDDEN_RANGES = (
    "\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[\x00-\x1f{_HIDDEN_RANGES}]")
_HIDDEN_IN_JSON = re.compile(f"[{_HIDDEN_RANGES}]")
_FORMULA = tuple("=+-@＝＋－＠")


def visible(text: str, most: int | None = MOST_SHOWN) -> str:
    r"""One line in which nothing is hidden: a control or bidi character is shown as its escape.

    An escape character becomes `\x1b`, a line break `\n`. What is longer than `most` is cut, with
    an ellipsis; None cuts nothing.
    """
    shown = _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def in_csv(cell: Any) -> Any:
    """A cell of a CSV file: what a spreadsheet would run as a formula is shown to it as text.

    Numbers and None stay what they are.
    """
    if not isinstance(cell, str):
        return cell
    shown = visible(cell, None)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def in_picture(text: str) -> str:
    """Text for matplotlib, which would read formulas between dollars in it."""
    return visible(text).replace("$", r"\$")


def in_html(text: str) -> str:
    """Text between tags or in a quoted attribute of HTML, where no script sets it as text."""
    return html.escape(visible(text))


def in_json(text: str) -> str:
    """JSON with the same meaning in which nothing is hidden; `json.dumps` leaves some of it so."""
    return _HIDDEN_IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)


def in_script(text: str) -> str:
    """JSON with the same meaning that can end no script element, nor begin a comment in one."""
    return text.replace("<", "\\u003c")
