"""The registry of searchers: a name, a class, and nothing loaded before it is used."""

from __future__ import annotations

import importlib
from typing import Any

from tuner.naming import pick
from tuner.searchers.base import Searcher, SpaceExhausted
from tuner.space import SearchSpace

SEARCHERS = {
    "grid": "tuner.searchers.grid:GridSearcher",
    "random": "tuner.searchers.random:RandomSearcher",
    "bayes": "tuner.searchers.bayes:BayesSearcher",
    "bohb": "tuner.searchers.bohb:BohbSearcher",
}


def make_searcher(name: str, space: SearchSpace, seed: int, **options: Any) -> Searcher:
    """The searcher of that name; ValueError, with the nearest name, where there is none."""
    module, _, attribute = pick(name, SEARCHERS, "searcher").partition(":")
    searcher: Searcher = getattr(importlib.import_module(module), attribute)(space, seed, **options)
    return searcher


__all__ = ["SEARCHERS", "Searcher", "SpaceExhausted", "make_searcher"]
