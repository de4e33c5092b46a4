"""Puts the promises to the test at their nightly length, and writes the table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from unittest import SkipTest

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.errors import plain_errors
from scripts.figures import FOLDER, Table, save
from tests.torture.campaign import Campaign, Found
from tests.torture.registry import CAMPAIGNS
from tuner.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
console = Console()


@app.command()
def torture(
    only: Annotated[str, typer.Option(help="Promises or campaigns, such as P5,P9.")] = "",
    scale: Annotated[
        float, typer.Option(min=0.0, help="Of the nightly lengths; never less than the tests'.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """Put the promises to the test; exit code 1 where one does not hold.

    What is in the folder of campaigns that are not run now stays there.
    """
    with plain_errors("torture"):
        wanted = [word.strip() for word in only.split(",") if word.strip()]
        chosen = [c for c in CAMPAIGNS if not wanted or {c.promise, c.name} & set(wanted)]
        if not chosen:
            names = ", ".join(c.name for c in CAMPAIGNS)
            raise ValueError(f"there is no campaign {only!r}; there are {names}")
        entries, commit = _earlier(out), _commit()  # which its own table would make another
        for campaign in chosen:
            n = max(campaign.short, 1, round(scale * campaign.nightly))
            console.print(f"{campaign.name}: {n:,} times", markup=False, soft_wrap=True)
            began = time.monotonic()
            try:
                found = campaign.run(n, seed)
            except SkipTest as reason:
                found = Found(0, (), {"skipped": str(reason)})
            for failure in found.failures[:5]:
                console.print(f"  {failure}", markup=False, soft_wrap=True)
            entries[campaign.name] = _entry(campaign, found, seed, commit, began)
            _save(entries, out, show=campaign is chosen[-1])
        if any(entries[campaign.name]["failures"] for campaign in chosen):
            raise typer.Exit(1)


def _earlier(out: Path) -> dict[str, Any]:
    """What was found of campaigns that there still are."""
    try:
        found = json.loads((out / "torture.json").read_text())["campaigns"]
    except (OSError, ValueError, KeyError):
        return {}
    return {c.name: found[c.name] for c in CAMPAIGNS if c.name in found}


def _entry(
    campaign: Campaign, found: Found, seed: int, commit: str, began: float
) -> dict[str, Any]:
    return {
        "promise": campaign.promise,
        "words": campaign.words,
        "n": found.n,
        "nightly": found.n if found.is_all else campaign.nightly,
        "failures": list(found.failures),
        "bound": found.bound,
        "notes": dict(found.notes),
        "seconds": time.monotonic() - began,
        "seed": seed,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def _save(entries: Mapping[str, Any], out: Path, *, show: bool) -> None:
    """After each campaign, so that what is stopped keeps what was found."""
    order = {campaign.name: i for i, campaign in enumerate(CAMPAIGNS)}
    ranked = sorted(entries, key=lambda n: (int(entries[n]["promise"][1:]), order[n]))
    ordered = {name: entries[name] for name in ranked}
    rows = [
        [
            entry["promise"],
            entry["words"],
            f"{entry['n']:,} of {entry['nightly']:,}",
            str(len(entry["failures"])),
            f"{entry['bound']:.2%}" if entry["n"] else "–",
            f"{entry['commit']}, {entry['date']}",
        ]
        for entry in ordered.values()
    ]
    columns = ["", "put to the test", "n of nightly", "failures", "95 % bound", "commit, date"]
    caption = (
        "How often each promise was put to the test and did not hold. Without a failure in n the "
        "rate is, with 95 % confidence, under about 3 / n."
    )
    table = Table(caption, columns, rows)
    seeds = sorted({entry["seed"] for entry in ordered.values()})
    save(out, "torture", {"seeds": seeds, "campaigns": ordered}, [table], show=show)
    if out == FOLDER:
        _into_readme(table)


def _into_readme(table: Table) -> None:
    """Put the table where the README carries it."""
    path = ROOT / "README.md"
    head, begin, rest = path.read_text().partition("<!-- torture -->\n")
    _, end, tail = rest.partition("<!-- end of torture -->")
    if begin and end:
        lines = "\n".join(table.lines[2:])  # without its caption
        write_atomically(path, f"{head}{begin}{lines}{end}{tail}")


def _commit() -> str:
    """The commit of this checkout, with a mark where it has been changed."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    app()
