"""Sheets between a tuner and a lab: CSV files with experiments to do, and with what they gave.

A sheet that somebody filled in is taken as a whole or not at all. Everything that does not fit is
said at once, each with its line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.cells import number_of, parse, shown, unescaped
from tuner.escape import in_csv, visible
from tuner.foreign import read_capped
from tuner.space import Choice, Config, SearchSpace
from tuner.trial import Trial, TrialState

_MOST_BYTES = 8 << 20
_LONGEST_CELL = 2_000
_MOST_TOLD = 8  # of the rows that do not fit
_ROUNDED = 0.01  # of a knob's range: what a spreadsheet may round away
_STATES = {
    state.name.lower(): state
    for state in (TrialState.COMPLETED, TrialState.FAILED, TrialState.INFEASIBLE)
}
_RESULT_COLUMNS = ("score", "state", "reason", "minutes")


@dataclass(frozen=True)
class Result:
    """What an experiment gave, as a row of a sheet says; `score` is None where it has none."""

    trial: int
    score: float | None
    state: TrialState
    reason: str
    minutes: float


@dataclass(frozen=True)
class Measurement:
    """A result from before: a configuration of the space, and its score."""

    config: Config
    score: float


@dataclass(frozen=True)
class Sheet:
    """The cells of a CSV file as text: of each row the line on which it ends, and its cells."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str]]]

    def unread(self, known: set[str]) -> list[str]:
        """The columns that are none of `known`."""
        return [name for name in self.columns if name and name not in known]


# -- what is written -------------------------------------------------------------------------------


def blank_sheet(space: SearchSpace, trials: Sequence[Trial]) -> str:
    """A sheet of experiments, a row each with exact values, and empty columns for the results.

    Raises ValueError where a knob has the name of one of those columns.
    """
    told = result_columns(space)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", *map(in_csv, space), *told])
    for trial in trials:
        knobs = [in_csv(trial.config[name]) for name in space]
        writer.writerow([trial.number, *knobs, *("" for _ in told)])
    return text.getvalue()


# -- what is read ----------------------------------------------------------------------------------


def read_sheet(path: Path, needed: Sequence[str]) -> Sheet:
    """The rows of a CSV file whose header has at least the columns `needed`.

    Cells are separated by commas, semicolons or tabs, whichever the header has most of.

    Raises ValueError where it is no such file.
    """
    data = read_capped(path, _MOST_BYTES)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16 text; save it as CSV in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].count(b"\n")
        raise ValueError(f"{path}, line {line}, is not UTF-8; save it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [unescaped(cell.strip()) for cell in next(lines, [])]
        _check_columns(path, columns, needed)
        rows = []
        for cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append((lines.line_num, _row(path, lines.line_num, columns, cells)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num}, is no CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    return Sheet(path, columns, rows)


def read_results(sheet: Sheet, space: SearchSpace, trials: Sequence[Trial]) -> list[Result]:
    """What the rows of a sheet say of these trials, of which each waits or has ended.

    A row without a score and a state is passed over: that experiment is still to be done.

    Raises ValueError, with the lines, where a row does not fit.
    """
    told = result_columns(space)
    found: list[Result] = []
    problems: list[str] = []
    lines: dict[int, int] = {}
    for line, cells in sheet.rows:
        try:
            trial = _waiting(cells["trial"], trials)
            first = lines.setdefault(trial.number, line)
            if first != line:
                raise ValueError(f"trial {trial.number} is on line {first} already")
            _check_same(trial.config, space, cells)
            result = _result(trial.number, {name: cells.get(name, "") for name in told})
        except ValueError as error:
            problems.append(f"line {line}: {error}")
        else:
            found += [] if result is None else [result]
    _refuse(sheet.path, problems)
    return found


def read_measurements(sheet: Sheet, space: SearchSpace, score: str) -> list[Measurement]:
    """The rows of a sheet with a column for each knob and one for the score.

    Raises ValueError, with the lines, where a row does not fit.
    """
    found, problems = [], []
    for line, cells in sheet.rows:
        try:
            config = {
                name: None
                if name in space.conditions and not cells[name]
                else parse(name, d, cells[name])
                for name, d in space.items()
            }
            space.check(config)
            found.append(Measurement(config, number_of(cells[score], score)))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    _refuse(sheet.path, problems)
    return found


# -- parts -----------------------------------------------------------------------------------------


def result_columns(space: SearchSpace) -> list[str]:
    """The columns of a sheet in which results are told; minutes may be a knob's instead.

    Raises ValueError where a knob has the name of another one.
    """
    taken = [name for name in ("trial", *_RESULT_COLUMNS) if name in space and name != "minutes"]
    if taken:
        raise ValueError(
            f"a sheet has a column {taken[0]} of its own, and so it can have no such knob"
        )
    return [name for name in _RESULT_COLUMNS if name not in space]


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    named = [name for name in columns if name]
    for name in named:
        if named.count(name) > 1:
            raise ValueError(f"{path} has the column {visible(name, 60)!r} twice")
    missing = [name for name in needed if name not in named]
    if missing:
        there = ", ".join(visible(name, 60) for name in named[:20]) or "none"
        raise ValueError(f"{path} has no column {', '.join(missing)}; its first line has: {there}")


def _row(path: Path, line: int, columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ValueError(f"{path}, line {line}: {len(cells)} cells under {len(columns)} columns")
    longest = max(map(len, cells))
    if longest > _LONGEST_CELL:
        raise ValueError(
            f"{path}, line {line}: a cell of {longest:,} characters; at most {_LONGEST_CELL:,}"
        )
    return dict(zip(columns, (cell.strip() for cell in cells), strict=True))


def _waiting(text: str, trials: Sequence[Trial]) -> Trial:
    number = number_of(text, "trial")
    if number != int(number) or not 0 <= number < len(trials):
        raise ValueError(f"there is no trial {visible(text, 60)}")
    trial = trials[int(number)]
    if trial.state.is_final:
        raise ValueError(f"trial {trial.number} has its result already: {trial.state.name}")
    return trial


def _check_same(config: Config, space: SearchSpace, cells: Mapping[str, str]) -> None:
    """Refuse a row whose knobs are another experiment's: sheets get sorted by one column."""
    for name, domain in space.items():
        if not cells.get(name):
            continue
        if not space.is_there(name, config):
            raise ValueError(f"there is no {name} in this experiment; leave its cell empty")
        value = parse(name, domain, cells[name])
        apart = abs(domain.to_unit(value) - domain.to_unit(config[name]))
        if apart > (0 if isinstance(domain, Choice) else _ROUNDED):
            raise ValueError(
                f"{name} is {visible(cells[name], 60)} here and {shown(config[name], domain)} was "
                "asked for; an experiment at other values is imported, not told"
            )


def _result(number: int, cells: Mapping[str, str]) -> Result | None:
    score, word = cells["score"], cells["state"].lower()
    reason = unescaped(cells["reason"])
    if not score and not word:
        if reason:
            raise ValueError("a reason and no score; say in the column state: failed or infeasible")
        return None
    state = _STATES.get(word or "completed")
    if state is None:
        raise ValueError(f"state is {', '.join(_STATES)} or empty, got {visible(word, 60)!r}")
    if state is not TrialState.COMPLETED and score:
        raise ValueError(f"an experiment that is {word} has no score, got {visible(score, 60)!r}")
    minutes = number_of(cells.get("minutes") or "0", "minutes")
    if minutes < 0:
        raise ValueError(f"minutes are a number from 0 up, got {minutes:g}")
    told = number_of(score, "score") if state is TrialState.COMPLETED else None
    return Result(number, told, state, reason, minutes)


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _MOST_TOLD
        told = "; ".join(problems[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")
        rows = "1 row does" if len(problems) == 1 else f"{len(problems)} rows do"
        raise ValueError(f"{path}: {rows} not fit, so nothing was taken: {told}")
