"""A study on disk, followed while it is written or shown when it is finished."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.budget import to_minutes
from tuner.foreign import read_json
from tuner.history import History
from tuner.page.belief import belief
from tuner.page.by_hand import is_by_hand, with_experiments
from tuner.page.film import (
    STUDY_BADGE,
    TRAINING_BADGE,
    ByHand,
    Camera,
    Scene,
    film,
    name_of_scores,
    surface,
)
from tuner.page.source import NothingThereError, Query, Send, number_of, text_of
from tuner.reader import BusyError, Snapshot, study_file, study_mark, study_name
from tuner.terrain import Terrain

_LOOK_EVERY_S = 0.5
_RESTS = 4  # times as long as reading took: a fifth of a core
_MOST_LOCK, _MOST_SUMMARY = 1 << 12, 8 << 20
_UNFINISHED = {
    "text": "This race is not finished: nothing is said about who is ahead.",
    "headline": "This race is not finished: nothing is said about who is ahead.",
    "pairs": [],
    "standings": [],
}


@dataclass(frozen=True)
class _Look:
    """A study as it was when it was read."""

    mark: tuple[int, ...]
    scenes: list[Scene]
    summary: dict[str, Any]
    request: dict[str, Any]
    sign: int
    by_hand: ByHand | None

    def goes_on_from(self, before: _Look) -> bool:
        """Whether it is the same study, and not another one in its place."""
        if len(self.scenes) != len(before.scenes):
            return False
        for now, then in zip(self.scenes, before.scenes, strict=True):
            one, other, count = now.row, then.row, len(then.history)
            is_same = (one.searcher, one.seed, one.space) == (
                other.searcher,
                other.seed,
                other.space,
            )
            if not is_same or len(now.history) < count:
                return False
            if count and now.history[count - 1].config != then.history[count - 1].config:
                return False
        return True


class Follow:
    """A study on disk.

    However many pages ask, it is read once for all of them, and no more often than takes a part of
    one core: a driver is at work beside.

    Args:
        place: a folder with a `study.sqlite`, or that file, which is never locked.
        terrain: the landscape that it is a replay on, where it is one and that is at hand.
    """

    def __init__(self, place: Path, terrain: Terrain | None = None) -> None:
        self._path, self._terrain = study_file(place), terrain
        self._folder = self._path.parent
        self._reading = threading.Lock()
        self._latest: _Look | None = None
        self._rested = 0.0  # when it may be read again, while it is written

    def catalog(self) -> dict[str, Any]:
        """Nothing may be chosen: the study is what it is."""
        return {"mode": "study", "landscapes": [], "searchers": [], "chosen": [], "budget": None}

    def play(self, query: Query, send: Send, is_gone: Callable[[], bool]) -> None:
        """Send the study, and what is added to it until it is finished."""
        shown = self._look()
        send("film", self._film(shown))
        camera = Camera()
        camera.shoot(shown.scenes)
        while not is_gone():
            # Asked before the study is read, so that a driver's last words are not missed.
            is_driven = self._is_driven() or shown.by_hand is not None
            look = self._look()
            # The first minutes were told, so that all times are new; or all else is.
            if look.by_hand is not shown.by_hand or not look.goes_on_from(shown):
                send("film", self._film(look))
                camera = Camera()
                camera.shoot(look.scenes)
            elif look is not shown:
                news = camera.shoot(look.scenes)
                if news["runs"] or news["trials"]:
                    send("more", news)
            shown = look
            if shown.summary or not is_driven:
                send("verdict", shown.summary.get("verdict", _UNFINISHED))
                send("end", {})
                return
            time.sleep(_LOOK_EVERY_S)

    def film(self) -> dict[str, Any]:
        """Everything that is known by now."""
        return self._film(self._look())

    def surface(self, query: Query) -> dict[str, Any]:
        """The landscape of a replay over two knobs."""
        if self._terrain is None:
            raise NothingThereError("Real training: nobody knows the landscape.")
        return surface(self._terrain, text_of(query, "x"), text_of(query, "y"))

    def belief(self, query: Query) -> dict[str, Any]:
        """What a run's searcher believed at a minute of it."""
        number, minute = int(number_of(query, "run")), number_of(query, "at")
        scenes = self._look().scenes
        found = next((scene for scene in scenes if scene.row.id == number), None)
        if found is None:
            raise NothingThereError(f"there is no run {number}")
        x, y = text_of(query, "x"), text_of(query, "y")
        return belief(found, minute, x, y, self._others(found))

    # -- parts -----------------------------------------------------------------------------------

    def _film(self, look: _Look) -> dict[str, Any]:
        request, summary = look.request, look.summary
        is_over = bool(summary) or not (self._is_driven() or look.by_hand)
        is_own = not (request.get("data") or request.get("landscape"))
        return film(
            "finished" if is_over else "live",
            study_name(self._path),
            look.scenes,
            device=str(summary.get("device") or request.get("device")),
            unit=str(summary.get("unit") or _unit(request, look.by_hand)),
            terrain=self._terrain,
            verdict=summary.get("verdict", _UNFINISHED if is_over else None),
            race="study",
            badge=STUDY_BADGE if is_own else TRAINING_BADGE,
            score_name=name_of_scores(look.sign) if is_own else "validation accuracy",
            least_gap=0.0 if is_own else 0.01,
            sign=look.sign,
            by_hand=look.by_hand,
        )

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

    def _look(self) -> _Look:
        """The study as it is on record, or was a little ago while it is written."""
        latest = self._latest
        if latest is None or not self._is_driven():
            self._reading.acquire()
        elif not self._reading.acquire(blocking=False):
            return latest  # more may follow; it is being read for another
        try:
            return self._look_again()
        finally:
            self._reading.release()

    def _look_again(self) -> _Look:
        """Read it, where it has changed; what there was where it is written all the time."""
        latest, began = self._latest, time.monotonic()
        if latest is not None and began < self._rested and self._is_driven():
            return latest
        mark = self._mark()
        if latest is not None and latest.mark == mark:
            return latest
        rests = _RESTS
        try:
            self._latest = latest = self._read(mark)
        except BusyError:
            if latest is None:
                raise
            rests = 1  # most of that was waiting
        ended = time.monotonic()
        self._rested = ended + rests * (ended - began)
        return latest

    def _read(self, mark: tuple[int, ...]) -> _Look:
        snapshot = Snapshot(self._path)
        try:
            request = snapshot.request()
            sign = -1 if snapshot.meta("mode") == "min" else 1
            loaded = []
            for row in snapshot.runs():
                history = History(row.max_epochs, row.budget_ns)
                for trial in snapshot.trials(row):
                    history.restore(trial)
                loaded.append((row, history, snapshot.budget(row).ledger))
        finally:
            snapshot.close()
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
                request.get("shared_start", 0),
                run.get("best_trial"),
            )
            for (row, history, ledger), run in zip(loaded, runs, strict=True)
        ]
        by_hand = None
        if is_by_hand([scene.row for scene in scenes], request):
            scene, by_hand = with_experiments(scenes[0])
            scenes = [scene]
        return _Look(mark, scenes, summary, request, sign, by_hand)

    def _summary(self, spent: list[float]) -> dict[str, Any]:
        """summary.json, if it is about the study as it is now; else nothing."""
        try:
            summary = read_json(self._folder / "summary.json", _MOST_SUMMARY)
            told = [run["minutes_spent"] for run in summary["runs"]]
        except (ValueError, KeyError, TypeError):
            return {}
        return summary if told == spent else {}


def _unit(request: dict[str, Any], by_hand: ByHand | None) -> str:
    if by_hand is not None:
        return by_hand.value
    if request.get("landscape"):
        return "simulated minutes"
    devices = request.get("devices") or [str(request.get("device"))]
    return "GPU minutes" if str(devices[0]).startswith("cuda") else "device minutes (cpu)"
