"""What a script says about real training, and the worker processes that do it."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tuner.store import Store
from tuner.terminal import say
from tuner.workers.devices import count_cores, find_devices

if TYPE_CHECKING:
    from models.pool import Pace
    from tuner.workers.pool import WorkerPool


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What was asked for, as far as the workers need to know; kept in the study.

    Attributes:
        devices, layout: found out when the study began, so that a resume goes on as it did.
        cluster: the address of a Ray cluster, whose devices are meant; None for this machine's. A
            resume takes as many as it has then, of the kind with which the study began.
    """

    device: str
    slots: int | None
    data: str
    data_root: str
    epochs: int
    augment: bool
    devices: list[str] | None = None
    layout: dict[str, Any] | None = None
    cluster: str | None = None

    def kinds(self) -> set[str]:
        """What the devices that are meant are: `cpu` or `cuda`; ValueError where one is missing."""
        if self.cluster is not None:
            from tuner.workers.cluster import places_of

            return {place.kind for place in places_of(self.cluster, self.device)}
        return {device.partition(":")[0] for device in find_devices(self.device)}


def start_workers(
    stack: ExitStack, store: Store, request: TrainingRequest, folder: Path, console: Console | None
) -> tuple[Any, int]:
    """Start the pool on the devices with which the study began; it, and the time that took."""
    from models.data import prepare

    prepare(request.data, Path(request.data_root))
    pool = stack.enter_context(_pool(request, folder / "checkpoints"))
    rows = (trial for row in store.runs() for trial in store.history(row))
    marks = [mark for trial in rows for mark in (trial.checkpoint, trial.midway) if mark]
    pool.sweep({mark.name for mark in marks})
    warm_up_ns = pool.start()
    if console is not None:
        say(console, _describe_pool(pool))
    if store.meta("machine") is None:
        store.set_meta("machine", describe_machine(_names(pool, request)))
        pace, alone = pool.pace, pool.pace.alone
        known = {"layout": str(pace.layout), "share_ns": pace.epoch_ns}
        store.set_meta("pace", {**known, "alone_ns": pace.alone_epoch_ns})
        store.set_meta("alone", None if alone is None else asdict(alone.layout))
    found = {"devices": list(pool.setup.devices), "layout": asdict(pool.pace.layout)}
    store.set_meta("request", {**vars(request), **found})
    store.commit(force=True)
    return pool, warm_up_ns


def _pool(request: TrainingRequest, directory: Path) -> WorkerPool:
    """The workers on the devices that are meant, not started yet."""
    from models.data import default_root
    from models.layout import Layout
    from models.pool import TrainingPool, TrainingSetup

    setup = TrainingSetup(
        devices=(),
        slots=request.slots,
        data=request.data,
        root=Path(request.data_root),
        epochs=request.epochs,
        augment=request.augment,
        directory=directory,
    )
    layout = None if request.layout is None else Layout(**request.layout)
    began_with = request.devices or [request.device]
    if request.cluster is not None:
        from models.cluster import TrainingRayPool
        from tuner.workers.cluster import places_of

        kind = began_with[0].partition(":")[0] if request.devices else request.device
        return TrainingRayPool(setup, places_of(request.cluster, kind), layout)
    devices = tuple(found for name in began_with for found in find_devices(name))
    cache = default_root().parent / "layouts.json"
    return TrainingPool(replace(setup, devices=devices), layout, cache)


def _names(pool: WorkerPool, request: TrainingRequest) -> list[str]:
    """What the devices are called by those who made them."""
    if request.cluster is None:
        return device_names(pool.setup.devices)
    first = {worker.device: str(worker.ready["device"]) for worker in reversed(pool.workers)}
    return [f"{n} x {name} of a cluster" for name, n in Counter(first.values()).items()]


def _describe_pool(pool: WorkerPool) -> str:
    """How trainings are laid out, and what was measured that speaks for it."""
    pace: Pace = pool.pace
    layout = pace.layout
    line = f"{len(pool.setup.devices)} device(s) ({pool.setup.named}), on each {layout}"
    others = [t for t in pace.timings if t.layout != layout]
    if not others:
        return line
    best = next(t for t in pace.timings if t.layout == layout)
    shares = [f"{t.layout} {best.share_ns / t.share_ns:.2f}" for t in others]
    return f"{line}; of its pace, as measured, would have: {'; '.join(shares)}"


def device_names(devices: Sequence[str]) -> list[str]:
    """What these devices of this machine are called by those who made them."""
    if not devices[0].startswith("cuda"):
        return [f"CPU, {count_cores()} cores, {platform.machine()}"]
    import torch

    return [torch.cuda.get_device_name(torch.device(device)) for device in devices]


def describe_machine(names: Sequence[str]) -> dict[str, Any]:
    """What figures measured here should carry: the devices' names, the versions, the date."""
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
