"""What a script says about real training, and the worker processes that do it."""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuner.store import Store
from tuner.terminal import say
from tuner.workers.devices import count_cores, find_devices

if TYPE_CHECKING:
    from models.pool import TrainingPool


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What was asked for, as far as the workers need to know; kept in the study.

    Attributes:
        devices, layout: found out when the study began, so that a resume goes on as it did.
    """

    device: str
    slots: int | None
    data: str
    data_root: str
    epochs: int
    augment: bool
    devices: list[str] | None = None
    layout: dict[str, Any] | None = None


def start_workers(
    stack: ExitStack, store: Store, request: TrainingRequest, folder: Path, console: Console | None
) -> tuple[Any, int]:
    """Start the pool on the devices with which the study began; it, and the time that took."""
    from models.data import default_root, prepare
    from models.layout import Layout
    from models.pool import TrainingPool, TrainingSetup

    devices = find_devices(request.device)
    if request.devices is not None:
        devices = [found for kept in request.devices for found in find_devices(kept)]
    prepare(request.data, Path(request.data_root))
    setup = TrainingSetup(
        devices=tuple(devices),
        slots=request.slots,
        data=request.data,
        root=Path(request.data_root),
        epochs=request.epochs,
        augment=request.augment,
        directory=folder / "checkpoints",
    )
    layout = None if request.layout is None else Layout(**request.layout)
    pool = stack.enter_context(TrainingPool(setup, layout, default_root().parent / "layouts.json"))
    rows = (trial for row in store.runs() for trial in store.history(row))
    marks = [mark for trial in rows for mark in (trial.checkpoint, trial.midway) if mark]
    pool.sweep({mark.name for mark in marks})
    warm_up_ns = pool.start()
    if console is not None:
        say(console, _describe_pool(pool))
    if store.meta("machine") is None:
        store.set_meta("machine", describe_machine(devices))
        pace = {"layout": str(pool.layout), "share_ns": pool.epoch_ns}
        store.set_meta("pace", {**pace, "alone_ns": pool.alone_epoch_ns})
        store.set_meta("alone", None if pool.alone is None else asdict(pool.alone.layout))
    found = {"devices": devices, "layout": asdict(pool.layout)}
    store.set_meta("request", {**vars(request), **found})
    store.commit(force=True)
    return pool, warm_up_ns


def _describe_pool(pool: TrainingPool) -> str:
    """How trainings are laid out, and what was measured that speaks for it."""
    layout, devices = pool.layout, pool.setup.devices
    line = f"{len(devices)} device(s) ({', '.join(devices)}), on each {layout}"
    others = [t for t in pool.timings if t.layout != layout]
    if not others:
        return line
    best = next(t for t in pool.timings if t.layout == layout)
    shares = [f"{t.layout} {best.share_ns / t.share_ns:.2f}" for t in others]
    return f"{line}; of its pace, as measured, would have: {'; '.join(shares)}"


def describe_machine(devices: list[str]) -> dict[str, Any]:
    """What figures measured here should carry: the device, the versions, the date."""
    if devices[0].startswith("cuda"):
        import torch

        names = [torch.cuda.get_device_name(torch.device(device)) for device in devices]
    else:
        names = [f"CPU, {count_cores()} cores, {platform.machine()}"]
    versions = installed_versions("tuner", "torch", "torchvision", "numpy")
    return {
        "device": ", ".join(names),
        "versions": {"python": platform.python_version(), **versions},
        "date": time.strftime("%Y-%m-%d"),
    }


def installed_versions(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed; a checkout's scripts run without."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
