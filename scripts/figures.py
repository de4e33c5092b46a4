"""Figures that a benchmark measured: their file, their tables, and the page that shows them all."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.workers import describe_machine, device_names
from tuner.files import write_atomically

FOLDER = Path("benchmarks")
"""Where the figures of this repository lie."""

_HEAD = """# Figures

Written by `scripts/benchmark.py` and `scripts/torture.py` from the JSON files beside it, which hold
every repeat; never typed by hand.
"""


@dataclass(frozen=True)
class Table:
    """What a benchmark shows; cells are ready to be read."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def lines(self) -> list[str]:
        """In Markdown."""
        rule = ["---"] * len(self.columns)
        rows = [self.columns, rule, *self.rows]
        return [self.caption, "", *("| " + " | ".join(row) + " |" for row in rows), ""]


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """By what factor `values` are above `others`, pair by pair: the median and the extremes.

    The two were measured by turns, so that what disturbs the machine disturbs both.
    """
    each = sorted(a / b for a, b in zip(values, others, strict=True))
    return f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"


def save(
    folder: Path,
    name: str,
    content: Mapping[str, Any],
    tables: Sequence[Table] = (),
    devices: Sequence[str] = ("cpu",),
    *,
    show: bool = True,
) -> None:
    """Write figures with what they need to be measured again, show them, and renew the page.

    `content` should hold the seeds, and every repeat.
    """
    whole = {
        "command": shlex.join([f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": describe_machine(device_names(devices)),
        **content,
        "tables": [asdict(table) for table in tables],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(whole, indent=1) + "\n")
    write_atomically(folder / "README.md", _page(folder))
    if not show:
        return
    console = Console()
    for table in tables:
        console.print("\n".join(table.lines), markup=False, highlight=False, soft_wrap=True)
    console.print(f"The figures are in {folder / name}.json", markup=False, soft_wrap=True)


def _page(folder: Path) -> str:
    """Every table of every file of the folder."""
    parts = [_HEAD]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not content.get("tables"):
            continue
        machine = content["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k != "tuner")
        parts += [
            f"## {path.stem}\n",
            f"`{content['command']}`: {machine['device']}, {machine['date']}, {versions}.\n",
        ]
        parts += ["\n".join(Table(**table).lines) for table in content["tables"]]
    return "\n".join(parts)
