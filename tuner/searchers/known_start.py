"""A start with what is known to be good: the first trials are given."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.history import HistoryView
from tuner.searchers.base import Searcher, config_key, propose
from tuner.space import Config, SearchSpace


class KnownStart:
    """Proposes these configurations, those that have not been tried, then what `inner` does.

    Raises ValueError where one of them is not in the space.
    """

    def __init__(self, inner: Searcher, space: SearchSpace, configs: Sequence[Config]) -> None:
        for config in configs:
            space.check(config)
        self.inner, self._space, self._configs = inner, space, tuple(configs)
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """The next of them, or the inner searcher's proposal."""
        return self.propose_many(history, 1)[0]

    def propose_many(self, history: HistoryView, count: int) -> list[Config]:
        """The same for up to `count` configurations."""
        self.fallback = ""
        seen = {config_key(self._space, t.config) for t in history}
        new = [c for c in self._configs if config_key(self._space, c) not in seen]
        if new:
            return new[:count]
        configs = propose(self.inner, history, count)
        self.fallback = self.inner.fallback
        return configs
