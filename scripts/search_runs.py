"""One run of a searcher, ours or another's, on a landscape, and what it is measured against."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Landscape
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from landscapes.surrogate import Surrogate
from landscapes.table import Table
from scripts.peers import PEERS, Seen, Stopwatch, play_peer
from tuner.budget import Budget
from tuner.entry import make_entry
from tuner.fidelity import Action, FidelityPolicy
from tuner.history import History, HistoryView
from tuner.scheduler import Recorder, Scheduler
from tuner.searchers import Searcher
from tuner.seeding import derive_seed
from tuner.space import Config

SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the budget: when regret is read off."""

_RANDOM_SETTINGS, _RANDOM_TRAININGS = 5_000, 1_000
_WARM_UP_TRAINING_NS = 90_000_000_000  # on `smooth`; 13 are a start of ten and some
_CLIMBS, _CLIMB_STEPS = 50, 1_000

Record = dict[str, Any]
open_once = lru_cache(open_landscape)


@dataclass(frozen=True)
class Yardstick:
    """What regrets on a landscape are measured against.

    Attributes:
        best: the highest final score that is known.
        median: of the final scores of random settings.
        training_ns: what a full training costs, the median over settings.
    """

    best: float
    median: float
    training_ns: int


@dataclass(frozen=True)
class Job:
    """One run of an entry, small enough to be sent to another process."""

    landscape: str  # as it is opened; `name` is what it is called in files
    name: str
    entry: str
    seed: int
    trainings: float
    yardstick: Yardstick

    @property
    def key(self) -> tuple[Any, ...]:
        """By which a run that was already measured is known."""
        return self.entry, self.name, self.seed, self.trainings

    @property
    def search_seed(self) -> int:
        """Of the searcher, 31 bits: on its own for each landscape.

        Or spaces that are alike would be searched alike, and luck would strike all of them.
        """
        return derive_seed(self.seed, "search", self.name) >> 32

    @property
    def budget_ns(self) -> int:
        """What the run may spend."""
        return round(self.trainings * self.yardstick.training_ns)


# -- yardsticks -----------------------------------------------------------------------------------


def measure_yardstick(text: str) -> Yardstick:
    """The yardstick of a landscape, always the same; ValueError where there is nothing to find."""
    landscape = open_once(text)
    space, generator = landscape.space, np.random.default_rng(0)
    units = generator.random((_RANDOM_SETTINGS, len(space)))
    configs = space.from_unit(units)
    values = np.array([_value(landscape, config) for config in configs])
    # A recording's own settings: what lies between them was never timed.
    timed = landscape.settings if isinstance(landscape, Table) else configs[:_RANDOM_TRAININGS]
    totals = [float(landscape.curve(config, 0)[1].sum()) for config in timed]
    if isinstance(landscape, Surrogate):  # whose `optimum` is the best of random settings
        best = _climb(landscape, units, values)
    else:
        best = landscape.optimum()[1]
    median = float(np.nanmedian(values))
    if not best > median:
        raise ValueError(f"{landscape.name}: there is nothing to find, all settings are alike")
    return Yardstick(best, median, round(statistics.median(totals) * 1e9))


def _climb(landscape: Landscape, units: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The best value that random steps reach from the best of `n x d` units."""
    generator, best = np.random.default_rng(1), -math.inf
    for start in np.argsort(-values)[:_CLIMBS]:
        at, value = units[start], values[start]
        for _ in range(_CLIMB_STEPS):
            width = 10 ** generator.uniform(-3, -0.3)
            to = at + width * generator.standard_normal(len(at))
            if generator.random() < 0.3:  # now and then anywhere: summits lie far apart
                to = generator.random(len(at))
            to = np.clip(np.where(generator.random(len(at)) < 0.4, to, at), 0.0, 1.0)
            found = _value(landscape, landscape.space.from_unit(to[None])[0])
            if found > value:
                at, value = to, found
        best = max(best, float(value))
    return best


def _value(landscape: Landscape, config: Config) -> float:
    value = landscape.value(config)
    return math.nan if value is None else value


# -- one run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TimedSearcher:
    inner: Searcher
    watch: Stopwatch

    @property
    def fallback(self) -> str:
        return self.inner.fallback

    def propose(self, history: HistoryView) -> Config:
        with self.watch.thinking():
            config = self.inner.propose(history)
        self.watch.proposed()
        return config


@dataclass(frozen=True)
class _TimedPolicy:
    inner: FidelityPolicy
    watch: Stopwatch

    def next_action(self, history: HistoryView) -> Action:
        with self.watch.thinking():
            return self.inner.next_action(history)


def play_entry(
    text: str, landscape: Landscape, replicate: int, budget_ns: int, seed: int
) -> tuple[list[Seen], list[float]]:
    """What one of our entries sees within a budget, and its thinking time of every proposal."""
    watch = Stopwatch()
    searcher, policy = make_entry(text, landscape.space, seed, epochs=landscape.epochs)
    history = History(landscape.epochs, budget_ns)
    Scheduler(
        _TimedSearcher(searcher, watch),
        _TimedPolicy(policy, watch),
        ReplayRunner(landscape, replicate),
        history,
        Recorder(Budget(budget_ns)),
        seed=seed,
    ).run()
    seen = [Seen(o.at_ns, o.score, t.config, o.epoch) for t in history for o in t.curve]
    return sorted(seen, key=lambda s: s.ns), watch.seconds


def play(job: Job) -> Record:
    """A run from beginning to end, and what is kept of it."""
    import torch

    torch.set_num_threads(1)  # for all alike; the matrices are small
    landscape = open_once(job.landscape)
    player = play_peer if job.entry in PEERS else play_entry
    _warm_up(job.entry)
    seen, seconds = player(job.entry, landscape, job.seed, job.budget_ns, job.search_seed)
    best = improvements(seen)
    return {
        **dict(zip(("entry", "landscape", "seed", "trainings"), job.key, strict=True)),
        "regret": [round(r, 6) for r in regrets(best, job.budget_ns, job.yardstick, landscape)],
        "best_seen": [[round(s.ns / job.budget_ns, 6), round(s.score, 6)] for s in best],
        "proposals": len(seconds),
        "thinking_mean_s": round(statistics.fmean(seconds), 6),
        "thinking_90th_s": round(float(np.quantile(seconds, 0.9)), 6),
    }


@lru_cache
def _warm_up(entry: str) -> None:
    """Have a process load what an entry needs: that is not thinking."""
    player = play_peer if entry in PEERS else play_entry
    player(entry, open_once("smooth"), 0, 13 * _WARM_UP_TRAINING_NS, 0)


def improvements(seen: Iterable[Seen]) -> list[Seen]:
    """Of scores in the order in which they were seen, those that were the best so far."""
    best: list[Seen] = []
    for one in seen:
        if not best or one.score > best[-1].score:
            best.append(one)
    return best


def regrets(
    best: Sequence[Seen], budget_ns: int, yardstick: Yardstick, landscape: Landscape
) -> list[float]:
    """Regret at each of `SHARES`, in [0, 1]: 1 is a random setting's or nothing, 0 the best known.

    Without noise what counts is the best score seen, at whatever epoch: it is in hand. Where
    scores are noisy that would pay for luck, and what counts is the noise-free final value of the
    setting that has it.
    """
    is_noisy = not isinstance(landscape, Surrogate)
    found = []
    for share in SHARES:
        held = [s for s in best if s.ns <= share * budget_ns][-1:]
        worth = math.nan
        if held:
            worth = _value(landscape, held[0].config) if is_noisy else held[0].score
        regret = (yardstick.best - worth) / (yardstick.best - yardstick.median)
        found.append(1.0 if math.isnan(regret) else min(max(regret, 0.0), 1.0))
    return found
