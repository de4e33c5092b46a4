"""A search space as people write it: a TOML file with a table for each knob.

    [learning_rate]
    low = 1e-5
    high = 1.0
    log = true

    [tile]
    options = [8, 16, 32, 64]

    [momentum]
    low = 0.0
    high = 0.99
    when = { knob = "optimizer", values = ["sgd"] }

A knob with `when` is there only where another one, above it, has one of some values. A range whose
ends are both written without a point is one of whole numbers, unless it says
`type = "float"`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.foreign import MOST_JSON, read_capped
from tuner.space import Choice, Conditional, Domain, Float, Int, SearchSpace

_RANGE = {"low", "high", "log", "type", "when"}
_TYPES = ("int", "float")


def read_space(path: Path) -> SearchSpace:
    """The space in a TOML file.

    Raises ValueError, naming the file and the knob, where it is no such file or no such space.
    """
    try:
        tables = tomllib.loads(read_capped(path, MOST_JSON).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    knobs: dict[str, Domain | Conditional] = {}
    for name, table in tables.items():
        try:
            knobs[name] = _knob(table)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: the knob {name!r}: {error}") from error
    try:
        return SearchSpace(knobs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _knob(table: Any) -> Domain | Conditional:
    if not isinstance(table, Mapping):
        raise ValueError("expected a table with low and high, or with options, under [its name]")
    domain = _domain(table)
    if "when" not in table:
        return domain
    when = table["when"]
    if not isinstance(when, Mapping) or set(when) != {"knob", "values"}:
        raise ValueError('when is written { knob = "optimizer", values = ["sgd"] }')
    if not isinstance(when["values"], list):
        raise ValueError(f"the values of when are a list, got {when['values']!r}")
    return Conditional(domain, when["knob"], tuple(when["values"]))


def _domain(table: Mapping[str, Any]) -> Domain:
    if "options" in table:
        _check_keys(table, {"options", "when"})
        options = table["options"]
        if not isinstance(options, list):
            raise ValueError(f"options is a list, such as [1, 2, 4], got {options!r}")
        return Choice(tuple(options))
    _check_keys(table, _RANGE)
    low, high, log = table.get("low"), table.get("high"), table.get("log", False)
    if low is None or high is None:
        raise ValueError("a range needs low and high; a choice needs options")
    if type(log) is not bool:
        raise ValueError(f"log is true or false, got {log!r}")
    whole = type(low) is int and type(high) is int
    kind = table.get("type", "int" if whole else "float")
    if kind not in _TYPES:
        raise ValueError(f'type is "int" or "float", got {kind!r}')
    return Int(low, high, log=log) if kind == "int" else Float(low, high, log=log)


def _check_keys(table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(table) - known:
        raise ValueError(
            f"{', '.join(sorted(unknown))} is nothing that it may say; there are "
            f"{', '.join(sorted(known))}"
        )
