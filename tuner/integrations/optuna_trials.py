"""Optuna's trials and distributions in this project's terms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Shown

from tuner.space import Choice, Config, Domain, Float, Int, Value
from tuner.trial import Observation, Trial, TrialState

_STATES = {
    Shown.COMPLETE: TrialState.COMPLETED,
    Shown.PRUNED: TrialState.STOPPED,
    Shown.FAIL: TrialState.FAILED,
    Shown.RUNNING: TrialState.RUNNING,
    Shown.WAITING: TrialState.RUNNING,
}


def sign_of(directions: list[StudyDirection]) -> float:
    """1 where the study maximises, -1 where it minimises.

    Raises ValueError where it has several objectives.
    """
    if len(directions) != 1:
        raise ValueError(
            f"one objective is searched for here, and the Optuna study has {len(directions)}"
        )
    return 1.0 if directions[0] is StudyDirection.MAXIMIZE else -1.0


def as_trial(shown: FrozenTrial, number: int, config: Config, sign: float) -> Trial:
    """Optuna's trial as one of ours, with this number and configuration.

    - Its curve are the values that it reported, in order of their steps: the first is epoch 1,
      whatever its step. What comes after one that is not finite is left out.
    - The last score of a complete trial is what its objective returned.
    - It is infeasible where it broke a constraint, where it was pruned without a report, and where
      what it returned is infinite.
    """
    curve = _curve(shown, sign)
    state = _STATES[shown.state]
    ended_without = state in (TrialState.COMPLETED, TrialState.STOPPED) and not curve
    if ended_without or any(bound > 0 for bound in shown.constraints.values()):
        state = TrialState.INFEASIBLE
    return Trial(number, config, 0, max(1, len(curve)), state, curve)


def _curve(shown: FrozenTrial, sign: float) -> tuple[Observation, ...]:
    reported = [value for _, value in sorted(shown.intermediate_values.items())]
    finite = list(itertools.takewhile(math.isfinite, reported))
    if shown.state is Shown.COMPLETE:
        value = shown.value
        if value is None or not math.isfinite(value):
            return ()
        finite[-1:] = [value]
    return tuple(Observation(e, sign * score, 0) for e, score in enumerate(finite, 1))


def domain_of(distribution: BaseDistribution) -> Domain:
    """The domain that a searcher works in: of steps where there are steps, of indices of options.

    Nothing is lost: every value of the distribution is one of the domain's and the other way round.
    """
    if isinstance(distribution, CategoricalDistribution):
        return Choice(tuple(range(len(distribution.choices))))
    if isinstance(distribution, FloatDistribution | IntDistribution) and _has_steps(distribution):
        return Int(0, _to_step(distribution, distribution.high))
    if isinstance(distribution, FloatDistribution):
        return Float(distribution.low, distribution.high, distribution.log)
    if isinstance(distribution, IntDistribution):
        return Int(distribution.low, distribution.high, distribution.log)
    raise ValueError(f"there is no knob like Optuna's {distribution!r}")


def to_domain(distribution: BaseDistribution, value: Any) -> Value:
    """A value of Optuna's as one of `domain_of`."""
    if isinstance(distribution, CategoricalDistribution):
        return int(distribution.to_internal_repr(value))
    if isinstance(distribution, FloatDistribution | IntDistribution) and _has_steps(distribution):
        return _to_step(distribution, value)
    known: Value = value
    return known


def from_domain(distribution: BaseDistribution, value: Any) -> Any:
    """The inverse of `to_domain`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[value]
    if isinstance(distribution, FloatDistribution | IntDistribution) and _has_steps(distribution):
        return min(distribution.low + value * (distribution.step or 1), distribution.high)
    return value


def to_config(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> Config | None:
    """Optuna's parameters as a configuration of the searcher's; None where they are not in it."""
    if any(name not in params or not _holds(d, params[name]) for name, d in space.items()):
        return None
    return {name: to_domain(d, params[name]) for name, d in space.items()}


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # Optuna's answer to a value that is of another kind
        return False


def _has_steps(distribution: FloatDistribution | IntDistribution) -> bool:
    if isinstance(distribution, FloatDistribution):
        return distribution.step is not None
    return distribution.step != 1


def _to_step(distribution: FloatDistribution | IntDistribution, value: float) -> int:
    return round((value - distribution.low) / (distribution.step or 1))
