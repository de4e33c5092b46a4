"""Trials that are a person's work: ask for some, and tell what they gave, days later."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tuner.space import Config, SearchSpace
    from tuner.study import Study
    from tuner.trial import Trial

_MOST_CSV = 16 << 20
_FINAL = ("completed", "failed", "infeasible")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Place = Annotated[Path, typer.Argument(metavar="STUDY", help="A folder, or an .sqlite file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Exact values, for a program.")]


@app.command()
def ask(
    study: Place,
    count: Annotated[int, typer.Option("-q", "--count", help="How many, to do at once.")] = 1,
    space: Annotated[
        Path | None, typer.Option(help="The first time: a TOML file of the knobs.")
    ] = None,
    searcher: Annotated[str, typer.Option(help="The first time: who proposes.")] = "bayes",
    seed: Annotated[int, typer.Option(help="The first time: the searcher's seed.")] = 0,
    mode: Annotated[str, typer.Option(help="The first time: max, or min for a loss.")] = "max",
    sheet: Annotated[Path | None, typer.Option(help="Also write them as a CSV to fill in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask for experiments: different from each other, and from all that still wait."""
    from scripts.errors import plain_errors

    with plain_errors("ask"):
        if count < 1:
            raise ValueError(f"-q is at least 1, got {count}")
        path = _path(study)
        found = _open(path) if path.exists() else _create(path, space, searcher, seed, mode)
        with found:
            asked = _ask(found, count)
            if sheet is not None:
                _write_sheet(sheet, asked, found.space)
            _show(asked, found, as_json)


@app.command()
def tell(
    study: Place,
    number: Annotated[int | None, typer.Argument(help="The experiment's.")] = None,
    score: Annotated[float | None, typer.Option(help="What it gave.")] = None,
    failed: Annotated[
        str | None, typer.Option(help="It went wrong, and not by its setting: why.")
    ] = None,
    infeasible: Annotated[str | None, typer.Option(help="Its setting cannot be done: why.")] = None,
    minutes: Annotated[float, typer.Option(help="What it took, where you count that.")] = 0.0,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Many: columns trial and score, perhaps state, reason, minutes."
        ),
    ] = None,
) -> None:
    """Tell what experiments gave. Of a sheet all are taken, or, with a mistake in it, none."""
    from scripts.errors import plain_errors

    with plain_errors("tell"), _open(_path(study)) as found:
        if (number is None) == (sheet is None):
            raise ValueError("tell needs an experiment's number and what it gave, or --csv FILE")
        if sheet is not None:
            results = _not_told_yet(_read_results(sheet), found)
        else:
            results = [_result(number or 0, score, failed, infeasible, minutes)]
        _tell_all(found, results)
        left = len([t for t in found.trials if not t.state.is_final])
        print(f"{len(results)} told, {left} waiting")


@app.command()
def best(study: Place, as_json: AsJson = False) -> None:
    """The best experiment so far."""
    from scripts.errors import plain_errors

    with plain_errors("best"), _open(_path(study)) as found:
        if found.best is None:
            raise ValueError("nothing has been told yet that has a score")
        _show([found.best], found, as_json)


@app.command("list")
def list_all(
    study: Place,
    everything: Annotated[bool, typer.Option("--all", help="Those that were told too.")] = False,
    as_json: AsJson = False,
) -> None:
    """The experiments that wait for a result."""
    from scripts.errors import plain_errors

    with plain_errors("list"), _open(_path(study)) as found:
        shown = [t for t in found.trials if everything or not t.state.is_final]
        _show(shown, found, as_json)


@app.command("import")
def import_results(
    study: Place,
    table: Annotated[Path, typer.Argument(help="A CSV: a column for each knob, and the score.")],
    score: Annotated[str, typer.Option(help="The name of the score's column.")] = "score",
    space: Annotated[
        Path | None, typer.Option(help="For a new study: a TOML file of the knobs.")
    ] = None,
    searcher: Annotated[str, typer.Option(help="For a new study: who proposes.")] = "bayes",
    seed: Annotated[int, typer.Option(help="For a new study: the searcher's seed.")] = 0,
    mode: Annotated[str, typer.Option(help="For a new study: max, or min for a loss.")] = "max",
) -> None:
    """Take results from before; all rows, or, with a mistake in one, none."""
    from scripts.errors import plain_errors

    with plain_errors("import"):
        path = _path(study)
        wanted = _space_of(path, space)
        results = _read_earlier(table, score, wanted)
        found = _open(path) if path.exists() else _create(path, space, searcher, seed, mode)
        with found:
            for config, value in results:
                found.add(config, value)
        print(f"{len(results)} taken over")


# -- studies -------------------------------------------------------------------------------------


def _path(place: Path) -> Path:
    return place if place.suffix == ".sqlite" else place / "study.sqlite"


def _create(path: Path, space: Path | None, searcher: str, seed: int, mode: str) -> Study:
    from tuner.space_file import read_space
    from tuner.study import Study

    if space is None:
        raise ValueError(f"there is no study at {path}; a new one needs --space FILE")
    knobs = read_space(space)
    Study(knobs, searcher, seed, mode=mode)  # what makes no sense is refused before it is made
    path.parent.mkdir(parents=True, exist_ok=True)
    return Study(knobs, searcher, seed, path, mode=mode)


def _open(path: Path) -> Study:
    """The study as it was made."""
    from tuner.reader import Snapshot
    from tuner.study import Study

    snapshot = Snapshot(path)  # ValueError where there is none
    try:
        rows, mode, is_race = snapshot.runs(), snapshot.meta("mode"), bool(snapshot.request())
    finally:
        snapshot.close()
    if len(rows) != 1 or is_race:
        raise ValueError(f"{path} is a race that devices train, not a study that is asked and told")
    row = rows[0]
    return Study(
        row.space, row.searcher, row.seed, path, mode=mode or "max", max_epochs=row.max_epochs
    )


def _space_of(path: Path, space: Path | None) -> SearchSpace:
    from tuner.space_file import read_space

    if path.exists():
        with _open(path) as found:
            return found.space
    if space is None:
        raise ValueError(f"there is no study at {path}; a new one needs --space FILE")
    return read_space(space)


def _ask(study: Study, count: int) -> list[Trial]:
    """So many, or those that a finite space has left."""
    from tuner.searchers.base import SpaceExhausted

    asked: list[Trial] = []
    with suppress(SpaceExhausted):
        while len(asked) < count:
            asked.append(study.ask())
    if not asked:
        raise ValueError("the space has nothing left that was not asked for")
    if len(asked) < count:
        print(f"the space had only {len(asked)} left", file=sys.stderr)
    return asked


# -- results ---------------------------------------------------------------------------------------


def _result(
    number: int, score: float | None, failed: str | None, infeasible: str | None, minutes: float
) -> dict[str, Any]:
    """What `Study.tell` takes."""
    said = [what for what in (score, failed, infeasible) if what is not None]
    if len(said) != 1:
        raise ValueError("say one of --score, --failed WHY and --infeasible WHY")
    state = "completed" if score is not None else "failed" if failed is not None else "infeasible"
    reason = failed or infeasible or ""
    return {"number": number, "score": score, "minutes": minutes, "state": state, "reason": reason}


def _tell_all(study: Study, results: list[dict[str, Any]]) -> None:
    """Tell all results, or none where one of them is no such: they are looked at first."""
    waiting = {t.number for t in study.trials if not t.state.is_final}
    for result in results:
        number, score = result["number"], result["score"]
        if number not in waiting:
            raise ValueError(
                f"experiment {number} does not wait for a result; those that do: "
                f"{', '.join(map(str, sorted(waiting))) or 'none'}"
            )
        waiting.discard(number)
        if result["state"] == "completed" and (score is None or not math.isfinite(score)):
            raise ValueError(f"experiment {number}: a score is a finite number, got {score}")
        if not (math.isfinite(result["minutes"]) and result["minutes"] >= 0):
            raise ValueError(f"experiment {number}: minutes are 0 or more, got {result['minutes']}")
    for result in results:
        study.tell(**result)


def _rows(path: Path, needed: list[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV, each with its line; ValueError where it is none, or lacks a column."""
    from tuner.foreign import read_capped

    try:
        text = read_capped(path, _MOST_CSV).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV in UTF-8: {error}") from error
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    return [(line, {k: v or "" for k, v in row.items() if k is not None}) for line, row in rows]


def _read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a sheet that say something; those that are not filled in yet still wait."""
    results = []
    for line, row in _rows(path, ["trial", "score"]):
        state = row.get("state", "").strip().lower()
        if not row["score"].strip() and not state:
            continue
        try:
            if (state or "completed") not in _FINAL:
                raise ValueError(f"a state is one of {', '.join(_FINAL)}, got {state!r}")
            results.append(
                {
                    "number": int(row["trial"]),
                    "score": float(row["score"]) if row["score"].strip() else None,
                    "minutes": float(row.get("minutes") or 0.0),
                    "state": state or "completed",
                    "reason": row.get("reason", ""),
                }
            )
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}; nothing was told") from error
    return results


def _not_told_yet(results: list[dict[str, Any]], study: Study) -> list[dict[str, Any]]:
    """Without those that were told just so before: a sheet is filled in bit by bit."""
    told = {(t.number, t.state.name.lower(), t.score) for t in study.trials if t.state.is_final}
    return [r for r in results if (r["number"], r["state"], r["score"]) not in told]


def _read_earlier(path: Path, score: str, space: SearchSpace) -> list[tuple[Config, float]]:
    found = []
    for line, row in _rows(path, [*space, score]):
        try:
            config = {name: _value(domain, row[name]) for name, domain in space.items()}
            space.check(config)
            value = float(row[score])
            if not math.isfinite(value):
                raise ValueError(f"a score is a finite number, got {row[score]}")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}; nothing was taken over") from error
        found.append((config, value))
    return found


def _value(domain: Any, text: str) -> Any:
    """A cell as a knob has it."""
    from tuner.space import Choice, Int

    if isinstance(domain, Choice):
        by_text = {str(option): option for option in domain.options}
        if text not in by_text:
            raise ValueError(f"{text[:40]!r} is none of {', '.join(by_text)}")
        return by_text[text]
    return int(text) if isinstance(domain, Int) else float(text)


# -- showing ---------------------------------------------------------------------------------------


def _write_sheet(path: Path, trials: list[Trial], space: SearchSpace) -> None:
    from tuner.escape import in_csv
    from tuner.files import write_atomically

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *map(in_csv, space), "score", "state", "reason"])
    for t in trials:
        writer.writerow([t.number, *(in_csv(t.config[name]) for name in space), "", "", ""])
    write_atomically(path, text.getvalue())


def _show(trials: list[Trial], study: Study, as_json: bool) -> None:
    if as_json:
        shown = [
            {"trial": t.number, "config": dict(t.config), "score": t.score, "state": t.state.name}
            for t in trials
        ]
        print(json.dumps(shown))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tuner.escape import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("trial", *study.space, "score", "state"):
        table.add_column(Text(visible(title)))
    for t in trials:
        values = [_digits(t.config[name]) for name in study.space]
        score = "" if t.score is None else f"{t.score:.6g}"
        state = t.state.name.lower() if t.state.is_final else "waiting"
        cells = (str(t.number), *values, score, state)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    Console().print(table)


def _digits(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
