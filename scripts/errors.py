"""How scripts end when something is wrong: in one line, with an exit code, without a traceback."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from scripts.stopping import Stopped
from tuner.escape import visible
from tuner.scheduler import TrainingBrokenError
from tuner.terminal import say

_LONGEST = 2_000  # of a message


@contextmanager
def plain_errors(program: str) -> Iterator[None]:
    """A user's mistake (ValueError) is exit code 2, training that cannot go on is 1."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        # By its name, since only a run that has loaded PyTorch can have raised it.
        is_broken = (
            isinstance(error, TrainingBrokenError) or type(error).__name__ == "WorkerStartError"
        )
        if not isinstance(error, ValueError) and not is_broken:
            raise
        # One line, whatever the message was made of.
        line = visible(" ".join(str(error).split()), _LONGEST)
        print(f"{program}: {line}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None


@contextmanager
def resumable(folder: Path, console: Console) -> Iterator[None]:
    """Where a signal stopped it, say how to go on."""
    try:
        yield
    except Stopped as stopped:
        line = shlex.join([sys.executable, sys.argv[0], "--resume", str(folder)])
        console.print("Stopped; nothing finished is lost. Go on with:")
        say(console, f"  {line}")
        raise typer.Exit(128 + int(stopped.args[0])) from None


def refuse_others(context: typer.Context, allowed: set[str], because_of: str) -> None:
    """Refuse flags that would be ignored."""
    changed = [
        name
        for name in context.params
        if name not in allowed
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if changed:
        flags = ", ".join(p.opts[0] for p in context.command.params if p.name in changed)
        raise ValueError(f"{because_of} decides that itself; leave out {flags}")
