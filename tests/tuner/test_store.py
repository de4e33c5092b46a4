import sqlite3
import subprocess
import sys

import pytest

from tests.helpers import SPACE
from tuner.budget import Kind
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
