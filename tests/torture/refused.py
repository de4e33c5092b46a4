"""A race on a disk that refuses one of its writes, again and again: run by `files.py`.

`LD_PRELOAD=refusing.so python -m tests.torture.refused LIBRARY FOLDER N SEED` prints as JSON what
was found. Everything is imported once; each race is a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import json
import mmap
import os
import random
import re
import shutil
import sqlite3
import sys
import traceback
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import scripts.tuning
import tuner.plots
from scripts.errors import DISK_EXIT
from scripts.tune import app
from tuner.files import write_atomically
from tuner.store import Store

_FILES = ("trials.csv", "curves.csv", "summary.json", "best_config.json", "report.html")
_RACE = ["--searchers", "random", "--landscape", "bumpy", "--budget-minutes", "1"]
_COUNT = (
    "SELECT (SELECT COUNT(*) FROM trial) + (SELECT COUNT(*) FROM observation) "
    "+ (SELECT COUNT(*) FROM charge)"
)


class How(enum.IntEnum):
    """How the library fails; as it numbers them."""

    OFF = 0
    ONCE = 1
    UNTIL_FREED = 2  # a full disk, until the reserve is given back
    FOREVER = 3
    SHORT = 4  # half of a write, then nothing more
    SYNC = 5  # an fsync, once


WAYS = (
    (How.ONCE, errno.ENOSPC),
    (How.UNTIL_FREED, errno.ENOSPC),
    (How.FOREVER, errno.ENOSPC),
    (How.FOREVER, errno.EDQUOT),
    (How.FOREVER, errno.EIO),
    (How.SHORT, errno.ENOSPC),
    (How.SYNC, errno.EIO),
)


@dataclass(frozen=True)
class Site:
    """The `number`-th call that writes, and how it fails."""

    how: How
    error: int
    number: int

    def __str__(self) -> str:
        return f"{self.how.name} {errno.errorcode[self.error]} at call {self.number}"


class Disk:
    """Races in forks of this process, on a disk that refuses what it is told to."""

    def __init__(self, library: str, folder: Path) -> None:
        self._library, self._folder = ctypes.CDLL(library), folder
        self._acknowledged = mmap.mmap(-1, 16)  # rows whose commit has returned; calls counted
        tell = Store._commit

        def commit(store: Store) -> None:
            tell(store)
            rows = store._db.execute(_COUNT).fetchone()[0]
            self._acknowledged[:8] = rows.to_bytes(8, "little")

        Store._commit = commit
        scripts.tuning._REPLAY_COMMIT_S = 0.0  # every one of them, as where devices are paid for
        picture = b"a picture" * 1000  # drawing takes longer than all the rest
        tuner.plots.draw_race = lambda path, *_: write_atomically(path, picture)
        tuner.plots.draw_effects = tuner.plots.draw_race

    @property
    def acknowledged(self) -> int:
        return int.from_bytes(self._acknowledged[:8], "little")

    @property
    def calls(self) -> int:
        return int.from_bytes(self._acknowledged[8:], "little")

    def race(self, out: Path, site: Site | None, *, resume: bool = False) -> tuple[int, str]:
        """The exit code of a race, and what it said."""
        said = self._folder / "said"
        self._acknowledged[:] = bytes(16)
        child = os.fork()
        if child == 0:
            code = 70
            with contextlib.suppress(BaseException):
                file = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(file, 1)
                os.dup2(file, 2)
                code = self._run(
                    out, site, ["--quiet", "--resume" if resume else "--out", str(out)]
                )
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.read_text()

    def _run(self, out: Path, site: Site | None, where: list[str]) -> int:
        how = (site.number, site.how, site.error) if site else (0, How.OFF, 0)
        self._library.refuse(str(out).encode(), ctypes.c_long(how[0]), *how[1:])
        try:
            arguments = where if "--resume" in where else [*_RACE, *where]
            code = app(arguments, standalone_mode=False) or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        self._acknowledged[8:] = self._library.calls().to_bytes(8, "little")
        return code


def problem(disk: Disk, out: Path, site: Site, twin: dict[str, bytes]) -> tuple[str, str]:
    """What was not as promised, if anything, and how the race ended: named, or survived."""
    code, said = disk.race(out, site)
    acknowledged, study = disk.acknowledged, out / "study.sqlite"
    ended = "named" if code else "survived"
    if code not in (0, DISK_EXIT):
        return f"exit code {code}: {said[-300:]}", ended
    lines = said.strip().splitlines()
    if code and (len(lines) != 1 or not re.search(re.escape(str(out)), lines[0])):
        return f"not one line that names the file: {said[-300:]}", ended
    if study.exists():
        with closing(sqlite3.connect(study)) as db:
            there = db.execute(_COUNT).fetchone()[0]
            paused = db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
        if there < acknowledged:
            return f"{acknowledged} rows were acknowledged, {there} are there", ended
        if code and site.how is How.UNTIL_FREED and "--resume" in said and not paused:
            return "the last words are missing, though the reserve was given back", ended
    elif acknowledged > 1:  # the tables alone are no study yet
        return "the study is gone", ended
    if code:  # else it has survived, and must have come to the same already
        code, said = disk.race(out, None, resume=study.exists())
    if code:
        return f"it does not go on: {said[-300:]}", ended
    for name, content in twin.items():
        if not (out / name).exists() or (out / name).read_bytes() != content:
            return f"{name} is another than without the failure", ended
    left = [path.name for path in out.iterdir() if path.name.endswith((".tmp", ".reserve"))]
    return (f"left behind: {left}" if left else ""), ended


def main() -> None:
    """Put up to N sites to the test, drawn with SEED; all of them where there are no more."""
    library, folder, n, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    disk = Disk(library, folder)
    disk._run(
        folder / "first", None, ["--quiet", "--out", str(folder / "first")]
    )  # so that all is loaded
    out = folder / "race"
    code, said = disk.race(out, None)
    if code:
        raise RuntimeError(said)
    calls, twin = disk.calls, {name: (out / name).read_bytes() for name in _FILES}
    shutil.rmtree(out)
    disk.race(out, Site(How.SYNC, errno.EIO, 1 << 40))
    syncs = disk.calls
    sites = [
        Site(how, error, number)
        for how, error in WAYS
        for number in range(1, (syncs if how is How.SYNC else calls) + 1)
    ]
    chosen = random.Random(seed).sample(sites, min(n, len(sites)))
    failures, ends = [], {"named": 0, "survived": 0}
    for site in chosen:
        shutil.rmtree(out, ignore_errors=True)
        wrong, ended = problem(disk, out, site, twin)
        ends[ended] += 1
        if wrong:
            failures.append(f"{site}: {wrong}")
    notes = {"write sites": calls, "of them fsyncs": syncs, "ways": len(WAYS), **ends}
    print(json.dumps({"n": len(chosen), "failures": failures, "notes": notes}))


if __name__ == "__main__":
    main()
