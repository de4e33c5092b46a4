"""Reading a study: its tables, and a copy of them that disturbs nobody who is writing."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.budget import Budget, Kind
from tuner.space import SearchSpace
from tuner.trial import Checkpoint, Observation, Trial, TrialState

SCHEMA_VERSION = 1

_PATIENCE_S = 2.0
_STILL_S = 0.05  # far longer than a commit takes to write its pages

_SUM_CHARGES = (
    f"SELECT {', '.join(f'COALESCE(SUM({k.value}), 0)' for k in Kind)} "  # noqa: S608, an enum's names
    "FROM charge WHERE run = ?"
)


@dataclass(frozen=True)
class RunRow:
    """One search in the file: a searcher, its seed and its limits."""

    id: int
    searcher: str
    seed: int
    space: SearchSpace
    max_epochs: int | None
    budget_ns: int | None
    clock: int
    test_score: float | None
    tested: str | None  # the SHA-256 of the checkpoint that has this test score


class StudyReader:
    """Reads the tables of an open study."""

    _db: sqlite3.Connection
    path: Path

    def meta(self, key: str) -> Any:
        """The JSON value kept under `key`; None where there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def runs(self) -> list[RunRow]:
        """All runs in the order in which they were added."""
        rows = self._db.execute(
            "SELECT id, searcher, seed, space, max_epochs, budget_ns, clock, test_score, tested "
            "FROM run ORDER BY id"
        )
        return [
            RunRow(i, name, seed, SearchSpace.from_json(json.loads(space)), *rest)
            for i, name, seed, space, *rest in rows
        ]

    def trials(self, run: RunRow) -> list[Trial]:
        """The run's trials as recorded, by number."""
        found = []
        with self._reading():
            curves: dict[int, list[Observation]] = {}
            for number, epoch, score, device_ns, at_ns, metrics in self._db.execute(
                "SELECT number, epoch, score, device_ns, at_ns, metrics FROM observation "
                "WHERE run = ? ORDER BY number, epoch",
                (run.id,),
            ):
                observation = Observation(epoch, score, device_ns, at_ns, json.loads(metrics))
                curves.setdefault(number, []).append(observation)
            for row in self._db.execute(
                "SELECT number, config, seed, target, state, started_ns, granted, reserved_ns, "
                "clock, partial_ns, faults, reason, note, checkpoint, sha256, midway, "
                "midway_sha256 FROM trial WHERE run = ? ORDER BY number",
                (run.id,),
            ):
                found.append(_trial_of(row, tuple(curves.get(row[0], ()))))
        return found

    def budget(self, run: RunRow) -> Budget:
        """The run's pool with everything charged that was charged."""
        budget = Budget(run.budget_ns)
        with self._reading():
            sums = self._db.execute(_SUM_CHARGES, (run.id,)).fetchone()
        budget.charge(dict(zip(Kind, sums, strict=True)))
        return budget

    def _check(self) -> None:
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise ValueError(f"{self.path} is damaged: {problem}")
        version = self.meta("schema")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} was written in format {version}, this version reads up to "
                f"{SCHEMA_VERSION}; use the newer version that wrote it"
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error


class Snapshot(StudyReader):
    """A study as it was a moment ago, read from a copy of its file.

    SQLite's own readers lock the file, and a driver that wants to commit waits for them. Here no
    lock is taken: the bytes are copied, and the copy counts if nothing was being written, by the
    file's change counter and the length of its journal, while it was made.

    Raises ValueError where there is no study, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._db.deserialize(_still_copy(path))
            self._check()
        except (sqlite3.Error, OverflowError) as error:
            self._db.close()
            raise ValueError(f"{path} is damaged or is no study: {error}") from error
        except ValueError:
            self._db.close()
            raise

    def close(self) -> None:
        """Let go of the copy."""
        self._db.close()


def study_mark(path: Path) -> tuple[int, ...]:
    """Changes when the study's file does; raises ValueError where there is none."""
    try:
        stat = path.stat()
        with open(path, "rb") as file:
            head = file.read(28)
    except OSError as error:
        raise ValueError(f"there is no study at {path}") from error
    return stat.st_size, stat.st_mtime_ns, int.from_bytes(head[24:28], "big")


def _still_copy(path: Path) -> bytes:
    """The file's bytes at a moment at which nobody was writing them."""
    journal = path.with_name(path.name + "-journal")
    until = time.monotonic() + _PATIENCE_S
    while True:
        before = study_mark(path)
        data = path.read_bytes()
        open_transaction = journal.exists() and journal.stat().st_size > 0
        if open_transaction:
            # Pages go into the file at the commit alone, and quickly: it is still if it stays so.
            time.sleep(_STILL_S)
        if study_mark(path) == before and (not open_transaction or path.read_bytes() == data):
            return data
        if time.monotonic() > until:
            raise ValueError(f"{path} is being written all the time; try again later")


def _trial_of(row: tuple[Any, ...], curve: tuple[Observation, ...]) -> Trial:
    number, config, seed, target, state, *more, checkpoint, sha256, midway, midway_sha256 = row
    if any(not math.isfinite(o.score) for o in curve):
        raise ValueError(f"trial {number} has a score that is no number")
    return Trial(
        number,
        _config(json.loads(config)),
        seed,
        target,
        TrialState[state],
        curve,
        *more,  # type: ignore[call-arg]
        Checkpoint(checkpoint, sha256) if checkpoint else None,
        Checkpoint(midway, midway_sha256) if midway else None,
    )


def _config(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise TypeError(f"a configuration is a JSON object, got {data!r}")
    return data
