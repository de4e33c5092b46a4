"""Whoever watches a search: called with the study after each change, and kept from ending it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from tuner.study import Study

Callback: TypeAlias = Callable[[Study], object]
"""Called with the study after each epoch and each new trial, and once at the end.

Where it has a method `close`, that is called after the end. It may read the study and no more.
"""


def check_callbacks(callbacks: object) -> None:
    """Raise ValueError where they are not a list, or a tuple, of functions."""
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise ValueError(
            f"callbacks is a list of functions that take the study, got {callbacks!r}; one alone "
            "is written [it]"
        )


@contextmanager
def calling(
    callbacks: Sequence[Callback], study: Study, first: Callable[[], object]
) -> Iterator[Callable[[], None]]:
    """Yield a function that calls `first` and then all of them, which `close` at the end.

    A callback that raises is warned of and not called again: an hour of training is worth more
    than its log.
    """
    left = list(callbacks)

    def call_all() -> None:
        for callback in tuple(left):
            if not _survives(callback, partial(callback, study)):
                left.remove(callback)

    def changed() -> None:
        first()
        call_all()

    try:
        yield changed
        call_all()
    finally:
        for callback in callbacks:
            if (close := getattr(callback, "close", None)) is not None:
                _survives(callback, close)


def _survives(callback: Callback, call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception as error:  # anything that is not a wish to end the program
        warnings.warn(
            f"the callback {callback!r} raised {type(error).__name__}: {error}; the search goes on "
            "without it",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
