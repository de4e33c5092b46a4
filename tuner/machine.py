"""Whether a machine is fit for a long run: its disk, its SQLite, its clock, its libraries."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from tuner.doctor import Finding, Severity
from tuner.files import CannotWriteError

# Where SQLite's locks, or an fsync, do not mean what they say, by what the kernel calls them.
_SHARED = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "lustre", "gpfs", "afs", "beegfs", "vboxsf")
_IN_MEMORY = ("tmpfs", "ramfs")
_SLOW_COMMIT_S = 0.1
_COMMITS = 9
_READINGS = 10_000
_COARSE_NS = 1_000_000


def check_machine(
    folder: Path, needed_bytes: int, versions: Mapping[str, str], mounts: str | None = None
) -> Iterator[Finding]:
    """Findings on the machine, for runs that are to lie in `folder`.

    Args:
        folder: where runs are to lie; of one that does not exist its nearest parent counts.
        needed_bytes: what a long run's checkpoints, study and reports may take.
        versions: of the packages that are installed here.
        mounts: the text of /proc/self/mountinfo; read here where it is None.
    """
    folder = folder.resolve()
    while not folder.is_dir():
        folder = folder.parent
    yield from check_file_system(folder, mounts)
    yield from check_space(folder, needed_bytes)
    yield from check_sqlite(folder)
    yield from check_clock()
    yield from check_versions(versions)


def check_space(folder: Path, needed_bytes: int) -> Iterator[Finding]:
    """Whether a run's files have room."""
    free = shutil.disk_usage(folder).free
    what = f"{_size(free)} free in {folder}, a long run may take {_size(needed_bytes)}"
    if free >= needed_bytes:
        yield Finding(Severity.NOTE, what)
        return
    advice = "make room; a run on a full disk pauses, and goes on with --resume"
    yield Finding(Severity.WARNING, what, advice)


def check_file_system(folder: Path, mounts: str | None = None) -> Iterator[Finding]:
    """Whether the folder's file system keeps SQLite's promises: locks, and what fsync means."""
    if mounts is None:
        try:
            mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
        except OSError:
            yield Finding(Severity.NOTE, "which file system this is cannot be found out here")
            return
    kind, point = file_system(folder, mounts)
    what = f"{folder} is on {kind}, mounted at {point}"
    if kind.startswith(_SHARED):
        advice = "locks and fsync cannot be relied on there: keep runs/ on a local disk"
        yield Finding(Severity.WARNING, what, advice)
    elif kind in _IN_MEMORY:
        yield Finding(Severity.WARNING, what, "it is gone when the machine is: use a disk")
    else:
        yield Finding(Severity.NOTE, what)


def file_system(folder: Path, mounts: str) -> tuple[str, str]:
    """The kind of the file system that holds a folder, and where it is mounted."""
    best = ("unknown", "/")
    longest = -1
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        if len(parts) < 5 or not rest:
            continue
        point = parts[4].encode().decode("unicode_escape")  # a blank is written as \040
        is_above = point == "/" or folder == Path(point) or Path(point) in folder.parents
        if is_above and len(point) >= longest:  # of two at one place the last one covers the other
            best, longest = (rest.split()[0], point), len(point)
    return best


def check_sqlite(folder: Path) -> Iterator[Finding]:
    """SQLite's version, and what a commit costs here, as the study makes them."""
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < (3, 37):  # STRICT tables
        what = f"SQLite is {version}, and a study needs 3.37 or later"
        yield Finding(Severity.DAMAGE, what, "use a newer Python")
        return
    seconds = []
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            closing(sqlite3.connect(Path(place, "a.sqlite"), isolation_level=None)) as db,
        ):
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("CREATE TABLE t (a)")
            for number in range(_COMMITS):
                began = time.perf_counter()
                db.execute("INSERT INTO t VALUES (?)", (number,))
                seconds.append(time.perf_counter() - began)
    except OSError as error:
        refused = CannotWriteError.of(folder, error)
        yield Finding(Severity.DAMAGE, str(refused), "choose another folder with --out")
        return
    except sqlite3.Error as error:
        what = f"SQLite cannot write in {folder}: {error}"
        yield Finding(Severity.DAMAGE, what, "choose another folder with --out")
        return
    median = statistics.median(seconds)
    what = f"SQLite {version}, a commit takes {1e3 * median:.1f} ms here"
    if median > _SLOW_COMMIT_S:
        yield Finding(Severity.WARNING, what, "the device waits that long at each epoch")
    else:
        yield Finding(Severity.NOTE, what)


def check_clock() -> Iterator[Finding]:
    """Whether the monotonic clock goes forward, and in what steps."""
    readings = [time.monotonic_ns() for _ in range(_READINGS)]
    steps = [b - a for a, b in itertools.pairwise(readings)]
    if min(steps) < 0:
        what = f"the monotonic clock went back by {-min(steps)} ns"
        yield Finding(Severity.DAMAGE, what, "minutes cannot be metered on this machine")
        return
    step = min((s for s in steps if s > 0), default=_COARSE_NS)
    what = f"the monotonic clock goes forward, in steps of {step:,} ns or less"
    if step >= _COARSE_NS:
        yield Finding(Severity.WARNING, what, "short epochs are metered coarsely")
    else:
        yield Finding(Severity.NOTE, what)


def check_versions(versions: Mapping[str, str]) -> Iterator[Finding]:
    """What runs here."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    what = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(Severity.NOTE, f"{what}; {found or 'no packages'}")


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
