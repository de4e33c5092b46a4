"""The tables of a study's file, and how a row shows that it is as it was written."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import cache

from tuner.budget import Kind

SCHEMA_VERSION = 3

_KINDS = [kind.value for kind in Kind]

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE run (
    id INTEGER PRIMARY KEY, searcher TEXT NOT NULL, seed INTEGER NOT NULL, space TEXT NOT NULL,
    max_epochs INTEGER, budget_ns INTEGER, clock INTEGER NOT NULL,
    test_score REAL, tested TEXT, crc INTEGER NOT NULL
) STRICT;
CREATE TABLE trial (
    run INTEGER NOT NULL REFERENCES run, number INTEGER NOT NULL, config TEXT NOT NULL,
    seed INTEGER NOT NULL, target INTEGER NOT NULL, state TEXT NOT NULL,
    started_ns INTEGER NOT NULL, granted INTEGER NOT NULL, reserved_ns INTEGER NOT NULL,
    clock INTEGER, partial_ns INTEGER NOT NULL,
    faults INTEGER NOT NULL, reason TEXT NOT NULL, note TEXT NOT NULL,
    source TEXT NOT NULL, repeat INTEGER NOT NULL, confirms INTEGER,
    checkpoint TEXT, sha256 TEXT, midway TEXT, midway_sha256 TEXT, crc INTEGER NOT NULL,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE observation (
    run INTEGER NOT NULL, number INTEGER NOT NULL, epoch INTEGER NOT NULL, score REAL NOT NULL,
    device_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, metrics TEXT NOT NULL,
    crc INTEGER NOT NULL, PRIMARY KEY (run, number, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE charge (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, number INTEGER,
    {", ".join(f"{kind} INTEGER NOT NULL" for kind in _KINDS)}, crc INTEGER NOT NULL
) STRICT;
CREATE INDEX charge_of_run ON charge (run);
"""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "meta": ("key", "value"),
    "run": (
        *("id", "searcher", "seed", "space", "max_epochs", "budget_ns", "clock"),
        *("test_score", "tested"),
    ),
    "trial": (
        *("run", "number", "config", "seed", "target", "state", "started_ns", "granted"),
        *("reserved_ns", "clock", "partial_ns", "faults", "reason", "note", "source", "repeat"),
        *("confirms", "checkpoint", "sha256", "midway", "midway_sha256"),
    ),
    "observation": ("run", "number", "epoch", "score", "device_ns", "at_ns", "metrics"),
    "charge": ("run", "number", *_KINDS),
}
"""What each row holds and its `crc` vouches for."""


def checksum(row: Iterable[object]) -> int:
    """Of a row's values: SQLite sees that its pages are in order, not what is written on them."""
    return zlib.crc32(ascii(tuple(row)).encode())


def put(table: str, how: str = "INSERT") -> str:
    """The statement that writes a row of `table` from its values and their checksum."""
    names = (*COLUMNS[table], "crc")
    return f"{how} INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


def select(table: str, rest: str = "") -> str:
    """The statement that reads the values of rows and, last, their checksum."""
    return f"SELECT {', '.join(COLUMNS[table])}, crc FROM {table} {rest}"  # noqa: S608, our names


def objects(db: sqlite3.Connection) -> set[tuple[str, str, str, str | None]]:
    """All that a file defines: its tables and indexes, and whatever else somebody put there."""
    return set(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))


@cache
def expected_objects() -> set[tuple[str, str, str, str | None]]:
    """What a study's file defines."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return objects(db)


def empty_study() -> bytes:
    """The file of a study in which nothing has happened.

    It is written as a whole, since an empty one could be a study that was lost.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(SCHEMA)
        row = ("schema", json.dumps(SCHEMA_VERSION))
        db.execute(put("meta"), (*row, checksum(row)))
        return db.serialize()
