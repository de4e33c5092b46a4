"""Tune a CNN: with no flags, a race of grid, random and Bayesian search on equal device minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscapes.landscape import Landscape
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from scripts.errors import plain_errors, resumable
from scripts.stopping import Stopped, Stopper, stopping_signals
from scripts.workers import TrainingRequest, count_cores, start_workers
from tuner.budget import to_minutes, to_ns
from tuner.naming import pick
from tuner.page.assets import has_plotly
from tuner.page.film import Scene
from tuner.page.report_page import write_report
from tuner.race import Race, Result, Run, enter
from tuner.reader import RunRow
from tuner.report import Outcome, main_knobs, write_files
from tuner.runner import Runner
from tuner.searchers import SEARCHERS, Searcher, make_searcher
from tuner.searchers.shared_start import SharedStart
from tuner.space import SearchSpace
from tuner.store import Store
from tuner.terminal import LiveView, closing_table

_REPLAY_COMMIT_S = 0.5
_RUNS_PER_PROCESS = 4
_MOST_MINUTES = 1e8  # 190 years, which still fit into 64-bit nanoseconds


@dataclass(frozen=True, kw_only=True)
class Request(TrainingRequest):
    """Everything that was asked for; kept in the study, so that a resume needs only its folder."""

    searchers: list[str]
    seed: int
    seeds: int
    budget_minutes: float
    landscape: str | None
    grid_points: int | None
    shared_start: int
    space: dict[str, Any]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check(request: Request) -> None:
    if not request.searchers:
        raise ValueError("--searchers needs at least one name, such as grid,random,bayes")
    for name in request.searchers:
        pick(name, SEARCHERS, "searcher")
    if len(set(request.searchers)) < len(request.searchers):
        raise ValueError(f"--searchers names one twice: {','.join(request.searchers)}")
    for flag, value in (("--seeds", request.seeds), ("--epochs", request.epochs)):
        if value < 1:
            raise ValueError(f"{flag} is at least 1, got {value}")
    if request.shared_start < 0:
        raise ValueError(f"--shared-start is at least 0, got {request.shared_start}")
    if request.slots is not None and request.slots < 1:
        raise ValueError(f"--slots is at least 1, got {request.slots}")
    if not 0 <= request.seed < 1 << 53:
        raise ValueError(f"--seed is a whole number from 0 up to 2^53, got {request.seed}")
    if not (0 < request.budget_minutes < _MOST_MINUTES):
        raise ValueError(
            f"--budget-minutes is each searcher's own device minutes: at most 1e8 and more than 0, "
            f"got {request.budget_minutes:g}"
        )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    searchers: Annotated[
        str, typer.Option(help="Comma-separated; one alone is a plain tuning run.")
    ] = "grid,random,bayes",
    budget_minutes: Annotated[
        float, typer.Option(help="Device minutes, for each searcher and seed.")
    ] = 1.0,
    epochs: Annotated[int, typer.Option(help="Full length of a training.")] = 6,
    seeds: Annotated[int, typer.Option(help="How many seeds each searcher runs with.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    data: Annotated[
        str, typer.Option(help="sample, fashion_mnist, mnist, kmnist, cifar10, cifar100 or svhn.")
    ] = "sample",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. Default: the user's cache.")
    ] = None,
    augment: Annotated[
        bool, typer.Option(help="Shift training images and, where it is harmless, mirror them.")
    ] = False,
    knobs: Annotated[
        str, typer.Option(help="Which to tune; see the README for all.")
    ] = "learning_rate,weight_decay",
    knob: Annotated[
        list[str] | None,
        typer.Option(help="A range, NAME=LOW:HIGH[:log], or a choice, NAME=A,B,C. Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    slots: Annotated[
        int | None, typer.Option(help="Workers per device. Default: 1 per GPU, 1 per CPU core.")
    ] = None,
    grid_points: Annotated[
        int | None, typer.Option(help="Points a side of the first lattice. Default: by budget.")
    ] = None,
    shared_start: Annotated[
        int, typer.Option(help="So many first trials are the same for all searchers of a seed.")
    ] = 0,
    landscape: Annotated[
        str | None,
        typer.Option(help="Replay on a landscape instead, by name or by file."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: runs/…")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder; only the budget may change."),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Show the race in a browser while it runs.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of a table.")
    ] = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Race searchers on equal device minutes and report what each found."""
    console = Console(stderr=as_json)
    with plain_errors("tune"):
        if resume is not None:
            _refuse(context, {"resume", "budget_minutes", "page", "quiet", "as_json"}, "--resume")
            given = context.get_parameter_source("budget_minutes")
            is_given = given is not None and given.name == "COMMANDLINE"
            folder = resume
            store, request = _reopen(resume, budget_minutes if is_given else None)
        else:
            if landscape is not None:
                _refuse(context, _REPLAY_FLAGS, "--landscape")
            request = Request(
                searchers=_split(searchers),
                seed=seed,
                seeds=seeds,
                budget_minutes=budget_minutes,
                epochs=epochs,
                device=device,
                slots=slots,
                data=data,
                data_root=str(data_root or ""),
                augment=augment,
                landscape=landscape,
                grid_points=grid_points,
                shared_start=shared_start,
                space={},
            )
            _check(request)
            request, store, folder = _create(request, _split(knobs), knob or [], out)
        with (
            resumable(folder, console),
            stopping_signals() as stopper,
            ExitStack() as stack,
        ):
            stack.callback(store.close)
            server = stack.enter_context(_page(folder)) if page else None
            _race(stack, store, request, folder, console, quiet or as_json, stopper)
            _tell(folder, console, as_json)
            if server is not None and console.is_terminal:
                console.print("The page stays until Ctrl-C.")
                with suppress(Stopped):
                    server.wait()


@contextmanager
def _page(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the run's page: another process, which reads the study and never locks it."""
    script = Path(__file__).with_name("page.py")
    server = subprocess.Popen(
        [sys.executable, str(script), str(folder), "--port", "0", "--with-parent"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,  # the terminal's Ctrl-C is for the race
    )
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


def _tell(folder: Path, console: Console, as_json: bool) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    if as_json:
        print(json.dumps(summary))
        return
    console.print(closing_table(summary))
    console.print(summary["verdict"]["text"], soft_wrap=True, markup=False, highlight=False)
    fallbacks = sum(run["fallbacks"] for run in summary["runs"])
    if fallbacks:
        console.print(
            f"{fallbacks} proposal(s) did not come from their searcher's model; the "
            "reason is in trials.csv.",
            soft_wrap=True,
        )
    console.print(_minutes_note(summary), soft_wrap=True)
    console.print(f"Everything is in {folder}/", soft_wrap=True, markup=False)


_REPLAY_FLAGS = {
    *("searchers", "budget_minutes", "seeds", "seed", "slots", "grid_points", "shared_start"),
    *("landscape", "out", "page", "quiet", "as_json"),
}


def _refuse(context: typer.Context, allowed: set[str], because_of: str) -> None:
    """Refuse flags that would be ignored."""
    changed = [
        name
        for name in context.params
        if name not in allowed
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise ValueError(f"{because_of} decides that itself; leave out {flags}")


def _create(
    request: Request, names: list[str], ranges: list[str], out: Path | None
) -> tuple[Request, Store, Path]:
    """Check what can be checked without a device, and make the run's folder and study."""
    if out is not None:
        _check_out(out)
    if request.landscape is not None:
        where = request.landscape
        if where.endswith((".npz", ".onnx")):
            where = str(Path(where).resolve())  # a resume may come from another folder
        terrain = open_landscape(where)
        space, kind = terrain.space, f"replay-{terrain.name}"
        changes = {"landscape": where, "epochs": terrain.epochs, "data": None, "device": "replay"}
        request = replace(request, **changes)
    else:
        from models.data import default_root, prepare
        from models.knobs import make_space
        from models.training_runner import find_devices

        space = make_space(names, ranges)
        find_devices(request.device)
        root = Path(request.data_root or default_root())
        prepare(request.data, root)
        request = replace(request, data_root=str(root))
        kind = request.data
    for name in request.searchers:  # options that a searcher refuses are refused here
        _searcher(name, space, request.seed, request)
    request = replace(request, space=space.to_json())
    folder = out or Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    _check_out(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error}") from error
    store = Store(folder / "study.sqlite", create=True, commit_every_s=_commit_every(request))
    store.set_meta("request", vars(request))
    for seed in range(request.seed, request.seed + request.seeds):
        for name in request.searchers:
            store.add_run(name, seed, space, request.epochs, to_ns(request.budget_minutes))
    store.commit(force=True)
    return request, store, folder


def _check_out(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} is not an empty folder; choose another --out, or --resume {folder}"
        )


def _reopen(folder: Path, budget_minutes: float | None) -> tuple[Store, Request]:
    store = Store(folder / "study.sqlite", create=False)
    try:
        kept = store.meta("request")
        if not isinstance(kept, dict):
            raise ValueError(f"{folder} holds a study, but not a race that can be resumed")
        request = Request(**kept)
        if budget_minutes is not None:
            request = replace(request, budget_minutes=budget_minutes)
            _check(request)
            store.set_meta("request", vars(request))
            for row in store.runs():
                store.set_budget(row.id, to_ns(budget_minutes))
            store.commit(force=True)
    except TypeError as error:
        store.close()
        raise ValueError(f"{folder} holds a race of another version: {error}") from error
    except ValueError:
        store.close()
        raise
    store.commit_every_s = _commit_every(request)
    return store, request


def _commit_every(request: Request) -> float:
    return _REPLAY_COMMIT_S if request.landscape else 0.0


def _searcher(name: str, space: SearchSpace, seed: int, request: Request) -> Searcher:
    options = {"points_per_axis": request.grid_points} if name == "grid" else {}
    searcher = make_searcher(name, space, seed, **options)
    if request.shared_start:
        return SharedStart(searcher, space, seed, request.shared_start)
    return searcher


@dataclass(frozen=True)
class _Track:
    """What the runs of a race are run on: a landscape, or the workers of a pool."""

    runner: Callable[[RunRow], Runner]
    device: str
    unit: str
    slots: int
    landscape: Landscape | None = None
    pool: Any = None
    warm_up_ns: int = 0


def _race(
    stack: ExitStack,
    store: Store,
    request: Request,
    folder: Path,
    console: Console,
    quiet: bool,
    stopper: Stopper,
) -> None:
    """Run the race to its end and write its files; raises Stopped where a signal ended it."""
    if request.landscape is not None:
        track = _replay_track(request)
    else:
        track = _training_track(stack, store, request, folder, None if quiet else console)
    view = LiveView(console, track.unit, quiet=quiet)
    race = Race(
        [
            enter(
                store,
                row,
                _searcher(row.searcher, row.space, row.seed, request),
                track.runner(row),
                is_replay=track.pool is None,
                on_change=view,
            )
            for row in store.runs()
        ],
        shares_device=track.pool is not None,
        on_change=view,
    )
    race.share_warm_up(track.warm_up_ns)
    _check_budget(race)
    processes = _processes(race) if track.pool is None else 1
    go = race.go
    if processes > 1:
        go = partial(race.go_in_parallel, partial(_replay, request), processes)
    with view.watch(race):
        stopper.go(race, go)
    store.commit(force=True)
    stopper.check()
    _finish(store, race, track, request, folder, console)


def _processes(race: Race) -> int:
    """How many processes a replay is worth: starting one takes seconds, a run may take less."""
    new = sum(not len(run.scheduler.history) for run in race.runs)
    return min(count_cores(), new // _RUNS_PER_PROCESS)


def _replay(request: Request, row: RunRow) -> Result:
    """One run of a replay, from beginning to end, in memory."""
    track = _replay_track(request)
    searcher = _searcher(row.searcher, row.space, row.seed, request)
    runner = track.runner(row)
    run = enter(None, row, searcher, runner, is_replay=True, on_change=lambda: None)
    run.scheduler.run()
    return Result.of(run)


def _replay_track(request: Request) -> _Track:
    landscape, slots = open_landscape(request.landscape or ""), request.slots or 1
    return _Track(
        lambda row: ReplayRunner(landscape, row.seed, slots),
        "simulated",
        "simulated minutes",
        slots,
        landscape,
    )


def _training_track(
    stack: ExitStack, store: Store, request: Request, folder: Path, console: Console | None
) -> _Track:
    from models.training_runner import TrainingRunner

    if console is not None:
        runs = len(request.searchers) * request.seeds
        console.print(f"{request.budget_minutes:g} minutes for each of {runs} run(s)")
    pool, warm_up_ns = start_workers(stack, store, request, folder, console)
    return _Track(
        lambda row: TrainingRunner(pool, f"{row.searcher}-{row.seed}"),
        ",".join(pool.setup.devices),
        pool.setup.unit,
        len(pool.workers),
        pool=pool,
        warm_up_ns=warm_up_ns,
    )


def _check_budget(race: Race) -> None:
    """Refuse a budget that does not buy one epoch; nothing has been trained yet."""
    for run in race.runs:
        if len(run.scheduler.history) == 0 and not run.can_go_on:
            raise ValueError(
                f"the budget of {to_minutes(run.row.budget_ns or 0):g} minutes is too small: "
                f"starting up took {to_minutes(run.recorder.budget.spent_ns):.3f} and one epoch "
                f"takes about {to_minutes(run.scheduler.expected_epoch_ns):.3f}"
            )


def _finish(
    store: Store, race: Race, track: _Track, request: Request, folder: Path, console: Console
) -> None:
    """Find out what each run's incumbent is worth, and write the files and the picture."""
    outcomes = [_outcome(store, run, track, console) for run in race.runs]
    settings = {
        **vars(request),
        "device": track.device,
        "unit": track.unit,
        "slots": track.slots,
        "landscape": track.landscape.name if track.landscape else None,
    }
    content = write_files(folder, settings, outcomes)
    from tuner.plots import draw_race

    title = f"{settings['landscape'] or settings['data']} on {track.device}"
    draw_race(folder / "race.png", outcomes, track.unit, title)
    if has_plotly():
        scenes = [Scene(o.row, o.history, o.ledger, True, o.test_score, o.value) for o in outcomes]
        write_report(
            folder / "report.html",
            title,
            scenes,
            device=track.device,
            unit=track.unit,
            terrain=track.landscape,
            verdict=content["verdict"],
            pair=main_knobs(outcomes),
        )


def _outcome(store: Store, run: Run, track: _Track, console: Console) -> Outcome:
    """What a run came to; in real training its winner is tested, once."""
    history, ledger = run.scheduler.history, run.scheduler.budget.ledger
    best, row = history.best, run.row
    if track.landscape is not None:
        value = None if best is None else track.landscape.value(best.config, row.seed)
        return Outcome(row, history, ledger, None, value)
    mark, test_score = best.checkpoint if best is not None else None, None
    if mark is not None and mark.sha256 == row.tested:
        test_score = row.test_score
    elif mark is not None:
        try:
            test_score = track.pool.test(best)
            store.set_test_score(row.id, test_score, mark.sha256)
            store.commit(force=True)
        except ValueError as error:  # the search itself is not lost for that
            console.print(f"{run.name} {row.seed}: {error}", soft_wrap=True)
    return Outcome(row, history, ledger, test_score)


def _minutes_note(summary: dict[str, Any]) -> str:
    if summary["landscape"]:
        return "A replay on a virtual clock: the searcher's own thinking costs nothing in it."
    totals = {
        kind: sum(run["ledger"][kind] for run in summary["runs"])
        for kind in summary["runs"][0]["ledger"]
    }
    whole = sum(totals.values()) or 1.0
    parts = ", ".join(f"{kind} {value / whole:.1%}" for kind, value in totals.items() if value)
    return f"Where the {summary['unit']} went: {parts}"


if __name__ == "__main__":
    app()
