"""What a model-based searcher believed at a moment of a race, over two knobs."""

from __future__ import annotations

from typing import Any

from tuner.budget import to_ns
from tuner.entry import make_entry
from tuner.page.film import Scene, history_at, make_slice
from tuner.searchers import SpaceExhausted
from tuner.searchers.shared_start import SharedStart
from tuner.space import Config

POINTS = 32


def belief(
    scene: Scene, minute: float, x: str, y: str, others: Config, points: int = POINTS
) -> dict[str, Any]:
    """Maps of the surrogate at a minute of a run, and what it would try next.

    `text` says why there is no model, where there is none. Raises ValueError where the searcher
    has no model at all, or there is no such knob.
    """
    row = scene.row
    searcher, _ = make_entry(row.searcher, row.space, row.seed, epochs=row.max_epochs)
    ask = getattr(searcher, "belief", None)
    if ask is None:
        raise ValueError(f"{row.searcher} has no model of the landscape")
    where = make_slice(row.space, x, y, others, points)
    past = history_at(scene.history, to_ns(minute))
    known = {"at": minute, "trials": len(past), "run": row.id, **where.to_json()}
    believed = ask(past.view(), where.configs)
    if believed is None:
        return {**known, "text": "No model yet: it is still at its starting points."}
    shared = SharedStart(searcher, row.space, row.seed, scene.shared_start)
    try:
        following = dict(shared.propose(past.view()))
    except SpaceExhausted:
        following = None
    return {
        **known,
        "mean": where.rows(believed.mean.tolist()),
        "sd": where.rows(believed.sd.tolist()),
        "gap_sd": where.rows(believed.gap_sd.tolist()),
        "incumbent_mean": believed.incumbent_mean,
        "next": following,
        "text": "",
    }
