"""Whether a machine can train: its devices and its data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import own_images
from models.data import DATA_SETS, default_root, kept_at, load
from tuner.doctor import Finding, Severity
from tuner.naming import pick
from tuner.workers.devices import count_cores, find_devices


def check_training(device: str, data: str, root: Path | None) -> Iterator[Finding]:
    """Findings on what real training needs; loads PyTorch only where there is a GPU's driver.

    Args:
        device: as `--device` takes it.
        data: name of a data set, or a folder or file of the user's; nothing is fetched or kept.
        root: the folder of the data sets; the user's cache where it is None.

    Raises ValueError for a device or a data set that there is not.
    """
    devices = find_devices(device)
    cores = f"{count_cores()} core(s)"
    if devices == ["cpu"]:
        yield Finding(Severity.NOTE, f"trials train on the CPU, {cores}; there is no GPU in use")
    else:
        import torch

        for name in devices:
            yield from _check_gpu(torch.device(name))
    yield from _check_data(data, root or default_root())


def _check_gpu(device: Any) -> Iterator[Finding]:
    """Whether it answers a question whose answer is known."""
    import torch

    name = torch.cuda.get_device_name(device)
    try:
        found = int(torch.arange(1000, device=device).sum().item())
        free, whole = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        advice = "look at nvidia-smi, and restart the machine or choose another --device"
        yield Finding(Severity.DAMAGE, f"{device} ({name}) does not compute: {reason}", advice)
        return
    if found != 499_500:
        what = f"{device} ({name}) adds the numbers below 1000 up to {found}, not to 499500"
        yield Finding(Severity.DAMAGE, what, "do not train on it")
        return
    what = f"{device} ({name}) computes, {free / 2**30:.1f} of {whole / 2**30:.1f} GiB are free"
    if free < whole / 2:
        yield Finding(Severity.WARNING, what, "somebody else uses it: trials will wait for them")
    else:
        yield Finding(Severity.NOTE, what)


def _check_data(name: str, root: Path) -> Iterator[Finding]:
    if own_images.is_own(name):
        yield _of_own_images(name)
        return
    pick(name, dict.fromkeys(DATA_SETS), "data set")
    try:
        count = len(load(name, root).train)
    except ValueError as error:
        if name == "sample" or kept_at(name, root).exists():
            yield Finding(Severity.DAMAGE, str(error))
        else:
            what = f"the data set {name} is not in {root}"
            yield Finding(Severity.WARNING, what, "the first run fetches it, where it can")
        return
    yield Finding(Severity.NOTE, f"the data set {name} is there, {count:,} images to train on")


def _of_own_images(name: str) -> Finding:
    """What a run would make of them."""
    path = own_images.where(name).resolve()
    try:
        arrays = own_images.converted(path)
    except ValueError as error:
        return Finding(Severity.DAMAGE, str(error), "a run would refuse it")
    count, tested = len(arrays["train_labels"]), len(arrays["test_labels"])
    what = f"{path} has {len(arrays['classes'])} classes, {count:,} images to train and validate on"
    return Finding(Severity.NOTE, f"{what}, {tested:,} to test on")
