"""What a trial and an epoch cost beside the training: the loop's and the file's own time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from scripts.figures import FOLDER, Table, ratio, save
from scripts.loop_runs import BATCH_S, EPOCHS, Job, curves_s, measure

ENTRIES = ("random", "random+asha")

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""The repeats of every job, by its name."""


def loop(
    trials: Annotated[int, typer.Option(help="Of each replay.", min=10)] = 10_000,
    growth: Annotated[bool, typer.Option(help="Also ten times as many, once.")] = True,
    optuna_trials: Annotated[int, typer.Option(help="Optuna's, in memory.", min=1)] = 1_000,
    durable_trials: Annotated[
        int, typer.Option(help="Where every step is committed, ours and Optuna's.", min=1)
    ] = 100,
    repeats: Annotated[int, typer.Option(help="How many, by turns.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """Time and memory of a replay's bookkeeping, by how many trials there are, and its file's.

    In memory it is CPU time that counts, on disk the clock on the wall. Each replay has a process
    of its own; Optuna's are given the same scores, with a report and a question after each epoch.
    """
    sizes = (trials // 10, trials)
    jobs = [Job(who, n) for n in sizes for who in ENTRIES]
    jobs += [Job("random", trials, "batches"), Job("random", durable_trials, "every")]
    if find_spec("optuna") is not None:
        jobs += [Job("random", optuna_trials), Job("optuna", optuna_trials)]
        jobs += [Job("optuna", durable_trials, "every")]
    turns = [job for _ in range(repeats) for job in dict.fromkeys(jobs)]
    turns += [Job(who, 10 * trials) for who in ENTRIES] if growth else []
    runs: dict[str, list[Mapping[str, Any]]] = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = pool.imap(measure, turns, chunksize=1)
        for job, found in zip(
            turns, track(results, "replays", len(turns), console=Console(stderr=True)), strict=True
        ):
            runs.setdefault(job.name, []).append(found)
    curve_us = 1e6 * min(curves_s(1_000) for _ in range(repeats)) / 1_000
    whole = sizes + ((10 * trials,) if growth else ())
    tables = [
        _growth_table(runs, whole, curve_us),
        _disk_table(runs, trials, durable_trials),
        _peer_table(runs, optuna_trials, durable_trials),
    ]
    content = {"epochs": EPOCHS, "seed": 0, "repeats": repeats, "curve_us": curve_us, "runs": runs}
    save(out, "loop", content, tables)


def _growth_table(runs: Runs, sizes: Sequence[int], curve_us: float) -> Table:
    """What a trial costs among few and among many."""
    rows = []
    for who in ENTRIES:
        first = runs[Job(who, sizes[0]).name]
        for n in sizes:
            found = runs[Job(who, n).name]
            paired = first[: len(found)]
            rows.append(
                [
                    who,
                    f"{n:,}",
                    f"{statistics.median(n / r['cpu_s'] for r in found):,.0f}",
                    f"{1e6 * statistics.median(r['cpu_s'] / r['epochs'] for r in found):.0f}",
                    f"{statistics.median(r['grown_bytes'] / n for r in found):,.0f}",
                    ratio(_per_trial(found), _per_trial(paired)),
                    str(len(found)),
                ]
            )
    return Table(
        f"In memory, trials of {EPOCHS} epochs or as many as the policy grants, CPU time; "
        f"{curve_us:.0f} µs of a trial are the landscape's curve",
        (
            *("entry", "trials", "trials/s", "µs per epoch", "bytes per trial"),
            *("time per trial, to that of the fewest", "repeats"),
        ),
        rows,
    )


def _disk_table(runs: Runs, trials: int, durable_trials: int) -> Table:
    """What the file costs, and what of that is the file system's."""
    rows = []
    for job, how in (
        (Job("random", trials, "batches"), f"{BATCH_S:g} s apart, as in a replay"),
        (Job("random", durable_trials, "every"), "before each step, as where devices are paid"),
    ):
        found = runs[job.name]
        memory = runs.get(Job("random", job.trials).name) or runs[Job("random", trials).name]
        alone = [
            job.trials * m["wall_s"] / m["trials"] for m in memory
        ]  # of the same replay, without a file
        disk = [r["file_system_s"] for r in found]
        walls = [r["wall_s"] for r in found]
        rows.append(
            [
                how,
                f"{job.trials:,}",
                f"{statistics.median(r['commits'] for r in found):,.0f}",
                f"{statistics.median(walls):.2f}",
                f"{statistics.median(alone):.2f}",
                f"{statistics.median(disk):.2f}",
                ratio(walls, disk),
                ratio(walls, [a + b for a, b in zip(alone, disk, strict=True)]),
            ]
        )
    return Table(
        "On disk, wall time; the file system's own is that of as many commits of as many bytes",
        (
            *("commits", "trials", "how many", "s", "s in memory", "s of the file system"),
            *("to the file system", "to both together"),
        ),
        rows,
    )


def _peer_table(runs: Runs, optuna_trials: int, durable_trials: int) -> Table:
    """The same with Optuna."""
    rows = []
    for n, keeps, clock in (
        (optuna_trials, "memory", "cpu_s"),
        (durable_trials, "every", "wall_s"),
    ):
        others = runs.get(Job("optuna", n, keeps).name)
        if others is None:
            continue
        ours, theirs = (
            [n / r[clock] for r in found] for found in (runs[Job("random", n, keeps).name], others)
        )
        rows.append(
            [
                "in memory, CPU time" if keeps == "memory" else "every step on disk, wall time",
                f"{n:,}",
                f"{statistics.median(ours):,.0f}",
                f"{statistics.median(theirs):,.0f}",
                ratio(ours, theirs),
            ]
        )
    return Table(
        f"Beside Optuna's RandomSampler, a report and should_prune (NopPruner) in each of {EPOCHS} "
        f"epochs, its journal's file backend: trials/s",
        ("kept", "trials", "ours", "Optuna", "ours to Optuna's"),
        rows,
    )


def _per_trial(found: Sequence[Mapping[str, Any]]) -> list[float]:
    return [r["cpu_s"] / r["trials"] for r in found]
