"""What `tune.py --command` does: a search whose trainings are a program's, and what it leaves."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.command_request import CommandRequest
from scripts.errors import resumable
from scripts.racing import entry_for
from scripts.stopping import stopping_signals
from scripts.tuning import check_out, check_request, default_folder, entries, with_page
from scripts.workers import describe_machine, device_names
from tuner.budget import budget_ns
from tuner.confirm import expected_score
from tuner.files import CannotWriteError, write_atomically
from tuner.importance import Importance, importance
from tuner.page.assets import has_plotly
from tuner.page.film import STUDY_BADGE, Scene, name_of_scores
from tuner.page.report_page import write_report
from tuner.race import Race, Run, enter
from tuner.reader import RunRow
from tuner.report import (
    Outcome,
    as_told,
    curves_csv,
    main_knobs,
    pace,
    run_summary,
    trials_csv,
    winner,
)
from tuner.space import SearchSpace
from tuner.space_file import read_space
from tuner.stop_rule import returned_ns
from tuner.store import Store
from tuner.terminal import LiveView, add_column, cell, describe, pace_line, say
from tuner.workers.commands import Command
from tuner.workers.pool import Setup, WorkerPool
from tuner.workers.runner import WorkerRunner


def create(
    asked: dict[str, Any],
    text: str,
    metric: str | None,
    space_file: Path | None,
    fidelity: str,
    out: Path | None,
) -> tuple[Store, CommandRequest, Path]:
    """A new study of a command; ValueError where that cannot be."""
    if metric is None or space_file is None:
        missing = "--metric" if metric is None else "--space"
        raise ValueError(f"--command needs {missing}; see docs/commands.md for an example")
    space = read_space(space_file)
    options = {name: asked.pop(name) for name in ("replicates", "infeasible_exits")}
    command = Command.parse(text, metric, space, Path.cwd(), **options)
    if command.replicates is not None:
        if asked["epochs"] is not None:
            raise ValueError("--replicates are a setting's epochs; leave out --epochs")
        asked["epochs"] = command.replicates
    asked["searchers"] = entries(asked["searchers"], fidelity)
    request = CommandRequest(**asked, command=command.to_json(), space=space.to_json())
    check_request(request)
    folder = out or default_folder("command")
    request.workers.check()
    for row in _rows(request, space):
        entry_for(row.searcher, space, row.seed, request)  # what it refuses is refused here
    check_out(folder)
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "study.sqlite", create=True)
    try:
        store.set_meta("request", vars(request))
        store.set_meta("mode", request.mode)
        for row in _rows(request, space):
            store.add_run(row.searcher, row.seed, space, row.max_epochs, row.budget_ns)
        store.commit(force=True)
    except CannotWriteError:
        store.discard()
        raise
    return store, request, folder


def is_command(request: Any) -> bool:
    """Whether what was asked for is a command's search."""
    return isinstance(request, CommandRequest)


def search(
    store: Store,
    request: CommandRequest,
    folder: Path,
    console: Console,
    *,
    is_quiet: bool,
    as_json: bool,
    page: bool,
) -> None:
    """Run it to its end, or to where a signal stops it well, and say what came of it."""
    pool = request.pool(folder / "checkpoints")
    view = LiveView(console, pool.setup.unit, quiet=is_quiet or as_json, sign=request.sign)
    with (
        resumable(folder, store, console),
        stopping_signals() as stopper,
        ExitStack() as stack,
    ):
        if page:
            stack.enter_context(with_page(folder))
        stack.enter_context(pool)
        trials = [t for row in store.runs() for t in store.trials(row)]
        pool.sweep({m.name for t in trials for m in (t.checkpoint, t.midway) if m})
        warm_up_ns = pool.start()
        kind = pool.setup.devices[0].partition(":")[0]
        if request.device == "auto":  # a resume goes on as it began
            store.set_meta("request", {**vars(request), "device": kind})
        if store.meta("machine") is None:
            names = pool.setup.devices
            is_here = request.cluster is None
            store.set_meta("machine", describe_machine(device_names(names) if is_here else names))
        runs = [_enter(store, row, request, pool, view) for row in store.runs()]
        race = Race(runs, shares_device=True, on_change=view)
        race.share_warm_up(warm_up_ns)
        with view.watch(race):
            stopper.go(race, race.go)
        store.commit(force=True)
        stopper.check()
        content = _finish(list(race.runs), request, pool, folder)
    _tell(content, folder, console, as_json)


def _rows(request: CommandRequest, space: SearchSpace) -> list[RunRow]:
    limit_ns, seeds = budget_ns(request.budget_minutes), range(request.seeds)
    return [
        RunRow(0, name, request.seed + i, space, request.epochs, limit_ns, 0, None, None)
        for i in seeds
        for name in request.searchers
    ]


def _enter(
    store: Store, row: RunRow, request: CommandRequest, pool: WorkerPool, view: LiveView
) -> Run:
    searcher, policy = entry_for(row.searcher, row.space, row.seed, request)
    runner = WorkerRunner(pool, f"{row.searcher}-{row.seed}")
    return enter(
        store,
        row,
        searcher,
        runner,
        policy=policy,
        keep=request.confirm,
        is_replay=False,
        on_change=view,
    )


def _finish(
    runs: list[Run], request: CommandRequest, pool: WorkerPool, folder: Path
) -> dict[str, Any]:
    """Write the files and the pictures; the content of summary.json."""
    outcomes = [
        Outcome(
            run.row,
            run.scheduler.history,
            run.recorder.budget.ledger,
            None,
            expected=expected_score(run.scheduler.history),
            returned_ns=returned_ns(run.scheduler.history, request.stop),
        )
        for run in runs
    ]
    content = {
        "device": pool.setup.named,
        "unit": pool.setup.unit,
        "mode": request.mode,
        "command": request.command["arguments"],
        "epochs": request.epochs,
        "budget_minutes": request.budget_minutes,
        "slots": len(pool.setup.devices) * request.slots,
        "runs": [_summary(outcome, request.sign) for outcome in outcomes],
        "pace": pace(outcomes, None),
        "verdict": _VERDICT,
        "importance": None if (found := _importance(outcomes)) is None else found.to_json(),
    }
    shown = [as_told(outcome, request.sign) for outcome in outcomes]
    _write(folder / "summary.json", content)
    write_atomically(folder / "trials.csv", trials_csv(shown))
    write_atomically(folder / "curves.csv", curves_csv(shown))
    best = winner(outcomes)
    if best is not None:
        run = content["runs"][outcomes.index(best[0])]
        named = {"searcher": run["searcher"], "seed": run["seed"], "trial": run["best_trial"]}
        scores = {"score": run["best_trial_score"], "expected_score": run["expected_score"]}
        _write(folder / "best_config.json", {**named, **scores, "config": run["best_config"]})
    _draw(outcomes, request, pool.setup, folder, content["importance"])
    return content


def _importance(outcomes: list[Outcome]) -> Importance | None:
    return importance(outcomes[0].row.space, (t for o in outcomes for t in o.history.trained))


def _draw(
    outcomes: list[Outcome],
    request: CommandRequest,
    setup: Setup,
    folder: Path,
    mattered: dict[str, Any] | None,
) -> None:
    from tuner.plots import draw_effects, draw_race

    title, name = f"a command on {setup.named}", request.score_name
    draw_race(folder / "race.png", outcomes, setup.unit, title, name)
    draw_effects(folder / "knobs.png", outcomes, mattered, title, name)
    if has_plotly():
        write_report(
            folder / "report.html",
            title,
            [Scene(o.row, o.history, o.ledger, True) for o in outcomes],
            device=setup.named,
            unit=setup.unit,
            terrain=None,
            verdict=_VERDICT,
            pair=main_knobs(outcomes),
            importance=mattered,
            badge=STUDY_BADGE,
            score_name=name_of_scores(int(request.sign)),
            least_gap=0.0,
            sign=int(request.sign),
        )


_TEXT = (
    "A command is scored by what it says itself: the best of many scores flatters. --confirm "
    "trains the best settings again, and gives their means."
)
_VERDICT = {"text": _TEXT, "headline": _TEXT, "pairs": [], "standings": []}


def _summary(outcome: Outcome, sign: float) -> dict[str, Any]:
    """An entry of `runs`: with what went wrong last, where nothing went well."""
    reasons = [t.reason for t in outcome.history if t.state.is_broken]
    return {**run_summary(outcome, sign), "last_reason": reasons[-1] if reasons else None}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _tell(content: dict[str, Any], folder: Path, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("searcher", "seed", "trials", "best", "expected", "minutes", "best setting"):
        add_column(table, title)
    for run in content["runs"]:
        expected, best, config = run["expected_score"], run["best_trial_score"], run["best_config"]
        table.add_row(
            cell(run["searcher"]),
            str(run["seed"]),
            str(run["trials"]),
            "–" if best is None else f"{best:.6g}",
            "–" if expected is None else f"{expected['mean']:.6g} ± {expected['sd']:.2g}",
            f"{run['minutes_spent']:.3f}",
            "–" if config is None else cell(describe(config), None),
        )
    console.print(table)
    for run in content["runs"]:
        if run["best_score"] is None and run["last_reason"]:
            say(
                console,
                f"{run['searcher']} {run['seed']}: no score; the last: {run['last_reason']}",
            )
    say(console, _TEXT)
    say(console, pace_line(content))
    say(console, f"Everything is in {folder}/")
