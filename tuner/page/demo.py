"""Races on landscapes, computed for whoever presses Run."""

from __future__ import annotations

import importlib.util
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.budget import Kind, to_minutes, to_ns
from tuner.entry import make_entry
from tuner.naming import pick
from tuner.page.belief import belief
from tuner.page.film import Camera, Scene, describe_terrain, film, surface
from tuner.page.source import NothingThereError, Query, Send, number_of, text_of
from tuner.progress import race_progress
from tuner.race import Race, Run, enter
from tuner.reader import RunRow
from tuner.report import Outcome, judge, lines_of, worth
from tuner.runner import Runner
from tuner.terrain import Terrain

_TRIALS = 40  # that the budget buys, unless another is asked for
_MOST_TRIALS = 150
_MOST_SECONDS = 120.0
_OFFERED = (
    *("grid", "random", "bayes", "freeze-thaw", "random+median", "random+asha", "hyperband"),
    *("bayes+asha", "bohb"),
)
_OF_OPTUNA = ("tpe", "cmaes", "optuna-gp")
_KEPT = 8  # races whose beliefs can still be asked for
_FRAME_S = 0.1
_MOST_SEED = 1 << 53


@dataclass(frozen=True)
class _Order:
    terrain: Terrain
    searchers: list[str]
    seed: int
    minutes: float


class Demo:
    """Offers landscapes by name and races on them.

    Args:
        terrains: by name; opened when they are first asked for, in the order in which they are
            offered.
        make_runner: a runner on one of them, for a seed.
    """

    def __init__(
        self,
        terrains: Mapping[str, Callable[[], Terrain]],
        make_runner: Callable[[Terrain, int], Runner],
    ) -> None:
        self._makers, self._make_runner = terrains, make_runner
        self._opened: dict[str, Terrain] = {}
        self._surfaces: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._races: OrderedDict[str, tuple[Terrain, list[Run]]] = OrderedDict()
        self._lock = threading.Lock()

    def catalog(self) -> dict[str, Any]:
        """All landscapes and searchers."""
        terrains = [self._terrain(name) for name in self._makers]
        return {
            "mode": "demo",
            "landscapes": [
                {**describe_terrain(t), "knobs": len(t.space), "budget": self._default_budget(t)}
                for t in terrains
            ],
            "searchers": list(_entries()),
            "chosen": ["grid", "random", "bayes"],
            "budget": {"low": 0.1, "high": 1e5},
        }

    def play(self, query: Query, send: Send, is_gone: Callable[[], bool]) -> None:
        """Run a race, and send what happens while it does."""
        order = self._order(query)
        camera, began, shown = Camera(), time.monotonic(), 0.0

        def on_change() -> None:
            nonlocal shown
            now = time.monotonic()
            if is_gone() or now - began > _MOST_SECONDS:
                race.interrupt()
            elif now - shown >= _FRAME_S:
                shown = now
                send("more", camera.shoot(map(_scene, runs)))

        runs = [self._enter(i, name, order, on_change) for i, name in enumerate(order.searchers)]
        race = Race(runs, shares_device=False)
        token = self._keep(order.terrain, runs)
        send(
            "film",
            film(
                "demo",
                order.terrain.name,
                [_scene(run) for run in runs],
                device="simulated",
                unit="simulated minutes",
                terrain=order.terrain,
                race=token,
            ),
        )
        race.go()
        if is_gone():
            return
        if race.is_interrupted:
            send("problem", {"text": "The race took too long to compute and was ended."})
            return
        outcomes = [self._outcome(run, order.terrain) for run in runs]
        scenes = [_scene(run, outcome.value) for run, outcome in zip(runs, outcomes, strict=True)]
        send("more", camera.shoot(scenes))
        settings = {
            "landscape": order.terrain.name,
            "measure": order.terrain.measure,
            "caveat": order.terrain.caveat,
            "budget_minutes": order.minutes,
        }
        send("verdict", judge(settings, outcomes, race_progress(lines_of(outcomes), order.minutes)))
        send("end", {})

    def surface(self, query: Query) -> dict[str, Any]:
        """A landscape over two knobs; computed once."""
        terrain = self._terrain(text_of(query, "landscape"))
        x, y = text_of(query, "x"), text_of(query, "y")
        key = (terrain.name, x, y)
        if key not in self._surfaces:
            self._surfaces[key] = surface(terrain, x, y)
        return self._surfaces[key]

    def belief(self, query: Query) -> dict[str, Any]:
        """What a searcher of a recent race believed at a minute of its run."""
        terrain, runs = self._races.get(text_of(query, "race"), (None, []))
        number = int(number_of(query, "run"))
        if terrain is None or not 0 <= number < len(runs):
            raise NothingThereError("that race is no longer kept; run it again")
        x, y = text_of(query, "x"), text_of(query, "y")
        return belief(_scene(runs[number]), number_of(query, "at"), x, y, terrain.optimum()[0])

    # -- parts -----------------------------------------------------------------------------------

    def _terrain(self, name: str) -> Terrain:
        maker = pick(name, self._makers, "landscape")
        with self._lock:
            if name not in self._opened:
                self._opened[name] = maker()
            return self._opened[name]

    def _full_training_minutes(self, terrain: Terrain) -> float:
        guess_ns = self._make_runner(terrain, 0).first_guess_ns
        return to_minutes(guess_ns * terrain.epochs)

    def _default_budget(self, terrain: Terrain) -> float:
        return float(f"{_TRIALS * self._full_training_minutes(terrain):.2g}")

    def _order(self, query: Query) -> _Order:
        terrain = self._terrain(text_of(query, "landscape"))
        names = [n for n in query.get("searchers", "grid,random,bayes").split(",") if n]
        for name in names:
            pick(name, _entries(), "searcher")
        if not names or len(set(names)) < len(names):
            raise ValueError("choose at least one searcher, and none twice")
        seed = number_of(query, "seed", 0.0)
        if seed != int(seed) or not 0 <= seed < _MOST_SEED:
            raise ValueError(f"a seed is a whole number from 0, got {seed:g}")
        minutes = number_of(query, "budget", self._default_budget(terrain))
        most = _MOST_TRIALS * self._full_training_minutes(terrain)
        if not 0 < minutes <= most:
            raise ValueError(
                f"a budget here is more than 0 and at most {most:.0f} minutes, got {minutes:g}"
            )
        return _Order(terrain, names, int(seed), minutes)

    def _enter(self, number: int, name: str, order: _Order, on_change: Callable[[], None]) -> Run:
        space, epochs = order.terrain.space, order.terrain.epochs
        budget_ns = max(1, to_ns(order.minutes))
        row = RunRow(number, name, order.seed, space, epochs, budget_ns, 0, None, None)
        searcher, policy = make_entry(name, space, order.seed, epochs=epochs)
        return enter(
            None,
            row,
            searcher,
            self._make_runner(order.terrain, order.seed),
            policy=policy,
            is_replay=True,
            on_change=on_change,
        )

    def _keep(self, terrain: Terrain, runs: list[Run]) -> str:
        token = secrets.token_hex(8)
        with self._lock:
            self._races[token] = (terrain, runs)
            while len(self._races) > _KEPT:
                self._races.popitem(last=False)
        return token

    def _outcome(self, run: Run, terrain: Terrain) -> Outcome:
        history = run.scheduler.history
        value = worth(terrain, history.best, run.row.seed)
        return Outcome(run.row, history, run.scheduler.budget.ledger, None, value)


def _entries() -> dict[str, None]:
    """The entries that the page offers: what is installed, one of each kind."""
    has_optuna = importlib.util.find_spec("optuna") is not None
    return dict.fromkeys([*_OFFERED, *(_OF_OPTUNA if has_optuna else ())])


def _scene(run: Run, value: float | None = None) -> Scene:
    scheduler = run.scheduler
    ledger = dict(scheduler.budget.ledger)
    ledger[Kind.TRAIN] += scheduler.held_ns - scheduler.budget.spent_ns  # in flight
    return Scene(run.row, scheduler.history, ledger, scheduler.finished, None, value)
