"""How long each trial trains: policies that look at the history and say what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tuner.trial import HistoryView


@dataclass(frozen=True)
class Sample:
    """Ask the searcher for a new configuration and train it until an epoch is finished."""

    until_epoch: int


@dataclass(frozen=True)
class Resume:
    """Train a paused trial further."""

    number: int
    until_epoch: int


@dataclass(frozen=True)
class Stop:
    """End a trial: it will not train again."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do until a result comes in."""


@dataclass(frozen=True)
class Done:
    """Nothing more to do at all."""


Action: TypeAlias = Sample | Resume | Stop | Wait | Done

UNLIMITED = 1 << 30
"""The target of a training that itself says when it is complete."""


class FidelityPolicy(Protocol):
    """Says what a free slot should do next: a pure function of the history."""

    def next_action(self, history: HistoryView) -> Action:
        """The next action, given everything that is known."""


class FullFidelity:
    """Every trial trains to the end."""

    def next_action(self, history: HistoryView) -> Action:
        """A new trial, to its full length."""
        return Sample(history.max_epochs or UNLIMITED)
