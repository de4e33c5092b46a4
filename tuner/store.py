"""A study on disk: one SQLite file, one writer, rows and never pickles.

Every decision is a committed row before it is acted on, and an epoch's row and its charge are in
one transaction, so whatever a killed driver leaves behind is a state that a search can go on from.
Until then nothing is durable, so rows are gathered and written together when they are committed,
or read: a trial that changed often in between is one row.
"""

from __future__ import annotations

import errno
import json
import mmap
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from tuner.budget import Costs, Kind
from tuner.failpoints import Place, reach
from tuner.files import (
    CannotWriteError,
    FileLock,
    HeldElsewhereError,
    Reserve,
    allocate,
    write_atomically,
)
from tuner.foreign import not_through_a_link
from tuner.history import History
from tuner.reader import RunRow, StudyReader, journal_of, look_at
from tuner.schema import checksum, empty_study, put
from tuner.space import SearchSpace
from tuner.trial import Observation, Trial

_Row: TypeAlias = tuple[object, ...]

# A write that SQLite was refused, after which it has undone the transaction and may try again. A
# failed fsync is none: what it left behind in the system's memory nobody knows.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
_REFUSALS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}

_REPLACED = ("meta", "run", "trial")
_HELD_RUNS, _HELD_COPIES = 4096, 3
HELD_BYTES = 8 * _HELD_RUNS * _HELD_COPIES


class Store(StudyReader):
    """The file of one study or race, locked against a second driver while it is open.

    Args:
        path: the SQLite file; its lock, its heartbeat and, while it is open, a reserve of room for
            last words lie beside it.
        create: make a new file (an existing one raises ValueError) or open an existing one.
        commit_every_s: on a virtual clock lost work costs nothing, so commits may be this many
            seconds apart; where devices are paid for it is 0 and every `commit` reaches the disk.

    Raises:
        ValueError: the file exists, is missing, is damaged, is of a newer version, or is in use.
        CannotWriteError: the disk takes no more, or fails; of a new study nothing is left behind.
            So does every method that writes. What was committed stays, and on a full disk what
            was not is, if there is any way, before the error is raised.
    """

    def __init__(self, path: Path, *, create: bool, commit_every_s: float = 0.0) -> None:
        self.path = path
        if not create and not path.is_file():
            raise ValueError(f"there is no study at {path}")
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the study {path}")
        self.commit_every_s = commit_every_s
        self._committed = time.monotonic()
        self._trials: dict[tuple[int, int], Trial] = {}  # what is to be written
        self._observations: list[_Row] = []
        self._charges: list[_Row] = []
        self._clocks: dict[int, int] = {}
        self._since: list[tuple[str, list[_Row]]] = []  # statements since the last commit
        self._executed = 0  # of those
        self._version: int | None = None
        is_new = False
        try:
            if create and path.exists():  # asked under the lock: another may just have made it
                raise ValueError(f"{path} exists already and holds a study; choose another place")
            is_new = create
            self._reserve = Reserve(path.with_name(path.name + ".reserve"))
            if create:
                write_atomically(path, empty_study())
            look_at(path)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._perform(self._open)
            self._runs = {row.id: row for row in self.runs()}
            beside = path.with_name(path.name + ".held")
            with open(beside, "a+b", opener=not_through_a_link) as file:
                allocate(file, HELD_BYTES)
                self._held = memoryview(mmap.mmap(file.fileno(), HELD_BYTES)).cast("q")
            self._version = self._data_version()
        except BaseException as error:
            self._give_up(is_new=is_new)
            if isinstance(error, sqlite3.Error):
                raise ValueError(f"{path} is damaged or is no study: {error}") from error
            if isinstance(error, OSError):
                raise CannotWriteError.of(path, error) from error
            raise

    def _open(self) -> None:
        self._check()  # before a pragma could change a file that is not ours
        # The rollback journal, not WAL, whose reset bug was fixed only in SQLite 3.51.3.
        self._db.execute("PRAGMA journal_mode = TRUNCATE")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._db.execute("BEGIN")
        if self.meta("paused") is not None:
            self.set_meta("paused", None)

    def _give_up(self, *, is_new: bool) -> None:
        """Let go of what was opened so far; of a study that could not be made, remove it."""
        if hasattr(self, "_db"):
            self._db.close()
        if hasattr(self, "_reserve"):
            self._reserve.free()
        if is_new:
            self._remove()
        self._lock.release()

    def _remove(self) -> None:
        beside = (self.path.with_name(self.path.name + end) for end in (".held", ".lock"))
        for path in (self.path, journal_of(self.path), *beside):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    # -- settings and runs ---------------------------------------------------------------------

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value under `key`."""
        self._put("meta", [(key, json.dumps(value))])

    def add_run(
        self,
        searcher: str,
        seed: int,
        space: SearchSpace,
        max_epochs: int | None,
        budget_ns: int | None,
    ) -> RunRow:
        """Append a run and return its row."""
        number = 1 + max(self._runs, default=0)
        row = RunRow(number, searcher, seed, space, max_epochs, budget_ns, 0, None, None)
        return self._put_run(row)

    def set_budget(self, run: int, budget_ns: int) -> None:
        """Change what a run may spend."""
        self._put_run(replace(self._runs[run], budget_ns=budget_ns))

    def set_clock(self, run: int, clock: int) -> None:
        """Keep the reading of a run's virtual clock."""
        self._clocks[run] = clock

    def set_test_score(self, run: int, score: float, tested: str) -> None:
        """Keep the test accuracy of a run's winner, with the hash of what was tested."""
        self._put_run(replace(self._runs[run], test_score=score, tested=tested))

    def _put_run(self, row: RunRow) -> RunRow:
        self._runs[row.id] = row
        self._put("run", [tuple((vars(row) | {"space": json.dumps(row.space.to_json())}).values())])
        return row

    # -- what happened ---------------------------------------------------------------------------

    def history(self, run: RunRow) -> StoredHistory:
        """The run's history as recorded; what is added to it is recorded too."""
        history = StoredHistory(self, run)
        for trial in self.trials(run):
            history.restore(trial)
        return history

    def charge(self, run: int, costs: Costs, number: int | None) -> None:
        """Append one line to the run's ledger."""
        self._charges.append((run, number, *(costs.get(kind, 0) for kind in Kind)))

    def put_trial(self, run: int, trial: Trial) -> None:
        """Write a trial's row, all but its curve."""
        self._trials[run, trial.number] = trial

    def put_observation(self, run: int, number: int, observation: Observation) -> None:
        """Append one epoch of a trial; the same epoch twice is an error when it is written."""
        o, metrics = observation, json.dumps(dict(observation.metrics))
        self._observations.append((run, number, o.epoch, o.score, o.device_ns, o.at_ns, metrics))

    def commit(self, *, force: bool = False) -> None:
        """Make everything so far durable, at the latest `commit_every_s` from now."""
        if force or time.monotonic() - self._committed >= self.commit_every_s:
            self._perform(self._commit)

    def pause(self, reason: str) -> None:
        """Keep, as the last words, why a driver gives up; what was not committed is dropped.

        The reserve pays for them. Where not even that is enough, nothing is kept.
        """
        self._reserve.free()
        for gathered in (self._trials, self._observations, self._charges, self._clocks):
            gathered.clear()
        self._since.clear()
        self.set_meta("paused", reason)
        with suppress(sqlite3.Error):
            self._begin_again()

    def _put(self, table: str, rows: Iterable[_Row]) -> None:
        """Have rows written before the next commit; those of `_REPLACED` tables replace others."""
        statement = put(table, "INSERT OR REPLACE" if table in _REPLACED else "INSERT")
        self._since.append((statement, [(*row, checksum(row)) for row in rows]))

    def _refuse_if_late(self) -> None:
        """Refuse to write where another driver has written since the study was opened.

        The lock sees to it that none can, unless somebody removes the lock's file. Within the
        transaction, so that nobody can come between.
        """
        if self._version not in (None, self._data_version()):
            raise HeldElsewhereError(
                f"the study {self.path} was taken over by another process, which its lock should "
                "have kept out: was the lock's file removed? Nothing more is written here"
            )

    def _data_version(self) -> int:
        """SQLite's number that changes where another connection has written, and only there."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _write(self) -> None:
        """Bring the tables up to date, within the transaction."""
        if self._clocks:
            for run, clock in self._clocks.items():
                self._put_run(replace(self._runs[run], clock=clock))
        if self._trials:
            self._put("trial", [_row_of(run, t) for (run, _), t in self._trials.items()])
        if self._observations:
            self._put("observation", self._observations)
        if self._charges:
            self._put("charge", self._charges)
        for gathered in (self._trials, self._observations, self._charges, self._clocks):
            gathered.clear()
        while self._executed < len(self._since):
            self._db.executemany(*self._since[self._executed])
            self._executed += 1

    def _commit(self) -> None:
        reach(Place.COMMIT_BEFORE)
        self._write()
        self._refuse_if_late()
        reach(Place.COMMIT_WRITTEN)
        self._db.execute("COMMIT")
        reach(Place.COMMIT_AFTER)
        self._db.execute("BEGIN")
        self._since.clear()
        self._executed = 0
        self._committed = time.monotonic()

    def _begin_again(self) -> None:
        """Undo what is half written, and write and commit all of it anew."""
        with suppress(sqlite3.Error):  # SQLite may have done so itself
            self._db.execute("ROLLBACK")
        self._db.execute("BEGIN")
        if self._version is not None:  # what was undone counts as another's writing
            self._version = self._data_version()
        self._executed = 0
        self._commit()

    def _perform(self, work: Callable[[], None]) -> None:
        """Do what writes; a refusal of the disk is raised as one, after the last words."""
        try:
            work()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)  # Python's own errors have none
            number = _REFUSALS.get(code & 0xFF)
            if number is None:
                raise
            self._reserve.free()
            if code in _NO_ROOM:
                with suppress(sqlite3.Error):
                    self._begin_again()
                    number = errno.ENOSPC  # whatever it was, a little room was the remedy
            raise CannotWriteError(self.path, number, str(error)) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._perform(self._write)
        with super()._reading():
            yield

    # -- a sign of life --------------------------------------------------------------------------

    def set_held(self, run: int, ns: int) -> None:
        """Note how much device time a run has held, charged or not: a memory write, no commit.

        It outlives the driver (not a power cut), so that a resume can charge as lost what a
        killed driver had held and not recorded.
        """
        if run < _HELD_RUNS:
            for copy in range(_HELD_COPIES):
                self._held[copy * _HELD_RUNS + run] = ns

    def held(self, run: int) -> int:
        """The last value of `set_held`, in nanoseconds; 0 where there was none."""
        return held_ns(self._held, run)

    def close(self) -> None:
        """Close the file and let go of the lock; what was not committed is dropped."""
        with suppress(sqlite3.Error):  # of a disk that fails: the next to open the file will undo
            self._db.execute("ROLLBACK")
        self._give_up(is_new=False)

    def discard(self) -> None:
        """Close a study that could not be made as it was to be, and remove it."""
        self._give_up(is_new=True)


class StoredHistory(History):
    """A history that writes down what is added to it."""

    def __init__(self, store: Store, run: RunRow) -> None:
        super().__init__(run.max_epochs, run.budget_ns)
        self._store, self._run = store, run.id

    def adopt(self, trial: Trial) -> None:
        """Append a trial that another history has seen, in memory and in the file."""
        self.restore(trial)
        self._store.put_trial(self._run, trial)
        for observation in trial.curve:
            self._store.put_observation(self._run, trial.number, observation)

    def observe(self, number: int, observation: Observation, **changes: object) -> Trial:
        """Append the next epoch, in memory and in the file."""
        trial = super().observe(number, observation, **changes)
        self._store.put_observation(self._run, number, observation)
        return trial

    def _place(self, trial: Trial) -> Trial:
        self._store.put_trial(self._run, super()._place(trial))
        return trial


def held_ns(words: memoryview, run: int) -> int:
    """What a file of held times says of a run: of its copies the middle one.

    So one that was damaged, or not yet written when the driver was killed, is outvoted.
    """
    if run >= _HELD_RUNS:
        return 0
    return int(sorted(words[copy * _HELD_RUNS + run] for copy in range(_HELD_COPIES))[1])


def _row_of(run: int, trial: Trial) -> _Row:
    mark, midway = trial.checkpoint, trial.midway
    return (
        run,
        trial.number,
        json.dumps(dict(trial.config)),
        trial.seed,
        trial.target,
        trial.state.name,
        trial.started_ns,
        trial.granted,
        trial.reserved_ns,
        trial.clock,
        trial.partial_ns,
        trial.faults,
        trial.reason,
        trial.note,
        trial.source,
        trial.repeat,
        trial.confirms,
        mark.name if mark else None,
        mark.sha256 if mark else None,
        midway.name if midway else None,
        midway.sha256 if midway else None,
    )
