"""The process that runs a user's function, one trial at a time, and can always be stopped.

`python -m tuner.workers.function_worker SOCKET BLOCK`, as `tuner.workers.pool` starts it. The
function runs in the main thread. At the deadline another thread has `TimeIsUp` raised in it; where
it does not come back to Python within a second, the process says that it was cut, and ends.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tuner.files import CannotWriteError
from tuner.runner import EventKind, blame, describe
from tuner.workers import functions
from tuner.workers.checkpoints import DamagedCheckpointError, TrialCheckpoint
from tuner.workers.control import DEADLINE, INTERRUPT, PROGRESS, STRETCH, YIELD, ControlBlock
from tuner.workers.memory import resident_bytes
from tuner.workers.messages import receive, send
from tuner.workers.served import give_up, serve

_GIB = 1 << 30
_LOOK_S = 0.1  # how often the guard looks around
_GRACE_NS = 1_000_000_000  # from the deadline to the end of a process that does not come back


class TimeIsUp(BaseException):
    """Raised within a training at the deadline; what it was doing is not counted."""


@dataclass
class _Job:
    """A trial as the driver ordered it."""

    id: int
    place: int
    until: int
    seen: int  # epochs that are on record
    config: dict[str, Any]
    checkpoint: TrialCheckpoint
    train_ns: int = 0  # since this was last reported
    last: dict[str, Any] | None = None  # what is to be said once its `finally` blocks have run

    def take_spent(self) -> dict[str, int]:
        """What the time since this was last asked went to, by kind."""
        spent = {"train": self.train_ns, "checkpoint": self.checkpoint.spent_ns}
        self.train_ns = self.checkpoint.spent_ns = 0
        return spent


class FunctionWorker:
    """Runs what it is told, until its driver is gone."""

    def __init__(self, connection: Connection, block: ControlBlock) -> None:
        self._connection, self._block = connection, block
        setup = receive(connection)
        self._sign, self._directory = float(setup["sign"]), Path(setup["directory"])
        self._train = functions.load(setup["function"])
        self._takes_checkpoint = functions.takes_checkpoint(self._train)
        _limit_gpu_memory(setup["gpu_memory_gib"])
        self._memory = math.inf if setup["memory_gib"] is None else setup["memory_gib"] * _GIB
        self._longest_ns = 0  # between two signs of life
        self._has_scored = False  # before, what is said may be a banner: it tells no pace
        self._job: _Job | None = None
        self._is_inside = False  # the user's code; the guard interrupts nothing else
        self._saying = threading.Lock()

    def run(self) -> None:
        """Say that it is there, and serve."""
        signal.signal(signal.SIGUSR2, self._end_in_time)
        threading.Thread(target=self._guard, daemon=True).start()
        send(self._connection, {"is": "ready", "at": _now(), "device": "", "image": []})
        while True:
            try:
                order = receive(self._connection)
            except (EOFError, OSError):
                return
            self._serve(order)

    def _serve(self, order: dict[str, Any]) -> None:
        stem = f"{order['key']}-{order['number']:05d}"
        checkpoint = TrialCheckpoint(self._directory, stem, order["number"], order["seed"])
        fields = {name: order[name] for name in ("id", "place", "until", "config")}
        job = _Job(**fields, seen=order["epoch"], checkpoint=checkpoint)
        self._block.words[PROGRESS] = time.monotonic_ns()
        self._job = job
        try:
            if order["from"] is not None:
                checkpoint.load(*order["from"])
            last = self._drive(job)
        except TimeIsUp:
            last = {"is": "cut"}
        except DamagedCheckpointError as error:
            last = {"is": "unusable", "reason": str(error)}
        except CannotWriteError as error:
            last = {"is": "unwritable", "path": str(error.path), "number": error.number}
            last["reason"] = error.reason
        except SystemExit as error:  # of the training, and not of this process
            last = {"is": EventKind.FAILED.value, "reason": f"SystemExit: {error.code}"}
        except Exception as error:
            last = self._blame(error)
        checkpoint.close()
        self._say(job, last)
        _tidy_gpu()

    def _drive(self, job: _Job) -> dict[str, Any]:
        """Train until there is a reason to stop; the message that says which."""
        arguments = (job.checkpoint,) if self._takes_checkpoint else ()
        generator = _epochs(self._train, job.config, arguments)
        try:
            return self._epoch_by_epoch(job, generator)
        finally:
            self._close(job, generator)

    def _epoch_by_epoch(self, job: _Job, generator: Generator[Any, None, None]) -> dict[str, Any]:
        epoch, nothing = job.checkpoint.epoch, object()
        while True:
            if self._block.words[INTERRUPT]:
                return {"is": "paused", "checkpoint": job.checkpoint.keep(epoch)}
            found = self._inside(job, lambda: next(generator, nothing))
            self._has_scored |= found is not None and found is not nothing
            self._beat()
            if found is nothing:
                return {"is": "exhausted"}
            if found is None:
                continue
            score = float(found) * self._sign
            if not math.isfinite(score):
                return {"is": "infeasible", "reason": f"score {score * self._sign}"}
            epoch += 1
            if epoch <= job.seen:  # known from before the interruption
                job.checkpoint.close()  # what was saved with it is on record too
                self._say(job, {"is": "repeated"})
                continue
            mark = job.checkpoint.keep(epoch)
            ends = epoch >= job.until or self._block.words[YIELD + job.place] == job.id
            message = {"is": "epoch", "score": score, "metrics": {}, "ends": ends}
            message["checkpoint"] = mark
            if ends:
                job.last = message
                return message
            self._say(job, message)

    def _close(self, job: _Job, generator: Generator[Any, None, None]) -> None:
        """Have the user's `finally` blocks run, in the trial's time; no result is lost by them."""
        began = _now()
        try:
            generator.close()
        except Exception as error:
            traceback.print_exception(error)  # into the worker's log
        job.train_ns += _now() - began

    def _inside(self, job: _Job, work: Any) -> Any:
        """Run the user's code; raises TimeIsUp where there is no time left."""
        began, saving = _now(), job.checkpoint.spent_ns
        self._is_inside = True
        try:
            if time.monotonic_ns() >= self._block.words[DEADLINE]:
                raise TimeIsUp
            return work()
        finally:
            self._is_inside = False
            job.train_ns += _now() - began - (job.checkpoint.spent_ns - saving)

    def _blame(self, error: Exception) -> dict[str, Any]:
        """Whose fault an exception is; a GPU that is broken by it ends the process."""
        if type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error):
            give_up(self._connection, error)
        kind = blame(error)
        if kind is EventKind.FAILED:
            traceback.print_exception(error)  # into the worker's log
            sys.stderr.flush()
        return {"is": kind.value, "reason": describe(error)}

    def _say(self, job: _Job, message: dict[str, Any]) -> None:
        """Send what happened to a job. Where the guard speaks for it the process ends meanwhile."""
        with self._saying:
            if message["is"] not in ("epoch", "repeated") or message.get("ends"):
                self._job = None
            send(
                self._connection,
                {**message, "at": _now(), "job": job.id, "spent": job.take_spent()},
            )

    def _beat(self) -> None:
        now = time.monotonic_ns()
        self._longest_ns = max(self._longest_ns, now - self._block.words[PROGRESS])
        self._block.words[PROGRESS] = now
        if self._has_scored:
            self._block.words[STRETCH] = self._longest_ns

    # -- the guard ---------------------------------------------------------------------------------

    def _guard(self) -> None:
        """See to it that a training ends in time, and stays within its memory."""
        while True:
            time.sleep(self._until_next_look())
            job = self._job
            if job is None:
                continue
            late_ns = time.monotonic_ns() - self._block.words[DEADLINE]
            if late_ns >= 0:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            if late_ns >= _GRACE_NS:
                self._end_with(job, job.last or {"is": "cut"})
            if self._memory < math.inf and (used := resident_bytes(os.getpgid(0))) > self._memory:
                reason = f"out of memory: {used / _GIB:.2f} GiB used of {self._memory / _GIB:g}"
                self._end_with(job, {"is": "infeasible", "reason": reason})

    def _until_next_look(self) -> float:
        left_s = (self._block.words[DEADLINE] - time.monotonic_ns()) / 1e9
        return min(_LOOK_S, left_s) if left_s > 0 else _LOOK_S

    def _end_in_time(self, *_: object) -> None:
        if self._is_inside:
            self._is_inside = False  # raised once: not within the `finally` blocks that it leads to
            raise TimeIsUp

    def _end_with(self, job: _Job, message: dict[str, Any]) -> None:
        """Speak for a training that does not come back, and end the process."""
        with self._saying:
            if self._job is not job:
                return
            self._job = None
            spent = {"at": time.monotonic_ns(), "job": job.id, "spent": {}}
            send(self._connection, {**message, **spent})
            os._exit(0)


def _epochs(
    train: functions.Function, config: dict[str, Any], arguments: tuple[Any, ...]
) -> Generator[Any, None, None]:
    result = train(dict(config), *arguments)
    if isinstance(result, Generator):
        yield from result
    else:
        yield result


def _cuda() -> Any:
    """PyTorch's CUDA, where the function has loaded and used it; None otherwise."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _now() -> int:
    """A reading of the monotonic clock, after whatever was queued on the GPU is done."""
    if (cuda := _cuda()) is not None:
        cuda.synchronize()
    return time.monotonic_ns()


def _tidy_gpu() -> None:
    """Give back what a trial that has ended had on the GPU."""
    if (cuda := _cuda()) is not None:
        import gc

        gc.collect()
        cuda.empty_cache()


def _limit_gpu_memory(gib: float | None) -> None:
    if gib is not None:
        import torch

        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * _GIB / whole))


if __name__ == "__main__":
    serve(lambda connection, block: FunctionWorker(connection, block).run())
