"""Folders of users: whole or absent, known by their hashes."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.files import CannotWriteError
from tuner.workers.checkpoints import DamagedCheckpointError, TrialCheckpoint


def saved(folder, files, epoch=3):
    checkpoint = TrialCheckpoint(folder, "key-00001", 1, 7)
    with checkpoint.save() as making:
        for name, data in files.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            (making / name).write_bytes(data)
    return checkpoint.keep(epoch)


def loaded(folder, mark):
    checkpoint = TrialCheckpoint(folder, "key-00001", 1, 7)
    checkpoint.load(*mark)
    return checkpoint


def test_what_is_saved_is_there_again(tmp_path):
    mark = saved(tmp_path, {"a": b"1", "deep/er/b": b"22", "empty": b""})
    checkpoint = loaded(tmp_path, mark)
    assert checkpoint.epoch == 3
    assert (checkpoint.folder / "a").read_bytes() == b"1"
    assert (checkpoint.folder / "deep" / "er" / "b").read_bytes() == b"22"
    assert [p.name for p in tmp_path.iterdir()] == [mark[0]]  # nothing beside it


def test_the_last_of_several_saves_counts_and_none_is_left_over(tmp_path):
    checkpoint = TrialCheckpoint(tmp_path, "key-00001", 1, 7)
    for text in ("1", "2"):
        with checkpoint.save() as folder:
            (folder / "a").write_text(text)
    name, _ = checkpoint.keep(1)
    assert (tmp_path / name / "a").read_text() == "2"
    assert checkpoint.keep(2) is None
    with checkpoint.save() as folder:
        (folder / "a").write_text("3")
    checkpoint.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_save_that_fails_leaves_nothing_and_the_one_before_it_counts(tmp_path):
    checkpoint = TrialCheckpoint(tmp_path, "key-00001", 1, 7)
    with checkpoint.save() as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyError), checkpoint.save() as folder:
        (folder / "a").write_text({}["2"])
    with pytest.raises(ValueError, match="link is"), checkpoint.save() as folder:
        (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(FileNotFoundError), checkpoint.save() as folder:
        (folder / "missing").read_text()  # the user's own mistake, and not the disk's
    name, _ = checkpoint.keep(1)
    assert (tmp_path / name / "a").read_text() == "1"


def test_a_full_disk_is_the_disks_fault(tmp_path):
    checkpoint = TrialCheckpoint(tmp_path, "key-00001", 1, 7)
    with pytest.raises(CannotWriteError, match="the disk is full"), checkpoint.save() as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "a"))


@given(st.data())
def test_whatever_is_altered_is_not_gone_on_from(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("checkpoint")
    mark = saved(tmp_path, {"a": b"hello", "deep/b": b"world"})
    folder = tmp_path / mark[0]
    path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    content = bytearray(path.read_bytes())
    action = data.draw(st.sampled_from(["flip", "cut", "delete", "add", "link"]))
    if action == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    elif action == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif action == "delete":
        path.unlink()
    elif action == "add":
        (path.parent / "more").write_bytes(b"")
    else:
        path.unlink()
        path.symlink_to("/etc/passwd")
    with pytest.raises(DamagedCheckpointError, match=f"checkpoint {mark[0]} is damaged"):
        loaded(tmp_path, mark)


def test_one_that_is_gone_says_so(tmp_path):
    with pytest.raises(DamagedCheckpointError, match=r"gone\.checkpoint is damaged"):
        loaded(tmp_path, ("gone.checkpoint", "0" * 64))
