"""Tune a CNN: with no flags, a race of grid, random and Bayesian search on equal device minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscapes.registry import open_landscape
from scripts.earlier import begin_with, check_folders, read_earlier
from scripts.errors import plain_errors, refuse_others, resumable
from scripts.racing import Request, entry_for, run_race
from scripts.stopping import Stopped, stopping_signals
from tuner.budget import to_ns
from tuner.entry import ETA, Entry
from tuner.importance import in_words
from tuner.store import Store
from tuner.terminal import closing_table, earlier_lines, luck_lines, pace_line, stop_lines

_REPLAY_COMMIT_S = 0.5
_MOST_MINUTES = 1e8  # 190 years, which still fit into 64-bit nanoseconds


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _with_fidelity(name: str, fidelity: str) -> str:
    """An entry by the name that the user gave it, where that says all."""
    entry = Entry.parse(name, fidelity)
    return name if entry == Entry.parse(name) else str(entry)


def _check(request: Request) -> None:
    if not request.searchers:
        raise ValueError("--searchers needs at least one name, such as grid,random,bayes")
    entries = [str(Entry.parse(name)) for name in request.searchers]
    if len(set(entries)) < len(entries):
        raise ValueError(f"--searchers names one twice: {','.join(request.searchers)}")
    for flag, value in (("--seeds", request.seeds), ("--epochs", request.epochs)):
        if value < 1:
            raise ValueError(f"{flag} is at least 1, got {value}")
    if request.shared_start < 0:
        raise ValueError(f"--shared-start is at least 0, got {request.shared_start}")
    if request.confirm < 0:
        raise ValueError(f"--confirm is at least 0, got {request.confirm}")
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
        str,
        typer.Option(
            help="Comma-separated; one alone is a plain tuning run. random+asha is a searcher "
            "with a fidelity of its own."
        ),
    ] = "grid,random,bayes",
    fidelity: Annotated[
        str,
        typer.Option(help="How long trials train: full, median, sh, asha, asha-stop or hyperband."),
    ] = "full",
    min_epochs: Annotated[
        int | None, typer.Option(help="The first rung. Default: 2, or a 27th of --epochs.")
    ] = None,
    eta: Annotated[int, typer.Option(help="One in so many goes on from a rung.")] = ETA,
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
        int | None, typer.Option(help="Trials at once on each device. Default: as measures best.")
    ] = None,
    grid_points: Annotated[
        int | None, typer.Option(help="Points a side of the first lattice. Default: by budget.")
    ] = None,
    shared_start: Annotated[
        int, typer.Option(help="So many first trials are the same for all searchers of a seed.")
    ] = 0,
    confirm: Annotated[
        int,
        typer.Option(
            help="Keep minutes back to train so many of the best settings again, and choose by "
            "the mean."
        ),
    ] = 0,
    stop: Annotated[
        str,
        typer.Option(
            help="never, or auto: end a search when what its minutes could still find is less "
            "than the noise."
        ),
    ] = "never",
    landscape: Annotated[
        str | None,
        typer.Option(help="Replay on a landscape instead, by name or by file."),
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Begin with the results of an earlier run, by its folder. They cost nothing. "
            "Repeatable.",
        ),
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
            refuse_others(
                context, {"resume", "budget_minutes", "page", "quiet", "as_json"}, "--resume"
            )
            given = context.get_parameter_source("budget_minutes")
            is_given = given is not None and given.name == "COMMANDLINE"
            folder = resume
            store, request = _reopen(resume, budget_minutes if is_given else None)
        else:
            if landscape is not None:
                refuse_others(context, _REPLAY_FLAGS, "--landscape")
            request = Request(
                searchers=[_with_fidelity(name, fidelity) for name in _split(searchers)],
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
                min_epochs=min_epochs,
                eta=eta,
                shared_start=shared_start,
                confirm=confirm,
                stop=stop,
                space={},
            )
            _check(request)
            check_folders(earlier or [], out)
            request, store, folder = _create(request, _split(knobs), knob or [], out, earlier or [])
        for line in [] if quiet or as_json else store.meta("earlier") or []:
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        with (
            resumable(folder, console),
            stopping_signals() as stopper,
            ExitStack() as stack,
        ):
            stack.callback(store.close)
            server = stack.enter_context(_page(folder)) if page else None
            run_race(stack, store, request, folder, console, quiet or as_json, stopper)
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
    mattered = in_words(summary["importance"])
    console.print(mattered, soft_wrap=True, markup=False, highlight=False)
    for line in luck_lines(summary) + stop_lines(summary) + earlier_lines(summary):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for name, rung in summary["first_rungs"].items():
        if rung["warning"]:
            console.print(f"{name}: {rung['warning']}", soft_wrap=True, markup=False)
    fallbacks = sum(run["fallbacks"] for run in summary["runs"])
    if fallbacks:
        console.print(
            f"{fallbacks} proposal(s) did not come from their searcher's model; the "
            "reason is in trials.csv.",
            soft_wrap=True,
        )
    console.print(_minutes_note(summary), soft_wrap=True)
    if not summary["landscape"]:
        console.print(pace_line(summary), soft_wrap=True, highlight=False)
    console.print(f"Everything is in {folder}/", soft_wrap=True, markup=False)


_RESUME_FLAGS = {"resume", "budget_minutes", "page", "quiet", "as_json"}
_REPLAY_FLAGS = {
    *("searchers", "budget_minutes", "seeds", "seed", "slots", "grid_points", "shared_start"),
    *("fidelity", "min_epochs", "eta", "confirm", "stop"),
    *("landscape", "out", "page", "quiet", "as_json", "earlier"),
}


def _create(
    request: Request,
    names: list[str],
    ranges: list[str],
    out: Path | None,
    earlier: list[Path],
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
        from models.devices import find_devices
        from models.knobs import make_space

        space = make_space(names, ranges)
        find_devices(request.device)
        root = Path(request.data_root or default_root())
        prepare(request.data, root)
        request = replace(request, data_root=str(root))
        kind = request.data
    for name in request.searchers:  # options that an entry refuses are refused here
        entry_for(name, space, request.seed, request)
    request = replace(request, space=space.to_json())
    known, about = read_earlier(earlier, space, request)
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
    begin_with(store, known, about)
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
