"""The process that trains. One per device on CUDA, one per core on the CPU; never the driver.

`python -m models.worker SOCKET BLOCK` with two inherited file descriptors. Messages are JSON. The
driver sends a set-up, then one job at a time; the worker answers with what happened, and when by
the monotonic clock, which on one machine is the same in every process. It dies with its driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from models import checkpoint, data
from models.control import DEADLINE, INTERRUPT, YIELD_JOB, ControlBlock
from models.knobs import Recipe
from models.train import DeviceData, Halt, Precision, Trainer

MAX_MESSAGE = 1 << 20
_WARM_UP_BATCHES = 20


def send(connection: Connection, message: dict[str, Any]) -> None:
    """Send one JSON object."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """Receive one JSON object; raises EOFError or OSError where the other side is gone."""
    message: dict[str, Any] = json.loads(connection.recv_bytes(MAX_MESSAGE))
    return message


class Worker:
    """Trains and tests what it is told, on one device, until its driver is gone."""

    def __init__(self, connection: Connection, block: ControlBlock) -> None:
        self._connection, self._block = connection, block
        setup = receive(connection)
        self._setup = setup
        self._device = torch.device(setup["device"])
        if self._device.type == "cpu":
            torch.set_num_threads(1)
            torch.set_flush_denormal(True)  # weights that decayed to next to nothing are slow
        else:
            torch.cuda.set_device(self._device)  # events and streams are of the current device
            torch.backends.cudnn.benchmark = True  # shapes never change within a trial
        self._epochs: int = setup["epochs"]
        self._directory = Path(setup["directory"])
        self._data = DeviceData(data.load(setup["data"], Path(setup["root"])), self._device)
        self._epoch_ns = 10_000_000_000  # of the last epoch trained; how near a deadline is near

    def run(self) -> None:
        """Warm up, say so, and serve."""
        precision, batch_ns, batches = self._warm_up()
        self._send(
            "ready",
            epoch_ns=batch_ns * batches,
            bf16=precision.bf16,
            channels_last=precision.channels_last,
        )
        while True:
            try:
                job = receive(self._connection)
            except (EOFError, OSError):
                return
            if job["do"] == "train":
                self._train(job)
            else:
                self._test(job)

    def _warm_up(self) -> tuple[Precision, int, int]:
        """Train a few batches of the default recipe; the precision that is quickest here."""
        choices = [Precision()]
        if self._device.type == "cuda":
            choices = [Precision(b, c) for b in (False, True) for c in (False, True)]
        timed = []
        for precision in choices:
            trainer = Trainer(
                self._data, Recipe(), seed=0, epochs=self._epochs, precision=precision
            )
            best = None
            for _ in range(2):  # the first pass compiles, tunes and allocates
                count = min(_WARM_UP_BATCHES, trainer.batches - trainer.batch)
                left = iter([Halt.NO] * count + [Halt.INTERRUPT] * trainer.batches)
                began = self._now()
                trainer.run_epoch(lambda left=left: next(left))  # type: ignore[misc]
                best = (self._now() - began) // max(1, count)
            trainer.accuracy(self._data.validation)
            timed.append((best or 1, len(timed), precision, trainer.batches))
        batch_ns, _, precision, batches = min(timed)
        return precision, batch_ns, batches

    # -- jobs --------------------------------------------------------------------------------------

    def _train(self, job: dict[str, Any]) -> None:
        began = self._now()
        try:
            trainer = self._trainer(job)
            if job["from"] is not None:
                self._load_into(trainer, job["from"])
            loaded = self._now()
            spent = {"checkpoint" if job["from"] else "train": loaded - began}
            while trainer.epoch < job["until"] and self._epoch(job, trainer, spent):
                spent = {}
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._send("infeasible", spent={}, reason=f"out of memory: {_first_line(error)}")
            del error  # its traceback holds the network
            trainer = None  # type: ignore[assignment]
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        except checkpoint.DamagedCheckpointError as error:
            self._send("unusable", spent={}, reason=str(error))

    def _epoch(self, job: dict[str, Any], trainer: Trainer, spent: dict[str, int]) -> bool:
        """One epoch: train, evaluate, save, report. Whether the trial goes on."""
        began = self._now()
        result = trainer.run_epoch(self._halt)
        trained = self._now()
        spent["train"] = spent.get("train", 0) + trained - began
        if result is None:
            self._send("infeasible", spent=spent, reason="the loss is not finite")
            return False
        if result is Halt.DEADLINE:
            self._send("cut", spent=spent)
            return False
        if isinstance(result, Halt):
            saved, at = self._save(job, trainer, spent)
            self._send("paused", at, checkpoint=saved, spent=spent)
            return False
        self._epoch_ns = trained - began
        score = trainer.accuracy(self._data.validation, self._halt)
        spent["evaluate"] = self._now() - trained
        if score is None:
            self._send("cut", spent=spent)
            return False
        ends = trainer.epoch >= job["until"] or self._block.words[YIELD_JOB] == job["id"]
        saved, at = self._save(job, trainer, spent)
        self._send("epoch", at, spent=spent, score=score, loss=result, checkpoint=saved, ends=ends)
        return not ends

    def _save(
        self, job: dict[str, Any], trainer: Trainer, spent: dict[str, int]
    ) -> tuple[list[str], int]:
        """Save the trial; what was saved, and when the device was done with it."""
        began = self._now()
        arrays = trainer.state()
        off_device = self._now()
        stem = f"{job['key']}-{job['number']:05d}-{trainer.epoch:05d}"
        name, sha256 = checkpoint.save(self._directory, stem, arrays)
        # Past the deadline the device is no longer held: its state is on the host already.
        until = min(self._now(), max(off_device, self._block.words[DEADLINE]))
        spent["checkpoint"] = spent.get("checkpoint", 0) + until - began
        return [name, sha256], until

    def _test(self, job: dict[str, Any]) -> None:
        trainer = self._trainer(job)
        try:
            self._load_into(trainer, job["from"])
        except checkpoint.DamagedCheckpointError as error:
            self._send("untestable", reason=str(error))
            return
        split = data.load_test(self._setup["data"], Path(self._setup["root"]))
        self._send("tested", score=trainer.accuracy(self._data.put(split)))

    # -- helpers -----------------------------------------------------------------------------------

    def _trainer(self, job: dict[str, Any]) -> Trainer:
        return Trainer(
            self._data,
            Recipe.of(job["config"]),
            seed=job["seed"],
            epochs=self._epochs,
            precision=Precision(job["bf16"], job["channels_last"]),
            augment=self._setup["augment"],
        )

    def _load_into(self, trainer: Trainer, named: list[str]) -> None:
        name, sha256 = named
        try:
            trainer.load_state(checkpoint.load(self._directory / name, sha256))
        except (KeyError, RuntimeError) as error:  # whole, but of another network or device
            raise checkpoint.DamagedCheckpointError(
                f"checkpoint {name} does not fit: {_first_line(error)}"
            ) from error

    def _halt(self) -> Halt:
        if self._block.words[INTERRUPT]:
            return Halt.INTERRUPT
        left = self._block.words[DEADLINE] - time.monotonic_ns()
        if 0 < left < self._epoch_ns and self._device.type == "cuda":
            # The host runs ahead of a GPU. Near the deadline it waits for it before each batch,
            # so that what is still queued then is one batch at most.
            left = self._block.words[DEADLINE] - self._now()
        return Halt.DEADLINE if left <= 0 else Halt.NO

    def _now(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic_ns()

    def _send(self, what: str, at: int | None = None, **fields: Any) -> None:
        send(self._connection, {"is": what, "at": self._now() if at is None else at, **fields})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def main() -> None:
    """Serve the driver at the other end of the inherited socket."""
    _die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the driver decides, whoever else is signalled
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    block = ControlBlock(int(sys.argv[2]))
    try:
        Worker(connection, block).run()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        send(connection, {"is": "crash", "at": time.monotonic_ns(), "reason": reason})
        raise


if __name__ == "__main__":
    main()
