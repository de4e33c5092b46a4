"""Looking a name up in a table, with a helpful error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def pick(name: str, table: Mapping[str, T], what: str) -> T:
    """`table[name]`; ValueError with the nearest name and all names where it is not there."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no {what} {name!r}; {hint}there are: {', '.join(table)}")
