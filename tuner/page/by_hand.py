"""Studies whose trials people do: nothing drives them, nothing limits them, few tell minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuner.budget import Kind, to_ns
from tuner.history import History
from tuner.page.film import ByHand, Scene
from tuner.reader import RunRow
from tuner.trial import Trial

_EXPERIMENT_NS = to_ns(1.0)


def is_by_hand(rows: Sequence[RunRow], request: Mapping[str, Any]) -> bool:
    """Whether a study is asked and told: no race, and no budget that anything could spend."""
    return not request and len(rows) == 1 and rows[0].budget_ns is None


def with_experiments(scene: Scene) -> tuple[Scene, ByHand]:
    """The scene of such a study as it is filmed, and what it is measured in.

    Results from before are among its trials. Where nobody told minutes, experiments stand for
    them, in the order in which they were asked for: trial n is from n to n + 1.
    """
    trials = [_as_own(trial) for trial in scene.history]
    is_counted = not any(scene.ledger.values())
    ledger = dict(scene.ledger)
    if is_counted:
        trials = [_counted(trial) for trial in trials]
        ledger[Kind.TRAIN] = len(trials) * _EXPERIMENT_NS
    history = History(scene.row.max_epochs)
    for trial in trials:
        history.restore(trial)
    scene = replace(scene, history=history, ledger=ledger, is_finished=False)
    return scene, ByHand.EXPERIMENTS if is_counted else ByHand.MINUTES


def _as_own(trial: Trial) -> Trial:
    return replace(trial, source="", note=replace(trial, reason="").remark)


def _counted(trial: Trial) -> Trial:
    curve = tuple(
        o._replace(device_ns=_EXPERIMENT_NS, at_ns=(trial.number + 1) * _EXPERIMENT_NS)
        for o in trial.curve
    )
    partial_ns = _EXPERIMENT_NS if trial.state.is_final and not curve else 0
    started_ns = trial.number * _EXPERIMENT_NS
    return replace(trial, curve=curve, started_ns=started_ns, partial_ns=partial_ns)
