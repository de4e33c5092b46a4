"""P9: a full disk or a flipped byte is noticed, named and survivable."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscapes.table import load_table
from models import checkpoint
from tests.helpers import SPACE
from tests.torture.campaign import Campaign, Found
from tuner.budget import Kind
from tuner.doctor import Severity, examine
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

_ROOT = Path(__file__).parents[2]
_RECORDED = _ROOT / "landscapes" / "recorded" / "cnn_sample_2d.npz"


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one: the disk's own pace would be all that is measured."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


# -- every write, refused -------------------------------------------------------------------------


def write_sites(n: int, seed: int) -> Found:
    """A race whose k-th writing call fails, for up to `n` of all k and ways, resumed afterwards."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise unittest.SkipTest("a C compiler and Linux are needed to have writes refused")
    with _scratch() as folder:
        library = folder / "refusing.so"
        source = Path(__file__).with_name("refusing.c")
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "tests.torture.refused", library, folder, str(n), str(seed)],
            env={**os.environ, "LD_PRELOAD": str(library)},
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    failures, notes = tuple(found["failures"]), found["notes"]
    return Found(found["n"], failures, notes, is_all=found["n"] < n)


# -- every byte, altered --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A file to be damaged.

    Attributes:
        read: its content as its reader gives it to others; raises ValueError where it notices.
    """

    path: Path
    read: Callable[[], Any]
    name: str


def flips(n: int, seed: int) -> Found:
    """`n` times a bit, a byte or a block altered, or a file cut, in files of every kind."""
    generator = random.Random(seed)
    failures, seen = [], Counter[str]()
    with _scratch() as folder:
        targets = [_study(folder), _checkpoint(folder), _landscape(folder)]
        whole = {target.name: target.path.read_bytes() for target in targets}
        truth = {target.name: target.read() for target in targets}
        for _ in range(n):
            (target,) = generator.choices(targets, weights=[3, 1, 1])
            damaged, what = _damage(whole[target.name], generator)
            target.path.write_bytes(damaged)
            problem, ended = _reading(target, truth[target.name])
            seen[f"{target.name} {ended}"] += 1
            if problem:
                failures.append(f"{target.name}, {what}: {problem}")
            target.path.write_bytes(whole[target.name])
    return Found(n, tuple(failures), dict(sorted(seen.items())))


def _damage(whole: bytes, generator: random.Random) -> tuple[bytes, str]:
    """The content, damaged, and how."""
    at, data = generator.randrange(len(whole)), bytearray(whole)
    match generator.choices(["bit", "byte", "zeros", "cut"], weights=[7, 2, 1, 1])[0]:
        case "bit":
            data[at] ^= 1 << generator.randrange(8)
            return bytes(data), f"a bit of byte {at} flipped"
        case "byte":
            data[at] ^= generator.randrange(1, 256)
            return bytes(data), f"byte {at} altered"
        case "zeros":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
            return bytes(data), f"512 bytes from {at} on zeroed"
        case _:
            return whole[:at], f"cut to {at} bytes"


def _reading(target: _Target, truth: Any) -> tuple[str, str]:
    """What is not as promised, if anything, and whether the damage was noticed."""
    try:
        found = target.read()
    except ValueError as error:
        if target.path.stem not in str(error):
            return f"noticed, but not named: {error}", "noticed"
        if target.name == "study" and not _is_damaged(target.path.parent):
            return f"refused, but the doctor finds nothing: {error}", "noticed"
        return "", "noticed"
    except Exception as error:
        return f"{type(error).__name__}: {error}", "noticed"
    # Where nobody reads, such as a page's free space, there is nothing to notice.
    return ("" if found == truth else "a wrong result, unnoticed"), "without effect"


def _is_damaged(folder: Path) -> bool:
    os.utime(folder / "study.sqlite", (0, 0))  # or it would wait for a driver to be done
    return any(finding.severity is Severity.DAMAGE for finding in examine(folder))


def _study(folder: Path) -> _Target:
    """A study of two runs, with a row of every kind and tables of several levels."""
    path = folder / "study" / "study.sqlite"
    path.parent.mkdir()
    store = Store(path, create=True)
    store.set_meta("mode", "max")
    for seed in range(2):
        row = store.add_run("random", seed, SPACE, 8, 10**12)
        history = store.history(row)
        for number in range(40):
            trial = Trial(number, {"x": number / 64, "y": 1 / (seed + 2)}, seed + number, 8)
            history.start(trial)
            for epoch in range(1, 9):
                score, metrics = 1 / (number + epoch), {"loss": 1.5 / epoch}
                history.observe(number, Observation(epoch, score, 1000 + epoch, epoch, metrics))
                store.charge(row.id, {Kind.TRAIN: 990, Kind.EVALUATE: 10 + epoch}, number)
            history.close(number, TrialState.COMPLETED)
        store.charge(row.id, {Kind.LOST: 5}, None)
        store.set_test_score(row.id, 0.25, "ab" * 32)
    store.commit()
    store.close()

    def read() -> Any:
        opened = Store(path, create=False)
        try:
            runs = [(r, opened.trials(r), opened.budget(r).ledger) for r in opened.runs()]
            return opened.meta("mode"), runs
        finally:
            opened.close()

    return _Target(path, read, "study")


def _checkpoint(folder: Path) -> _Target:
    arrays = {"weight": np.arange(2000, dtype=np.float32), "step": np.array([3])}
    name, sha256 = checkpoint.save(folder, "random-0-00001-00003", arrays)

    def read() -> Any:
        return {key: a.tobytes() for key, a in checkpoint.load(folder / name, sha256).items()}

    return _Target(folder / name, read, "checkpoint")


def _landscape(folder: Path) -> _Target:
    for suffix in (".npz", ".json"):
        shutil.copy(_RECORDED.with_suffix(suffix), folder)
    path = folder / _RECORDED.name

    def read() -> Any:
        table = load_table(path)
        return [getattr(table, name).tobytes() for name in ("configs", "scores", "seconds")]

    return _Target(path, read, "landscape")


CAMPAIGNS = (
    Campaign(
        "P9",
        "a write that fails is named, loses nothing, and the race goes on to the same files",
        write_sites,
        nightly=10_000,  # all there are
        short=12,
    ),
    Campaign(
        "P9",
        "a bit, byte or block that is altered, or a file cut, is noticed where it would matter",
        flips,
        nightly=10_000,
        short=150,
    ),
)
