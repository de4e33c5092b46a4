"""What the server asks for: races to play, landscapes to draw, beliefs to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Query = Mapping[str, str]
Send = Callable[[str, Any], None]
"""Sends one event: its name and its data."""


class NothingThereError(LookupError):
    """What was asked for does not exist here."""


class Source(Protocol):
    """Where a page's data come from. Methods run in threads of their own.

    All raise ValueError where a query makes no sense and NothingThereError where it asks for what
    is not there. No query is ever taken for the path of a file.
    """

    def catalog(self) -> dict[str, Any]:
        """What may be chosen."""

    def play(self, query: Query, send: Send, is_gone: Callable[[], bool]) -> None:
        """Send a race as it is, then what changes, until it ends or nobody is there any more."""

    def surface(self, query: Query) -> dict[str, Any]:
        """A landscape over two knobs."""

    def belief(self, query: Query) -> dict[str, Any]:
        """What a searcher believed at a moment."""


def text_of(query: Query, name: str) -> str:
    """A parameter that must be there."""
    if not query.get(name):
        raise ValueError(f"{name} is missing")
    return query[name]


def number_of(query: Query, name: str, default: float | None = None) -> float:
    """A parameter that is a finite number."""
    text = query.get(name, "")
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is a number, got {text[:40]!r}") from None
    if not abs(value) < 1e15:  # not for NaN either
        raise ValueError(f"{name} is a finite number, got {text[:40]!r}")
    return value
