import os
import shutil
import sqlite3
import time
from collections import namedtuple
from pathlib import Path

import pytest

from tuner import machine
from tuner.doctor import Severity

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /home rw shared:2 - nfs4 server:/home rw
31 22 0:27 / /mnt/a\\040b rw - fuse.sshfs host: rw
32 30 254:1 / /home/me/scratch rw - xfs /dev/vdb rw
33 22 0:28 / /tmp rw - tmpfs tmpfs rw
34 22 0:29 / /data rw - ext4 /dev/vdc rw
35 34 0:30 / /data rw - cifs //server/data rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "point"),
    [
        ("/work", "ext4", "/"),
        ("/home", "nfs4", "/home"),
        ("/homework", "ext4", "/"),
        ("/home/me", "nfs4", "/home"),
        ("/home/me/scratch/runs", "xfs", "/home/me/scratch"),
        ("/mnt/a b/runs", "fuse.sshfs", "/mnt/a b"),
        ("/data/runs", "cifs", "/data"),  # the last of two at one place
    ],
)
def test_the_file_system_of_a_folder_is_found_in_the_kernels_table(folder, kind, point):
    assert machine.file_system(Path(folder), MOUNTS) == (kind, point)


@pytest.mark.parametrize(
    ("folder", "severity"),
    [
        ("/work", Severity.NOTE),
        ("/home/me", Severity.WARNING),
        ("/mnt/a b", Severity.WARNING),
        ("/tmp", Severity.WARNING),
        ("/data", Severity.WARNING),
    ],
)
def test_sqlite_is_warned_off_file_systems_that_are_shared_or_in_memory(folder, severity):
    (finding,) = machine.check_file_system(Path(folder), MOUNTS)
    assert finding.severity is severity


def test_too_little_room_is_a_warning(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 3 << 20))
    (finding,) = machine.check_space(tmp_path, 3 << 20)
    assert finding.severity is Severity.NOTE
    assert finding.what == f"3 MiB free in {tmp_path}, a long run may take 3 MiB"
    (finding,) = machine.check_space(tmp_path, (3 << 20) + 1)
    assert finding.severity is Severity.WARNING


def test_a_commit_is_tried_where_the_runs_are_to_lie_and_nothing_stays(tmp_path):
    (finding,) = machine.check_sqlite(tmp_path)
    assert finding.what.startswith(f"SQLite {sqlite3.sqlite_version}, a commit takes ")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_damage(tmp_path):
    (finding,) = machine.check_sqlite(tmp_path / "nowhere")
    assert finding.severity is Severity.DAMAGE
    assert "cannot be written" in finding.what


@pytest.mark.parametrize(
    ("readings", "severity", "words"),
    [
        ([10, 10, 35, 60], Severity.NOTE, "in steps of 25 ns or less"),
        ([10, 60, 35, 80], Severity.DAMAGE, "went back by 25 ns"),
        ([0, 0, 10**7, 2 * 10**7], Severity.WARNING, "in steps of 10,000,000 ns or less"),
    ],
)
def test_a_clock_that_goes_back_or_in_leaps_is_noticed(monkeypatch, readings, severity, words):
    monkeypatch.setattr(machine, "_READINGS", len(readings))
    monkeypatch.setattr(time, "monotonic_ns", iter(readings).__next__)
    (finding,) = machine.check_clock()
    assert finding.severity is severity
    assert words in finding.what


def test_the_nearest_folder_that_exists_is_examined(tmp_path):
    found = list(machine.check_machine(tmp_path / "runs" / "new", 1, {"numpy": "2.0"}, MOUNTS))
    assert any(f" free in {tmp_path}," in f.what for f in found)
    assert any("numpy 2.0" in f.what for f in found)
