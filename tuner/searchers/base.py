"""What a searcher is: one method, and a promise."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from tuner.history import HistoryView
from tuner.seeding import derive_seed
from tuner.space import Config, SearchSpace, Value, value_key
from tuner.trial import TrialState


class SpaceExhausted(Exception):
    """Every configuration of a finite space has been proposed."""


class Searcher(Protocol):
    """Proposes configurations: a pure function of its space, its seed and the history.

    Nothing else may change the answer, so that a resumed, replayed or copied search goes on as
    the first would have. It sees every trial, whatever its state.

    Attributes:
        fallback: why the last proposal did not come from the searcher's model; empty where it
            did. It is recorded on the trial.
    """

    fallback: str

    def propose(self, history: HistoryView) -> Config:
        """The next configuration; raises SpaceExhausted where none is left."""


@runtime_checkable
class BatchSearcher(Searcher, Protocol):
    """One that proposes several configurations at once for less than one after the other."""

    def propose_many(self, history: HistoryView, count: int) -> list[Config]:
        """The next configurations, `count` at most; raises SpaceExhausted where none is left."""


def propose(searcher: Searcher, history: HistoryView, count: int) -> list[Config]:
    """The next one; up to `count` of a searcher that can propose several at once."""
    if count > 1 and isinstance(searcher, BatchSearcher):
        return searcher.propose_many(history, count)
    return [searcher.propose(history)]


def decides_how_long(searcher: Searcher) -> bool:
    """Whether it is a fidelity policy as well, be it behind a start of given configurations.

    Such a one is asked when it can act and not before: by the latest epochs it may want to go on
    with a trial, and not begin one.
    """
    while (inner := getattr(searcher, "inner", None)) is not None:
        searcher = inner
    return hasattr(searcher, "next_action")


def generator(seed: int, name: str, history: HistoryView) -> np.random.Generator:
    """The generator for a searcher's next proposal, made anew from seed and number of trials."""
    return np.random.default_rng(derive_seed(seed, name, len(history)))


ConfigKey = tuple[tuple[bool, Value], ...]


def config_key(space: SearchSpace, config: Config) -> ConfigKey:
    """A configuration as a hashable key, by which duplicates are known."""
    return tuple(value_key(config[name]) for name in space)


def tried(space: SearchSpace, history: HistoryView) -> set[ConfigKey]:
    """The keys of all configurations that need not be tried again.

    What an earlier study trained for a shorter time than a full training here is still to be.
    """
    return {
        config_key(space, t.config)
        for t in history
        if not (t.source and t.state is TrialState.STOPPED)
    }
