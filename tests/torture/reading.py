"""Reads files of strangers in a process of its own, and tells what that did.

`python -m tests.torture.reading FOLDER` reads what `FOLDER/files.json` lists, [kind, path] each,
and prints a line of JSON for each: what it was refused with, the audit events on the way, the time
of the processor in seconds, and the memory in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from landscapes.surrogate import load_surrogate
from landscapes.table import load_table
from models import checkpoint, data, layout
from tests.torture.strangers import KINDS, sha256_of
from tuner.reader import Snapshot
from tuner.store import Store

# What runs something, brings in code, or reaches out; `open` is looked at by its path.
EVENTS = (
    *("exec", "import", "pickle.find_class", "marshal.load", "code.__new__"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn"),
    *("os.startfile", "os.putenv", "pty.spawn", "webbrowser.open"),
    *("sqlite3.enable_load_extension", "sqlite3.load_extension"),
)
PREFIXES = ("socket.", "ctypes.", "urllib.", "ftplib.", "shutil.unpack", "setopencodehook")
HARMLESS = ("socket.gethostname",)  # a lock says who holds it
TOUCHES = ("open", "os.remove", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod")


def read_study(path: Path) -> None:
    """As the page reads it, then as a driver would that goes on with it; both have to refuse."""
    try:
        _read_whole(Snapshot(path))
    except ValueError as error:
        try:
            _read_whole(Store(path, create=False))
        except ValueError:
            raise error from None
        raise AssertionError(f"a driver goes on with what the page refuses: {error}") from None


def _read_whole(study: Snapshot | Store) -> None:
    try:
        study.request()
        for row in study.runs():
            study.trials(row)
            study.budget(row)
    finally:
        study.close()


def read_cache(path: Path) -> None:
    """A cache is never an error: it is measured again. Nothing that it says may be believed."""
    if not layout.read_cache(path, "key"):
        raise ValueError(f"{path} says nothing that is believed")


def read_sample(path: Path) -> None:
    """The embedded sample, were it this file."""
    data.SAMPLE, kept = path, data.SAMPLE
    try:
        data.load("sample", Path())
    finally:
        data.SAMPLE = kept


def read_checkpoint(path: Path) -> None:
    """A checkpoint whose study has its hash right."""
    checkpoint.load(path, sha256_of(path) if path.is_file() else "0")


READERS = {
    "study": read_study,
    "landscape": load_table,
    "network": load_surrogate,
    "checkpoint": read_checkpoint,
    "cache": read_cache,
    "sample": read_sample,
}


def main(folder: Path) -> None:
    """Read everything once it is known that a good file of each kind is read."""
    for kind, (name, _, good) in KINDS.items():
        path = folder / "good" / kind / name
        good(path)
        READERS[kind](data.SAMPLE if kind == "sample" else path)
    noted: list[str] = []
    inside = (str(folder.resolve()), str(Path(tempfile.gettempdir()).resolve()), "/proc/self/")
    is_watching = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        if not is_watching:
            return
        if event in EVENTS or (event.startswith(PREFIXES) and event not in HARMLESS):
            noted.append(f"{event} {args!r}"[:200])
        elif event in TOUCHES and isinstance(args[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(
                os.path.join(
                    _folder(args[1:2] if event == "os.remove" else ()), os.fsdecode(args[0])
                )
            )
            if not path.startswith(inside):
                noted.append(f"{event} {path}"[:200])

    sys.addaudithook(hook)
    for kind, text in json.loads((folder / "files.json").read_text()):
        path, refusal, trouble = Path(text), None, None
        before, began = _peak(reset=True), time.process_time()
        is_watching = True
        try:
            READERS[kind](path)
        except ValueError as error:
            refusal = str(error)
        except BaseException as error:
            trouble = f"{type(error).__name__}: {error}"[:300]
        is_watching = False
        seconds, grown = time.process_time() - began, _peak() - before
        found = {"refusal": refusal, "trouble": trouble, "events": noted[:5]}
        print(json.dumps({**found, "seconds": seconds, "bytes": grown}), flush=True)
        noted.clear()


def _folder(more: tuple[object, ...]) -> str:
    """What a name is relative to: the folder that is open as the descriptor given, or this one."""
    given = [n for n in more if isinstance(n, int) and n >= 0]
    return os.readlink(f"/proc/self/fd/{given[0]}") if given else os.getcwd()


def _peak(*, reset: bool = False) -> int:
    """The most memory since the last reset, in bytes; 0 where the kernel does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
