"""A race as the page sees it: plain JSON, whole or as what has changed."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.budget import Costs, to_minutes
from tuner.history import History, HistoryView
from tuner.reader import RunRow
from tuner.space import Choice, Config, SearchSpace
from tuner.terrain import Terrain
from tuner.trial import Trial, TrialState


@dataclass(frozen=True)
class Scene:
    """One run at one moment.

    `shared_start` is how many first trials all searchers share, `winner` the number of the trial
    that was chosen and tested, once that is known.
    """

    row: RunRow
    history: HistoryView
    ledger: Costs
    is_finished: bool
    test_score: float | None = None
    value: float | None = None
    shared_start: int = 0
    winner: int | None = None


class ByHand(enum.Enum):
    """What a study is measured in whose trials people do, and tell."""

    MINUTES = "minutes"
    EXPERIMENTS = "experiments"  # where nobody told any minutes


TRAINING_BADGE, STUDY_BADGE = "real training", "a study"


def name_of_scores(sign: int) -> str:
    """Of a study whose scores mean what its user says."""
    return "score" if sign > 0 else "score (lower is better)"


def film(
    mode: str,
    title: str,
    scenes: Sequence[Scene],
    *,
    device: str,
    unit: str,
    terrain: Terrain | None = None,
    verdict: Mapping[str, Any] | None = None,
    race: str | None = None,
    badge: str = TRAINING_BADGE,
    score_name: str = "validation accuracy",
    least_gap: float = 0.01,
    sign: int = 1,
    by_hand: ByHand | None = None,
) -> dict[str, Any]:
    """Everything that is known of a race; `mode` is demo, live or finished.

    `badge` says what is searched where it is no landscape, `least_gap` from which difference on
    scores are drawn apart. `sign` is -1 where the user knows scores as losses, which are negated
    here, and `by_hand` is for a study whose trials people do.
    """
    first = scenes[0].row
    return {
        "is_by_hand": by_hand is not None,
        "is_counted": by_hand is ByHand.EXPERIMENTS,
        "sign": sign,
        "least_gap": least_gap,
        "mode": mode,
        "title": title,
        "landscape": None if terrain is None else describe_terrain(terrain),
        "device": device,
        "unit": unit,
        "badge": badge,
        "score_name": score_name,
        "epochs": first.max_epochs,
        "budget": to_minutes(max(scene.row.budget_ns or 0 for scene in scenes)),
        "knobs": [{"name": name, **fields} for name, fields in first.space.to_json().items()],
        "verdict": verdict,
        "race": race,
        **Camera().shoot(scenes),
    }


def describe_terrain(terrain: Terrain) -> dict[str, Any]:
    """A landscape's name, what it is, where it is from, and its optimum."""
    config, value = terrain.optimum()
    return {
        "name": terrain.name,
        "title": terrain.name.replace("_", " ").capitalize(),
        "about": str(terrain.card.get("about", "")),
        "badge": str(terrain.card.get("badge", "")),
        "measure": terrain.measure,
        "optimum": {"config": dict(config), "value": value},
    }


class Camera:
    """Tells what has changed since it looked last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int | None], Any] = {}

    def shoot(self, scenes: Iterable[Scene]) -> dict[str, Any]:
        """`runs` and `trials` that are new or have changed, to be put over those from before."""
        runs, trials = [], []
        for scene in scenes:
            frame = run_frame(scene)
            if self._is_news((scene.row.id, None), frame):
                runs.append(frame)
            for trial in scene.history.trained:
                mark = (trial.state, trial.epoch, trial.reason)  # all that can change on the page
                if self._is_news((scene.row.id, trial.number), mark):
                    trials.append([scene.row.id, trial_frame(trial, scene.row.space)])
        return {"runs": runs, "trials": trials}

    def _is_news(self, key: tuple[int, int | None], mark: Any) -> bool:
        before = self._seen.get(key)
        self._seen[key] = mark
        return bool(before != mark)


def run_frame(scene: Scene) -> dict[str, Any]:
    """A run as the page sees it, times in minutes."""
    return {
        "id": scene.row.id,
        "searcher": scene.row.searcher,
        "seed": scene.row.seed,
        "spent": to_minutes(sum(scene.ledger.values())),
        "finished": scene.is_finished,
        "ledger": {kind.value: to_minutes(ns) for kind, ns in scene.ledger.items()},
        "test_score": scene.test_score,
        "value": scene.value,
        "winner": scene.winner,
    }


def trial_frame(trial: Trial, space: SearchSpace) -> dict[str, Any]:
    """A trial as the page sees it, times in minutes, the configuration in the space's order."""
    ended = end_ns(trial)
    return {
        "number": trial.number,
        "config": [trial.config[name] for name in space],
        "state": trial.state.name,
        "reason": trial.reason,
        "note": trial.note,
        "started": to_minutes(trial.started_ns),
        "ended": None if ended is None else to_minutes(ended),
        "minutes": to_minutes(trial.device_ns + trial.partial_ns),
        "curve": [[o.epoch, o.score, to_minutes(o.at_ns)] for o in trial.curve],
    }


def end_ns(trial: Trial) -> int | None:
    """The device time of the run at which a trial ended; None where it may go on."""
    if not trial.state.is_final:
        return None
    return (trial.curve[-1].at_ns if trial.curve else trial.started_ns) + trial.partial_ns


def history_at(history: HistoryView, at_ns: int) -> History:
    """What was known when a run had used `at_ns` of device time.

    A trial that began at that very moment is not in it: it was proposed from what is. What was
    taken over from an earlier study was known from the beginning.
    """
    past = History(history.max_epochs, history.budget_ns)
    for trial in history:
        if trial.started_ns >= at_ns and not trial.source:
            break
        ended = end_ns(trial)
        if ended is None or ended > at_ns:
            known = tuple(o for o in trial.curve if o.at_ns <= at_ns)
            trial = replace(trial, curve=known, state=TrialState.RUNNING, partial_ns=0, reason="")
        past.restore(trial)
    return past


# -- maps over two knobs --------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """Two knobs to look at, their values along each axis, and what the others are held at.

    What is not there in any of the combinations is not held.
    """

    x: str
    y: str
    xs: list[Any]
    ys: list[Any]
    held: dict[str, Any]
    configs: list[dict[str, Any]]  # all combinations, row by row: y slow, x fast

    def rows(self, values: Iterable[float | None]) -> list[list[float | None]]:
        """A value for each of `configs` as rows for JSON: NaN is null, five digits are enough."""
        flat = [None if v is None or v != v else float(f"{v:.5g}") for v in values]
        width = len(self.xs)
        return [flat[i : i + width] for i in range(0, len(flat), width)]

    def to_json(self) -> dict[str, Any]:
        """Where it is."""
        return {"x": self.x, "y": self.y, "xs": self.xs, "ys": self.ys, "held": self.held}


def make_slice(space: SearchSpace, x: str, y: str, others: Config, points: int) -> Slice:
    """At most `points` values a side; ValueError where there is no such knob."""
    for name in (x, y):
        if name not in space:
            raise ValueError(f"there is no knob {name!r}; there are: {', '.join(space)}")

    def values(name: str) -> list[Any]:
        domain = space[name]
        if isinstance(domain, Choice):
            return list(domain.options)
        return domain.grid(points)

    xs, ys = values(x), values(y)
    # What is not there in the others may be there along an axis; the two axes need not be named.
    others = space.filled({x: xs[0], y: ys[0], **others})
    # With a single knob x and y are the same, and the rows are alike.
    configs = [space.pruned({**others, y: v, x: u}) for v in ys for u in xs]
    held = {
        name: value
        for name, value in others.items()
        if name not in (x, y) and any(space.is_there(name, config) for config in configs)
    }
    return Slice(x, y, xs, ys, held, configs)


def surface(terrain: Terrain, x: str, y: str, points: int = 48) -> dict[str, Any]:
    """A landscape over two knobs, the others held where the landscape is best."""
    where = make_slice(terrain.space, x, y, terrain.optimum()[0], points)
    return {**where.to_json(), "z": where.rows(map(terrain.value, where.configs))}
