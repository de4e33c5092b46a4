"""What a race shows in a terminal: a live table while it runs, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.budget import to_minutes
from tuner.escape import MOST_SHOWN, visible
from tuner.race import Race, Run
from tuner.space import Config
from tuner.trial import Trial

_FRAMES_S = 0.2
_LINES_S = 10.0


class LiveView:
    """Shows a race while it runs. Call it as often as you like: it draws when it is time to.

    Args:
        console: a terminal gets a live table, anything else a line every ten seconds.
        unit: what the minutes are called.
        quiet: show nothing.
        sign: -1 where a lower score is better to the user.
    """

    def __init__(self, console: Console, unit: str, *, quiet: bool, sign: float = 1.0) -> None:
        self._console, self._unit, self._quiet = console, unit, quiet
        self._sign = sign
        self._race: Race | None = None
        self._drawn = 0.0
        self._live: Live | None = None

    def watch(self, race: Race) -> LiveView:
        """Show this race from now on."""
        self._race = race
        return self

    def __enter__(self) -> LiveView:
        if not self._quiet and self._console.is_terminal and self._race is not None:
            self._live = Live(self._table(self._race), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None and self._race is not None:
            self._live.update(self._table(self._race), refresh=True)
            self._live.stop()

    def __call__(self) -> None:
        """Something changed, or some time went by."""
        now = time.monotonic()
        due = _FRAMES_S if self._live is not None else _LINES_S
        if self._quiet or self._race is None or now - self._drawn < due:
            return
        self._drawn = now
        if self._live is not None:
            self._live.update(self._table(self._race), refresh=True)
        elif self._race.current is not None:
            say(self._console, self._line(self._race.current))

    def _table(self, race: Race) -> Table:
        table = Table(
            box=None, pad_edge=False, caption=self._unit, caption_justify="left", expand=True
        )
        for title in ("searcher", "budget", "", "trials", "best so far"):
            table.add_column(title, no_wrap=True)
        table.add_column("now", no_wrap=True, ratio=1)  # this one is cut where room is short
        shown = race.runs[:12] if race.current is None else _around(race.runs, race.current)
        for run in shown:
            scheduler = run.scheduler
            total = run.row.budget_ns or 1
            spent = min(
                scheduler.held_ns if run is race.current else scheduler.budget.spent_ns, total
            )
            best = scheduler.history.best
            state = "done" if scheduler.finished else "waiting"
            table.add_row(
                cell(_label(run)),
                ProgressBar(total=total, completed=spent, width=24),
                f"{to_minutes(total - spent):.2f} left",
                str(len(scheduler.history.trained)),
                self._best(best, ""),
                cell(_training(run), None) if run is race.current else state,
            )
        return table

    def _line(self, run: Run) -> str:
        best = self._best(run.scheduler.history.best, "no score yet", "best ")
        spent, total = run.scheduler.budget.spent_ns, run.row.budget_ns or 0
        return (
            f"{_label(run)}: {to_minutes(spent):.2f} of {to_minutes(total):.2f} minutes, "
            f"{len(run.scheduler.history.trained)} trials, {best}"
        )

    def _best(self, trial: Trial | None, nothing: str, before: str = "") -> str:
        if trial is None or trial.score is None:
            return nothing
        return f"{before}{self._sign * trial.score:.4f}"


def _around(runs: Sequence[Run], current: Run) -> Sequence[Run]:
    """At most twelve runs, the current one among them."""
    first = max(0, min(runs.index(current) - 5, len(runs) - 12))
    return runs[first : first + 12]


def _label(run: Run) -> str:
    return f"{run.row.searcher} {run.row.seed}"


def _training(run: Run) -> str:
    return "; ".join(
        f"#{t.number} epoch {t.epoch + 1}: {describe(t.config)}" for t in run.scheduler.in_flight
    )


def describe(config: Config) -> str:
    """A configuration in one short line, in which nothing is hidden."""
    return ", ".join(
        f"{visible(name)}={value:.3g}"
        if isinstance(value, float)
        else f"{visible(name)}={visible(str(value))}"
        for name, value in config.items()
    )


def say(console: Console, text: str) -> None:
    """Print one line as it is: no markup, no colours, and whatever is hidden in it is shown."""
    console.print(visible(text, None), soft_wrap=True, markup=False, highlight=False, emoji=False)


def cell(text: str, most: int | None = MOST_SHOWN) -> Text:
    """Text in a table, which is no markup."""
    return Text(visible(text, most))


def closing_table(summary: dict[str, Any]) -> Table:
    """The table at the end of a race, from the content of summary.json.

    A row a run, or, with several seeds, a row a searcher with means over its seeds.
    """
    measure = "value" if summary["landscape"] else "test"
    seeds = len({run["seed"] for run in summary["runs"]})
    return _searcher_table(summary, measure) if seeds > 1 else _run_table(summary, measure)


def luck_lines(summary: dict[str, Any]) -> list[str]:
    """What each searcher's first winner may be expected to score, beside the best score seen."""
    lines = []
    for run in summary["runs"]:
        expected = run["expected_score"]
        if run["seed"] != summary["runs"][0]["seed"] or expected is None:
            continue
        trainings = expected["trainings"]
        times = "1 training" if trainings == 1 else f"{trainings} trainings"
        how = f"mean and standard error of its {times}"
        if expected["by"] == "model":
            how = f"a Gaussian process on all, {times} of it"
            if trainings == 0:
                how = "a Gaussian process on all; the budget ended its own training early"
            elif trainings == 1:
                how += ", which --confirm would measure"
        lines.append(
            f"{run['searcher']} {run['seed']}: expect {expected['mean']:.4f} ± "
            f"{expected['sd']:.4f} of trial {run['best_trial']} ({how}); the best score seen was "
            f"{run['best_score']:.4f}"
        )
    return lines


def earlier_lines(summary: dict[str, Any]) -> list[str]:
    """What was known before, where that beats all that the race has found itself."""
    return [
        f"{known['trials']} results from {known['source']}; its best, {known['best_score']:.4f}, "
        f"beats all that was trained here: {describe(known['best_config'])}"
        for known in summary["earlier"]
        if known["is_ahead"]
    ]


def stop_lines(summary: dict[str, Any]) -> list[str]:
    """For each searcher that ended before its minutes did, how many it returned, over its seeds."""
    lines = []
    for name in dict.fromkeys(run["searcher"] for run in summary["runs"]):
        runs = [run for run in summary["runs"] if run["searcher"] == name]
        returned = sum(run["minutes_returned"] or 0.0 for run in runs) / len(runs)
        if returned:
            spent = sum(run["minutes_spent"] for run in runs) / len(runs)
            lines.append(
                f"{name} stopped after {spent:.1f} of {summary['budget_minutes']:g} minutes"
                f"{'' if len(runs) == 1 else ' on average'}: the rest could not be expected to "
                f"find more than noise. It returned {returned:.1f}."
            )
    return lines


def pace_line(summary: dict[str, Any]) -> str:
    """What a device minute bought."""
    pace = summary["pace"]
    if pace is None:
        return "Nothing was trained."
    line = (
        f"A minute bought {pace['epochs_per_minute']:.1f} epochs, {pace['trials_per_minute']:.1f} "
        f"trials; the device was idle for {pace['idle_share']:.1%} of the time"
    )
    if pace["layout"]:
        line += f"; {pace['layout']}"
    if pace["alone_ratio"]:
        line += f", where a training alone would hold it {pace['alone_ratio']:.2f} times its share"
    return line + "."


def add_column(table: Table, title: str) -> None:
    """Of a table with a setting at its end: where there is no room, that gives way, no number."""
    is_setting = title == "best setting"
    table.add_column(title, overflow="fold", no_wrap=not is_setting)


def _run_table(summary: dict[str, Any], measure: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("searcher", "trials", "validation", measure, "gap", "minutes", "best setting")
    for title in titles:
        add_column(table, title)
    for run in summary["runs"]:
        reward = run["value"] if summary["landscape"] else run["test_score"]
        score = run["best_trial_score"]
        both = score is not None and reward is not None
        table.add_row(
            cell(run["searcher"]),
            str(run["trials"]),
            _score(score),
            _score(reward),
            _gap(score - reward if both else None),
            f"{run['minutes_spent']:.3f}",
            "–" if run["best_config"] is None else cell(describe(run["best_config"]), None),
        )
    return table


def _searcher_table(summary: dict[str, Any], measure: str) -> Table:
    progress = summary["progress"]
    target = progress["target"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    reached = "minutes to target" if target is None else f"minutes to {target:.4f}"
    for title in (
        "searcher",
        "seeds",
        "trials",
        "validation",
        measure,
        "gap",
        reached,
        "mean rank",
    ):
        table.add_column(title)
    for standing in summary["verdict"]["standings"]:
        name = standing["searcher"]
        runs = [run for run in summary["runs"] if run["searcher"] == name]
        one = progress["searchers"][name]
        minutes = one["minutes_to_target"]
        table.add_row(
            cell(name),
            str(len(runs)),
            f"{sum(run['trials'] for run in runs) / len(runs):.1f}",
            _score(standing["best_validation"]),
            _score(standing["reward"]),
            _gap(standing["gap"]),
            "–" if minutes is None else f"{minutes:.2f}",
            f"{one['mean_rank'][-1]:.2f}",
        )
    return table


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def _gap(gap: float | None) -> str:
    return "–" if gap is None else f"{100 * gap:+.2f}"
