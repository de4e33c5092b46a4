"""A common start: the first trials of every searcher of a seed are the same."""

from __future__ import annotations

from tuner.history import HistoryView
from tuner.searchers.base import Searcher, propose
from tuner.searchers.random import draw_new
from tuner.seeding import derive_seed
from tuner.space import Config, SearchSpace


class SharedStart:
    """Proposes `count` random configurations, a function of the seed alone, then what `inner` does.

    Whoever searches from there has seen the same, so that luck with the start tells nobody apart.
    """

    def __init__(self, inner: Searcher, space: SearchSpace, seed: int, count: int) -> None:
        self.inner, self._space, self._count = inner, space, count
        self._seed = derive_seed(seed, "shared start")
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """One of the common configurations, or the inner searcher's proposal."""
        return self.propose_many(history, 1)[0]

    def propose_many(self, history: HistoryView, count: int) -> list[Config]:
        """The same for up to `count` configurations."""
        self.fallback = ""
        if len(history.trained) < self._count:
            return [draw_new(self._space, self._seed, "shared-start", history)]
        configs = propose(self.inner, history, count)
        self.fallback = self.inner.fallback
        return configs
