"""Reading a study: its tables, and a copy of them that disturbs nobody who is writing."""

from __future__ import annotations

import math
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.budget import Budget, Kind
from tuner.foreign import open_regular, parse_json
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

# A study of 100,000 trials of 10 epochs has about 100 MB.
MOST_BYTES = 1 << 30
_MOST_VALUE = 4 << 20  # bytes of one entry of a row

_MAGIC = b"SQLite format 3\0"
_ROLLBACK = b"\1\1"  # written and read with a rollback journal, as all studies are
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

_PLAIN_NAME = re.compile(r"[^./\\\0-\x1f][^/\\\0-\x1f]{0,254}")
_PATIENCE_S = 5.0
_QUIET_NS = 20_000_000
_AGAIN_S = 0.003

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


def preferred_key(run: int) -> str:
    """Under which a study keeps which trial a model of a run's scores chose."""
    return f"preferred-{run}"


class BusyError(ValueError):
    """A study cannot be read now, for somebody writes to it all the time."""


class StudyReader:
    """Reads the tables of an open study, of which it believes nothing.

    Every method raises ValueError, naming the file, where what it reads is no study's.
    """

    _db: sqlite3.Connection
    path: Path

    def meta(self, key: str) -> Any:
        """The JSON value kept under `key`; None where there is none."""
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return None if row is None else parse_json(row[0])

    def request(self) -> dict[str, Any]:
        """What `scripts/tune.py` was asked for; empty where the study is a library's."""
        found = self.meta("request") or {}
        if not isinstance(found, dict):
            raise ValueError(f"{self.path} is damaged: its request is {str(found)[:40]!r}")
        return found

    def runs(self) -> list[RunRow]:
        """All runs in the order in which they were added."""
        with self._reading():
            rows = self._db.execute(
                "SELECT id, searcher, seed, space, max_epochs, budget_ns, clock, test_score, "
                "tested FROM run ORDER BY id"
            )
            found = [
                RunRow(i, name, seed, SearchSpace.from_json(parse_json(space)), *rest)
                for i, name, seed, space, *rest in rows
            ]
            for row in found:
                if row.seed < 0 or (row.max_epochs is not None and row.max_epochs < 1):
                    raise ValueError(f"run {row.id} has seed {row.seed}, {row.max_epochs} epochs")
            return found

    def trials(self, run: RunRow) -> list[Trial]:
        """The run's trials as recorded, by number."""
        found: list[Trial] = []
        with self._reading():
            curves: dict[int, list[Observation]] = {}
            for number, epoch, score, device_ns, at_ns, metrics in self._db.execute(
                "SELECT number, epoch, score, device_ns, at_ns, metrics FROM observation "
                "WHERE run = ? ORDER BY number, epoch",
                (run.id,),
            ):
                curve = curves.setdefault(number, [])
                if epoch != len(curve) + 1 or not math.isfinite(score) or device_ns < 0:
                    raise ValueError(f"trial {number}, epoch {epoch}: no such epoch can be")
                curve.append(Observation(epoch, score, device_ns, at_ns, parse_json(metrics)))
            for row in self._db.execute(
                "SELECT number, config, seed, target, state, started_ns, granted, reserved_ns, "
                "clock, partial_ns, faults, reason, note, source, repeat, confirms, checkpoint, "
                "sha256, midway, midway_sha256 FROM trial WHERE run = ? ORDER BY number",
                (run.id,),
            ):
                trial = _trial_of(row, tuple(curves.get(row[0], ())))
                run.space.check(trial.config)
                if trial.partial_ns < 0:
                    raise ValueError(f"trial {trial.number} has taken less than no time")
                if trial.number != len(found):
                    raise ValueError(f"trial {len(found)} is missing")
                found.append(trial)
        return found

    def preferred(self, run: RunRow) -> int | None:
        """The number of the run's winner where a model of its scores chose it; else None."""
        number = self.meta(preferred_key(run.id))
        if number is None:
            return None
        with self._reading():
            query = "SELECT number FROM trial WHERE run = ? AND number = ?"
            if self._db.execute(query, (run.id, number)).fetchone() is None:
                raise ValueError(f"run {run.id} prefers a trial {number!r}, which it has not")
            return int(number)

    def budget(self, run: RunRow) -> Budget:
        """The run's pool with everything charged that was charged."""
        with self._reading():
            budget = Budget(run.budget_ns)
            sums = self._db.execute(_SUM_CHARGES, (run.id,)).fetchone()
            budget.charge(dict(zip(Kind, sums, strict=True)))
        return budget

    def _check(self) -> None:
        """Raise ValueError where anything in the file is not as it was written.

        What it defines is looked at first, before a query runs what somebody put into it.
        """
        with self._naming():
            disarm(self._db)
            found = objects(self._db)
        for kind, name, _, sql in found:
            is_plain = kind in ("table", "index") and not str(sql or "").startswith(
                "CREATE VIRTUAL"
            )
            if not is_plain:
                raise ValueError(f"{self.path} is no study: it holds the {kind} {name!r}")
        with self._naming():
            row = self._db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        version = row[0] if row else "unknown"
        if version != str(SCHEMA_VERSION):
            raise ValueError(
                f"{self.path} was written in format {version}, this version reads "
                f"{SCHEMA_VERSION}; use the version that wrote it"
            )
        if found != expected_objects():
            raise ValueError(f"{self.path} is no study: its tables are not those of one")
        with self._naming():
            # In full, or a row that an index has lost would just not be found.
            problem = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise ValueError(f"{self.path} is damaged: {problem}")
        with self._naming():
            altered = next((table for table in COLUMNS if self._is_altered(table)), None)
        if altered is not None:
            raise ValueError(
                f"{self.path} is damaged: a row of its table {altered} was altered; "
                "scripts/doctor.py says what can be saved"
            )

    def _is_altered(self, table: str) -> bool:
        rows = self._db.execute(select(table))
        return any(crc != checksum(row) for *row, crc in rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._naming():
            yield

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Whatever reading a damaged file raises is a ValueError with its name."""
        try:
            yield
        except (
            *(sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, OverflowError),
        ) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error


def look_at(path: Path) -> None:
    """Refuse a file that cannot be a study's, before SQLite sees it or its journal.

    Raises ValueError for a link or a device, for one that is too large or no SQLite file, and for
    a journal that names a further file: SQLite would delete that after it has rolled back.
    """
    with open_regular(path, MOST_BYTES) as file:
        head = file.read(20)
    if head and (not head.startswith(_MAGIC) or head[18:] != _ROLLBACK):  # empty before a commit
        raise ValueError(f"{path} is damaged or is no study: it does not begin as one does")
    journal = journal_of(path)
    if journal.exists() or journal.is_symlink():
        with open_regular(journal, MOST_BYTES) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - len(_JOURNAL_MAGIC)))
            if size > len(_JOURNAL_MAGIC) and file.read() == _JOURNAL_MAGIC:
                raise ValueError(f"{journal} is no study's: it names another journal")


def disarm(db: sqlite3.Connection) -> None:
    """Have an open file run nothing of its own, and reach no other file."""
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE)


class Snapshot(StudyReader):
    """A study as it was a moment ago, read from a copy of its file.

    SQLite's own readers lock the file, and a driver that wants to commit waits for them. Here no
    lock is taken: the file and its journal are copied at a moment at which nobody was writing
    them, and SQLite rolls back in the copy what was not committed, be it of a driver that is at
    work or of one that was killed.

    Raises ValueError where there is no study, or none that can be read: BusyError where it may be
    read later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        study_mark(path)
        look_at(path)
        self._folder = tempfile.TemporaryDirectory(prefix="tuner-")
        try:
            copy = Path(self._folder.name, "study.sqlite")
            still_copy(path, copy)
            look_at(copy)
            self._db = sqlite3.connect(copy, isolation_level=None, check_same_thread=False)
            try:
                self._db.execute("PRAGMA query_only = ON")
                self._check()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            self._folder.cleanup()
            raise ValueError(f"{path} is damaged or is no study: {error}") from error
        except BaseException:
            self._folder.cleanup()
            raise

    def close(self) -> None:
        """Let go of the copy."""
        self._db.close()
        self._folder.cleanup()


def study_file(place: Path) -> Path:
    """The file of a study that is named by itself or by its folder, be it there or not."""
    is_named = place.suffix == ".sqlite" and not place.is_dir()
    return place if is_named or place.is_file() else place / "study.sqlite"


def study_name(path: Path) -> str:
    """Of a study's folder, or of its file where that has a name of its own."""
    return path.resolve().parent.name if path.name == "study.sqlite" else path.stem


def study_mark(path: Path) -> tuple[int, ...]:
    """Changes when the study's file does; raises ValueError where there is none."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"there is no study at {path}") from error
    with open_regular(path, MOST_BYTES) as file:
        head = file.read(28)
    return stat.st_size, stat.st_mtime_ns, int.from_bytes(head[24:28], "big")  # of commits


def journal_of(path: Path) -> Path:
    """Where SQLite keeps what it needs to undo a commit."""
    return path.with_name(path.name + "-journal")


def still_copy(path: Path, copy: Path) -> None:
    """Copy the file and its journal at a moment at which nobody was writing them.

    Raises BusyError where there is no such moment, and ValueError where there is no such file.
    """
    until = time.monotonic() + _PATIENCE_S
    seen, since = None, 0
    while time.monotonic() < until:
        # SQLite writes to its file only while a journal has something in it, and every commit
        # counts. So with an empty journal, looked at after the count before the copy and before
        # the count after it, nobody was writing.
        before = (*study_mark(path), *_journal_mark(path))
        if before != seen:
            seen, since = before, time.monotonic_ns()
        journal_size, journal_ns = before[-2:]
        # A journal is a driver's that is at work, or one's that was killed. Times on disk are
        # coarse: what was written just now could be written again unseen. Where the clock was set
        # back they are yet to come, and it is watched whether anybody writes.
        age_ns = time.time_ns() - max(before[1], journal_ns)
        if journal_size == 0 or max(age_ns, time.monotonic_ns() - since) > _QUIET_NS:
            _copy(path, copy)
            journal_of(copy).unlink(missing_ok=True)
            if journal_size and journal_of(path).exists():  # else its driver has just removed it
                _copy(journal_of(path), journal_of(copy))
            after = _journal_mark(path)
            if (*study_mark(path), *after) == before:
                return
        time.sleep(_AGAIN_S)
    raise BusyError(f"{path} is being written all the time; try again later")


def _copy(path: Path, copy: Path) -> None:
    with open_regular(path, MOST_BYTES) as source, open(copy, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _journal_mark(path: Path) -> tuple[int, int]:
    """The size and time of a study's journal."""
    try:
        journal = journal_of(path).stat()
    except OSError:
        return 0, 0
    return journal.st_size, journal.st_mtime_ns


def _trial_of(row: tuple[Any, ...], curve: tuple[Observation, ...]) -> Trial:
    number, config, seed, target, state, *more, checkpoint, sha256, midway, midway_sha256 = row
    return Trial(
        number,
        _config(parse_json(config)),
        seed,
        target,
        TrialState[state],
        curve,
        *more,  # type: ignore[call-arg]
        _checkpoint(checkpoint, sha256),
        _checkpoint(midway, midway_sha256),
    )


def _checkpoint(name: str | None, sha256: str) -> Checkpoint | None:
    """A file in the run's own folder, which may be read and removed: nothing else is named so."""
    if not name:
        return None
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"a checkpoint is a file of its own folder, got {name[:60]!r}")
    return Checkpoint(name, sha256)


def _config(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise TypeError(f"a configuration is a JSON object, got {data!r}")
    return data
