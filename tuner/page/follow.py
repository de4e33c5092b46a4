"""A study on disk, followed while it is written or shown when it is finished."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner.budget import to_minutes
from tuner.foreign import read_json
from tuner.history import History
from tuner.page.belief import belief
from tuner.page.film import Camera, Scene, film, surface
from tuner.page.source import NothingThereError, Query, Send, number_of, text_of
from tuner.page.told import UNIT, by_count
from tuner.reader import Snapshot, study_mark
from tuner.terrain import Terrain
from tuner.trial import SIGNS

_LOOK_EVERY_S = 0.5
_MOST_LOCK, _MOST_SUMMARY = 1 << 12, 8 << 20
_UNFINISHED = {
    "text": "This race is not finished: nothing is said about who is ahead.",
    "headline": "This race is not finished: nothing is said about who is ahead.",
    "pairs": [],
    "standings": [],
}


class Follow:
    """The study in a folder.

    Args:
        folder: with a `study.sqlite`, which is never locked.
        terrain: the landscape that it is a replay on, where it is one and that is at hand.
    """

    def __init__(self, folder: Path, terrain: Terrain | None = None) -> None:
        self._folder, self._path, self._terrain = folder, folder / "study.sqlite", terrain
        self._request: dict[str, Any] = {}
        self._is_told, self._sign = False, 1.0  # whether people tell it; -1 where a loss is
        self._latest: tuple[tuple[int, ...], list[Scene], dict[str, Any]] | None = None

    def catalog(self) -> dict[str, Any]:
        """Nothing may be chosen: the study is what it is."""
        return {"mode": "study", "landscapes": [], "searchers": [], "chosen": [], "budget": None}

    def play(self, query: Query, send: Send, is_gone: Callable[[], bool]) -> None:
        """Send the study, and what is added to it until it is finished."""
        camera = Camera()
        send("film", self.film())
        camera.shoot(self._look()[0])
        while not is_gone():
            # Asked before the study is read, so that a driver's last words are not missed.
            is_driven = self._is_driven()
            scenes, summary = self._look()
            news = camera.shoot(scenes)
            if news["runs"] or news["trials"]:
                send("more", news)
            if summary or not (is_driven or self._is_told):  # whoever tells comes back some day
                send("verdict", summary.get("verdict", _UNFINISHED))
                send("end", {})
                return
            time.sleep(_LOOK_EVERY_S)

    def film(self) -> dict[str, Any]:
        """Everything that is known by now."""
        scenes, summary = self._look()
        request = self._request
        is_over = bool(summary) or not self._is_driven()
        is_own = not (request.get("data") or request.get("landscape"))
        own_name = "score" if self._sign > 0 else "score, negated"
        return film(
            "finished" if is_over else "live",
            self._folder.name,
            scenes,
            device=str(summary.get("device") or request.get("device")),
            unit=UNIT if self._is_told else str(summary.get("unit") or _unit(request)),
            terrain=self._terrain,
            verdict=summary.get("verdict", _UNFINISHED if is_over else None),
            race="study",
            badge="a study" if is_own else "real training",
            score_name=own_name if is_own else "validation accuracy",
        )

    def surface(self, query: Query) -> dict[str, Any]:
        """The landscape of a replay over two knobs."""
        if self._terrain is None:
            raise NothingThereError("Real training: nobody knows the landscape.")
        return surface(self._terrain, text_of(query, "x"), text_of(query, "y"))

    def belief(self, query: Query) -> dict[str, Any]:
        """What a run's searcher believed at a minute of it."""
        number, minute = int(number_of(query, "run")), number_of(query, "at")
        scenes, _ = self._look()
        found = next((scene for scene in scenes if scene.row.id == number), None)
        if found is None:
            raise NothingThereError(f"there is no run {number}")
        x, y = text_of(query, "x"), text_of(query, "y")
        return belief(found, minute, x, y, self._others(found))

    # -- parts -----------------------------------------------------------------------------------

    def _others(self, scene: Scene) -> dict[str, Any]:
        """What knobs that are not looked at are held at: the best known."""
        if self._terrain is not None:
            return dict(self._terrain.optimum()[0])
        best = scene.history.best
        if best is not None:
            return dict(best.config)
        return {name: domain.from_unit(0.5) for name, domain in scene.row.space.items()}

    def _is_driven(self) -> bool:
        """Whether the process that the study's lock names is there; the lock is left alone."""
        try:
            holder = read_json(self._path.with_name(self._path.name + ".lock"), _MOST_LOCK)
            if holder["host"] != socket.gethostname():
                return True  # nobody here can know
            os.kill(int(holder["pid"]), 0)
        except PermissionError:
            return True  # somebody else's, and there
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return False
        return True

    def _mark(self) -> tuple[int, ...]:
        """Changes when the study or its summary does."""
        try:
            written = (self._folder / "summary.json").stat().st_mtime_ns
        except OSError:
            written = 0
        return (*study_mark(self._path), written)

    def _look(self) -> tuple[list[Scene], dict[str, Any]]:
        """The runs as they are on record, and the summary of a study that is finished."""
        mark = self._mark()
        if self._latest is not None and self._latest[0] == mark:
            return self._latest[1:]
        snapshot = Snapshot(self._path)
        try:
            self._request = snapshot.request()
            loaded = []
            for row in snapshot.runs():
                history = History(row.max_epochs, row.budget_ns)
                for trial in snapshot.trials(row):
                    history.restore(trial)
                loaded.append((row, history, snapshot.budget(row).ledger))
            self._sign = SIGNS.get(str(snapshot.meta("mode")), 1.0)
        finally:
            snapshot.close()
        spent_ns = sum(sum(ledger.values()) for _, _, ledger in loaded)
        has_budget = any(row.budget_ns is not None for row, _, _ in loaded)
        self._is_told = not (self._request or spent_ns or has_budget)
        if self._is_told:
            loaded = [(*by_count(row, history),) for row, history, _ in loaded]
        spent = [to_minutes(sum(ledger.values())) for _, _, ledger in loaded]
        summary = self._summary(spent)
        runs = summary.get("runs", [{}] * len(loaded))
        scenes = [
            Scene(
                row,
                history,
                ledger,
                bool(summary),
                run.get("test_score"),
                run.get("value"),
                self._request.get("shared_start", 0),
            )
            for (row, history, ledger), run in zip(loaded, runs, strict=True)
        ]
        self._latest = (mark, scenes, summary)
        return scenes, summary

    def _summary(self, spent: list[float]) -> dict[str, Any]:
        """summary.json, if it is about the study as it is now; else nothing."""
        try:
            summary = read_json(self._folder / "summary.json", _MOST_SUMMARY)
            told = [run["minutes_spent"] for run in summary["runs"]]
        except (ValueError, KeyError, TypeError):
            return {}
        return summary if told == spent else {}


def _unit(request: dict[str, Any]) -> str:
    if request.get("landscape"):
        return "simulated minutes"
    devices = request.get("devices") or [str(request.get("device"))]
    return "GPU minutes" if str(devices[0]).startswith("cuda") else "device minutes (cpu)"
