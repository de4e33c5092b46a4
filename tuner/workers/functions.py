"""Which function a worker runs, and how it finds it: by name, never as a copy of this process.

A worker is a new interpreter. It imports the function's module, or the script that it stands in, as
`multiprocessing` would. What has no name there (a lambda, a function within a function, a cell of a
notebook) can be sent by cloudpickle, where the caller says so; it goes from parent to child over
their own socket and never to a file.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from tuner.workers.checkpoints import SUFFIX
from tuner.workers.commands import Command
from tuner.workers.devices import find_devices
from tuner.workers.memory import can_measure
from tuner.workers.messages import MAX_MESSAGE
from tuner.workers.pool import HUNG_AFTER_S, USUAL_STRETCHES, Setup, WorkerPool

Function = Callable[..., Any]

_MAIN = "__mp_main__"  # the name under which a worker loads the user's script, as multiprocessing
_WORKER = "__tuner_worker__"  # where a worker's own main module is then
_ADVICE = (
    "workers find a function by its name: define it with `def` at the top of a module or a script, "
    "or pass pickle=True to send a copy of it with cloudpickle"
)
_loading = False  # whether this process is a worker that is importing its function


@dataclass(frozen=True, kw_only=True)
class FunctionSetup(Setup):
    """What every worker that runs a function is told at its start.

    Attributes:
        function: where it is, as `locate` says.
        sign: 1, or -1 where scores are losses.
        per_device: workers on each device, which share its cores.
        memory_gib: of a trial's processes together; None for no limit.
        gpu_memory_gib: of the caching allocator of PyTorch; None for no limit.
    """

    program: str = "tuner.workers.function_worker"
    suffix: str = SUFFIX
    unknown_after_s: float = math.inf
    function: Mapping[str, Any]
    sign: float = 1.0
    per_device: int = 1
    memory_gib: float | None = None
    gpu_memory_gib: float | None = None

    def told(self) -> dict[str, Any]:
        """The function, and its limits."""
        return {
            "function": dict(self.function),
            "sign": self.sign,
            "memory_gib": self.memory_gib,
            "gpu_memory_gib": self.gpu_memory_gib,
        }

    def environment(self, device: int) -> dict[str, str]:
        """A worker has its own GPU alone, as `cuda:0`, or none, and its share of cores."""
        name = self.devices[device]
        threads = max(1, self.core_count // (len(self.devices) * self.per_device))
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        return {"CUDA_VISIBLE_DEVICES": _visible(name), **limits}


@dataclass(frozen=True)
class Workers:
    """Where and how a user's function is run by worker processes, as the caller wants it.

    Attributes:
        device: `auto`, `cpu`, `cuda` (all GPUs) or `cuda:N`.
        device_count: use so many of them; None for all.
        slots: trials at once on each device.
        memory_gib: of a trial's processes together; None for no limit.
        gpu_memory_gib: of a trial, by PyTorch's allocator; None for no limit.
        hung_after_minutes: without a sign of life, after which a trial is ended; None for twenty
            times the longest wait so far, at least a minute, and never before the first score.
        pickle: send a copy of the function, where it has no name to be found by.
        cluster: the address of a Ray cluster, whose devices are meant; None for this machine's.
    """

    device: str
    device_count: int | None = None
    slots: int = 1
    memory_gib: float | None = None
    gpu_memory_gib: float | None = None
    hung_after_minutes: float | None = None
    pickle: bool = False
    cluster: str | None = None

    def setup(self, function: Mapping[str, Any], sign: float, directory: Path) -> FunctionSetup:
        """For workers that run what `locate` found, or a command.

        Raises ValueError where the devices are not there, or a number makes no sense.
        """
        devices = ["cpu"] if self.cluster else self.find_devices()
        patience_s = None if self.hung_after_minutes is None else 60.0 * self.hung_after_minutes
        return FunctionSetup(
            devices=tuple(devices),
            directory=directory,
            function=function,
            sign=sign,
            per_device=self.slots,
            memory_gib=self.memory_gib,
            gpu_memory_gib=self.gpu_memory_gib,
            hung_after_s=patience_s or HUNG_AFTER_S,
            unknown_after_s=patience_s or math.inf,
            stretches=0 if patience_s else USUAL_STRETCHES,
        )

    def check(self) -> None:
        """Raise ValueError where a device is not there, or a number is none."""
        self._check_numbers()
        if self.cluster is None:
            self.find_devices()
        else:
            self._find_places()

    def pool(self, setup: FunctionSetup) -> WorkerPool:
        """The pool of workers on these devices, not started yet; raises ValueError as `check`."""
        if self.cluster is None:
            return WorkerPool(setup, self.slots)
        from tuner.workers.cluster import RayPool

        return RayPool(setup, self._find_places(), self.slots)

    def _find_places(self) -> Any:
        from tuner.workers.cluster import places_of

        places = places_of(self.cluster or "", self.device, self.device_count)
        self._check_memory(places[0].kind)
        return places

    def find_devices(self) -> list[str]:
        """The devices of this machine that are meant; raises ValueError as `check` does."""
        self._check_numbers()
        devices = find_devices(self.device)
        if self.device_count is not None and self.device_count > len(devices):
            raise ValueError(
                f"device_count is {self.device_count}, and {self.device!r} stands for "
                f"{len(devices)} here: {', '.join(devices)}"
            )
        self._check_memory(devices[0])
        return devices[: self.device_count]

    def _check_memory(self, device: str) -> None:
        if self.gpu_memory_gib is not None and device == "cpu":
            raise ValueError("gpu_memory_gib limits a GPU's memory, and there is none in use")

    def _check_numbers(self) -> None:
        for name in ("device_count", "slots"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is at least 1, got {number}")
        for name in ("memory_gib", "gpu_memory_gib", "hung_after_minutes"):
            amount = getattr(self, name)
            if amount is not None and not 0 < amount < math.inf:
                raise ValueError(f"{name} is a number greater than 0, or None, got {amount}")
        if self.memory_gib is not None and not can_measure():
            raise ValueError("memory_gib needs Linux, which says how much memory processes hold")


def _visible(device: str) -> str:
    """The device by the name that the driver of the GPUs knows, of those that this process sees."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",")[int(number)] if seen else number


def takes_checkpoint(train: Function) -> bool:
    """Whether a training asks for a checkpoint beside its configuration."""
    try:
        parameters = list(inspect.signature(train).parameters.values())
    except (TypeError, ValueError):  # a built-in function
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) > 1 or any(p.name == "checkpoint" for p in parameters)


def locate(train: Function, *, pickle: bool = False) -> dict[str, Any]:
    """Where a worker finds a function; JSON, for `load`.

    Raises ValueError, which says what to do, where the function has no name that a new process
    could find it by.
    """
    if isinstance(train, Command):
        return {"command": train.to_json()}
    if pickle:
        return _pickled(train)
    name = getattr(train, "__qualname__", None)
    module = getattr(train, "__module__", None)
    if not name or not module:
        raise ValueError(f"{train!r} is no function with a name: {_ADVICE}")
    if "<lambda>" in name or "<locals>" in name:
        kind = "a lambda" if "<lambda>" in name else "defined within another function"
        raise ValueError(f"{name} is {kind}: {_ADVICE}")
    if _named(sys.modules.get(module), name) is not train:
        raise ValueError(f"{module}.{name} is not the function that was passed: {_ADVICE}")
    if module != "__main__":
        return {"module": module, "name": name}
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:  # python -m package.module
        return {"module": spec.name, "name": name}
    if (file := getattr(main, "__file__", None)) is None:
        raise ValueError(f"{name} is of a notebook or an interactive session: {_ADVICE}")
    return {"script": str(Path(file).resolve()), "name": name}


def load(where: Mapping[str, Any]) -> Function:
    """The function that `locate` found, in another process.

    Raises ImportError or AttributeError where it is not there; whatever its module raises.
    """
    global _loading
    if "command" in where:
        return Command.from_json(where["command"])
    _loading = True
    try:
        if "pickled" in where:
            import cloudpickle

            found: Function = cloudpickle.loads(base64.b64decode(where["pickled"]))
        elif "script" in where:
            found = _named(_load_script(where["script"]), where["name"])
        else:
            found = _named(importlib.import_module(where["module"]), where["name"])
    finally:
        _loading = False
    return found


def refuse_while_loading() -> None:
    """Raise ValueError in a worker that is importing the script which started it."""
    if _loading:
        raise ValueError(
            "a worker imports the script that its function stands in, and the script starts a "
            "search as soon as it is imported: put that under `if __name__ == '__main__':`"
        )


def _load_script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(_MAIN, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MAIN] = module
    if _is_worker(main := sys.modules["__main__"]):
        # What the function starts by `spawn` finds the script as in any other process of it.
        sys.modules["__main__"], sys.modules[_WORKER] = module, main
        module.__spec__ = None
    spec.loader.exec_module(module)
    return module


def _is_worker(main: Any) -> bool:
    return getattr(getattr(main, "__spec__", None), "name", "") == "tuner.workers.function_worker"


def _named(module: Any, name: str) -> Any:
    return reduce(lambda found, part: getattr(found, part, None), name.split("."), module)


def _pickled(train: Function) -> dict[str, Any]:
    try:
        import cloudpickle
    except ImportError:
        raise ValueError(
            "pickle=True needs the package cloudpickle; pip install cloudpickle"
        ) from None
    text = base64.b64encode(cloudpickle.dumps(train)).decode()
    if len(text) > MAX_MESSAGE // 2:
        raise ValueError(
            f"the function and all that it holds are {len(text) >> 10} KiB, and at most "
            f"{MAX_MESSAGE >> 11} are sent: load data inside it instead of holding it"
        )
    return {"pickled": text}
