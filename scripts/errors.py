"""How scripts end when something is wrong: in one line, with an exit code, without a traceback."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from rich.console import Console

from scripts.stopping import Stopped
from tuner.escape import visible
from tuner.files import DISK_ERRORS, CannotWriteError
from tuner.scheduler import TrainingBrokenError
from tuner.store import Store
from tuner.terminal import say

DISK_EXIT = 74
"""The exit code where the disk is full or fails; EX_IOERR of sysexits.h."""
_LONGEST = 2_000  # of a message
_WRONG_PATH = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.EROFS),
    }
)


@contextmanager
def plain_errors(program: str) -> Iterator[None]:
    """A user's mistake (ValueError) is exit code 2, training that cannot go on 1, the disk 74."""
    try:
        yield
    except OSError as error:
        if error.errno in _WRONG_PATH and not isinstance(error, CannotWriteError):
            _say(program, f"{error.filename or 'a path'} cannot be used: {error.strerror}")
            raise typer.Exit(2) from None
        if not _is_the_disk(error):
            raise
        _say(program, CannotWriteError.of(error.filename or "the output", error))
        raise typer.Exit(DISK_EXIT) from None
    except (ValueError, RuntimeError) as error:
        # By its name, since only a run that has loaded PyTorch can have raised it.
        is_broken = (
            isinstance(error, TrainingBrokenError) or type(error).__name__ == "WorkerStartError"
        )
        if not isinstance(error, ValueError) and not is_broken:
            raise
        _say(program, error)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None


def _say(program: str, error: Exception | str) -> None:
    """One line, whatever the message was made of."""
    with suppress(OSError):  # where it is the terminal's own file that is on the full disk
        line = visible(" ".join(str(error).split()), _LONGEST)
        print(f"{program}: {line}", file=sys.stderr)


def _is_the_disk(error: OSError) -> bool:
    return isinstance(error, CannotWriteError) or error.errno in DISK_ERRORS


@contextmanager
def resumable(folder: Path, store: Store, console: Console) -> Iterator[None]:
    """Where a signal, failures or the disk stopped it, say how to go on; then close the store."""
    line = shlex.join([sys.executable, sys.argv[0], "--resume", str(folder)])
    try:
        yield
    except (Stopped, TrainingBrokenError) as error:
        console.print("Stopped; nothing finished is lost. Go on with:")
        say(console, f"  {line}")
        if isinstance(error, Stopped):
            raise typer.Exit(128 + int(error.args[0])) from None
        raise
    except OSError as error:
        if not _is_the_disk(error):
            raise
        reason = str(CannotWriteError.of(error.filename or "the output", error))
        store.pause(reason)
        _say("paused", f"{reason} with: {line}")
        raise typer.Exit(DISK_EXIT) from None
    finally:
        store.close()


def given(context: typer.Context) -> set[str]:
    """The parameters that the user named."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def refuse_others(context: typer.Context, allowed: set[str], because_of: str) -> None:
    """Refuse flags that would be ignored."""
    if changed := given(context) - allowed:
        flags = ", ".join(p.opts[0] for p in context.command.params if p.name in changed)
        raise ValueError(f"{because_of} decides that itself; leave out {flags}")
