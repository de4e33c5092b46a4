"""The values of knobs as people read them, and as people and spreadsheets write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuner.escape import in_csv, visible
from tuner.space import Choice, Domain, Float, Int, SearchSpace, Value
from tuner.trial import Trial


def shown(value: Value, domain: Domain) -> str:
    """A value with as many digits as its knob is worth: a ten-thousandth of the range, or four."""
    if value is None and not (isinstance(domain, Choice) and domain.contains(None)):
        return "–"  # a conditional knob that is not there
    if not isinstance(domain, Float) or not isinstance(value, float):
        return visible(str(value), 40)
    if domain.log:
        return f"{value:.4g}"
    size = math.floor(math.log10(domain.high - domain.low))
    decimals = 3 - size
    return f"{value:.{decimals}f}" if 0 <= decimals <= 6 else f"{value:.6g}"


def in_columns(space: SearchSpace, trials: Sequence[Trial]) -> list[str]:
    """Experiments as the lines of a table: number and knobs, numbers to the right."""
    rows = [
        [str(t.number), *(shown(t.config[name], domain) for name, domain in space.items())]
        for t in trials
    ]
    table = [["trial", *(visible(name, 40) for name in space)], *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]


def parse(name: str, domain: Domain, text: str) -> Value:
    """The value of a knob that a cell says; raises ValueError where it is none."""
    if isinstance(domain, Choice):
        return _option(name, domain, text)
    number = number_of(text, name)
    if isinstance(domain, Int) and number != int(number):
        raise ValueError(f"{name} is a whole number, got {text}")
    value = int(number) if isinstance(domain, Int) else number
    if not domain.contains(value):
        raise ValueError(f"{name} is {domain.low:g} to {domain.high:g}, got {value:g}")
    return value


def unescaped(cell: str) -> str:
    """A cell without the quote that `in_csv` puts before what looks like a formula."""
    return cell[1:] if cell.startswith("'") and in_csv(cell[1:]) == cell else cell


def number_of(text: str, name: str) -> float:
    """The finite number that a cell says; raises ValueError, with the column, where it is none."""
    if not text:
        raise ValueError(f"no {name}")
    try:
        number = float(text)
    except ValueError:
        hint = "; write a point, not a comma" if "," in text else ""
        raise ValueError(f"{name} is a number, got {visible(text, 60)!r}{hint}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is a finite number, got {text}")
    return number


def _option(name: str, domain: Choice, text: str) -> Value:
    """The one option that a cell says: as it was written, or as a spreadsheet may rewrite it."""
    for is_meant in (_is_written, _is_rewritten):
        meant = [option for option in domain.options if is_meant(text, option)]
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise ValueError(f"{name}: {visible(text, 60)!r} may be any of {meant[:4]}")
    options = ", ".join(visible(str(option), 40) for option in domain.options)
    raise ValueError(f"{name} is one of {options}, got {visible(text, 60)!r}")


def _is_written(text: str, option: Value) -> bool:
    return text == ("" if option is None else str(in_csv(option)))


def _is_rewritten(text: str, option: Value) -> bool:
    if isinstance(option, bool) or option is None:
        return text.lower() == str(option).lower()  # TRUE
    if isinstance(option, str):
        return text == option
    try:
        return float(text) == option  # 8.0
    except ValueError:
        return False
