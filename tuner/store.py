"""A study on disk: one SQLite file, one writer, rows and never pickles.

Every decision is a committed row before it is acted on, and an epoch's row and its charge are in
one transaction, so whatever a killed driver leaves behind is a state that a search can go on from.
Until then nothing is durable, so rows are gathered and written together when they are committed,
or read: a trial that changed often in between is one row.
"""

from __future__ import annotations

import json
import mmap
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tuner.budget import Costs, Kind
from tuner.files import FileLock, HeldElsewhereError
from tuner.history import History
from tuner.reader import SCHEMA_VERSION, RunRow, StudyReader
from tuner.space import SearchSpace
from tuner.trial import Observation, Trial

_KINDS = [kind.value for kind in Kind]
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE run (
    id INTEGER PRIMARY KEY, searcher TEXT NOT NULL, seed INTEGER NOT NULL, space TEXT NOT NULL,
    max_epochs INTEGER, budget_ns INTEGER, clock INTEGER NOT NULL DEFAULT 0,
    test_score REAL, tested TEXT
) STRICT;
CREATE TABLE trial (
    run INTEGER NOT NULL REFERENCES run, number INTEGER NOT NULL, config TEXT NOT NULL,
    seed INTEGER NOT NULL, target INTEGER NOT NULL, state TEXT NOT NULL,
    started_ns INTEGER NOT NULL, granted INTEGER NOT NULL, reserved_ns INTEGER NOT NULL,
    clock INTEGER, partial_ns INTEGER NOT NULL,
    faults INTEGER NOT NULL, reason TEXT NOT NULL, note TEXT NOT NULL,
    source TEXT NOT NULL, repeat INTEGER NOT NULL, confirms INTEGER,
    checkpoint TEXT, sha256 TEXT, midway TEXT, midway_sha256 TEXT,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE observation (
    run INTEGER NOT NULL, number INTEGER NOT NULL, epoch INTEGER NOT NULL, score REAL NOT NULL,
    device_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (run, number, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE charge (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, number INTEGER,
    {", ".join(f"{kind} INTEGER NOT NULL" for kind in _KINDS)}
) STRICT;
CREATE INDEX charge_of_run ON charge (run);
"""
_ADD_CHARGE = (
    f"INSERT INTO charge (run, number, {', '.join(_KINDS)}) "  # noqa: S608, names of an enum
    f"VALUES (?, ?, {', '.join('?' * len(_KINDS))})"
)
_ADD_OBSERVATION = "INSERT INTO observation VALUES (?, ?, ?, ?, ?, ?, ?)"
_PUT_TRIAL = f"INSERT OR REPLACE INTO trial VALUES ({', '.join('?' * 21)})"  # noqa: S608
_SET_CLOCK = "UPDATE run SET clock = ? WHERE id = ?"

_Row: TypeAlias = tuple[object, ...]


class Store(StudyReader):
    """The file of one study or race, locked against a second driver while it is open.

    Args:
        path: the SQLite file; its lock and heartbeat lie beside it.
        create: make a new file (an existing one raises ValueError) or open an existing one.
        commit_every_s: on a virtual clock lost work costs nothing, so commits may be this many
            seconds apart; where devices are paid for it is 0 and every `commit` reaches the disk.

    Raises:
        ValueError: the file exists, is missing, is damaged, is of a newer version, or is in use.
    """

    def __init__(self, path: Path, *, create: bool, commit_every_s: float = 0.0) -> None:
        self.path = path
        if create and path.exists():
            raise ValueError(f"{path} exists already and holds a study; choose another place")
        if not create and not path.is_file():
            raise ValueError(f"there is no study at {path}")
        self._lock = FileLock(path.with_name(path.name + ".lock"), f"the study {path}")
        self.commit_every_s = commit_every_s
        self._committed = time.monotonic()
        self._trials: dict[tuple[int, int], Trial] = {}  # what is to be written
        self._observations: list[_Row] = []
        self._charges: list[_Row] = []
        self._clocks: dict[int, int] = {}
        self._version: int | None = None
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            if not create:
                self._check()  # before a pragma could change a file that is not ours
            # The rollback journal, not WAL, whose reset bug was fixed only in SQLite 3.51.3.
            self._db.execute("PRAGMA journal_mode = TRUNCATE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA trusted_schema = OFF")
            if create:
                self._db.execute("BEGIN")
                for statement in _SCHEMA.split(";")[:-1]:
                    self._db.execute(statement)
                self.set_meta("schema", SCHEMA_VERSION)
                self.commit(force=True)
            with open(path.with_name(path.name + ".held"), "a+b") as file:
                file.truncate(8 * 4096)
                self._held = memoryview(mmap.mmap(file.fileno(), 8 * 4096)).cast("q")
            self._version = self._data_version()
        except sqlite3.Error as error:
            self._lock.release()
            raise ValueError(f"{path} is damaged or is no study: {error}") from error
        except BaseException:
            self._lock.release()
            raise
        if not self._db.in_transaction:
            self._db.execute("BEGIN")

    # -- settings and runs ---------------------------------------------------------------------

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value under `key`."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def add_run(
        self,
        searcher: str,
        seed: int,
        space: SearchSpace,
        max_epochs: int | None,
        budget_ns: int | None,
    ) -> RunRow:
        """Append a run and return its row."""
        cursor = self._db.execute(
            "INSERT INTO run (searcher, seed, space, max_epochs, budget_ns) VALUES (?, ?, ?, ?, ?)",
            (searcher, seed, json.dumps(space.to_json()), max_epochs, budget_ns),
        )
        return RunRow(
            cursor.lastrowid or 0, searcher, seed, space, max_epochs, budget_ns, 0, None, None
        )

    def set_budget(self, run: int, budget_ns: int) -> None:
        """Change what a run may spend."""
        self._db.execute("UPDATE run SET budget_ns = ? WHERE id = ?", (budget_ns, run))

    def set_clock(self, run: int, clock: int) -> None:
        """Keep the reading of a run's virtual clock."""
        self._clocks[run] = clock

    def set_test_score(self, run: int, score: float, tested: str) -> None:
        """Keep the test accuracy of a run's winner, with the hash of what was tested."""
        self._db.execute(
            "UPDATE run SET test_score = ?, tested = ? WHERE id = ?", (score, tested, run)
        )

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
        now = time.monotonic()
        if force or now - self._committed >= self.commit_every_s:
            self._write()
            self._refuse_if_late()
            self._db.execute("COMMIT")
            self._db.execute("BEGIN")
            self._committed = now

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
        trials = (_row_of(run, trial) for (run, _), trial in self._trials.items())
        self._db.executemany(_PUT_TRIAL, trials)
        self._db.executemany(_ADD_OBSERVATION, self._observations)
        self._db.executemany(_ADD_CHARGE, self._charges)
        self._db.executemany(_SET_CLOCK, [(clock, run) for run, clock in self._clocks.items()])
        for gathered in (self._trials, self._observations, self._charges, self._clocks):
            gathered.clear()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._write()
        with super()._reading():
            yield

    # -- a sign of life --------------------------------------------------------------------------

    def set_held(self, run: int, ns: int) -> None:
        """Note how much device time a run has held, charged or not: a memory write, no commit.

        It outlives the driver (not a power cut), so that a resume can charge as lost what a
        killed driver had held and not recorded.
        """
        if run < len(self._held):
            self._held[run] = ns

    def held(self, run: int) -> int:
        """The last value of `set_held`, in nanoseconds; 0 where there was none."""
        return self._held[run] if run < len(self._held) else 0

    def close(self) -> None:
        """Close the file and let go of the lock; what was not committed is dropped."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._db.close()
        self._lock.release()


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
