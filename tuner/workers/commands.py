"""A command as a training: a program of any kind, whose output says how well it does.

`python train.py --lr {learning_rate}`: every placeholder is one argument or a part of one, and no
shell ever reads it. Each line that the pattern matches is an observation, and its first group the
score. The program runs in its worker's process group, which is ended as a whole.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tuner.runner import Infeasible
from tuner.space import Config, SearchSpace
from tuner.workers.checkpoints import TrialCheckpoint, copy_into
from tuner.workers.memory import members
from tuner.workers.served import signal_name

CHECKPOINT_DIR, SEED = "checkpoint_dir", "seed"
_OWN = frozenset({CHECKPOINT_DIR, SEED})
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_MOST_LINE = 1 << 16  # bytes; a longer line is read in parts
_LAST_LINES = 20  # that may say why a program failed
_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|MemoryError|bad_alloc|can(no|')t allocate memory",
    re.IGNORECASE,
)
_LITERAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_PATIENCE_S = 5.0  # from SIGTERM to SIGKILL
_LOOK_S = 0.2  # how often to see whether a silent program has ended


@dataclass(frozen=True)
class Command:
    """A program that trains one configuration; called as a user's function would be.

    Attributes:
        arguments: with placeholders, `{learning_rate}` for a knob, `{seed}`, `{checkpoint_dir}`.
        metric: a regular expression; its first group is the score.
        replicates: None where each line that matches is an epoch of one training. Else the program
            is run so many times, its last match is its result, and the score of the trial is the
            median of its results so far: a noisy measurement, of which more runs know more.
        infeasible_exits: exit codes by which the program says that the configuration is to blame.
        directory: where it runs.
    """

    arguments: tuple[str, ...]
    metric: str
    replicates: int | None = None
    infeasible_exits: tuple[int, ...] = ()
    directory: str = "."

    @classmethod
    def parse(
        cls, text: str, metric: str, space: SearchSpace, directory: Path, **options: Any
    ) -> Command:
        """A command as a user writes it, split as a shell would, and checked against the space.

        Raises ValueError where it is no such: an unknown placeholder, a knob that is not in it, a
        pattern without a group, a program that there is not.
        """
        try:
            arguments = tuple(shlex.split(text))
        except ValueError as error:
            raise ValueError(f"--command cannot be split into arguments: {error}") from error
        command = cls(arguments, metric, directory=str(directory.resolve()), **options)
        command._check(space)
        return command

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Command:
        """What `to_json` gave."""
        lists = {name: tuple(data[name]) for name in ("arguments", "infeasible_exits")}
        return cls(**{**data, **lists})

    def to_json(self) -> dict[str, Any]:
        """JSON, for the study and the workers."""
        return asdict(self)

    def _check(self, space: SearchSpace) -> None:
        if not self.arguments:
            raise ValueError("--command is empty; expected a program and its arguments")
        self._check_placeholders(space)
        _check_metric(self.metric)
        if self.replicates is not None and self.replicates < 1:
            raise ValueError(f"--replicates is at least 1, got {self.replicates}")
        program = self.arguments[0]
        if not _names(program) and not self._finds(program):
            raise ValueError(f"there is no program {program!r} to run, in {self.directory}")

    def _check_placeholders(self, space: SearchSpace) -> None:
        used = {name for text in self.arguments for name in _names(text)}
        known = set(space) | _OWN
        if clash := _OWN & set(space):
            raise ValueError(f"a knob cannot be called {', '.join(sorted(clash))}: that is ours")
        if unknown := used - known:
            raise ValueError(
                f"--command has {_braced(unknown)}, and there are {_braced(known)}; "
                "{{ and }} stand for braces"
            )
        if missing := set(space) - used:
            raise ValueError(
                f"--command lacks {_braced(missing)}: such a knob would change nothing. Put it "
                "into the command, or take it out of the space"
            )
        for flag, text in pairwise(self.arguments):
            name = text.strip("{}")
            if name in space.conditions and text == f"{{{name}}}" and flag.startswith("-"):
                raise ValueError(
                    f"--command has {flag} {text}, but there is not always a {name}: an argument "
                    f"with it is left out then, so write the two as one, {flag}={text}"
                )

    def _finds(self, program: str) -> bool:
        if os.sep in program:  # from where it runs, and not from here
            return os.access(Path(self.directory) / program, os.X_OK)
        return shutil.which(program) is not None

    def __call__(
        self, config: Config, checkpoint: TrialCheckpoint
    ) -> Generator[float | None, None, None]:
        """The scores of a configuration; None now and then, where it may be interrupted."""
        if self.replicates is None:
            yield from self._training(config, checkpoint)
        else:
            yield from self._measurements(config, checkpoint, self.replicates)

    def _training(
        self, config: Config, checkpoint: TrialCheckpoint
    ) -> Generator[float | None, None, None]:
        """One program, each match of which is an epoch."""
        with _Scratch(checkpoint, self._saves) as scratch:
            goes_on = checkpoint.epoch > 0
            for found in self._run(config, checkpoint.seed, scratch.path, goes_on=goes_on):
                if found is not None:
                    scratch.save()  # before the score that belongs to it
                yield found

    def _measurements(
        self, config: Config, checkpoint: TrialCheckpoint, replicates: int
    ) -> Generator[float | None, None, None]:
        """Programs one after the other, each a measurement; the median of those so far."""
        results: list[float] = []
        if checkpoint.folder is not None:
            results = json.loads((checkpoint.folder / "results.json").read_text())
        for repeat in range(len(results), replicates):
            last: float | None = None
            with _Scratch(checkpoint, self._saves) as scratch:
                for found in self._run(config, checkpoint.seed + repeat, scratch.path):
                    last = last if found is None else found
                    yield None
            results.append(last if last is not None else float("nan"))
            with checkpoint.save() as folder:
                (folder / "results.json").write_text(json.dumps(results))
            yield statistics.median(results)

    @property
    def _saves(self) -> bool:
        return any(CHECKPOINT_DIR in _names(text) for text in self.arguments)

    def _run(
        self, config: Config, seed: int, folder: Path, *, goes_on: bool = False
    ) -> Iterator[float | None]:
        """What a program says, line by line: the score of one that matches, else None.

        Raises Infeasible or RuntimeError where it fails, or ends without a match; one that
        `goes_on` from a checkpoint may find that there is nothing left to do.
        """
        values = {**config, SEED: seed, CHECKPOINT_DIR: folder}
        absent = {name for name, value in config.items() if value is None}
        process = subprocess.Popen(
            [_filled(text, values) for text in self.arguments if not _names(text) & absent],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # or its lines would come all at the end
        )
        pattern, matches, last = re.compile(self.metric), 0, deque[str](maxlen=_LAST_LINES)
        try:
            for line in _lines(process):
                if line is None:
                    yield None
                    continue
                last.append(line)
                score = score_in(line, pattern)
                matches += score is not None
                yield score
            code = process.wait()
        finally:
            _end(process)
        self._judge(code, last, is_silent=not (matches or goes_on))

    def _judge(self, code: int, last: deque[str], *, is_silent: bool) -> None:
        """Raise where a program that has ended did not end well."""
        said = next((line for line in reversed(last) if line.strip()), "it said nothing").strip()
        if code in self.infeasible_exits:
            raise Infeasible(f"exit code {code}: {said}")
        if code and any(_MEMORY.search(line) for line in last):
            raise Infeasible(f"out of memory: {said}")
        if code < 0:
            raise RuntimeError(f"the command was killed by {signal_name(-code)}: {said}")
        if code:
            raise RuntimeError(f"the command ended with exit code {code}: {said}")
        if is_silent:
            raise RuntimeError(f"no line of the command matched {self.metric!r}; the last: {said}")


class _Scratch:
    """The folder in which a program saves: what it goes on from, until it ends.

    What is in it after an epoch is copied, the program stopped meanwhile, where it has changed.
    """

    def __init__(self, checkpoint: TrialCheckpoint, is_used: bool) -> None:
        self._checkpoint, self._is_used = checkpoint, is_used
        self.path = checkpoint.scratch()
        self._known: frozenset[Any] = frozenset()

    def __enter__(self) -> _Scratch:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._is_used:
            self.path.mkdir()
            if self._checkpoint.folder is not None:
                copy_into(self._checkpoint.folder, self.path)
            self._known = self._state()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def save(self) -> None:
        """Keep what the program has saved, for the score that is yielded next."""
        if not self._is_used:
            return
        others = [pid for pid in members(os.getpgid(0)) if pid != os.getpid()]
        _signal_all(others, signal.SIGSTOP)  # it saves nothing more until that is copied
        try:
            state = self._state()
            if state != self._known:
                with self._checkpoint.save() as folder:
                    copy_into(self.path, folder)
                self._known = state
        finally:
            _signal_all(others, signal.SIGCONT)

    def _state(self) -> frozenset[Any]:
        files = [p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()]
        return frozenset((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)


def _check_metric(metric: str) -> None:
    try:
        groups = re.compile(metric).groups
    except re.error as error:
        raise ValueError(f"--metric is no regular expression: {error}") from error
    if not groups:
        raise ValueError(
            f"--metric needs a group around the number, such as 'acc=([0-9.]+)'; got {metric!r}"
        )


def _names(text: str) -> set[str]:
    """The placeholders of an argument."""
    return {m.group(1) for m in _PLACEHOLDER.finditer(text) if m.group(1) is not None}


def _braced(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """An argument with its placeholders replaced, all of them in one pass."""

    def put(match: re.Match[str]) -> str:
        name = match.group(1)
        return match.group(0)[0] if name is None else str(values[name])

    return _PLACEHOLDER.sub(put, text)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """A program's lines as they come, which go into the worker's log too.

    None after each part of its output: a bar that moves within its line is a sign of life.
    """
    rest = b""
    for chunk in _output(process):
        with suppress(OSError):  # a disk that is full is not the program's fault
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) >= _MOST_LINE:
            lines, rest = [*lines, rest], b""
        yield from map(_text, lines)
        yield None
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _output(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What a program says, in parts, until it has ended and said all.

    Not until nobody can say anything more: what it has left in the background holds its output.
    """
    if process.stdout is None:
        return
    has_ended = False
    while True:
        if select.select([process.stdout], [], [], _LOOK_S)[0]:
            chunk = os.read(process.stdout.fileno(), _MOST_LINE)
            if not chunk:
                return
            yield chunk
        elif has_ended:
            return
        else:
            has_ended = process.poll() is not None


def score_in(line: str, pattern: re.Pattern[str]) -> float | None:
    """The number that a line says, None where it does not match.

    Of several the last: a bar that moves prints them one after the other. It begins with the
    pattern's first group, and is read as it was printed: `([0-9.]+)` matches the 1 of 1e-05, and
    the full stop after 0.95. Raises RuntimeError where what is there is no number.
    """
    *_, match = (None, *pattern.finditer(line))
    if match is None:
        return None
    text, start = "", 0
    for i, group in enumerate(match.groups(), start=1):
        if group is not None:
            text, start = group, match.start(i)
            break
    literal = _LITERAL.match(match.string, start)
    if literal and text[len(literal[0]) :] in ("", "."):
        return float(literal[0])
    try:
        return float(text)  # nan and inf, by their names
    except ValueError:
        raise RuntimeError(f"{pattern.pattern!r} matched {text[:40]!r}: no number") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started, and wait for it: SIGTERM, and then SIGKILL."""
    group, until = os.getpgid(0), time.monotonic() + _PATIENCE_S

    def others() -> list[int]:
        return [pid for pid in members(group) if pid != os.getpid()]

    _signal_all(others() or _alive(process), signal.SIGTERM)
    while (left := others() or _alive(process)) and time.monotonic() < until:
        process.poll()
        time.sleep(0.005)
    _signal_all(left, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _alive(process: subprocess.Popen[bytes]) -> list[int]:
    return [process.pid] if process.poll() is None else []


def _signal_all(processes: list[int], number: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
