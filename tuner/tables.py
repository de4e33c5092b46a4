"""The trials of a study as tables: for a CSV file and for pandas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.budget import to_minutes
from tuner.escape import in_csv
from tuner.trial import Trial

if TYPE_CHECKING:
    import pandas

EPOCH_COLUMNS = ("trial", "epoch", "score", "minutes")


def trial_columns(knobs: Iterable[str]) -> list[str]:
    """The columns of `trial_rows`."""
    return ["trial", "state", "epochs", "score", "minutes", *knobs, "reason"]


def trial_rows(trials: Iterable[Trial], knobs: Sequence[str]) -> Iterator[list[Any]]:
    """A row a trial: number, state, epochs, score, minutes, its knobs, and what is to be said."""
    for t in trials:
        values = [t.config[name] for name in knobs]
        minutes = to_minutes(t.paid_ns)
        yield [t.number, t.state.name, t.epoch, t.score, minutes, *values, t.remark]


def epoch_rows(trials: Iterable[Trial]) -> Iterator[list[Any]]:
    """A row an epoch: trial, epoch, score, and the minutes that the run had used by then."""
    for t in trials:
        for seen in t.curve:
            yield [t.number, seen.epoch, seen.score, to_minutes(seen.at_ns)]


def write_csv(path: Path, trials: Iterable[Trial], knobs: Sequence[str]) -> None:
    """Write `trial_rows` with a header; what a spreadsheet would run is shown to it as text."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in (trial_columns(knobs), *trial_rows(trials, knobs)):
            writer.writerow(map(in_csv, row))


def to_frame(trials: Iterable[Trial], knobs: Sequence[str], *, epochs: bool) -> pandas.DataFrame:
    """The same for pandas: a row a trial, or a row an epoch.

    Raises ValueError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ValueError("a frame needs pandas: pip install 'tuner[pandas]'") from error
    if epochs:
        return pandas.DataFrame(list(epoch_rows(trials)), columns=list(EPOCH_COLUMNS))
    return pandas.DataFrame(list(trial_rows(trials, knobs)), columns=trial_columns(knobs))
