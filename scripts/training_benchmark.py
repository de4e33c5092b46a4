"""Epochs of the standard trial for each device minute, beside what a user would do otherwise.

All train the same network with the same recipe on the same images, each in a process of its own, by
turns, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scripts.errors import plain_errors
from scripts.figures import FOLDER, Table, ratio, save
from tuner.workers.devices import find_devices

LOOPS = ("plain", "plain-1", "optuna", "ray")
_WORKERS = "0,1,2,4"

console = Console()


def training(
    data: Annotated[str, typer.Option(help="As for tune.py.")] = "sample",
    data_root: Annotated[Path | None, typer.Option(help="As for tune.py.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each turn, at least.")] = 15.0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 5,
    loader_workers: Annotated[
        str, typer.Option(help="Of a DataLoader, to be tried for each loop that may have any.")
    ] = _WORKERS,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """Epochs a device minute: ours, a plain PyTorch loop, Optuna's n_jobs, Ray Tune."""
    with plain_errors("benchmark"), tempfile.TemporaryDirectory() as folder:
        (where, *_) = find_devices(device)
        lay_out_images(data, data_root, Path(folder))
        names = [name for name in LOOPS if name != "ray" or find_spec("ray")]
        if where != "cpu":
            names.remove("plain-1")  # of a GPU there is no single core to compare with
        first = _ours(data, data_root, where, 5.0, 0)  # the layout is measured, and remembered
        bf16 = "bf16" in first["layout"]
        limit = _loop("limit", folder, where, 3.0, int(bf16), 0)
        agreement = _loop("agreement", folder, where, 0.0, int(bf16), 0)
        tried = [int(n) for n in loader_workers.split(",")]
        found: dict[str, list[dict[str, Any]]] = {"ours": []}
        workers, failed = {}, {}
        for turn in range(repeats):
            found["ours"].append(_ours(data, data_root, where, seconds, turn))
            for name in [name for name in names if name not in failed]:
                try:
                    if name not in workers:
                        workers[name] = _best_workers(name, folder, where, seconds / 3, tried)
                    run = _loop(name, folder, where, seconds, workers[name], turn)
                    found.setdefault(name, []).append(run)
                except ValueError as error:  # of a rival that fails the others are still worth it
                    failed[name] = str(error)
                    found.pop(name, None)
                    console.print(f"left out: {error}", markup=False, soft_wrap=True)
            _tell(turn, found)
            content = {
                "data": data,
                "seconds": seconds,
                "seeds": list(range(turn + 1)),
                "loader_workers": workers,
                "limit": limit,
                "agreement": agreement,
                "failed": failed,
                "repeats": found,
            }
            tables = [*_tables(found, limit, workers), _agreement_table(agreement)]
            name = "training" if where == "cpu" else "training-cuda"
            last = turn == repeats - 1  # but what is stopped keeps its turns
            save(out, name, content, tables, [where], show=last)


def _tell(turn: int, found: dict[str, list[dict[str, Any]]]) -> None:
    pace = ", ".join(f"{n} {60 * r[-1]['epochs_per_s']:.1f}" for n, r in found.items())
    console.print(f"turn {turn + 1}, epochs a minute: {pace}", highlight=False, soft_wrap=True)


def _tables(
    found: dict[str, list[dict[str, Any]]], limit: dict[str, Any], workers: dict[str, int]
) -> list[Table]:
    ours = [run["epochs_per_s"] for run in found["ours"]]
    layouts = " or ".join(dict.fromkeys(str(run["layout"]) for run in found["ours"]))
    words = {
        "ours": f"this tuner ({layouts})",
        "plain": "(a) plain PyTorch loop, one trial at a time, all cores",
        "plain-1": "the same with one thread",
        "optuna": "(b) Optuna, that loop with n_jobs, the cores shared among them",
        "ray": "(c) Ray Tune, that loop with a fraction of the device each",
    }
    rows = []
    for name, runs in found.items():
        pace = [run["epochs_per_s"] for run in runs]
        scores = [score for run in runs for score in run["scores"]]
        share = limit["flops_per_epoch"] * statistics.median(pace) / limit["matrix_flops_per_s"]
        rows.append(
            [
                words[name] + (f", {workers[name]} loader workers" if name in workers else ""),
                f"{60 * statistics.median(pace):.1f}",
                "1" if name == "ours" else ratio(ours, pace),
                f"{share:.1%}",
                f"{statistics.fmean(scores):.4f} ({len(scores)})" if scores else "–",
            ]
        )
    columns = [
        "",
        "epochs a device minute",
        "ours has times as many",
        "of the matrix rate",
        "accuracy after the last epoch, mean (trials)",
    ]
    rate = limit["matrix_flops_per_s"] / 1e9
    caption = (
        "Medians over turns, with seeds of their own; ratios turn by turn, median and extremes. "
        "The number of loader workers is the best of those tried for each. The matrix rate is what "
        f"PyTorch reaches here on large products in {limit['dtype']}, {rate:.0f} GFLOP/s."
    )
    return [Table(caption, columns, rows)]


def _agreement_table(agreement: dict[str, Any]) -> Table:
    """How far packed trainings are from the same ones alone, beside how far seeds are apart."""
    alone, packed = agreement["alone"], agreement["packed"]
    apart = [abs(a - b) for a, b in zip(alone, packed, strict=True)]
    shift = statistics.fmean(packed) - statistics.fmean(alone)
    spread = statistics.stdev(alone)
    caption = (
        f"The same {len(alone)} trainings of {EPOCHS} epochs, seeds from 0 on, alone in "
        f"float32 and as one pack in {agreement['dtype']}: validation accuracy."
    )
    columns = ["mean alone", "mean packed", "shift", "largest difference", "spread over seeds"]
    cells = (statistics.fmean(alone), statistics.fmean(packed), shift, max(apart), spread)
    return Table(caption, columns, [[f"{cell:.4f}" for cell in cells]])


# -- ours ------------------------------------------------------------------------------------------


def _ours(
    data: str, data_root: Path | None, device: str, seconds: float, turn: int
) -> dict[str, Any]:
    """A race of one searcher, the command that a user runs; its warm-up is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(Path(__file__).with_name("tune.py")), "--json", "--quiet"),
            *("--searchers", "random", "--knobs", "learning_rate", "--device", device),
            *("--knob", "learning_rate=0.049:0.051", "--data", data, "--out", f"{folder}/run"),
            *("--budget-minutes", str((seconds + 8) / 60), "--epochs", str(EPOCHS)),
            *("--seed", str(turn)),
            *(("--data-root", str(data_root)) if data_root else ()),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"tune.py failed: {done.stderr.strip() or done.stdout.strip()}")
        summary = json.loads(done.stdout)
        (run,) = summary["runs"]
        minutes = run["minutes_spent"] - run["ledger"]["warm_up"]
        curves = (Path(folder) / "run" / "curves.csv").read_text().splitlines()[1:]
    last = [line.split(",") for line in curves]
    return {
        "epochs_per_s": len(curves) / (60 * minutes),
        "layout": summary["pace"]["layout"],
        "ledger": run["ledger"],
        "scores": [float(row[4]) for row in last if int(row[3]) == EPOCHS],
    }


# -- the others ------------------------------------------------------------------------------------

EPOCHS = 6
"""Of each training, ours and theirs."""

AGREEING = 8
"""Trainings by which packs are compared with trainings alone."""


def lay_out_images(data: str, data_root: Path | None, folder: Path) -> None:
    """Write the images that our trainings see where torchvision's FashionMNIST looks for them.

    Raises ValueError for a data set of another kind than it: grey, 28 × 28.
    """
    from models.data import default_root, load, prepare

    root = data_root or default_root()
    prepare(data, root)
    images = load(data, root)
    if images.train.images.shape[1:] != (1, 28, 28):
        raise ValueError(f"this benchmark reads grey images of 28 × 28, and {data} is not of those")
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, split in (("train", images.train), ("t10k", images.validation)):
        n = len(split)
        head = b"".join(v.to_bytes(4, "big") for v in (0x803, n, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + split.images.tobytes())
        head = b"".join(v.to_bytes(4, "big") for v in (0x801, n))
        labels = split.labels.astype("uint8").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels)


def _best_workers(name: str, folder: str, device: str, seconds: float, tried: Sequence[int]) -> int:
    """With how many loader workers a loop is quickest; Ray's have a core each, and none."""
    if name == "ray":
        return 0
    paces = {w: _loop(name, folder, device, seconds, w, 0)["epochs_per_s"] for w in tried}
    return max(paces, key=paces.__getitem__)


def _loop(
    name: str, folder: str, device: str, seconds: float, workers: int, turn: int
) -> dict[str, Any]:
    """What `scripts/plain_loops.py` measures, in a process of its own."""
    script = Path(__file__).with_name("plain_loops.py")
    numbers = (str(seconds), str(workers), str(turn))
    command = [sys.executable, str(script), name, folder, device, *numbers]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "wall_s": time.perf_counter() - began}
