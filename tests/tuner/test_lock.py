"""The lock that dies with its holder, whoever the holder has started."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tuner.files import FileLock, HeldElsewhereError

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from tuner.files import FileLock
lock = FileLock(Path(sys.argv[1]), "it")
if sys.argv[2] == "forked":
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
else:
    child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["forked", "started"])
def test_a_child_that_outlives_the_holder_does_not_hold(tmp_path, how):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path), how]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(HeldElsewhereError, match=f'"pid": {holder.pid}'):
            FileLock(path, "it")
        os.kill(holder.pid, signal.SIGSTOP)  # asleep is not dead
        with pytest.raises(HeldElsewhereError, match=f'"pid": {holder.pid}'):
            FileLock(path, "it")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        until = time.monotonic() + 10  # a forked child lets go when it first runs
        while True:
            try:
                FileLock(path, "it").release()
                break
            except HeldElsewhereError:
                assert time.monotonic() < until
                time.sleep(0.01)
    finally:
        holder.kill()
        holder.wait()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    from tuner import files

    path, locked = tmp_path / "lock", files.fcntl.flock

    def too_late(file, how):  # between the opening and the lock another one tidies up
        locked(file, how)
        if path.exists():
            monkeypatch.setattr(files.fcntl, "flock", locked)
            path.unlink()

    monkeypatch.setattr(files.fcntl, "flock", too_late)
    lock = FileLock(path, "it")
    with pytest.raises(HeldElsewhereError):
        FileLock(path, "it")
    lock.release()


def test_the_holder_is_named_though_it_says_so_a_moment_late(tmp_path):
    path = tmp_path / "lock"
    path.write_text('{"pid": 2147483647, "host": "' + os.uname().nodename + '"}')  # a dead one's
    lock = FileLock(path, "it")
    began = time.monotonic()
    with pytest.raises(HeldElsewhereError, match=f'"pid": {os.getpid()}'):
        FileLock(path, "it")
    lock._file.truncate(0)  # as if it had not come to it yet: nobody waits for ever
    with pytest.raises(HeldElsewhereError, match="unknown"):
        FileLock(path, "it")
    assert time.monotonic() > began
    lock.release()
