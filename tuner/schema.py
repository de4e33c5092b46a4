"""The tables of a study's file, which a reader finds exactly so or refuses."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache

from tuner.budget import Kind

SCHEMA_VERSION = 2

SCHEMA = f"""
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
    {", ".join(f"{kind.value} INTEGER NOT NULL" for kind in Kind)}
) STRICT;
CREATE INDEX charge_of_run ON charge (run);
"""


@cache
def entries() -> frozenset[tuple[str, str, str, str | None]]:
    """What an empty study has in SQLite's own list: type, name, table and statement of each."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return frozenset(entries_of(db))


def entries_of(db: sqlite3.Connection) -> list[tuple[str, str, str, str | None]]:
    """The same of an open file."""
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
