"""That the lost power of the campaign is one that a careless writer would notice."""

from pathlib import Path

import numpy as np
import pytest

from tests.torture.powerloss import Disk, Loss, Op, choose, lose, record, why_not
from tests.torture.victim import scratch_folder

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be recorded")


@pytest.fixture(scope="module")
def scratch():
    with scratch_folder() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def recording(scratch):
    return record(scratch, 3)


def test_a_recording_has_the_syncs_of_commits_and_of_checkpoints(recording):
    synced = {op.path for op in recording if op.name == "sync"}
    assert {"study.sqlite", "study.sqlite-journal", ".", "checkpoints"} <= synced
    assert sum(path.startswith("checkpoints/.stub-") for path in synced) == 24  # 6 trials, 4 epochs


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("checkpoints/.stub-", "goes on from it"),
        ("study.sqlite", "lost|does not open"),
        ("checkpoints", "goes on from it"),
    ],
)
def test_whoever_leaves_a_sync_out_loses(recording, scratch, left_out, words):
    def is_left_out(op):
        exact = op.path == left_out or (left_out.endswith("-") and op.path.startswith(left_out))
        return op.name == "sync" and exact

    ops = [op for op in recording if not is_left_out(op)]
    assert len(ops) < len(recording)
    found, _ = lose(ops, choose(ops, 40, 0), 0, scratch, None)
    assert any(word in line for word in words.split("|") for line in found)


def test_a_journal_that_is_not_synced_does_not_save_a_torn_commit(recording, scratch):
    ops = [op for op in recording if (op.name, op.path) != ("sync", "study.sqlite-journal")]
    written = [k for k, op in enumerate(ops, 1) if (op.name, op.path) == ("write", "study.sqlite")]
    torn = [(k, Loss.SECTORS) for k in written]
    assert lose(ops, 4 * torn, 0, scratch, None)[0]


def state(ops, loss):
    disk = Disk()
    for op in ops:
        disk.apply(op)
    return disk.left(loss, np.random.default_rng(0), ops[-1])


ONE = Op("create", "a"), Op("write", "a", data=b"x" * 1200)
SAVED = *ONE, Op("sync", "a"), Op("sync", ".")
MOVED = *SAVED, Op("rename", "a", "b"), Op("write", "b", offset=1200, data=b"y" * 600)


def test_what_is_left_by_hand():
    assert state(ONE, Loss.NOTHING) == {"a": b"x" * 1200}
    assert state(ONE, Loss.EVERYTHING) == {}
    assert state(ONE, Loss.BYTES) == {"a": b""}
    assert state(ONE, Loss.NAMES) == {}
    assert state(ONE, Loss.LAST)["a"] in (b"", b"x" * 512, b"x" * 1024)
    assert state(SAVED, Loss.EVERYTHING) == state(SAVED, Loss.SECTORS) == {"a": b"x" * 1200}
    assert state(MOVED, Loss.EVERYTHING) == {"a": b"x" * 1200}
    assert state(MOVED, Loss.NAMES) == {"a": b"x" * 1200 + b"y" * 600}
    assert state(MOVED, Loss.BYTES) == {"b": b"x" * 1200}
    cut = (*SAVED, Op("truncate", "a", offset=3))
    assert state(cut, Loss.NOTHING) == {"a": b"xxx"}
    assert state(cut, Loss.EVERYTHING) == {"a": b"x" * 1200}
