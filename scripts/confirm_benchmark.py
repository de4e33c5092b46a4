"""What confirming pays: the worth of what is chosen, and how honest its score, at equal minutes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from landscapes.landscape import Curve, Landscape
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from landscapes.table import Table
from scripts.errors import plain_errors
from scripts.figures import FOLDER, save
from scripts.workers import count_cores
from tuner.budget import Budget
from tuner.confirm import ScoreModel, chosen, expected_score, mean_score, with_confirmations
from tuner.entry import make_entry
from tuner.history import History, HistoryView
from tuner.scheduler import Recorder, Scheduler
from tuner.seeding import config_text, derive_seed
from tuner.space import Config

PLACES = ("cnn_sample_2d", "smooth@0.02", "bumpy@0.02", "flat@0.02", "smooth@0.005")
CONFIRMED = (0, 3, 5)
_EPOCHS = 2  # of the formulas: only the ends of curves matter here

console = Console()


class Redrawn:
    """A recording whose noise is drawn anew for each seed: its mean curves, and normal noise.

    The noise's standard deviation is that between the recorded trainings of a setting, of the
    better half of the settings.
    """

    def __init__(self, table: Table) -> None:
        self.name, self.space, self.epochs = table.name, table.space, table.epochs
        self.optimum = table.optimum
        self._table = table
        ends = np.array([[table.curve(c, 0, k)[0][-1] for k in (0, 1)] for c in table.settings])
        better = ends.mean(1) >= np.nanmedian(ends.mean(1))
        self.noise = float(np.sqrt(np.mean((ends[better, 0] - ends[better, 1]) ** 2) / 2))

    def value(self, config: Config) -> float | None:
        """The mean final score."""
        return self._table.value(config)

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Mean scores with noise, and mean seconds."""
        both = [self._table.curve(config, 0, k) for k in (0, 1)]
        generator = np.random.default_rng(derive_seed(replicate, config_text(config), repeat))
        scores = np.mean([scores for scores, _ in both], axis=0)
        scores = scores + self.noise * generator.standard_normal(len(scores))
        return scores, np.mean([seconds for _, seconds in both], axis=0)


@cache
def _open(place: str) -> Any:
    """`smooth@0.02` is the formula with scores of that standard deviation."""
    name, _, noise = place.partition("@")
    if noise:
        return replace(make_landscape(name), noise=float(noise), epochs=_EPOCHS)
    table = open_landscape(name)
    return Redrawn(table) if isinstance(table, Table) else table


@dataclass(frozen=True)
class _Job:
    place: str
    searcher: str
    seed: int
    trainings: int


def _play(job: _Job, confirm: int) -> HistoryView:
    landscape: Landscape = _open(job.place)
    middle = landscape.space.from_unit(np.full((1, len(landscape.space)), 0.5))[0]
    budget_ns = round(job.trainings * landscape.curve(middle, 0)[1].sum() * 1e9)
    seed = derive_seed(job.seed, job.place) >> 32
    searcher, policy = make_entry(job.searcher, landscape.space, seed, epochs=landscape.epochs)
    history = History(landscape.epochs, budget_ns)
    Scheduler(
        searcher,
        with_confirmations(policy, confirm),
        ReplayRunner(landscape, job.seed),
        history,
        Recorder(Budget(budget_ns)),
        seed=seed,
    ).run()
    return history


def _measure(job: _Job) -> dict[str, Any]:
    """By way of choosing: what the choice is worth, and what its score was said to be."""
    import torch

    torch.set_num_threads(1)
    landscape, found = _open(job.place), {}

    def worth(config: Config) -> float:
        value = landscape.value(config)
        return 0.0 if value is None or math.isnan(value) else float(value)

    for confirm in CONFIRMED:
        history = _play(job, confirm)
        winner = chosen(history)
        if winner is None:
            continue
        name = f"confirm {confirm}" if confirm else "best score"
        found[name] = {"worth": worth(winner.config), "said": mean_score(history, winner)}
        by_trainings = expected_score(history)
        if by_trainings is not None:
            found[name]["trainings"] = [by_trainings.mean, by_trainings.sd]
        if model := ScoreModel.of(history, landscape.space):
            by_model = model.expected(winner)
            found[name]["model"] = [by_model.mean, by_model.sd]
            if not confirm and (preferred := model.preferred()):
                by_model = model.expected(preferred)
                found["posterior mean"] = {
                    "worth": worth(preferred.config),
                    "said": by_model.mean,
                    "model": [by_model.mean, by_model.sd],
                }
    return {**vars(job), "choices": found}


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _row(runs: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Of one way of choosing on one landscape, in points."""
    both = [(r["choices"]["best score"], r["choices"][name]) for r in runs if name in r["choices"]]
    gain, error = _mean_and_error([100 * (one["worth"] - base["worth"]) for base, one in both])
    row: dict[str, Any] = {
        "choice": name,
        "runs": len(both),
        "worth": statistics.fmean(one["worth"] for _, one in both),
        "gain": gain,
        "gain_error": error,
        "flattery": statistics.fmean(100 * (one["said"] - one["worth"]) for _, one in both),
    }
    for by in ("model", "trainings"):
        known = [(one[by], one["worth"]) for _, one in both if by in one]
        if known:
            row[f"flattery_by_{by}"] = statistics.fmean(100 * (e[0] - w) for e, w in known)
            row[f"within_2_sd_by_{by}"] = statistics.fmean(
                abs(e[0] - w) <= 2 * e[1] for e, w in known
            )
    return row


def confirm(
    seeds: Annotated[int, typer.Option(help="How many.")] = 24,
    trainings: Annotated[int, typer.Option(help="What a budget buys.")] = 25,
    searchers: Annotated[str, typer.Option(help="Comma-separated.")] = "random,bayes",
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """What choosing by repeated trainings or by a model's mean is worth, at equal minutes.

    On landscapes whose noise is drawn anew for each seed; the worth of a choice is its score
    without noise.
    """
    with plain_errors("benchmark"):
        jobs = [
            _Job(place, searcher, seed, trainings)
            for searcher in searchers.split(",")
            for place in PLACES
            for seed in range(seeds)
        ]
        with get_context("spawn").Pool(count_cores()) as pool:
            found = pool.imap(_measure, jobs)
            runs = list(track(found, "confirm", total=len(jobs), console=console))
        tables: dict[str, Any] = {}
        for searcher in searchers.split(","):
            for place in PLACES:
                some = [r for r in runs if (r["searcher"], r["place"]) == (searcher, place)]
                names = ("best score", "posterior mean", *(f"confirm {k}" for k in CONFIRMED[1:]))
                rows = [_row(some, name) for name in names]
                tables.setdefault(searcher, {})[place] = rows
                _show(searcher, place, rows)
        save(out, "confirm", {"seeds": seeds, "trainings": trainings, "points": tables})


def _show(searcher: str, place: str, rows: Sequence[Mapping[str, Any]]) -> None:
    console.print(f"{searcher} on {place}: worth over the best score's; said over worth, by model")
    for row in rows:
        console.print(
            f"  {row['choice']:15} {row['gain']:+6.2f} ± {row['gain_error']:.2f}   "
            f"{row['flattery']:+5.2f}  {row.get('flattery_by_model', math.nan):+5.2f}  "
            f"{row.get('within_2_sd_by_model', math.nan):4.0%}",
            highlight=False,
        )
