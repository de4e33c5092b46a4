"""What `tune.py` does once it knows its flags: the checks, the run's folder, the last words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from landscapes.registry import open_landscape
from scripts.command_request import CommandRequest
from scripts.earlier import begin_with, check_folders, read_earlier
from scripts.errors import resumable
from scripts.racing import Request, entry_for, run_race
from scripts.stopping import Stopped, stopping_signals
from tuner.budget import budget_ns
from tuner.entry import Entry
from tuner.files import CannotWriteError
from tuner.importance import in_words
from tuner.seeding import checked_seed
from tuner.store import Store
from tuner.terminal import closing_table, earlier_lines, luck_lines, pace_line, say, stop_lines

_REPLAY_COMMIT_S = 0.5


def create(
    request: dict[str, Any],
    searchers: str,
    fidelity: str,
    knobs: str,
    ranges: list[str],
    out: Path | None,
    earlier: list[Path],
) -> tuple[Store, Request, Path]:
    """A new study, what was asked for and the run's folder; ValueError where that cannot be."""
    asked = Request(**request, searchers=entries(searchers, fidelity), space={})
    check_request(asked)
    check_folders(earlier, out)
    asked, store, folder = _create(asked, _split(knobs), ranges, out, earlier)
    return store, asked, folder


def create_model(
    request: dict[str, Any],
    searcher: str,
    knobs: str,
    ranges: list[str],
    out: Path | None,
) -> tuple[Store, Request, Path]:
    """The same for a search whose winner becomes a model, within the same minutes."""
    from models.data import title

    if len(entries(searcher, "full")) != 1:
        raise ValueError(f"--searcher is one, such as freeze-thaw, got {searcher!r}")
    folder = out or default_folder(f"model-{title(request['data'])}")
    request = {**request, "model": True, "defaults_first": True}
    return create(request, searcher, "full", knobs, ranges, folder, [])


def race(
    store: Store,
    request: Request,
    folder: Path,
    console: Console,
    *,
    is_quiet: bool,
    as_json: bool,
    page: bool,
) -> None:
    """Run it to its end, or to where a signal stops it well, and say what came of it."""
    for line in [] if is_quiet or as_json else store.meta("earlier") or []:
        say(console, line)
    with (
        resumable(folder, store, console),
        stopping_signals() as stopper,
        ExitStack() as stack,
    ):
        server = stack.enter_context(with_page(folder)) if page else None
        run_race(stack, store, request, folder, console, is_quiet or as_json, stopper)
        _tell(folder, console, as_json)
        if server is not None and console.is_terminal:
            console.print("The page stays until Ctrl-C.")
            with suppress(Stopped):
                server.wait()


def entries(searchers: str, fidelity: str) -> list[str]:
    """The entries that a list of names stands for, each with a fidelity."""
    return [_with_fidelity(name, fidelity) for name in _split(searchers)]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _with_fidelity(name: str, fidelity: str) -> str:
    """An entry by the name that the user gave it, where that says all."""
    entry = Entry.parse(name, fidelity)
    return name if entry == Entry.parse(name) else str(entry)


def check_request(request: Request | CommandRequest) -> None:
    """Raise ValueError where a number of what was asked for makes no sense."""
    if not request.searchers:
        raise ValueError("--searchers needs at least one name, such as grid,random,bayes")
    entries = [str(Entry.parse(name)) for name in request.searchers]
    if len(set(entries)) < len(entries):
        raise ValueError(f"--searchers names one twice: {','.join(request.searchers)}")
    for flag, value in (("--seeds", request.seeds), ("--epochs", request.epochs)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} is at least 1, got {value}")
    if request.shared_start < 0:
        raise ValueError(f"--shared-start is at least 0, got {request.shared_start}")
    if request.confirm < 0:
        raise ValueError(f"--confirm is at least 0, got {request.confirm}")
    if request.slots is not None and request.slots < 1:
        raise ValueError(f"--slots is at least 1, got {request.slots}")
    # 53 bits: what the readers of summary.json and the page can hold exactly.
    checked_seed(request.seed, "--seed", bits=53)
    checked_seed(request.seed + request.seeds - 1, "--seed, with all --seeds,", bits=53)
    budget_ns(request.budget_minutes, "--budget-minutes")


@contextmanager
def with_page(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
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
    say(console, summary["verdict"]["text"])
    say(console, in_words(summary["importance"]))
    for line in luck_lines(summary) + stop_lines(summary) + earlier_lines(summary):
        say(console, line)
    for name, rung in summary["first_rungs"].items():
        if rung["warning"]:
            say(console, f"{name}: {rung['warning']}")
    fallbacks = sum(run["fallbacks"] for run in summary["runs"])
    if fallbacks:
        console.print(
            f"{fallbacks} proposal(s) did not come from their searcher's model; the "
            "reason is in trials.csv.",
            soft_wrap=True,
        )
    say(console, _minutes_note(summary))
    if not summary["landscape"]:
        say(console, pace_line(summary))
    say(console, f"Everything is in {folder}/")


def _create(
    request: Request,
    names: list[str],
    ranges: list[str],
    out: Path | None,
    earlier: list[Path],
) -> tuple[Request, Store, Path]:
    """Check what can be checked without a device, and make the run's folder and study."""
    if out is not None:
        check_out(out)
    if request.landscape is not None:
        where = request.landscape
        if where.endswith((".npz", ".onnx")):
            where = str(Path(where).resolve())  # a resume may come from another folder
        terrain = open_landscape(where)
        space, kind = terrain.space, f"replay-{terrain.name}"
        changes = {"landscape": where, "epochs": terrain.epochs, "data": None, "device": "replay"}
        request = replace(request, **changes)
    else:
        from models.data import default_root, prepare, title
        from models.knobs import make_space

        space = make_space(names, ranges)
        request.kinds()  # which refuses a device that is not there
        root = Path(request.data_root or default_root())
        request = replace(request, data=prepare(request.data, root), data_root=str(root))
        kind = title(request.data)
    for name in request.searchers:  # options that an entry refuses are refused here
        entry_for(name, space, request.seed, request)
    request = replace(request, space=space.to_json())
    known, about = read_earlier(earlier, space, request)
    folder = out or default_folder(kind)
    check_out(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error}") from error
    store = Store(folder / "study.sqlite", create=True, commit_every_s=_commit_every(request))
    try:
        store.set_meta("request", vars(request))
        for seed in range(request.seed, request.seed + request.seeds):
            for name in request.searchers:
                store.add_run(name, seed, space, request.epochs, budget_ns(request.budget_minutes))
        begin_with(store, known, about)
        store.commit(force=True)
    except CannotWriteError:  # nothing has been trained yet
        store.discard()
        raise
    return request, store, folder


def default_folder(kind: str) -> Path:
    """Where a run lies for which nobody named a folder."""
    return Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_out(folder: Path) -> None:
    """Raise ValueError where there is something in the folder already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} is not an empty folder; choose another --out, or --resume {folder}"
        )


def reopen_model(folder: Path) -> tuple[Store, Request]:
    """The search for a model in a folder, and what was asked for."""
    store, request = reopen(folder, None, is_model=True)
    if isinstance(request, CommandRequest):  # which no search for a model has
        raise ValueError(f"{folder} holds a command's search")
    return store, request


def reopen(
    folder: Path,
    budget_minutes: float | None,
    cluster: str | None = None,
    *,
    is_model: bool = False,
) -> tuple[Store, Request | CommandRequest]:
    """The study in a folder and what was asked for.

    Only the budget, and where the cluster is, may be another.
    """
    store = Store(folder / "study.sqlite", create=False)
    try:
        kept = store.meta("request")
        if kept is None and not store.runs():
            raise ValueError(
                f"the run in {folder} was ended before it had begun, and holds nothing; delete the "
                "folder, or choose another --out"
            )
        if not isinstance(kept, dict):
            raise ValueError(f"{folder} holds a study, but not a race that can be resumed")
        if "design" in kept:
            raise ValueError(f"{folder} was begun by record.py; go on with record.py --resume")
        if is_model != kept.get("model", False):
            script = "tune.py" if is_model else "automl.py"
            raise ValueError(f"{folder} was begun by {script}; go on with {script} --resume")
        request = CommandRequest(**kept) if "command" in kept else Request(**kept)
        if cluster is not None:
            if request.cluster is None:
                raise ValueError(
                    f"the run in {folder} was begun on no cluster; leave out --cluster"
                )
            request = replace(request, cluster=cluster)
            store.set_meta("request", vars(request))
        if budget_minutes is not None:
            request = replace(request, budget_minutes=budget_minutes)
            check_request(request)
            store.set_meta("request", vars(request))
            for row in store.runs():
                store.set_budget(row.id, budget_ns(budget_minutes))
            store.commit(force=True)
    except TypeError as error:
        store.close()
        raise ValueError(f"{folder} holds a race of another version: {error}") from error
    except (ValueError, CannotWriteError):
        store.close()
        raise
    store.commit_every_s = _commit_every(request)
    return store, request


def _commit_every(request: Request | CommandRequest) -> float:
    is_replay = isinstance(request, Request) and request.landscape is not None
    return _REPLAY_COMMIT_S if is_replay else 0.0


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
