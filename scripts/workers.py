"""What a script says about real training, and the worker processes that do it."""

from __future__ import annotations

import os
import platform
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tuner.store import Store


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What was asked for, as far as the workers need to know; kept in the study.

    Attributes:
        devices, precision: found out when the study began, so that a resume goes on as it did.
    """

    device: str
    slots: int | None
    data: str
    data_root: str
    epochs: int
    augment: bool
    devices: list[str] | None = None
    precision: dict[str, bool] | None = None


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_workers(
    stack: ExitStack, store: Store, request: TrainingRequest, folder: Path, console: Console | None
) -> tuple[Any, int]:
    """Start the pool on the devices with which the study began; it, and the time that took."""
    from models.data import prepare
    from models.training_runner import Setup, WorkerPool, find_devices

    devices = find_devices(request.device)
    if request.devices is not None:
        devices = [found for kept in request.devices for found in find_devices(kept)]
    prepare(request.data, Path(request.data_root))
    slots = request.slots or (count_cores() if devices == ["cpu"] else 1)
    setup = Setup(
        tuple(devices),
        slots,
        request.data,
        Path(request.data_root),
        request.epochs,
        request.augment,
        folder / "checkpoints",
    )
    pool = stack.enter_context(WorkerPool(setup, request.precision))
    rows = (trial for row in store.runs() for trial in store.history(row))
    marks = [mark for trial in rows for mark in (trial.checkpoint, trial.midway) if mark]
    pool.sweep({mark.name for mark in marks})
    if console is not None:
        console.print(
            f"{len(devices)} device(s) ({', '.join(devices)}), {slots} worker(s) each",
            soft_wrap=True,
        )
    warm_up_ns = pool.start()
    if store.meta("machine") is None:
        store.set_meta("machine", describe_machine(devices))
    found = {"devices": devices, "slots": slots, "precision": pool.precision}
    store.set_meta("request", {**vars(request), **found})
    store.commit(force=True)
    return pool, warm_up_ns


def describe_machine(devices: list[str]) -> dict[str, Any]:
    """What figures measured here should carry: the device, the versions, the date."""
    if devices[0].startswith("cuda"):
        import torch

        names = [torch.cuda.get_device_name(torch.device(device)) for device in devices]
    else:
        names = [f"CPU, {count_cores()} cores, {platform.machine()}"]
    versions = {name: version(name) for name in ("tuner", "torch", "torchvision", "numpy")}
    return {
        "device": ", ".join(names),
        "versions": {"python": platform.python_version(), **versions},
        "date": time.strftime("%Y-%m-%d"),
    }
