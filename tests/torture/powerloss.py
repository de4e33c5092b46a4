"""P2: a power loss loses nothing that was reported as saved.

A search on worker processes is recorded: every change of its files and folders, and every fsync,
in order (`powerloss.c`, preloaded). The disk is then built up again to any point of the recording,
and from there lost as POSIX allows: of what no fsync has made durable, a file's bytes (in sectors
of 512) and a folder's names may be there or not. What is left must open, hold every row that the
search was told to be on record, and have whole every checkpoint that it would go on from.
"""

from __future__ import annotations

import enum
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from unittest import SkipTest

import numpy as np

from models.checkpoint import load
from tests.torture import kills
from tests.torture.campaign import Campaign, Found
from tests.torture.victim import Job, Zygote, scratch_folder
from tuner.store import Store

SECTOR = 512
GOES_ON = 40  # of so many losses one search is taken up again, to its end
CASES_A_RECORDING = 2_000


@dataclass(frozen=True)
class Op:
    """One change of the disk, or a sync; `path` and `to` are relative to the folder."""

    name: str  # create, write, truncate, rename, unlink, sync
    path: str
    to: str = ""
    offset: int = 0  # of a write; the size of a truncate
    data: bytes = b""


class Loss(enum.Enum):
    """What becomes of that which no fsync has made durable."""

    NOTHING = "all of it is there"  # as after kill -9
    EVERYTHING = "none of it is there"
    BYTES = "names are there, bytes are not"
    NAMES = "bytes are there, names are not"
    LAST = "all is there but the end of the last write"
    SECTORS = "sectors and names are there or not, by chance"


Case: TypeAlias = tuple[int, Loss]
"""After how many operations power is lost, and what is left then."""


@dataclass
class File:
    """What of a file is durable, and what is not yet: writes and truncations, in order."""

    durable: bytes = b""
    pending: list[Op] = field(default_factory=list)

    def after(self, ops: Iterable[Op]) -> bytes:
        """The durable bytes with some of the pending changes."""
        data = bytearray(self.durable)
        for op in ops:
            if op.name == "truncate":
                data = data[: op.offset].ljust(op.offset, b"\0")
            else:
                data = data.ljust(op.offset, b"\0")
                data[op.offset : op.offset + len(op.data)] = op.data
        return bytes(data)


class Disk:
    """Files and names, as processes see them and as a power loss would leave them."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._pending: dict[str, list[tuple[Op, File]]] = defaultdict(list)  # by folder

    def apply(self, op: Op) -> None:
        """Take part in one change."""
        if op.name in ("create", "rename", "unlink"):
            file = File() if op.name == "create" else self.names[op.path]
            self._pending[str(PurePosixPath(op.path).parent)].append((op, file))
            _rename(self.names, op, file)
        elif op.name in ("write", "truncate"):
            self.names[op.path].pending.append(op)
        elif op.path in self.names:
            file = self.names[op.path]
            file.durable, file.pending = file.after(file.pending), []
        else:  # a folder
            for change in self._pending.pop(op.path, []):
                _rename(self._durable, *change)

    def left(self, loss: Loss, generator: np.random.Generator, last: Op) -> dict[str, bytes]:
        """What is there after a power loss that came after `last`."""
        names = dict(self._durable)
        for changes in self._pending.values():
            most = len(changes)
            if loss is Loss.SECTORS:  # a folder's changes come in order
                most = int(generator.integers(most + 1))
            elif loss in (Loss.EVERYTHING, Loss.NAMES):
                most = 0
            for change in changes[:most]:
                _rename(names, *change)
        return {
            path: file.after(_kept(file.pending, loss, generator, last))
            for path, file in names.items()
        }


def _rename(names: dict[str, File], op: Op, file: File) -> None:
    if op.name != "create":
        names.pop(op.path, None)
    if op.name != "unlink":
        names[op.to or op.path] = file


def _kept(
    pending: Sequence[Op], loss: Loss, generator: np.random.Generator, last: Op
) -> Iterator[Op]:
    """What of a file's pending changes reached the disk."""
    for op in pending:
        if loss in (Loss.EVERYTHING, Loss.BYTES):
            continue
        if loss is Loss.LAST and op is last and op.name == "write":
            sectors = generator.integers(-(-len(op.data) // SECTOR))
            yield replace(op, data=op.data[: sectors * SECTOR])
        elif loss is Loss.SECTORS and op.name == "write":
            for at in range(0, len(op.data), SECTOR):
                if generator.random() < 0.5:
                    yield replace(op, offset=op.offset + at, data=op.data[at : at + SECTOR])
        elif loss is not Loss.SECTORS or generator.random() < 0.5:
            yield op


# -- a recording -----------------------------------------------------------------------------------


def why_not() -> str:
    """Why no recording can be made here; empty where one can."""
    if sys.platform != "linux":
        return "the recording of file operations is made for Linux"
    return "" if shutil.which("cc") else "there is no C compiler `cc` to build the recording with"


def record(scratch: Path, seed: int) -> list[Op]:
    """What a whole search on worker processes does to its files."""
    library, log, folder = scratch / "powerloss.so", scratch / "log", scratch / "run"
    source = Path(__file__).with_name("powerloss.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    folder.mkdir()
    log.unlink(missing_ok=True)
    settings = {"POWERLOSS_LOG": str(log), "POWERLOSS_ROOT": str(folder)}
    with Zygote({"LD_PRELOAD": str(library), **settings}) as zygote:
        code = zygote.run(Job("training", str(folder), seed))
    if code != 0:
        raise RuntimeError(f"the search that is recorded ended with exit code {code}")
    shutil.rmtree(folder)
    return list(_parse(log.read_bytes(), folder))


def _parse(log: bytes, root: Path) -> Iterator[Op]:
    at = 0
    while at < len(log):
        end = log.index(b"\n", at)
        name, path, to, offset, size = log[at:end].decode().split("\t")
        at = end + 1 + int(size)
        relative = [str(Path(p).relative_to(root)) if p else "" for p in (path, to)]
        yield Op(name, *relative, int(offset), log[end + 1 : at])


# -- what must hold --------------------------------------------------------------------------------


def wrong(folder: Path) -> list[str]:
    """What does not hold of what a power loss left, in words. `acks` there is what was told."""
    path = folder / "study.sqlite"
    if not path.exists():
        told = (folder / "acks").exists() and (folder / "acks").stat().st_size
        return ["the study is gone"] if told else []
    try:
        store = Store(path, create=False)
        trials = [t for row in store.runs() for t in store.trials(row)]
        store.close()
    except ValueError as error:
        return [f"does not open: {error}"]
    on_record = kills.read(folder)
    found = [*kills.missing(folder, on_record), *kills.unbalanced(on_record)]
    ended = [t for t in trials if t.state.is_final and t.score is not None]
    best = [max(ended, key=lambda t: t.score or 0.0)] if ended else []
    for trial in [*(t for t in trials if not t.state.is_final), *best]:
        mark = trial.midway or trial.checkpoint
        if mark is not None:
            try:
                load(folder / "checkpoints" / mark.name, mark.sha256)
            except ValueError as error:
                found.append(f"trial {trial.number}, which goes on from it: {error}")
    return found


def points_at_syncs(ops: Sequence[Op]) -> list[int]:
    """After how many operations a sync is next, or was just done."""
    syncs = (k for k, op in enumerate(ops) if op.name == "sync")
    return sorted({k + after for k in syncs for after in (0, 1)})


def choose(ops: Sequence[Op], n: int, seed: int) -> list[Case]:
    """At most n losses along a recording, none twice.

    By turns before or after a sync, with nothing kept that is not durable, and anywhere in any way.
    """
    generator = np.random.default_rng(seed)
    first = [(k, Loss.EVERYTHING) for k in points_at_syncs(ops)]
    rest = [(k, loss) for k in range(1, len(ops) + 1) for loss in Loss if (k, loss) not in first]
    generator.shuffle(first)
    generator.shuffle(rest)
    turns = zip_longest(first, rest[: len(first)])
    return [case for case in (*chain(*turns), *rest[len(first) :]) if case][:n]


def lose(
    ops: Sequence[Op], cases: Iterable[Case], seed: int, scratch: Path, zygote: Zygote | None
) -> tuple[list[str], int]:
    """Lose power along a recording; with a zygote some of the searches are taken up again.

    Returns:
        What was wrong, in words, and how many searches were taken up again.
    """
    generator = np.random.default_rng(seed)
    by_point = defaultdict(list)
    for k, loss in cases:
        by_point[k].append(loss)
    disk, found, gone_on, done = Disk(), [], 0, 0
    twin = None if zygote is None else _gone_on(zygote, scratch / "twin", {}, seed)
    for k, op in enumerate(ops, 1):
        disk.apply(op)
        for loss in by_point[k]:
            folder, done = scratch / f"loss-{seed}-{done}", done + 1
            state = disk.left(loss, generator, op)
            told = disk.names.get("acks", File())
            state["acks"] = told.after(told.pending)
            _write(folder, state)
            where = f"after {k} of {len(ops)} operations ({op.name} {op.path}), {loss.value}"
            found += [f"{line}, {where}" for line in wrong(folder)]
            if zygote is not None and done % GOES_ON == 0:
                gone_on += 1
                if _gone_on(zygote, folder, state, seed) != twin:
                    found.append(f"it did not go on as its twin, {where}")
            shutil.rmtree(folder)
    return found, gone_on


def _gone_on(zygote: Zygote, folder: Path, state: dict[str, bytes], seed: int) -> object:
    """The trials and scores to which a search comes from there, or its exit code."""
    _write(folder, state)
    code = zygote.run(Job("training", str(folder), seed))
    return kills.scores(kills.read(folder)) if code == 0 else code


def _write(folder: Path, state: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    for name, data in state.items():
        (folder / name).write_bytes(data)


def of_power(n: int, seed: int) -> Found:
    """Lose power n times: the study opens, all that was told is there, checkpoints are whole."""
    if reason := why_not():
        raise SkipTest(reason)
    found: list[str] = []
    n_done = n_points = n_struck = n_gone_on = 0
    with scratch_folder() as scratch, Zygote() as zygote:
        recording = 0
        while n_done < n:
            which = 1000 * seed + recording
            ops = record(Path(scratch), which)
            cases = choose(ops, min(n - n_done, CASES_A_RECORDING), which)
            lines, gone_on = lose(ops, cases, which, Path(scratch), zygote)
            found += [f"recording {which}: {line}" for line in lines]
            n_done, n_gone_on, recording = n_done + len(cases), n_gone_on + gone_on, recording + 1
            points = {(k, Loss.EVERYTHING) for k in points_at_syncs(ops)}
            n_points, n_struck = n_points + len(points), n_struck + len(points & set(cases))
    notes = {
        "recordings": recording,
        "points before or after a sync": f"{n_struck} of {n_points}",
        "gone on as the twin": n_gone_on,
    }
    return Found(n_done, tuple(found), notes)


CAMPAIGNS = (
    Campaign(
        "P2",
        "power lost at any file operation, torn at 512 bytes: it opens, with all that was told",
        of_power,
        nightly=10_000,
        short=160,
    ),
)
