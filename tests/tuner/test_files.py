import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.files import CannotWriteError, FileLock, Reserve, allocate, write_atomically

LIMITED = """
import resource, sys
from pathlib import Path
from tuner.files import CannotWriteError, write_atomically
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_atomically(path, b"new" * 30_000)
except CannotWriteError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1, 4096, 89_999])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, limit):
    path = tmp_path / "table.csv"
    write_atomically(path, "old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, str(limit)], capture_output=True, text=True
    )
    assert done.stdout == (
        f"{path} cannot be written: the disk is full (File too large); make room there, then go "
        "on\n"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EIO, "the disk fails"),
        (errno.EROFS, "it is refused"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_the_system_says_becomes_one_sentence(tmp_path, monkeypatch, number, words, call):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CannotWriteError, match=f"^{path} cannot be written: {words} \\(") as caught:
        write_atomically(path, "new")
    assert (caught.value.path, caught.value.number) == (path, number)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_allocated_room_is_really_there_and_content_is_kept(tmp_path):
    path = tmp_path / "held"
    path.write_bytes(b"12345678")
    with open(path, "a+b") as file:
        allocate(file, 32_768)
    assert path.stat().st_blocks * 512 >= 32_768  # a hole has no blocks
    assert path.read_bytes() == b"12345678" + bytes(32_760)


def test_a_reserve_takes_up_its_room_until_it_is_given_back(tmp_path):
    path = tmp_path / "reserve"
    reserve = Reserve(path)
    assert path.stat().st_blocks * 512 >= Reserve.SIZE
    reserve.free()
    assert not path.exists()
    reserve.free()


def test_without_room_for_a_reserve_there_is_none(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CannotWriteError, match="the disk is full"):
            Reserve(tmp_path / "reserve")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_says_so(tmp_path):
    with pytest.raises(CannotWriteError, match="it is refused"):
        FileLock(Path(tmp_path, "nowhere", "study.lock"), "the study")
