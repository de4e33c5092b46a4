"""Whether one driver keeps many devices busy: its decisions a second, by how many trials train."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from landscapes.landscape import Curve
from landscapes.replay_runner import ReplayRunner
from scripts.figures import FOLDER, Table, save
from scripts.loop_runs import EPOCHS, Formula, UpTo
from tuner.entry import make_entry
from tuner.race import enter
from tuner.reader import RunRow
from tuner.space import Config

ENTRIES = ("random", "random+asha", "bayes")
_BUDGET_NS = 1 << 60


class Uneven(Formula):
    """Trainings of different pace, so that trials that began together do not end together."""

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Score and device seconds of every epoch: from half to one and a half of the usual."""
        scores, seconds = super().curve(config, replicate, repeat)
        return scores, seconds * (0.5 + float(config["dropout"]) / 0.6)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Crowd:
    """One replay with so many slots."""

    entry: str
    slots: int
    trials: int


def scale(
    most: Annotated[int, typer.Option(help="Slots of the widest replay.", min=1)] = 1_000,
    rounds: Annotated[int, typer.Option(help="Trials of each slot.", min=1)] = 5,
    bayes_rounds: Annotated[int, typer.Option(help="The same for bayes.", min=1)] = 2,
    repeats: Annotated[int, typer.Option(help="How many, by turns.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """Decisions a second of one driver in replays with 1 to a thousand trials at once.

    A decision is a trial begun, an epoch recorded and charged, or a trial sent on. Every replay's
    ledger is compared with the device time that its trials took, to the nanosecond.
    """
    widths = [n for n in (1, 10, 100, 1_000, 10_000) if n < most] + [most]
    jobs = [
        Crowd(entry, slots, max(100, slots) * (bayes_rounds if entry == "bayes" else rounds))
        for slots in widths
        for entry in ENTRIES
    ]
    runs: dict[str, list[dict[str, Any]]] = {}
    turns = [job for _ in range(repeats) for job in jobs]
    for job in track(turns, "replays", console=Console(stderr=True)):
        runs.setdefault(f"{job.entry} {job.slots}", []).append(measure(job))
    rows = []
    for found in runs.values():
        rates = [run["decisions"] / run["cpu_s"] for run in found]
        one = found[0]
        rows.append(
            [
                one["entry"],
                f"{one['slots']:,}",
                f"{one['trials']:,}",
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{60 * statistics.median(rates) / one['decisions'] * one['epochs']:,.0f}",
                "exact" if all(run["is_exact"] for run in found) else "OFF",
            ]
        )
    titles = ["entry", "slots", "trials", "decisions a second", "from, to"]
    titles += ["devices kept busy with epochs of a minute", "ledger"]
    note = "A decision: a trial begun, an epoch recorded and charged, a trial sent on. CPU time."
    save(out, "scale", {"epochs": EPOCHS, "seed": 0, "runs": runs}, [Table(note, titles, rows)])


def measure(job: Crowd) -> dict[str, Any]:
    """Run it, and say what it took."""
    landscape = Uneven()
    searcher, policy = make_entry(job.entry, landscape.space, 0, epochs=EPOCHS)
    row = RunRow(1, job.entry, 0, landscape.space, EPOCHS, _BUDGET_NS, 0, None, None)
    launches = 0

    class Counted(ReplayRunner):
        def launch(self, trial: Any, until_epoch: int) -> None:
            nonlocal launches
            launches += 1
            super().launch(trial, until_epoch)

    run = enter(
        None,
        row,
        searcher,
        Counted(landscape, 0, job.slots),
        policy=UpTo(policy, job.trials),
        is_replay=True,
        on_change=lambda: None,
    )
    began = time.process_time()
    run.scheduler.run()
    took = time.process_time() - began
    history, budget = run.scheduler.history, run.recorder.budget
    paid_ns = sum(trial.paid_ns for trial in history)
    charged_ns = sum(budget.ledger.values())
    return {
        **asdict(job),
        "epochs": history.epochs_seen,
        "launches": launches,
        "decisions": history.epochs_seen + launches,
        "cpu_s": took,
        "is_exact": paid_ns == charged_ns == budget.spent_ns,
    }
