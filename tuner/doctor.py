"""What is wrong with a study, how bad that is, and what can be saved: found without writing a byte.

The study's file is examined in a copy, taken as the page takes it, so a driver may be at work on
it meanwhile. What such a driver has in hand is no finding.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import socket
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.budget import Kind, to_minutes
from tuner.confirm import worth_keeping
from tuner.history import History
from tuner.reader import RunRow, StudyReader, disarm, journal_of, look_at, still_copy, study_file
from tuner.report import Outcome, as_told, curves_csv, run_summary, trials_csv
from tuner.schema import (
    COLUMNS,
    SCHEMA_VERSION,
    checksum,
    expected_objects,
    objects,
    select,
)
from tuner.store import HELD_BYTES, held_ns
from tuner.trial import SIGNS, Checkpoint, Trial
from tuner.workers.checkpoints import SUFFIX as FOLDER_SUFFIX
from tuner.workers.checkpoints import read_manifest

_SUFFIXES = (".safetensors", FOLDER_SUFFIX)

_COMPARED = (
    *("trials", "states", "best_score", "best_trial", "best_config", "minutes_spent", "ledger"),
    "best_so_far",
)
_RESUME = "--resume writes it again"
_SAVED = (
    "copy the folder; take study.sqlite from a backup, or begin anew: summary.json, trials.csv and "
    "curves.csv, where they are there, hold what the last end of the run knew"
)


class Severity(enum.Enum):
    """How bad a finding is."""

    NOTE = "note"  # as it may be
    WARNING = "warning"  # not as it should be; nothing is lost
    DAMAGE = "damage"  # something is lost, or cannot be trusted


@dataclass(frozen=True)
class Finding:
    """One thing to say: how bad, what, and what can be saved or done, where there is anything."""

    severity: Severity
    what: str
    advice: str = ""


def examine(place: Path, installed: Mapping[str, str] | None = None) -> list[Finding]:
    """All that is to be said of a study, what is worst first.

    Args:
        place: the folder of a run, or the study's file.
        installed: versions of packages here, by name, to compare with those of the study.

    Raises:
        ValueError: there is no study, or it is being written all the time.
        OSError: something there cannot be read.
    """
    path = study_file(place)
    if not path.is_file():
        raise ValueError(
            f"there is no study at {path}; name the folder of a run, such as runs/NAME"
        )
    lock, is_held = _lock(path)
    found = [lock]
    try:
        look_at(path)
    except ValueError as error:
        return [Finding(Severity.DAMAGE, str(error), _SAVED), lock]
    with _opened(path) as (db, has_journal):
        if has_journal and not is_held:
            what = "a driver ended in the middle of a commit"
            found.append(Finding(Severity.NOTE, what, "it will be undone"))
        problems = _file(db)
        found += problems
        if not any(problem.severity is Severity.DAMAGE for problem in problems):
            study = _Copy(path, db)
            found += _study(study, path.parent, is_held)
            found += _versions(study, installed or {})
    order = list(Severity)[::-1]
    return sorted(found, key=lambda finding: order.index(finding.severity))


class _Copy(StudyReader):
    """The tables of a copy, whatever is in them."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self._db = path, db


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """A copy of a study's file, as it is once what was not committed is undone; if anything was."""
    with tempfile.TemporaryDirectory(prefix="tuner-") as folder:
        copy = Path(folder, "study.sqlite")
        still_copy(path, copy)
        look_at(copy)
        journal = journal_of(copy)
        has_journal = journal.exists() and journal.stat().st_size > 0
        with closing(sqlite3.connect(copy, isolation_level=None)) as db:
            disarm(db)
            yield db, has_journal


# -- who is at work ---------------------------------------------------------------------------


def _lock(path: Path) -> tuple[Finding, bool]:
    """Who holds the study, and whether anybody does."""
    lock = path.with_name(path.name + ".lock")
    try:
        text = lock.read_text(errors="replace")
        inode = lock.stat().st_ino
    except OSError:
        return Finding(Severity.NOTE, "nobody has the study open; there is no lock"), False
    try:
        holder = json.loads(text)
        pid, host = int(holder["pid"]), str(holder["host"])
    except (ValueError, KeyError, TypeError):
        pid, host = 0, ""
    who = f"process {pid} on {host}" if host else "a process without a name"
    is_held = _is_locked(inode)
    if is_held is None:  # not on Linux: as far as the process itself says
        is_held = host == socket.gethostname() and _is_alive(pid)
    if is_held:
        return Finding(Severity.NOTE, f"a driver is at work: {who} holds the study"), True
    if host and host != socket.gethostname():
        what = f"nobody here has the study open; the last was {who}, which cannot be seen from here"
        return Finding(Severity.NOTE, what), False
    return Finding(Severity.NOTE, f"nobody has the study open; the last was {who}"), False


def _is_locked(inode: int) -> bool | None:
    """Whether the kernel knows a lock on the file; None where it does not say."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    return any("FLOCK" in line and f":{inode} " in line for line in lines)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return pid > 0


# -- the file ---------------------------------------------------------------------------------


def _file(db: sqlite3.Connection) -> list[Finding]:
    """Whether SQLite's pages are in order, and every row as it was written."""
    try:
        problems = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
        found = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        version = found[0] if found else "unknown"
        strange = objects(db) ^ expected_objects()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return [Finding(Severity.DAMAGE, f"study.sqlite cannot be read: {error}", _SAVED)]
    if version != str(SCHEMA_VERSION):
        what = f"the study is of format {version}, this version reads {SCHEMA_VERSION}"
        advice = "use the version that wrote it; nothing more can be said here"
        return [Finding(Severity.DAMAGE, what, advice)]
    findings = [
        Finding(Severity.DAMAGE, f"SQLite finds: {problem}", _SAVED)
        for problem in problems
        if problem != "ok"
    ]
    if strange:
        names = ", ".join(sorted({str(name) for _, name, *_ in strange}))
        findings.append(Finding(Severity.DAMAGE, f"its tables are not a study's: {names}", _SAVED))
        return findings
    for table in COLUMNS:
        sound, altered, stopped = _count(db, table)
        if altered or stopped:
            what = f"{altered} row(s) of the table {table} are not as they were written"
            if stopped:
                what += f", and it cannot be read to its end ({stopped})"
            advice = f"{sound} rows are as they were; {_SAVED}"
            findings.append(Finding(Severity.DAMAGE, what, advice))
    return findings


def _count(db: sqlite3.Connection, table: str) -> tuple[int, int, str]:
    """Rows as they were written, rows that are not, and why reading stopped, where it did."""
    sound = altered = 0
    try:
        for *row, crc in db.execute(select(table)):
            is_sound = crc == checksum(row)
            sound, altered = sound + is_sound, altered + (not is_sound)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return sound, altered, str(error)
    return sound, altered, ""


# -- what the rows say ------------------------------------------------------------------------


def _study(study: _Copy, folder: Path, is_held: bool) -> Iterator[Finding]:
    """Findings on sound rows: what they say must fit together, and the files beside them."""
    db = study._db
    yield from _foreign(db)
    rows, trials = _read(study)
    if isinstance(rows, Finding):
        yield rows
        return
    for row in rows:
        name = f"{row.searcher} {row.seed}"
        yield from _ledger(db, study, row, name, trials[row.id])
    if is_held:
        return  # its files are a moment older or newer than the copy
    paused = study.meta("paused")
    if paused:
        yield Finding(Severity.NOTE, f"paused: {paused}", "--resume does")
    unfinished = sum(not t.state.is_final for own in trials.values() for t in own)
    if unfinished:
        if study.request() or any(row.budget_ns is not None for row in rows):
            what = f"{unfinished} trial(s) are not finished"
            advice = "--resume goes on with them, where minutes are left"
        else:
            what, advice = f"{unfinished} trial(s) wait for their results", "tell them"
        yield Finding(Severity.NOTE, what, advice)
    yield from _held(study, rows)
    yield from _checkpoints(study, folder, rows, trials)
    yield from _leftovers(folder)
    yield from _files(study, folder, rows, trials)


def _read(study: _Copy) -> tuple[list[RunRow] | Finding, dict[int, list[Trial]]]:
    try:
        rows = study.runs()
        return rows, {row.id: study.trials(row) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        what = f"the rows make no study: {error}"
        return Finding(Severity.DAMAGE, what, _SAVED), {}


def _foreign(db: sqlite3.Connection) -> Iterator[Finding]:
    """Rows that belong to no trial or no run."""
    owners = {
        "trial": "run NOT IN (SELECT id FROM run)",
        "observation": "(run, number) NOT IN (SELECT run, number FROM trial)",
        "charge": "run NOT IN (SELECT id FROM run) OR number IS NOT NULL AND (run, number) "
        "NOT IN (SELECT run, number FROM trial)",
    }
    for table, condition in owners.items():
        query = f"SELECT COUNT(*) FROM {table} WHERE {condition}"  # noqa: S608, our own words
        count = db.execute(query).fetchone()[0]
        if count:
            what = f"{count} row(s) of the table {table} belong to nobody"
            yield Finding(Severity.DAMAGE, what, "all others can be used")


def _ledger(
    db: sqlite3.Connection, study: _Copy, row: RunRow, name: str, trials: list[Trial]
) -> Iterator[Finding]:
    """Every nanosecond charged once: no charge below zero, trials as their epochs, no overdraft."""
    kinds = [kind.value for kind in Kind]
    query = f"SELECT number, {', '.join(kinds)} FROM charge WHERE run = ?"  # noqa: S608, an enum
    kept: Counter[int] = Counter()  # of trials, by number: what was not lost, and all
    whole: Counter[int] = Counter()
    spent = 0
    for number, *costs in db.execute(query, (row.id,)):
        if min(costs) < 0:
            yield Finding(Severity.DAMAGE, f"{name}: a charge is below zero: {costs} ns", _SAVED)
        spent += sum(costs)
        if number is not None:
            lost = costs[kinds.index(Kind.LOST.value)]
            kept[number] += sum(costs) - lost
            whole[number] += sum(costs)
    for trial in trials:
        paid, number = trial.paid_ns, trial.number
        if not trial.source and not kept[number] <= paid <= whole[number]:
            what = (
                f"{name}: trial {number} was charged {whole[number]:,} ns, {kept[number]:,} of it "
                f"not lost, and its epochs took {paid:,}"
            )
            yield Finding(Severity.DAMAGE, what, "its scores can be used, the minutes cannot")
    if row.budget_ns is not None and spent > row.budget_ns:
        over = spent - row.budget_ns
        longest = max((o.device_ns for t in trials if not t.source for o in t.curve), default=0)
        is_much = over > longest
        what = f"{name}: {over / 1e6:,.1f} ms more than its budget were spent"
        advice = "more than an epoch: unless --budget-minutes was lowered, a fault of the tuner"
        yield Finding(
            Severity.WARNING if is_much else Severity.NOTE,
            what,
            advice if is_much else "at most a batch is to be expected",
        )


# -- the files beside it ----------------------------------------------------------------------


def _held(study: _Copy, rows: list[RunRow]) -> Iterator[Finding]:
    """What a killed driver had held and not recorded."""
    try:
        data = study.path.with_name(study.path.name + ".held").read_bytes()
    except FileNotFoundError:
        data = b""
    if len(data) != HELD_BYTES:
        what = (
            "study.sqlite.held, with the time that a driver held and did not record, is not whole"
        )
        yield Finding(Severity.WARNING, what, "that time, if there was any, will not be charged")
        return
    words = memoryview(data).cast("q")
    for row in rows:
        lost = held_ns(words, row.id) - study.budget(row).spent_ns
        if lost > 0:
            what = f"{row.searcher} {row.seed}: {to_minutes(lost):.3f} minutes were held when its "
            yield Finding(
                Severity.NOTE, what + "driver ended", "--resume charges them once, as lost"
            )


def _checkpoints(
    study: _Copy, folder: Path, rows: list[RunRow], trials: dict[int, list[Trial]]
) -> Iterator[Finding]:
    """Files that rows name: those still needed must be there, and every one as it was written."""
    place = folder / "checkpoints"
    request = study.meta("request")
    keep = int(request.get("confirm") or 0) if isinstance(request, dict) else 0
    named = set()
    for row in rows:
        history = History(row.max_epochs, row.budget_ns)
        for trial in trials[row.id]:
            history.restore(trial)
            named |= {mark.name for mark in (trial.checkpoint, trial.midway) if mark}
        ended = [t for t in history.trained if t.state.is_final and t.score is not None]
        preferred = None
        try:
            preferred = study.preferred(row)
        except ValueError as error:
            yield Finding(Severity.WARNING, str(error), "--resume chooses again")
        winners = {t.number for t in worth_keeping(history, ended, keep)} | {preferred}
        for trial in history.trained:
            mark = trial.midway or trial.checkpoint
            if mark is None:
                continue
            who = f"{row.searcher} {row.seed}: the checkpoint of trial {trial.number}"
            is_needed = not trial.state.is_final or trial.number in winners
            problem = _problem_of(place, mark)
            if problem and is_needed:
                advice = (
                    "its scores are all there; it fails when it is to go on, the search does not"
                )
                if trial.number in winners:
                    advice = (
                        "its scores are all there, but it cannot be tested or used; train it again"
                    )
                yield Finding(Severity.DAMAGE, f"{who} {problem}", advice)
            elif problem and problem != "is missing":
                yield Finding(Severity.NOTE, f"{who} {problem}", "the winner does not need it")
    orphans = [p.name for p in place.glob("*") if p.suffix in _SUFFIXES and p.name not in named]
    if orphans:
        what = f"{len(orphans)} checkpoint(s) that no row names, such as {sorted(orphans)[0]}"
        yield Finding(
            Severity.NOTE, what, "written just before a driver ended; --resume removes them"
        )


def _problem_of(place: Path, mark: Checkpoint) -> str:
    """What is wrong with a checkpoint; empty where nothing is."""
    if mark.name.endswith(FOLDER_SUFFIX):
        return _problem_of_folder(place / mark.name, mark)
    try:
        with open(place / mark.name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == mark.sha256 else "is not as it was written: its SHA-256 does not fit"


def _problem_of_folder(folder: Path, mark: Checkpoint) -> str:
    try:
        read_manifest(folder, mark.sha256)
    except (ValueError, OSError) as error:
        return f"is not as it was written: {error}" if folder.exists() else "is missing"
    return ""


def _leftovers(folder: Path) -> Iterator[Finding]:
    left = [*folder.glob(".*.tmp"), *folder.glob("checkpoints/.*.tmp"), *folder.glob("*.reserve")]
    if left:
        names = ", ".join(sorted(path.name for path in left)[:3])
        what = f"{len(left)} file(s) that a driver left when it was ended, such as {names}"
        yield Finding(Severity.NOTE, what, "they can be removed")


def _files(
    study: _Copy, folder: Path, rows: list[RunRow], trials: dict[int, list[Trial]]
) -> Iterator[Finding]:
    """Whether summary.json and the tables, where they are there, say what the study says."""
    outcomes = []
    for row in rows:
        history = History(row.max_epochs, row.budget_ns)
        for trial in trials[row.id]:
            history.restore(trial)
        ledger, preferred = study.budget(row).ledger, None
        with suppress(ValueError):  # which was said with the checkpoints
            preferred = study.preferred(row)
        outcomes.append(Outcome(row, history, ledger, row.test_score, preferred=preferred))
    sign = SIGNS.get(str(study.meta("mode")), 1.0)
    shown = [as_told(outcome, sign) for outcome in outcomes]
    differing = []
    for name, expected in (("trials.csv", trials_csv), ("curves.csv", curves_csv)):
        with suppress(FileNotFoundError):
            if outcomes and (folder / name).read_bytes() != expected(shown).encode():
                differing.append(name)
    with suppress(FileNotFoundError):
        text = (folder / "summary.json").read_text(errors="replace")
        try:
            told = [_compared(run) for run in json.loads(text)["runs"]]
        except (ValueError, KeyError, TypeError):
            told = []
        if told != [_compared(run_summary(outcome, sign)) for outcome in outcomes]:
            differing.insert(0, "summary.json")
    if differing:
        what = f"{', '.join(differing)} do not say what the study says"
        yield Finding(
            Severity.WARNING, what, f"the study is right, they are older or altered; {_RESUME}"
        )


def _compared(run: Mapping[str, Any]) -> Any:
    """What of a run's summary is found in its rows alone, as JSON has it."""
    return json.loads(json.dumps({key: run[key] for key in _COMPARED}))


def _versions(study: _Copy, installed: Mapping[str, str]) -> Iterator[Finding]:
    machine = study.meta("machine")
    kept = machine.get("versions") if isinstance(machine, dict) else None
    for name, version in (kept or {}).items():
        here = installed.get(name)
        if here is not None and here != version:
            what = f"the study was begun with {name} {version}; here it is {here}"
            yield Finding(Severity.NOTE, what, "scores may differ a little from here on")
