"""A worker in which some trainings misbehave: `python -m tests.torture.saboteur SOCKET BLOCK`.

A training's weight decay says how: `KINDS[k]` for (k + 1) billionths, once in a lifetime, at the
beginning of its second epoch; and again every time where there is a thousandth more.
"""

from __future__ import annotations

import enum
import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import torch

from models import worker
from models.knobs import Recipe
from models.train import Halt
from tuner.workers.served import serve


class Kind(enum.Enum):
    """What a training may do to its worker."""

    OOM = "oom"  # there is no memory for it
    POISON = "poison"  # a fault after which nothing works any more in this process
    SEGFAULT = "segfault"
    ABORT = "abort"
    NAN = "nan"  # its loss is none
    EXIT = "exit"  # the process ends as if all were well
    GARBAGE = "garbage"  # it sends what is no message
    FLOOD = "flood"  # it says that a gigabyte follows
    SLEEP = "sleep"
    SPIN = "spin"  # holding Python's lock, so that no handler runs
    STOP = "stop"  # neither reads nor writes any more
    CHILD = "child"  # it leaves a process behind, and dies
    FORK = "fork"  # it leaves one behind that holds all that it had open


KINDS = tuple(Kind)
_EVERY_TIME = 1e-3


def weight_decay(kind: Kind, *, every_time: bool = False) -> float:
    """What makes a training misbehave."""
    return (KINDS.index(kind) + 1) * 1e-9 + (_EVERY_TIME if every_time else 0.0)


def kind_of(recipe: Recipe) -> tuple[Kind | None, bool]:
    """How a training misbehaves, and whether it does so every time."""
    every_time = recipe.weight_decay > _EVERY_TIME - 1e-7
    k = round((recipe.weight_decay - (_EVERY_TIME if every_time else 0.0)) * 1e9)
    return (KINDS[k - 1], every_time) if 1 <= k <= len(KINDS) else (None, False)


class Sabotaged:
    """A crew in which some lanes misbehave."""

    def __init__(self, crew, directory: Path):
        self._crew, self._directory, self._broken = crew, directory, set()

    def __getattr__(self, name):
        return getattr(self._crew, name)

    def run(self, halt) -> Halt:
        """Train, unless one of the lanes is to misbehave now."""
        if self._directory in _POISONED:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for lane in set(range(self._crew.lanes)) - set(self._crew.free):
            recipe, seed = self._crew.trial(lane)
            kind, every_time = kind_of(recipe)
            if kind is None or self._crew.progress(lane) != (1, 0):
                continue
            mark = self._directory / f"sabotaged-{kind.value}-{seed}"
            # A loss that is none ends its training: there is no second time. But it may not come
            # to that, where a neighbour brings the worker down in the same step.
            if every_time or kind is Kind.NAN or not mark.exists():
                mark.touch()
                self._misbehave(kind, lane)
        return self._crew.run(halt)

    def ended(self):
        """What ended, with the losses that are to be none."""
        broken, self._broken = self._broken, set()
        return self._crew.ended() | dict.fromkeys(broken)

    def _misbehave(self, kind: Kind, lane: int) -> None:
        if kind is Kind.OOM:
            raise torch.OutOfMemoryError("sabotage: there is no memory for this")
        if kind is Kind.POISON:
            _POISONED.add(self._directory)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if kind is Kind.SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind is Kind.ABORT:
            os.abort()
        if kind is Kind.NAN:
            self._broken.add(lane)
        if kind is Kind.EXIT:
            os._exit(0)
        if kind is Kind.GARBAGE:
            _CONNECTIONS[0].send_bytes(b"\xff{]")
            time.sleep(3600)
        if kind is Kind.FLOOD:
            os.write(_CONNECTIONS[0].fileno(), struct.pack("!iQ", -1, 1 << 30) + bytes(1000))
            time.sleep(3600)
        if kind is Kind.SLEEP:
            time.sleep(3600)
        if kind is Kind.SPIN:
            sum(range(10**13))
        if kind is Kind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind is Kind.CHILD:
            subprocess.Popen(["sleep", "3600"])
            os.abort()
        if kind is Kind.FORK:
            if os.fork() == 0:
                time.sleep(3600)
            os.abort()


_POISONED: set[Path] = set()
_CONNECTIONS: list = []


def main() -> None:
    """Be a worker, with such crews."""

    class Worker(worker.Worker):
        def __init__(self, connection, block):
            _CONNECTIONS.append(connection)
            super().__init__(connection, block)

        def _make_crew(self, shape, lanes):
            return Sabotaged(super()._make_crew(shape, lanes), self._directory)

    serve(lambda connection, block: Worker(connection, block).run())


if __name__ == "__main__":
    main()
