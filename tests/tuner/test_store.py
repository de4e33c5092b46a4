import os
import resource
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.helpers import SPACE
from tuner.budget import Kind
from tuner.files import CannotWriteError
from tuner.reader import Snapshot
from tuner.schema import SCHEMA_VERSION
from tuner.store import Store
from tuner.trial import Checkpoint, Observation, Trial, TrialState


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.sqlite"


def fill(path):
    store = Store(path, create=True)
    row = store.add_run("random", 3, SPACE, 5, 10**9)
    history = store.history(row)
    history.start(Trial(0, {"x": 0.1 + 0.2, "y": 1e-300}, 2**62, 5, note="why"))
    history.observe(0, Observation(1, 1 / 3, 10, 10, {"loss": 0.7}), clock=4)
    history.observe(0, Observation(2, 2 / 3, 11, 21), checkpoint=Checkpoint("a.npz", "ff"))
    history.start(Trial(1, {"x": 0.0, "y": 1.0}, 1, 5))
    history.close(1, TrialState.INFEASIBLE, "the loss is not finite")
    store.charge(row.id, {Kind.TRAIN: 21, Kind.SEARCH: 2}, 0)
    store.charge(row.id, {Kind.LOST: 5}, None)
    store.commit()
    store.close()
    return history.trials


def test_what_was_written_is_read_again_to_the_bit(path):
    trials = fill(path)
    store = Store(path, create=False)
    (row,) = store.runs()
    assert (row.searcher, row.seed, row.space, row.max_epochs) == ("random", 3, SPACE, 5)
    history = store.history(row)
    assert history.trials == trials
    assert (history.best.number, history.mean_epoch_ns) == (0, 10)
    ledger = store.budget(row).ledger
    assert (ledger[Kind.TRAIN], ledger[Kind.SEARCH], ledger[Kind.LOST]) == (21, 2, 5)
    store.close()


def test_what_was_not_committed_is_not_there(path):
    fill(path)
    store = Store(path, create=False)
    history = store.history(store.runs()[0])
    history.start(Trial(2, {"x": 0.5, "y": 0.5}, 1, 5))
    store.close()
    store = Store(path, create=False)
    assert len(store.history(store.runs()[0])) == 2
    store.close()


def test_a_second_driver_is_refused_and_told_who_holds_it(path):
    fill(path)
    code = (
        f"import sys, pathlib\nfrom tuner.store import Store\n"
        f"store = Store(pathlib.Path({str(path)!r}), create=False)\nprint('open', flush=True)\n"
        f"sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(ValueError, match=f'in use by another process: .*"pid": {holder.pid}'):
        Store(path, create=False)
    holder.kill()  # the kernel drops the lock of a process that died
    holder.wait()
    Store(path, create=False).close()


def test_an_existing_study_is_never_overwritten(path):
    trials = fill(path)
    with pytest.raises(ValueError, match="exists already"):
        Store(path, create=True)
    store = Store(path, create=False)
    assert store.history(store.runs()[0]).trials == trials
    store.close()


def test_a_missing_study_is_said_to_be_missing(path):
    with pytest.raises(ValueError, match="no study at"):
        Store(path, create=False)
    assert not path.exists()


def test_a_newer_format_is_refused_and_left_alone(path):
    fill(path)
    db = sqlite3.connect(path)
    db.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION + 1),))
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"written in format {SCHEMA_VERSION + 1}"):
        Store(path, create=False)
    assert path.read_bytes() == before


def read_all(path):
    store = Store(path, create=False)
    try:
        return [store.history(row) for row in store.runs()]
    finally:
        store.close()


@pytest.mark.parametrize("damage", ["text", "empty", "header", "cut", "rows"])
def test_a_damaged_file_is_refused_by_name_and_left_alone(path, damage):
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "text": b"no database at all, " * 999,
            "empty": b"",
            "header": b"SQLite format 4\x00" + whole[16:],
            "cut": whole[: len(whole) // 2],
            "rows": whole,
        }[damage]
    )
    if damage == "rows":
        db = sqlite3.connect(path)
        db.execute("UPDATE trial SET config = '[1, 2'")
        db.commit()
        db.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"study\.sqlite"):
        read_all(path)
    assert path.read_bytes() == before


def test_the_held_time_outlives_its_process_without_a_commit(path):
    fill(path)
    code = (
        f"import os, pathlib\nfrom tuner.store import Store\n"
        f"store = Store(pathlib.Path({str(path)!r}), create=False)\n"
        f"store.set_held(1, 123_456_789_012)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    store = Store(path, create=False)
    assert (store.held(1), store.held(2), store.held(10**6)) == (123_456_789_012, 0, 0)
    store.close()


def test_a_damaged_copy_of_the_held_time_is_outvoted(path):
    fill(path)
    store = Store(path, create=False)
    store.set_held(1, 123)
    store.close()
    held = path.with_name("study.sqlite.held")
    whole = held.read_bytes()
    places = [at for at in range(0, len(whole), 8) if whole[at] == 123]
    assert len(places) == 3
    for at in places:
        held.write_bytes(whole[: at + 7] + b"\x40" + whole[at + 8 :])  # 146 years more
        store = Store(path, create=False)
        assert store.held(1) == 123
        store.close()


def limit_file_size(size):
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


@pytest.fixture
def no_room():
    """From its call on no file grows any more; a write is refused half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda path: limit_file_size(path.stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_commit_is_named_and_the_last_good_state_goes_on(path, no_room):
    trials = fill(path)
    store = Store(path, create=False)
    history = store.history(store.runs()[0])
    acknowledged = 2

    def go_on():
        nonlocal acknowledged
        for number in range(2, 2000):
            history.start(Trial(number, {"x": 0.5, "y": 0.5}, 1, 5, note="n" * 99))
            store.commit()
            acknowledged += 1

    no_room(path)
    with pytest.raises(CannotWriteError, match=f"^{path} cannot be written: the disk"):
        go_on()
    assert 2 < acknowledged < 2000
    store.pause("the disk is full")
    store.close()
    limit_file_size(resource.RLIM_INFINITY)
    store = Store(path, create=False)
    found = store.history(store.runs()[0]).trials
    assert found[:2] == trials
    assert len(found) >= acknowledged
    store.close()


class FullUntilFreed(sqlite3.Connection):
    """A connection whose commits are refused while the reserve takes up the room."""

    reserve = None

    def execute(self, statement, *values):
        if statement == "COMMIT" and self.reserve is not None and self.reserve.exists():
            super().execute("ROLLBACK")  # as SQLite itself does
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(statement, *values)


def test_the_reserve_pays_for_the_last_words(path, monkeypatch):
    trials = fill(path)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FullUntilFreed)
    )
    store = Store(path, create=False)
    row = store.runs()[0]
    history = store.history(row)
    reserve = path.with_name("study.sqlite.reserve")
    assert reserve.stat().st_size == 1 << 20
    history.start(Trial(2, {"x": 0.5, "y": 0.5}, 1, 5))
    history.observe(2, Observation(1, 0.25, 7, 30))
    store.charge(row.id, {Kind.TRAIN: 7}, 2)
    assert store.meta("paused") is None  # which has the rows written before they are committed
    FullUntilFreed.reserve = reserve
    with pytest.raises(CannotWriteError, match="the disk is full"):
        store.commit()
    FullUntilFreed.reserve = None
    store.pause("the disk is full")
    store.close()
    monkeypatch.undo()
    db = sqlite3.connect(path)
    assert db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchall() == [
        ('"the disk is full"',)
    ]
    db.close()
    store = Store(path, create=False)
    assert store.meta("paused") is None
    found = store.history(row)
    assert found.trials[:2] == trials
    assert found[2].curve == (Observation(1, 0.25, 7, 30),)  # the refused commit, after all
    assert store.budget(row).ledger[Kind.TRAIN] == 28
    store.close()
    assert not reserve.exists()


def test_of_a_study_that_could_not_be_made_nothing_is_left(path, no_room, tmp_path):
    path.write_bytes(bytes(8192))
    no_room(path)  # less than the tables need, and than the reserve
    path.unlink()
    with pytest.raises(CannotWriteError, match="the disk is full"):
        Store(path, create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_statement_that_is_no_text_any_more_is_damage(path):
    fill(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_schema SET sql = CAST(sql AS BLOB) WHERE name = 'charge_of_run'")
    db.commit()
    db.close()
    with pytest.raises(ValueError, match=str(path)):
        Store(path, create=False)


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE observation SET score = 0.99 WHERE epoch = 2", "observation"),
        ("UPDATE charge SET train = train - 1 WHERE number = 0", "charge"),
        ("UPDATE trial SET seed = 5 WHERE number = 1", "trial"),
        ("UPDATE run SET budget_ns = budget_ns * 2", "run"),
        ("UPDATE meta SET value = '\"min\"' WHERE key = 'mode'", "meta"),
    ],
)
def test_a_row_that_was_altered_is_never_believed(path, change, table):
    fill(path)
    store = Store(path, create=False)
    store.set_meta("mode", "max")
    store.commit()
    store.close()
    db = sqlite3.connect(path)
    assert db.execute(change).rowcount == 1
    db.commit()
    db.close()
    with pytest.raises(ValueError, match=f"{path} is damaged: a row of its table {table}"):
        Store(path, create=False)


def test_tables_that_are_not_ours_are_refused(path):
    fill(path)
    db = sqlite3.connect(path)
    db.execute("CREATE TRIGGER t AFTER INSERT ON charge BEGIN DELETE FROM trial; END")
    db.commit()
    db.close()
    with pytest.raises(ValueError, match="is no study: it holds the trigger 't'"):
        Store(path, create=False)


def test_a_study_from_before_the_clock_was_set_back_can_be_read(tmp_path):
    store = Store(tmp_path / "study.sqlite", create=True)
    store.add_run("random", 0, SPACE, 2, 10**9)
    store.commit()
    store.close()
    tomorrow = time.time() + 86_400
    os.utime(store.path, (tomorrow, tomorrow))
    assert [row.searcher for row in Snapshot(store.path).runs()] == ["random"]
