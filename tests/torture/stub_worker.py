"""A worker process without PyTorch: it speaks as `models.worker` does, and its training is a hash.

A trial's state after an epoch is a function of the state before it and of the trial's seed, and so
is its score: whoever goes on from anything but the last finished epoch ends with other scores.
`python -m tests.torture.stub_worker SOCKET BLOCK`, as `models.pool` starts its workers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from models import checkpoint
from tuner.workers.control import DEADLINE, ControlBlock
from tuner.workers.messages import receive, send

EPOCH_S = 0.001
SIZE = 3000  # of a state, in bytes: its checkpoint is some sectors long


def next_state(state: bytes, seed: int) -> bytes:
    """A trial's state after one more epoch."""
    digest = hashlib.sha256(state[:32] + str(seed).encode()).digest()
    return (digest * (SIZE // len(digest) + 1))[:SIZE]


def score_of(state: bytes) -> float:
    """From 0 to 1."""
    return int.from_bytes(state[:6], "big") / 2**48


class Job:
    """A trial as the driver ordered it."""

    def __init__(self, order: dict, directory: Path) -> None:
        self.id, self.until, self.seed = order["id"], order["until"], order["seed"]
        self.stem = f"{order['key']}-{order['number']:05d}"
        self.epoch, self.state = 0, b""
        if order["from"] is not None:
            name, sha256 = order["from"]
            arrays = checkpoint.load(directory / name, sha256)
            self.epoch, self.state = int(arrays["epoch"]), arrays["state"].tobytes()

    def advance(self, directory: Path) -> dict:
        """Train an epoch and save it; what to tell the driver."""
        began = time.monotonic_ns()
        time.sleep(EPOCH_S)
        self.state, self.epoch = next_state(self.state, self.seed), self.epoch + 1
        trained = time.monotonic_ns()
        arrays = {
            "epoch": np.array(self.epoch),
            "state": np.frombuffer(self.state, dtype=np.uint8),
        }
        mark = checkpoint.save(directory, f"{self.stem}-{self.epoch:05d}", arrays)
        saved = time.monotonic_ns()
        return {
            "is": "epoch",
            "job": self.id,
            "at": saved,
            "score": score_of(self.state),
            "metrics": {"loss": 1.0},
            "ends": self.epoch >= self.until,
            "spent": {"train": trained - began, "checkpoint": saved - trained},
            "checkpoint": mark,
        }


def serve(connection: Connection, block: ControlBlock) -> None:
    """Do what the driver says until it is gone."""
    directory = Path(receive(connection)["directory"])
    ready = {"is": "ready", "device": "stub", "image": [1, 1, 1]}
    send(connection, {**ready, "at": time.monotonic_ns()})
    jobs: dict[int, Job] = {}
    while True:
        while not jobs or connection.poll():
            order = receive(connection)
            if order["do"] == "measure":
                measured = {"is": "measured", "step_ns": 1000, "batches": 10}
                send(connection, {**measured, "at": time.monotonic_ns()})
            else:
                jobs[order["id"]] = Job(order, directory)
        for job in list(jobs.values()):
            if time.monotonic_ns() > block.words[DEADLINE]:
                message = {"is": "cut", "job": job.id, "at": time.monotonic_ns(), "spent": {}}
            else:
                message = job.advance(directory)
            send(connection, message)
            if message["is"] == "cut" or message["ends"]:
                del jobs[job.id]


def main() -> None:
    """Serve the driver at the other end of the inherited socket, and die with it."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == parent:
        try:
            serve(Connection(int(sys.argv[1])), ControlBlock(int(sys.argv[2])))
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    main()
