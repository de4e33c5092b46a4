"""Hyperparameter search that spends metered device minutes.

Names are loaded when they are first used: `import tuner` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.runner import Infeasible
    from tuner.search import tune
    from tuner.searchers.base import SpaceExhausted
    from tuner.space import Choice, Conditional, Float, Int, SearchSpace
    from tuner.study import Study
    from tuner.trial import Observation, Trial, TrialState

_HOMES = {
    "Choice": "tuner.space",
    "Conditional": "tuner.space",
    "Float": "tuner.space",
    "Infeasible": "tuner.runner",
    "Int": "tuner.space",
    "SearchSpace": "tuner.space",
    "SpaceExhausted": "tuner.searchers.base",
    "Study": "tuner.study",
    "tune": "tuner.search",
    "Observation": "tuner.trial",
    "Trial": "tuner.trial",
    "TrialState": "tuner.trial",
}

__all__ = [
    "Choice",
    "Conditional",
    "Float",
    "Infeasible",
    "Int",
    "Observation",
    "SearchSpace",
    "SpaceExhausted",
    "Study",
    "Trial",
    "TrialState",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
