"""Searchers, ours and others', on landscapes at equal device minutes: what they find, and when."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from landscapes.registry import recorded_names
from scripts.errors import plain_errors
from scripts.figures import FOLDER
from scripts.peers import PEERS, require
from scripts.search_runs import (
    SHARES,
    Job,
    Record,
    Yardstick,
    measure_yardstick,
    open_once,
    play,
)
from scripts.workers import describe_machine, device_names, installed_versions
from tuner.entry import Entry
from tuner.files import write_atomically
from tuner.naming import pick

FORMULAS = ("smooth", "bumpy", "cliff", "ridge", "deceptive")

_FIELDS = ("best", "median", "training_ns")

console = Console()

# -- the file -------------------------------------------------------------------------------------


def read_file(path: Path) -> Record:
    """What was measured before; ValueError where the file is not one of these."""
    if not path.exists():
        return {"machines": [], "landscapes": {}, "runs": []}
    try:
        content = json.loads(path.read_text())
        return {key: content[key] for key in ("machines", "landscapes", "runs")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by this command: {error!r}") from error


def write_file(path: Path, content: Record) -> None:
    """Write it whole, a run a line."""
    runs = ",\n".join("  " + json.dumps(run) for run in content["runs"])
    head = json.dumps({k: v for k, v in content.items() if k != "runs"}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n')


def _describe() -> Record:
    """The command and the machine; of folders outside only the name, which is all that matters."""
    words = [re.sub(r"(?<![^,=])/[^,=]+", lambda m: Path(m[0]).name, w) for w in sys.argv[1:]]
    machine = describe_machine(device_names(["cpu"]))
    machine["versions"] |= installed_versions("botorch", "optuna", "onnxruntime", "smac")
    return {"command": shlex.join(["scripts/benchmark.py", *words]), **machine}


# -- tables ---------------------------------------------------------------------------------------


def _mean_and_error(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean of the groups' means, and its standard error over seeds.

    The landscapes are these and no others, so how they differ is no error.
    """
    mean = statistics.fmean(statistics.fmean(group) for group in groups)
    if min(map(len, groups)) < 2:
        return mean, math.nan
    squares = [statistics.variance(group) / len(group) for group in groups]
    return mean, math.sqrt(sum(squares)) / len(groups)


def time_to_reach(run: Record, target: float) -> float:
    """The share of the budget after which a run's best seen score is the target, or infinity."""
    return min((share for share, score in run["best_seen"] if score >= target), default=math.inf)


def _targets(runs: Iterable[Record]) -> dict[str, float]:
    """By landscape, the mean final score of random search."""
    finals: dict[str, list[float]] = {}
    for run in runs:
        if run["entry"] == "random" and run["best_seen"]:
            finals.setdefault(run["landscape"], []).append(run["best_seen"][-1][1])
    return {name: statistics.fmean(some) for name, some in finals.items()}


def _line(entry: str, runs: Sequence[Record], targets: dict[str, float]) -> str:
    by_landscape: dict[str, list[Record]] = {}
    for run in runs:
        by_landscape.setdefault(run["landscape"], []).append(run)
    cells = []
    for i in range(len(SHARES)):
        groups = [[100 * run["regret"][i] for run in some] for some in by_landscape.values()]
        mean, error = _mean_and_error(groups)
        cells.append(f"{mean:5.1f}" + ("      " if math.isnan(error) else f" ±{error:4.1f}"))
    reach = "            –"
    if set(by_landscape) <= set(targets):
        times = [time_to_reach(run, targets[run["landscape"]]) for run in runs]
        median = statistics.median(times)
        share = "never" if math.isinf(median) else f"{100 * median:4.0f}%"
        reach = f"{share:>5} {sum(map(math.isinf, times)):3}/{len(times):<3}"
    thought = sum(run["thinking_mean_s"] * run["proposals"] for run in runs)
    mean_ms = 1e3 * thought / sum(run["proposals"] for run in runs)
    slow_ms = 1e3 * statistics.fmean(run["thinking_90th_s"] for run in runs)
    return f"{entry:22} {'  '.join(cells)}  {reach:>13}  {mean_ms:8.2f} {slow_ms:8.2f}"


def make_tables(runs: Sequence[Record], targets: dict[str, float]) -> str:
    """Regrets in percent, the way to random search's final score, thinking time; overall first."""
    entries = list(dict.fromkeys(run["entry"] for run in runs))
    places = list(dict.fromkeys(run["landscape"] for run in runs))
    head = "  ".join(f"{f'at {share:.0%}':>11}" for share in SHARES)
    lines = [
        "Regret in percent of best - median, mean ± standard error over seeds; when random",
        "search's mean final score is reached, median share of the budget, and how many runs never",
        "did; thinking time per proposal in ms, mean and 90th percentile.",
    ]
    for place in [None, *places] if len(places) > 1 else places:
        lines += [
            "",
            f"{place or 'all landscapes':22} {head}  {'as random':>13}  thinking      90%",
        ]
        for entry in entries:
            some = [r for r in runs if r["entry"] == entry and place in (None, r["landscape"])]
            lines += [_line(entry, some, targets)] if some else []
    return "\n".join(lines)


# -- the command ----------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def resolve_landscapes(text: str) -> dict[str, str]:
    """From the name of each landscape to what opens it."""
    groups = {"formulas": FORMULAS, "recorded": recorded_names()}
    found: dict[str, str] = {}
    for word in _names(text):
        path = Path(word)
        if path.is_dir() and word not in groups:
            more = [str(file) for file in sorted(path.glob("*.onnx"))]
            if not more:
                raise ValueError(f"there is no .onnx file in {word}")
        else:
            more = list(groups.get(word, [word]))
        found |= {Path(m).stem if m.endswith((".onnx", ".npz")) else m: m for m in more}
    if not found:
        raise ValueError("--landscapes needs at least one landscape")
    return found


def check_entries(entries: Sequence[str]) -> None:
    """Raise ValueError where there is no such entry, or what it needs is missing."""
    if not entries:
        raise ValueError("--entries needs at least one entry")
    for entry in entries:
        if entry in PEERS or ":" in entry:
            pick(entry, PEERS, "peer")
            require(entry)
        else:
            Entry.parse(entry)


def measure(
    landscapes: dict[str, str],
    entries: Sequence[str],
    seeds: int,
    trainings: float,
    processes: int,
    out: Path,
    again: Sequence[str] = (),
) -> list[Record]:
    """Run what is not in the file yet, add it there, and return the runs that were asked for."""
    content = read_file(out)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they load their libraries
    with get_context("spawn").Pool(processes) as pool:
        yardsticks = _yardsticks(landscapes, content, pool.map)
        jobs = [
            Job(text, name, entry, seed, trainings, yardsticks[name])
            for seed in range(seeds)
            for name, text in landscapes.items()
            for entry in entries
        ]
        known = {_key(run): run for run in content["runs"]}
        new = [job for job in jobs if job.key not in known or job.entry in again]
        machine = _describe()
        if new:
            content["machines"].append(machine)
        made = pool.imap_unordered(play, new)
        for run in track(made, "runs", total=len(new), console=console):
            known[_key(run)] = {**run, "machine": len(content["machines"]) - 1}
            content["runs"] = sorted(known.values(), key=_key)
            write_file(out, content)  # each, so that a campaign may be broken off
    return [known[job.key] for job in sorted(jobs, key=lambda job: entries.index(job.entry))]


def _key(run: Record) -> tuple[Any, ...]:
    return run["entry"], run["landscape"], run["seed"], run["trainings"]


def _yardsticks(
    landscapes: dict[str, str], content: Record, map_: Callable[..., list[Yardstick]]
) -> dict[str, Yardstick]:
    """Those of the landscapes, also written into the content; a file's are found only once.

    ValueError where what the content's runs were measured against was another landscape.
    """
    kept = content["landscapes"]
    sums = {name: open_once(text).card.get("sha256") for name, text in landscapes.items()}
    new = [n for n in landscapes if n not in kept or None in (sums[n], kept[n]["sha256"])]
    made = map_(measure_yardstick, [landscapes[name] for name in new])
    found = {n: {**vars(one), "sha256": sums[n]} for n, one in zip(new, made, strict=True)}
    for name in landscapes:
        one = found.get(name, {**kept.get(name, {}), "sha256": sums[name]})
        if kept.setdefault(name, one) != one:
            raise ValueError(f"{name} is not what it was when --out was begun; use another file")
    return {n: Yardstick(*(kept[n][f] for f in _FIELDS)) for n in landscapes}


def search(
    landscapes: Annotated[
        str, typer.Option(help="Names, files, folders of .onnx files, `formulas`, `recorded`.")
    ] = "formulas,recorded",
    entries: Annotated[str, typer.Option(help="Ours, and peers.")] = (
        "random,bayes,optuna:random,optuna:tpe,optuna:gp,optuna:tpe+hyperband,botorch"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    trainings: Annotated[float, typer.Option(min=1.0, help="Full ones that a budget buys.")] = 40.0,
    processes: Annotated[int, typer.Option(min=1, help="At once; they disturb timings.")] = 1,
    again: Annotated[str, typer.Option(help="Entries to measure anew, or `all`.")] = "",
    out: Annotated[Path, typer.Option(help="Added to.")] = FOLDER / "search.json",
) -> None:
    """Searchers and their peers at equal simulated minutes: regret over time, thinking time."""
    with plain_errors("benchmark"):
        asked = _names(entries)
        anew = asked if again == "all" else _names(again)
        check_entries([*asked, *anew])
        places = resolve_landscapes(landscapes)
        for text in places.values():
            open_once(text)  # mistakes come before the work
        runs = measure(places, asked, seeds, trainings, processes, out, anew)
        every = [r for r in read_file(out)["runs"] if r["trainings"] == trainings]
        console.print(
            make_tables(runs, _targets(every)), markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"The figures are in {out}", markup=False, soft_wrap=True)
