"""Record a landscape: train every setting of a design, or take what a race has trained."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscapes.recorder import DesignSearcher, lattice, make_table, sobol
from landscapes.table import save_table
from scripts.errors import plain_errors, refuse_others, resumable
from scripts.stopping import Stopper, stopping_signals
from scripts.workers import TrainingRequest, start_workers
from tuner.files import CannotWriteError
from tuner.race import Race, enter
from tuner.reader import Snapshot, StudyReader, study_file, study_name
from tuner.seeding import checked_seed
from tuner.space import SearchSpace
from tuner.store import Store
from tuner.terminal import say

SEARCHER = "design"


@dataclass(frozen=True, kw_only=True)
class RecordRequest(TrainingRequest):
    """Everything that was asked for; kept in the study, so that a resume needs only its folder."""

    space: dict[str, Any]
    design: str  # "lattice:20,12" or "sobol:500"
    replicates: int
    seed: int
    out: str


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[
        Path | None, typer.Option(help="The npz to write; its card goes beside it.")
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Make it of a race's trials; nothing is trained.")
    ] = None,
    knobs: Annotated[str, typer.Option(help="Which to vary.")] = "learning_rate,weight_decay",
    knob: Annotated[
        list[str] | None, typer.Option(help="A range or a choice, as for tune.py. Repeatable.")
    ] = None,
    design: Annotated[
        str, typer.Option(help="lattice:20,12 (values of each knob) or sobol:500 (settings).")
    ] = "lattice:20,12",
    epochs: Annotated[int, typer.Option(help="Full length of a training.")] = 12,
    replicates: Annotated[int, typer.Option(help="How often to train each setting.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the first replicate.")] = 0,
    data: Annotated[str, typer.Option(help="As for tune.py.")] = "sample",
    data_root: Annotated[Path | None, typer.Option(help="As for tune.py.")] = None,
    augment: Annotated[bool, typer.Option(help="As for tune.py.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    slots: Annotated[int | None, typer.Option(help="Trials at once on each device.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the study is kept. Default: runs/record-NAME.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the study in this folder.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Train a design and write it as a landscape that tune.py --landscape can replay."""
    console = Console()
    with plain_errors("record"):
        if from_run is not None:
            refuse_others(context, {"from_run", "out"}, "--from")
            study = study_file(from_run)
            _convert(study, out or Path(f"{study_name(study)}.npz"), console)
            return
        if resume is not None:
            refuse_others(context, {"resume", "quiet"}, "--resume")
            folder = resume
            store, request = _reopen(resume)
        else:
            if out is None:
                raise ValueError("--out is missing: the npz to write, such as my_landscape.npz")
            _check_out(out)
            for flag, value in (
                ("--epochs", epochs),
                ("--replicates", replicates),
                ("--slots", slots),
            ):
                if value is not None and value < 1:
                    raise ValueError(f"{flag} is at least 1, got {value}")
            for one in (seed, seed + replicates - 1):
                checked_seed(one, "--seed")
            request = RecordRequest(
                device=device,
                slots=slots,
                data=data,
                data_root=str(data_root or ""),
                epochs=epochs,
                augment=augment,
                space=_space(knobs, knob or []).to_json(),
                design=design,
                replicates=replicates,
                seed=seed,
                out=str(out.resolve()),  # a resume may come from another folder
            )
            folder = folder or Path("runs") / f"record-{out.stem}"
            store, request = _create(request, folder)
        with (
            resumable(folder, store, console),
            stopping_signals() as stopper,
            ExitStack() as stack,
        ):
            _record(stack, store, request, folder, console, quiet, stopper)


def _space(knobs: str, ranges: list[str]) -> SearchSpace:
    from models.knobs import make_space

    space = make_space([n.strip() for n in knobs.split(",") if n.strip()], ranges)
    if space.conditions:
        raise ValueError(
            f"there is not always a {', '.join(space.conditions)}, and a recording's knobs are "
            "always there; leave it out, or fix what it hangs on"
        )
    return space


def _convert(run: Path, path: Path, console: Console) -> None:
    """Make a landscape of what a race has trained."""
    _check_out(path)
    snapshot = Snapshot(run)  # of a running study too
    try:
        request = dict(snapshot.request())
        if "command" in request:
            raise ValueError(f"{run} is a command's: its scores are what that says, no accuracy")
        if request.get("landscape"):
            raise ValueError(
                f"{run} is itself a replay, of {request['landscape']}; record training"
            )
        _write(snapshot, path, request, console)
    finally:
        snapshot.close()


def _reopen(folder: Path) -> tuple[Store, RecordRequest]:
    store = Store(folder / "study.sqlite", create=False)
    kept = store.meta("request")
    if not isinstance(kept, dict) or "design" not in kept:
        store.close()
        raise ValueError(f"{folder} holds no recording that can be resumed")
    return store, RecordRequest(**kept)


def _create(request: RecordRequest, folder: Path) -> tuple[Store, RecordRequest]:
    """Check what can be checked without a device, and make the study."""
    from models.data import default_root, prepare

    space = SearchSpace.from_json(request.space)
    _design(request.design, space, request.seed)
    root = Path(request.data_root or default_root())
    request = replace(request, data=prepare(request.data, root), data_root=str(root))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error}") from error
    store = Store(folder / "study.sqlite", create=True)
    try:
        store.set_meta("request", vars(request))
        for replicate in range(request.seed, request.seed + request.replicates):
            store.add_run(SEARCHER, replicate, space, request.epochs, None)
        store.commit(force=True)
    except CannotWriteError:  # nothing has been trained yet
        store.discard()
        raise
    return store, request


def _check_out(path: Path) -> None:
    if path.suffix != ".npz":
        raise ValueError(f"a landscape's file ends in .npz, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists already; choose another place")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"there is no folder {path.resolve().parent}")


def _design(text: str, space: SearchSpace, seed: int) -> list[dict[str, Any]]:
    """The settings that `lattice:20,12` or `sobol:500` means."""
    kind, _, counts = text.partition(":")
    numbers = [part.strip() for part in counts.split(",")]
    if kind not in ("lattice", "sobol") or not all(n.isascii() and n.isdigit() for n in numbers):
        raise ValueError(
            f"a design is lattice:A,B,… with a count for each knob, or sobol:N, got {text!r}"
        )
    if kind == "lattice":
        return lattice(space, [int(n) for n in numbers])
    if len(numbers) > 1:
        raise ValueError(f"a Sobol design has one number of settings, got {text!r}")
    return sobol(space, int(numbers[0]), seed)


def _record(
    stack: ExitStack,
    store: Store,
    request: RecordRequest,
    folder: Path,
    console: Console,
    quiet: bool,
    stopper: Stopper,
) -> None:
    from tuner.workers.runner import WorkerRunner

    space = SearchSpace.from_json(request.space)
    settings = _design(request.design, space, request.seed)
    pool, _ = start_workers(stack, store, request, folder, None if quiet else console)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet,
        refresh_per_second=2,
    )
    total = len(settings) * request.replicates * request.epochs
    task = bar.add_task(f"{len(settings)} settings × {request.replicates}", total=total)

    def on_change() -> None:
        bar.update(task, completed=sum(r.scheduler.history.epochs_seen for r in race.runs))

    race = Race(
        [
            enter(
                store,
                row,
                DesignSearcher(settings),
                WorkerRunner(pool, f"{row.searcher}-{row.seed}"),
                is_replay=False,
                on_change=on_change,
            )
            for row in store.runs()
        ],
        shares_device=False,  # one replicate after the other
    )
    with bar:
        stopper.go(race, race.go)
    stopper.check()
    _write(store, Path(request.out), store.meta("request"), console)


def _write(store: StudyReader, path: Path, request: dict[str, Any], console: Console) -> None:
    rows = store.runs()
    trials = [store.trials(row) for row in rows]
    epochs = max((t.epoch for some in trials for t in some), default=0)
    card = _card(store, request)
    space, epochs = rows[0].space, rows[0].max_epochs or epochs
    table = make_table(path.stem, space, epochs, trials, card, [row.seed for row in rows])
    save_table(path, table)
    n, r, e = table.scores.shape
    size = path.stat().st_size / 1e6
    say(console, f"{n} settings, {r} replicate(s), {e} epochs are in {path} ({size:.2f} MB)")


def _card(store: StudyReader, request: dict[str, Any]) -> dict[str, Any]:
    """Where a recording is from: device, versions, data, design, seeds, date."""
    rows = store.runs()
    machine, data = store.meta("machine"), request.get("data")
    if machine is None:  # of somebody's own function: nothing more is known
        return {
            "about": "Made of the trials of a study.",
            "badge": "of a study, device unknown",
            "searchers": sorted({row.searcher for row in rows}),
            "seeds": sorted({row.seed for row in rows}),
        }
    return {
        "about": f"Recorded from real training on {data}.",
        "badge": f"recorded on {machine['device']}, {machine['date']}",
        **machine,
        "data": data,
        "augment": request.get("augment"),
        "model": "tuner's CNN; knobs that are not varied are at their defaults",
        "design": request.get("design", "the trials of a race"),
        "searchers": sorted({row.searcher for row in rows}),
        "seeds": sorted({row.seed for row in rows}),
        "layout": request.get("layout"),
    }


if __name__ == "__main__":
    app()
