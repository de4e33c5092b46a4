"""How long one waits before anything happens: imports, `--help`, a replayed race; by turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from scripts.errors import plain_errors
from scripts.figures import FOLDER, Table, ratio, save

_ROOT = Path(__file__).resolve().parents[1]
_TUNE = [sys.executable, str(_ROOT / "scripts" / "tune.py")]
_BARE = "Python alone"
_OURS, _RIVALS = "import tuner", {"import optuna": "optuna", "import ray.tune": "ray"}
_HELP, _RACE = "scripts/tune.py --help", "a replayed race of grid, random and bayes"
_PROMISED_S = {_OURS: 0.15, _HELP: 0.4, _RACE: 5.0}


def commands(minutes: float) -> dict[str, list[str]]:
    """What is started, by what it is called; the race's folder is still to be added."""
    found = {_BARE: [sys.executable, "-c", "pass"]}
    for name, package in {_OURS: "tuner", **_RIVALS}.items():
        if find_spec(package) is not None:
            found[name] = [sys.executable, "-c", name]
    replay = ("--landscape", "bumpy", "--budget-minutes", f"{minutes:g}", "--quiet")
    return {**found, _HELP: [*_TUNE, "--help"], _RACE: [*_TUNE, *replay]}


def measure(minutes: float, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of a new process for each, one for each repeat; RuntimeError where one fails.

    Each is started once before, so that all files are in the system's cache, and its bytecode.
    """
    every = commands(minutes)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in track(range(repeats + 1), "startup", console=Console(stderr=True)):
        for name, command in every.items():
            with tempfile.TemporaryDirectory() as folder:
                end = ["--out", folder] if name == _RACE else []
                began = time.perf_counter()
                done = subprocess.run([*command, *end], capture_output=True, text=True, cwd=_ROOT)
                seconds[name].append(time.perf_counter() - began)
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
    return {name: times[1:] for name, times in seconds.items()}


def startup(
    minutes: Annotated[float, typer.Option(help="Simulated, for each searcher of the race.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Of each, by turns.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """How long imports, `--help` and a replayed race take, as new processes."""
    with plain_errors("benchmark"):
        seconds = measure(minutes, repeats)
    content = {"minutes": minutes, "repeats": repeats, "seconds": seconds}
    save(out, "startup", content, [_table(seconds)])


def _table(seconds: dict[str, list[float]]) -> Table:
    ours = seconds[_OURS]

    def row(name: str, times: Sequence[float]) -> list[str]:
        promised = f"{_PROMISED_S[name]:g}" if name in _PROMISED_S else ""
        return [name, f"{statistics.median(times):.2f}", promised, ratio(times, ours)]

    return Table(
        "Wall seconds of a new process: median, what is promised, and how many times that of "
        f"`{_OURS}`, median and extremes over repeats",
        ["what", "seconds", "at most", f"/ {_OURS}"],
        [row(name, times) for name, times in seconds.items()],
    )
