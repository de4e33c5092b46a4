"""Which devices there are, without loading PyTorch to find out that there is no GPU."""

from __future__ import annotations

import ctypes
import os


def find_devices(wanted: str) -> list[str]:
    """The devices that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises ValueError where it is none of these, or there is no such GPU.
    """
    name, _, number = wanted.partition(":")
    if name not in ("auto", "cpu", "cuda") or (number and (name != "cuda" or not number.isdigit())):
        raise ValueError(f"a device is auto, cpu, cuda or cuda:N, got {wanted!r}")
    if name == "cpu":
        return ["cpu"]
    count = _count_gpus()
    if name == "auto":
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if count == 0:
        raise ValueError(
            f"{wanted!r} was asked for, but PyTorch sees no CUDA GPU here; check nvidia-smi and "
            "that this PyTorch is a CUDA build, or use --device cpu"
        )
    if number and int(number) >= count:
        raise ValueError(f"there is no {wanted}: the GPUs here are cuda:0 to cuda:{count - 1}")
    return [wanted] if number else [f"cuda:{i}" for i in range(count)]


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count_gpus() -> int:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0  # no driver: no need to load PyTorch to find out
    import torch

    return torch.cuda.device_count()
