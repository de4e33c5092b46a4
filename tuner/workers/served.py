"""What a worker's program does first and last, whatever it trains."""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from tuner.workers.control import END, ControlBlock
from tuner.workers.messages import send

OUTER_PATH = "TUNER_OUTER_PYTHONPATH"
"""The variable that keeps the user's own PYTHONPATH for what a worker starts."""


def serve(run: Callable[[Connection, ControlBlock], None]) -> None:
    """Serve the driver at the other end of the inherited socket, until it is gone."""
    _die_with_parent()
    _give_path_back()
    os.register_at_fork(after_in_child=_signals_as_usual)
    for stream in (sys.stdout, sys.stderr):  # or what a training prints would end with the process
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    connection = Connection(int(sys.argv[1]))
    block = ControlBlock(int(sys.argv[2]))

    def end(*_: object) -> None:
        if block.words[END]:
            os._exit(1)

    # The driver decides, whoever else is signalled.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    faulthandler.register(signal.SIGUSR1)  # the stacks of all threads, into the worker's log
    try:
        run(connection, block)
    except Exception as error:
        give_up(connection, error)


def give_up(connection: Connection, error: Exception) -> None:
    """Say why, if the driver is there to hear it, and end the process."""
    if not isinstance(error, BrokenPipeError | ConnectionResetError):
        reason = f"{type(error).__name__}: {first_line(error)}"
        try:
            send(connection, {"is": "crash", "at": time.monotonic_ns(), "reason": reason})
        finally:
            traceback.print_exception(error)
            sys.stderr.flush()
            os._exit(1)
    os._exit(0)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, else its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _give_path_back() -> None:
    """Programs that a training starts, of another Python perhaps, see the path that they would."""
    os.environ.pop("PYTHONPATH", None)
    if (outer := os.environ.pop(OUTER_PATH, None)) is not None:
        os.environ["PYTHONPATH"] = outer


def _signals_as_usual() -> None:
    """In a process that a training forks: it may be terminated, as any other."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _die_with_parent() -> None:
    """Let nothing outlive the driver: the kernel's signal on Linux, a watch elsewhere."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def signal_name(number: int) -> str:
    """Such as SIGKILL; a real-time signal has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
