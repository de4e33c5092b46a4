"""Puts the promises to the test at their nightly length, and writes the table."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.errors import plain_errors
from scripts.figures import FOLDER, Table, save
from tests.torture.campaign import Campaign, Found
from tests.torture.registry import CAMPAIGNS

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
    """Put the promises to the test; exit code 1 where one does not hold."""
    with plain_errors("torture"):
        wanted = [word.strip() for word in only.split(",") if word.strip()]
        chosen = [c for c in CAMPAIGNS if not wanted or {c.promise, c.name} & set(wanted)]
        if not chosen:
            names = ", ".join(c.name for c in CAMPAIGNS)
            raise ValueError(f"there is no campaign {only!r}; there are {names}")
        results: list[tuple[Campaign, Found, float]] = []
        for campaign in chosen:
            began = time.monotonic()
            n = max(campaign.short, round(scale * campaign.nightly))
            console.print(f"{campaign.name}: {n:,} times", markup=False, soft_wrap=True)
            results.append((campaign, campaign.run(n, seed), time.monotonic() - began))
            for failure in results[-1][1].failures[:5]:
                console.print(f"  {failure}", markup=False, soft_wrap=True)
            _save(results, seed, out, show=len(results) == len(chosen))
        if any(found.failures for _, found, _ in results):
            raise typer.Exit(1)


def _save(
    results: list[tuple[Campaign, Found, float]], seed: int, out: Path, *, show: bool
) -> None:
    """After each campaign, so that what is stopped keeps what was found."""
    rows = [
        [
            campaign.promise,
            campaign.words,
            f"{found.n:,}",
            str(len(found.failures)),
            f"{found.bound:.2%}",
            ", ".join(f"{name} {value}" for name, value in found.notes.items()) or "–",
        ]
        for campaign, found, _ in results
    ]
    columns = ["promise", "put to the test", "n", "failures", "95 % bound of their rate", "also"]
    commit = _commit()
    caption = f"Seed {seed}, commit {commit}. Without a failure in n the rate is under about 3 / n."
    content = {
        "seeds": [seed],
        "commit": commit,
        "campaigns": {
            campaign.name: {
                "promise": campaign.promise,
                "words": campaign.words,
                "n": found.n,
                "failures": list(found.failures),
                "bound": found.bound,
                "notes": dict(found.notes),
                "seconds": seconds,
            }
            for campaign, found, seconds in results
        },
    }
    save(out, "torture", content, [Table(caption, columns, rows)], show=show)


def _commit() -> str:
    """The commit of this checkout, with a mark where it has been changed."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1]
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    app()
