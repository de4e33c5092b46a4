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
    "freeze-thaw": "tuner.searchers.freeze_thaw:FreezeThawSearcher",
    "bohb": "tuner.searchers.bohb:BohbSearcher",
    "tpe": "tuner.searchers.optuna_samplers:tpe",
    "cmaes": "tuner.searchers.optuna_samplers:cmaes",
    "optuna-gp": "tuner.searchers.optuna_samplers:gp",
    "vizier": "tuner.searchers.vizier:VizierSearcher",
}
_ANY_OF_OPTUNA = "optuna:"


def make_searcher(name: str, space: SearchSpace, seed: int, **options: Any) -> Searcher:
    """The searcher of that name; ValueError, with the nearest name, where there is none.

    Any sampler of Optuna's that needs no more than a seed goes by `optuna:` and its class's name,
    such as `optuna:NSGAIISampler`. `options` go to the searcher, and from it to Optuna's sampler.
    """
    if name.startswith(_ANY_OF_OPTUNA):
        options["sampler"] = name.removeprefix(_ANY_OF_OPTUNA)
        name = "tpe"
    module, _, attribute = pick(name, SEARCHERS, "searcher").partition(":")
    searcher: Searcher = getattr(importlib.import_module(module), attribute)(space, seed, **options)
    return searcher


__all__ = ["SEARCHERS", "Searcher", "SpaceExhausted", "make_searcher"]
