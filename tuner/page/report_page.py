"""report.html: the page with a race in it, to be opened from disk without a server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.budget import to_minutes
from tuner.escape import in_script
from tuner.files import write_atomically
from tuner.importance import effects, in_words, interesting_floor, measured, stands_out
from tuner.page.assets import STATIC, plotly_script
from tuner.page.belief import belief
from tuner.page.film import TRAINING_BADGE, Scene, film, surface
from tuner.report import SCORE_NAME
from tuner.space import Config, SearchSpace
from tuner.terrain import Terrain

_MOMENTS = 10
_BELIEF_POINTS = 24
_MOST_PAIRS = 6

_STYLE = re.compile(r'<link rel="stylesheet" href="static/([\w.]+)">')
_SCRIPT = re.compile(r'<script defer src="([\w./]+)"></script>\n?')


def write_report(
    path: Path,
    title: str,
    scenes: Sequence[Scene],
    *,
    device: str,
    unit: str,
    terrain: Terrain | None,
    verdict: dict[str, Any],
    pair: tuple[str, str],
    importance: Mapping[str, Any] | None = None,
    badge: str = TRAINING_BADGE,
    score_name: str = SCORE_NAME,
    least_gap: float = 0.01,
    sign: int = 1,
) -> None:
    """Write the page with the film, the landscape over some pairs of knobs, and some beliefs.

    `pair` are the two knobs that it opens with; beliefs are kept for them and for the first seed.
    `importance` is that of summary.json, and the others are as `film` takes them.
    """
    content = film(
        "finished",
        title,
        scenes,
        device=device,
        unit=unit,
        terrain=terrain,
        verdict=verdict,
        badge=badge,
        score_name=score_name,
        least_gap=least_gap,
        sign=sign,
    )
    pairs = _pairs(scenes[0].row.space, pair)
    content["surfaces"] = [] if terrain is None else [surface(terrain, x, y) for x, y in pairs]
    content["pairs"] = pairs
    others = _others(scenes, terrain)
    seed = min(scene.row.seed for scene in scenes)
    shown = [scene for scene in scenes if scene.row.seed == seed]
    content["beliefs"] = [found for s in shown for found in _beliefs(s, *pair, others) if pairs]
    content["effects"] = _effects(scenes, importance)
    write_atomically(path, page_with(content))


def page_with(content: dict[str, Any]) -> str:
    """The page as one file, its data, styles and scripts inside."""
    page = (STATIC / "index.html").read_text()
    scripts = [
        plotly_script().decode() if name == "plotly.js" else (STATIC.parent / name).read_text()
        for name in _SCRIPT.findall(page)
    ]
    # Inside a script element only this sequence could end it; in JavaScript it means the same.
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    page = _SCRIPT.sub("", page)
    page = _STYLE.sub(lambda m: f"<style>{(STATIC / m[1]).read_text()}</style>", page)
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace("<head>", f"<head>\n{meta}", 1)
    data = in_script(json.dumps(content, allow_nan=False))
    end = f'<script type="application/json" id="film-data">{data}</script>\n'
    end += "".join(f"<script>{script}</script>\n" for script in scripts)
    head, _, tail = page.rpartition("</body>")
    return f"{head}{end}</body>{tail}"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _pairs(space: SearchSpace, first: tuple[str, str]) -> list[tuple[str, str]]:
    names = list(space)
    if len(names) == 1:
        return []  # one knob makes no map
    others = [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
    rest = [pair for pair in others if set(pair) != set(first)]
    return [first, *rest][:_MOST_PAIRS]


def _effects(scenes: Sequence[Scene], importance: Mapping[str, Any] | None) -> dict[str, Any]:
    """What mattered, and for each knob [low, high, first, second, third quartile] of its cells."""
    space, trials = scenes[0].row.space, [t for scene in scenes for t in scene.history.trained]
    epoch, results = measured(space, trials)
    return {
        "text": in_words(importance),
        "shares": importance["shares"] if importance and stands_out(importance) else None,
        "epoch": epoch,
        "floor": interesting_floor([score for _, score in results]) if results else None,
        "cells": {
            name: [[cell.low, cell.high, *cell.quartiles] for cell in cells if cell.quartiles]
            for name, cells in effects(space, trials).items()
        },
    }


def _others(scenes: Sequence[Scene], terrain: Terrain | None) -> Config:
    """What the knobs that are not looked at are held at: the best known."""
    if terrain is not None:
        return terrain.optimum()[0]
    found = [scene.history.best for scene in scenes]
    best = max((t for t in found if t is not None), key=lambda t: t.score or 0.0, default=None)
    if best is not None:
        return best.config
    return {name: domain.from_unit(0.5) for name, domain in scenes[0].row.space.items()}


def _beliefs(scene: Scene, x: str, y: str, others: Config) -> list[dict[str, Any]]:
    """What the searcher believed at some of its trials' starts, if it has a model."""
    starts = [to_minutes(trial.started_ns) for trial in scene.history.trained]
    step = max(1, len(starts) // _MOMENTS)
    found = []
    for minute in starts[::-1][::step][::-1]:  # the last one is always among them
        try:
            one = belief(scene, minute, x, y, others, _BELIEF_POINTS)
        except ValueError:  # a searcher without a model
            return []
        if not one["text"]:
            found.append(one)
    return found
