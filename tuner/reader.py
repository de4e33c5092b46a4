"""Reading a study: its tables, and a copy of them that disturbs nobody who is writing."""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.budget import Budget, Kind
from tuner.schema import (
    COLUMNS,
    SCHEMA_VERSION,
    checksum,
    expected_objects,
    objects,
    select,
)
from tuner.space import SearchSpace
from tuner.trial import Checkpoint, Observation, Trial, TrialState

_PATIENCE_S = 5.0
_QUIET_NS = 20_000_000

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
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])

    def runs(self) -> list[RunRow]:
        """All runs in the order in which they were added."""
        with self._reading():
            rows = self._db.execute(
                "SELECT id, searcher, seed, space, max_epochs, budget_ns, clock, test_score, "
                "tested FROM run ORDER BY id"
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
                "clock, partial_ns, faults, reason, note, source, repeat, confirms, checkpoint, "
                "sha256, midway, midway_sha256 FROM trial WHERE run = ? ORDER BY number",
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
        """Raise ValueError where anything in the file is not as it was written."""
        try:
            self._verify()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error

    def _verify(self) -> None:
        # In full, or a row that an index has lost would just not be found.
        problem = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise ValueError(f"{self.path} is damaged: {problem}")
        found = self._db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        version = found[0] if found else "unknown"
        if version != str(SCHEMA_VERSION):
            raise ValueError(
                f"{self.path} was written in format {version}, this version reads "
                f"{SCHEMA_VERSION}; use the version that wrote it"
            )
        if objects(self._db) != expected_objects():
            raise ValueError(f"{self.path} is damaged: its tables are not those of a study")
        for table in COLUMNS:
            for *row, crc in self._db.execute(select(table)):
                if crc != checksum(row):
                    raise ValueError(
                        f"{self.path} is damaged: a row of its table {table} was altered; "
                        "scripts/doctor.py says what can be saved"
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
    lock is taken: the file and its journal are copied at a moment at which nobody was writing
    them, and SQLite rolls back in the copy what was not committed, be it of a driver that is at
    work or of one that was killed.

    Raises ValueError where there is no study, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data, journal = still_copy(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(data)
            journal_of(copy).write_bytes(journal)
            self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            try:
                with closing(sqlite3.connect(copy)) as source:
                    source.backup(self._db)
                self._check()
            except sqlite3.Error as error:
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
    return stat.st_size, stat.st_mtime_ns, int.from_bytes(head[24:28], "big")  # of commits


def journal_of(path: Path) -> Path:
    """Where SQLite keeps what it needs to undo a commit."""
    return path.with_name(path.name + "-journal")


def still_copy(path: Path) -> tuple[bytes, bytes]:
    """The file's and its journal's bytes at a moment at which nobody was writing them.

    Raises ValueError where there is no such file, or no such moment.
    """
    until = time.monotonic() + _PATIENCE_S
    seen, since = None, 0
    while time.monotonic() < until:
        before = _marks(path)
        if before != seen:
            seen, since = before, time.monotonic_ns()
        # Times on disk are coarse: what was written just now could be written again unseen. Where
        # the clock was set back they are yet to come, and it is watched whether anybody writes.
        age_ns = time.time_ns() - max(before[1], before[-1])
        if max(age_ns, time.monotonic_ns() - since) > _QUIET_NS:
            data = path.read_bytes()
            journal = journal_of(path).read_bytes() if before[3] else b""
            if _marks(path) == before:
                return data, journal
        time.sleep(_QUIET_NS / 1e9)
    raise ValueError(f"{path} is being written all the time; try again later")


def _marks(path: Path) -> tuple[int, ...]:
    """The marks of a study's file, and the journal's size and time."""
    try:
        journal = journal_of(path).stat()
    except OSError:
        return (*study_mark(path), 0, 0)
    return (*study_mark(path), journal.st_size, journal.st_mtime_ns)


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
