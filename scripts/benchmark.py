"""Measure what the documents claim: figures with their command, seeds, machine and date."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscapes.landscape import Landscape
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape, ridge_at
from scripts.confirm_benchmark import confirm
from scripts.errors import plain_errors
from scripts.figures import FOLDER, save
from scripts.loop_benchmark import loop
from scripts.rungs_benchmark import rungs
from scripts.scale_benchmark import scale
from scripts.search_benchmark import search
from scripts.startup_benchmark import startup
from scripts.suggest_benchmark import suggest
from scripts.training_benchmark import training
from scripts.workers import count_cores
from tuner.budget import to_ns
from tuner.entry import make_entry
from tuner.race import Run, enter
from tuner.reader import RunRow
from tuner.seeding import derive_seed
from tuner.verdict import ALPHA, compare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console()

Out = Annotated[Path, typer.Option(help="Folder of the figures.")]
Seeds = Annotated[int, typer.Option(help="How many.")]


@dataclass(frozen=True)
class _Job:
    """One run on a landscape, small enough to be sent to another process."""

    landscape: str
    searcher: str
    seed: int
    minutes: float


def _open(job: _Job) -> Landscape:
    name, _, dimensions = job.landscape.partition(":")
    if name == "ridge":  # somewhere else for each seed, or one lattice would be lucky for all
        return ridge_at(0.1 + 0.8 * derive_seed(job.seed, "ridge") / 2**63, int(dimensions))
    if name == "flat":  # short curves: only their ends matter
        return replace(make_landscape(name), epochs=2)
    return open_landscape(job.landscape)


def _replay(job: _Job) -> Run:
    """The run from beginning to end, in memory."""
    landscape = _open(job)
    row = RunRow(
        0,
        job.searcher,
        job.seed,
        landscape.space,
        landscape.epochs,
        to_ns(job.minutes),
        0,
        None,
        None,
    )
    searcher, policy = make_entry(job.searcher, landscape.space, job.seed, epochs=landscape.epochs)
    run = enter(
        None,
        row,
        searcher,
        ReplayRunner(landscape, job.seed),
        policy=policy,
        is_replay=True,
        on_change=lambda: None,
    )
    run.scheduler.run()
    return run


def _regret(job: _Job) -> float:
    """How much better than a run's incumbent the optimum is, both without noise."""
    landscape, best = _open(job), _replay(job).scheduler.history.best
    top = landscape.optimum()[1]
    return float("nan") if best is None else top - landscape.value(best.config, job.seed)


def _tried_again(job: _Job) -> float:
    """The final score of a run's incumbent in another replicate, as a test would give it."""
    best = _replay(job).scheduler.history.best
    if best is None:
        return float("nan")
    return float(_open(job).curve(best.config, job.seed + 1_000_000)[0][-1])


def _map(work: Any, jobs: Sequence[_Job], what: str) -> list[float]:
    """Results in the order of the jobs, from as many processes as there are cores."""
    with get_context("spawn").Pool(count_cores()) as pool:
        results: Iterator[float] = pool.imap(work, jobs, chunksize=max(1, len(jobs) // 400))
        return list(track(results, what, total=len(jobs), console=console))


@app.command()
def papers(
    seeds: Seeds = 40,
    minutes: Annotated[float, typer.Option(help="Simulated, for each run.")] = 150.0,
    out: Out = FOLDER,
) -> None:
    """Random against grid search as more knobs are idle (Bergstra and Bengio, 2012)."""
    rows = []
    for idle in range(1, 9):
        name = f"ridge:{idle + 1}"
        jobs = [_Job(name, s, seed, minutes) for s in ("grid", "random") for seed in range(seeds)]
        regrets = _map(_regret, jobs, f"{idle} idle")
        found = {"grid": regrets[:seeds], "random": regrets[seeds:]}
        (pair,) = compare(found)
        rows.append(
            {
                "idle_knobs": idle,
                "regret": {n: [round(v, 6) for v in some] for n, some in found.items()},
                "mean_regret": {n: statistics.fmean(some) for n, some in found.items()},
                # The one with more regret is the one that `compare` finds ahead.
                "random_ahead_by": pair.difference * (1 if pair.ahead == "grid" else -1),
                "standard_error": pair.standard_error,
                "p": pair.p,
            }
        )
    console.print("idle  regret of grid  of random  random ahead by  p (permutation)")
    for row in rows:
        regret = row["mean_regret"]
        console.print(
            f"{row['idle_knobs']:4}  {regret['grid']:14.4f}  {regret['random']:9.4f}  "
            f"{row['random_ahead_by']:9.4f} ± {row['standard_error']:.4f}  {row['p']:.2g}"
        )
    content = {"landscape": "ridge", "minutes": minutes, "seeds": seeds, "rows": rows}
    save(out, "papers", content)
    _draw_papers(out / "papers.png", rows, seeds, minutes)


def _draw_papers(path: Path, rows: list[dict[str, Any]], seeds: int, minutes: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tuner.plots import COLOURS

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    idle = [row["idle_knobs"] for row in rows]
    for name, colour in zip(("grid", "random"), COLOURS, strict=False):
        means = [100 * row["mean_regret"][name] for row in rows]
        errors = [100 * statistics.stdev(row["regret"][name]) / seeds**0.5 for row in rows]
        axes.errorbar(idle, means, errors, color=colour, marker="o", capsize=3, label=name)
    axes.set_xlabel("knobs that do nothing, beside the one that matters")
    axes.set_ylabel("regret, accuracy points")
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"{minutes:g} simulated minutes each, {seeds} seeds, mean and standard error",
        loc="left",
        fontsize=10,
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


@app.command()
def calibration(
    races: Annotated[int, typer.Option(help="How many to simulate.")] = 2_000,
    seeds: Annotated[int, typer.Option(help="In each race.")] = 8,
    minutes: Annotated[float, typer.Option(help="Simulated, for each run.")] = 1.2,
    out: Out = FOLDER,
) -> None:
    """How often a race where there is nothing to find ends in a false verdict.

    On `flat` all settings are alike, so any difference that is called resolved is a false one. What
    is compared is the incumbent's score in another replicate, which is noisy as a test is.
    """
    searchers = ("grid", "random", "bayes")
    jobs = [_Job("flat", s, i, minutes) for s in searchers for i in range(races * seeds)]
    values = _map(_tried_again, jobs, "races on flat")
    each = races * seeds
    by_name = {s: values[i * each : (i + 1) * each] for i, s in enumerate(searchers)}
    false = 0
    for race in track(range(races), "verdicts", console=console):
        part = slice(race * seeds, (race + 1) * seeds)
        false += any(c.is_resolved for c in compare({s: v[part] for s, v in by_name.items()}))
    rate = false / races
    console.print(
        f"{false} false verdicts in {races} races of {len(searchers)} searchers × {seeds} seeds: "
        f"{rate:.3%}; at most {ALPHA:.0%} is promised"
    )
    content = {"races": races, "seeds": seeds, "minutes": minutes, "alpha": ALPHA}
    save(out, "calibration", {**content, "false_verdicts": false, "rate": rate})


@app.command()
def replay(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of real races, all of one kind, with seeds.")
    ],
    landscape: Annotated[str, typer.Option(help="Recorded from the same training.")] = (
        "cnn_sample_2d"
    ),
    out: Out = FOLDER,
) -> None:
    """How well a replay foretells real races: the searchers' order, and settings' scores.

    The races are those of `tune.py` on the same data, knobs and epochs. Each of their runs is
    replayed with the same searcher, seed and training minutes.
    """
    with plain_errors("benchmark"):
        _compare_with_replay(runs, landscape, out)


def _compare_with_replay(runs: list[Path], landscape: str, out: Path) -> None:
    from scipy.stats import kendalltau, spearmanr

    from tuner.reader import Snapshot

    terrain = open_landscape(landscape)
    real: dict[str, list[float]] = {}
    replayed: dict[str, list[float]] = {}
    scores: list[tuple[float, float]] = []
    for folder in runs:
        snapshot = Snapshot(folder / "study.sqlite")
        for row in snapshot.runs():
            if row.space != terrain.space or row.max_epochs != terrain.epochs:
                raise ValueError(f"{folder} is of other knobs or epochs than {landscape}")
            trials = snapshot.trials(row)
            trained = sum(t.device_ns for t in trials) / 6e10
            best = max((t.score for t in trials if t.score is not None), default=float("nan"))
            run = _replay(_Job(landscape, row.searcher, row.seed, trained))
            found = run.scheduler.history.best
            real.setdefault(row.searcher, []).append(best)
            replayed.setdefault(row.searcher, []).append(
                float("nan") if found is None or found.score is None else found.score
            )
            done = [t for t in trials if t.score is not None and t.epoch == terrain.epochs]
            scores += [(t.score or 0.0, terrain.value(t.config)) for t in done]
        snapshot.close()
    means = {n: (statistics.fmean(real[n]), statistics.fmean(replayed[n])) for n in real}
    tau = kendalltau(*zip(*means.values(), strict=True)).statistic
    rho = spearmanr(*zip(*scores, strict=True)).statistic
    errors = [abs(a - b) for a, b in scores]
    console.print("searcher  best validation, mean over seeds: real, replayed")
    for name, (one, other) in means.items():
        console.print(f"{name:8}  {one:.4f}  {other:.4f}")
    console.print(
        f"order of searchers: Kendall's tau {tau:.2f}; {len(scores)} settings: Spearman's rho "
        f"{rho:.3f}, median error {100 * statistics.median(errors):.2f} points"
    )
    save(
        out,
        "replay",
        {
            "landscape": landscape,
            "best_validation": {n: {"real": real[n], "replayed": replayed[n]} for n in real},
            "kendall_tau_of_searchers": tau,
            "settings": len(scores),
            "spearman_rho_of_settings": rho,
            "median_error_of_settings": statistics.median(errors),
        },
    )


app.command()(search)
app.command()(training)
app.command()(rungs)
app.command()(confirm)
app.command()(loop)
app.command()(suggest)
app.command()(startup)
app.command()(scale)


@app.command(name="all")
def everything(out: Out = FOLDER) -> None:
    """What a device minute buys: training, suggest, loop and startup, one after the other."""
    failed = []
    for name in ("training", "suggest", "loop", "startup"):
        # Each in a process of its own, so that none finds anything loaded or warm.
        command = [sys.executable, __file__, name, "--out", str(out)]
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        console.print(f"not measured: {', '.join(failed)}", markup=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
