"""Where every trial is a person's work: ask for experiments, tell what they gave, days later.

`scripts/tune.py` hands over to here for `ask`, `tell`, `best`, `import` and `list`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuner.study import Study

COMMANDS = ("ask", "tell", "best", "import", "list")
_MOST_AT_ONCE = 1_000

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Experiments that people do: ask for some, tell what they gave.",
)

Place = Annotated[Path, typer.Argument(help="A folder, such as runs/NAME, or an .sqlite file.")]
SpaceFile = Annotated[
    Path | None, typer.Option(help="A new study: its knobs, as a TOML file (docs/lab.md).")
]
Searcher = Annotated[str | None, typer.Option(help="A new study: who proposes. Default: bayes.")]
Seed = Annotated[int | None, typer.Option(help="A new study: the searcher's seed. Default: 0.")]
Mode = Annotated[
    str | None,
    typer.Option(help="A new study: max, or min where a lower score is better. Default: max."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with exact values.")]
ToSheet = Annotated[
    Path | None, typer.Option("--csv", help="Also write a sheet to fill in; a new file.")
]


@app.command()
def ask(
    study: Place,
    q: Annotated[int, typer.Option("-q", help="How many experiments.")] = 1,
    space: SpaceFile = None,
    searcher: Searcher = None,
    seed: Seed = None,
    mode: Mode = None,
    as_json: AsJson = False,
    sheet: ToSheet = None,
) -> None:
    """Ask for experiments: different ones, chosen with all that still wait in mind."""
    from scripts.errors import plain_errors
    from scripts.lab_study import Wishes, ask_for, open_study
    from scripts.sheets import result_columns

    with plain_errors("tune ask"):
        if not 1 <= q <= _MOST_AT_ONCE:
            raise ValueError(f"-q is 1 to {_MOST_AT_ONCE:,}, got {q}")
        _check_new(sheet)
        with open_study(study, Wishes(space, searcher, seed, mode)) as opened:
            if sheet is not None:
                result_columns(opened.space)  # refused before anything is asked
            before = len(opened.history.running)
            asked = ask_for(opened, q)
            _show_experiments(opened.space, asked, as_json, sheet)
    if as_json:
        return
    if len(asked) < q:
        print(f"The space has no more: {len(asked)} of the {q} that were asked for.")
    for note in sorted({trial.note for trial in asked if trial.note}):
        print(f"Not all of the model's choice: {note}")
    if before:
        print(f"{before} more from before still wait{'s' if before == 1 else ''}: tune.py list")


@app.command()
def tell(
    study: Place,
    number: Annotated[int | None, typer.Argument(help="Of the trial.")] = None,
    score: Annotated[float | None, typer.Option(help="What it gave.")] = None,
    failed: Annotated[
        str | None, typer.Option(help="Why it gave nothing, where that is not its settings' fault.")
    ] = None,
    infeasible: Annotated[
        str | None, typer.Option(help="Why it gave nothing, where these settings cannot work.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="What it took.")] = 0.0,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Many at once: a CSV file with the columns trial, score and, if you like, state "
            "(completed, failed, infeasible), reason, minutes.",
        ),
    ] = None,
) -> None:
    """Tell what an experiment gave, or many at once: all of a sheet, or nothing."""
    from scripts.errors import plain_errors
    from scripts.lab_study import open_study, still, tell_sheet

    with plain_errors("tune tell"):
        given = [value for value in (score, failed, infeasible) if value is not None]
        if sheet is not None:
            if number is not None or given or minutes:
                raise ValueError("--csv tells all by itself; leave the number and other flags out")
            with open_study(study) as opened:
                for line in tell_sheet(opened, sheet):
                    print(line)
                _say_best(opened)
            return
        if number is None or len(given) != 1:
            raise ValueError(
                "tell needs a trial's NUMBER and one of --score, --failed and --infeasible, "
                "or --csv FILE"
            )
        with open_study(study) as opened:
            if score is not None:
                opened.tell(number, score, minutes)
            elif failed is not None:
                opened.tell(number, minutes=minutes, state="failed", reason=failed)
            else:
                opened.tell(number, minutes=minutes, state="infeasible", reason=infeasible or "")
            print(f"Trial {number} is told; {still(opened)}")
            _say_best(opened)


@app.command()
def best(study: Place, as_json: AsJson = False) -> None:
    """The best result so far, results from before included."""
    import json

    from scripts.cells import shown
    from scripts.errors import plain_errors
    from scripts.lab_study import read_only
    from tuner.escape import in_json, visible

    with plain_errors("tune best"):
        there = read_only(study)
        found = there.best
        if found is None:
            raise ValueError(f"{study} has no result yet: {there.counts}")
        if as_json:
            told = {"trial": found.number, "score": found.score, "config": dict(found.config)}
            print(in_json(json.dumps({**told, "source": found.source}, ensure_ascii=False)))
            return
        source = f", {visible(found.remark)}" if found.remark else ""
        print(f"The best is trial {found.number}{source}: {found.score:.6g}")
        for name, domain in there.space.items():
            print(f"  {visible(name, 60)} = {shown(found.config[name], domain)}")
        print(f"Of {there.counts}.")


@app.command(name="import")
def import_(
    study: Place,
    sheet: Annotated[Path, typer.Argument(help="A CSV file: a column for each knob, and scores.")],
    score: Annotated[str, typer.Option(help="The column with the scores.")],
    space: SpaceFile = None,
    searcher: Searcher = None,
    seed: Seed = None,
    mode: Mode = None,
) -> None:
    """Take in results from before: all rows of a sheet, or none."""
    from scripts.errors import plain_errors
    from scripts.lab_study import Wishes, import_sheet

    with plain_errors("tune import"):
        for line in import_sheet(study, Wishes(space, searcher, seed, mode), sheet, score):
            print(line)


@app.command(name="list")
def list_(study: Place, as_json: AsJson = False, sheet: ToSheet = None) -> None:
    """The experiments that wait for a result."""
    from scripts.errors import plain_errors
    from scripts.lab_study import read_only

    with plain_errors("tune list"):
        _check_new(sheet)
        there = read_only(study)
        if not there.waiting and not as_json:
            print(f"Nothing waits: {there.counts}.")
        else:
            _show_experiments(there.space, there.waiting, as_json, sheet)


def _check_new(sheet: Path | None) -> None:
    """A sheet may be half filled in: none is ever written over."""
    if sheet is not None and (sheet.exists() or sheet.is_symlink()):
        raise ValueError(f"{sheet} is there already; choose another file")
    if sheet is not None and not sheet.parent.is_dir():
        raise ValueError(f"there is no folder {sheet.parent}")


def _show_experiments(space, trials, as_json: bool, sheet: Path | None) -> None:  # type: ignore[no-untyped-def]
    import json

    from scripts.cells import in_columns
    from scripts.sheets import blank_sheet
    from tuner.escape import in_json
    from tuner.files import write_atomically

    if sheet is not None:
        write_atomically(sheet, blank_sheet(space, trials))
    if as_json:
        told = [{"trial": t.number, "config": dict(t.config)} for t in trials]
        print(in_json(json.dumps({"trials": told}, ensure_ascii=False)))
        return
    for line in in_columns(space, trials):
        print(line)


def _say_best(study: Study) -> None:
    best = study.best
    if best is not None:
        print(f"The best so far is trial {best.number}: {best.score:.6g}")
