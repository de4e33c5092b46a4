"""How many trials train at once on a device: never assumed, measured.

On a GPU a small network leaves the device idle between launches, and a pack of trials wins several
times over. On a CPU it loses, and a single-threaded process for each core is the shape to beat.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuner.files import write_atomically
from tuner.foreign import read_json
from tuner.workers.control import MOST_PLACES

_MARGIN = 1.1  # a layout that is tried later must be this much quicker
_WIDEST = 256
_SOURCES = (
    *("cnn.py", "noise.py", "normalise.py", "packed.py", "patches.py", "stacked.py", "train.py"),
)


@dataclass(frozen=True)
class Layout:
    """How trainings are laid out on one device.

    Attributes:
        workers: processes.
        threads: of each, on a CPU.
        width: trials that each trains as one program.
        bf16, channels_last, grouped: see `models.train.Precision`.
    """

    workers: int
    threads: int = 1
    width: int = 1
    bf16: bool = False
    channels_last: bool = True
    grouped: bool = False

    @property
    def slots(self) -> int:
        """Trials at once."""
        return self.workers * self.width

    def __str__(self) -> str:
        processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
        threads = "" if self.threads == 1 else f" of {self.threads} threads"
        width = "" if self.width == 1 else f", packs of {self.width}"
        how = f"{', grouped' if self.grouped else ''}{', bf16' if self.bf16 else ''}"
        return f"{processes}{threads}{width}{how}"


_LARGEST = Layout(4_096, 4_096, MOST_PLACES)  # that is believed where a file says so


@dataclass(frozen=True)
class Timing:
    """What a layout was measured to give: `step_ns`, device time of one step of all its trials."""

    layout: Layout
    step_ns: int

    @property
    def share_ns(self) -> int:
        """Device time of one step of one trial."""
        return self.step_ns // self.layout.slots


Measure = Callable[[Layout], "int | None"]
"""The device time of a step in a layout, in ns; None where the memory does not hold it."""


def explore(device: str, cores: int, slots: int | None, measure: Measure) -> list[Timing]:
    """Measure what may be best on a device, the simplest first; `slots` at once, where given.

    Raises ValueError where nothing fits into the device's memory.
    """
    if device == "cpu":
        shapes = [Layout(slots)] if slots else _on_cpu(cores)
        found = [Timing(s, ns) for s in shapes if (ns := measure(s)) is not None]
    else:
        found = _on_gpu(slots, measure)
    if not found:
        many = "one training" if slots is None else f"{slots} trainings"
        raise ValueError(f"the memory of {device} does not hold {many} of the default recipe")
    return found


def _on_cpu(cores: int) -> list[Layout]:
    shapes = [
        Layout(cores),
        Layout(1),
        Layout(1, threads=cores),
        Layout(cores, width=2, grouped=True),
    ]
    return list(dict.fromkeys(shapes))


def _on_gpu(slots: int | None, measure: Measure) -> list[Timing]:
    """Wider and wider packs until one brings nothing; then other arithmetic at the best width."""
    found: list[Timing] = []
    width = min(slots or 1, MOST_PLACES)
    while (ns := measure(Layout(1, width=width))) is not None:
        found.append(Timing(Layout(1, width=width), ns))
        brings = len(found) < 2 or found[-2].share_ns > _MARGIN * found[-1].share_ns
        if slots or width >= _WIDEST or not brings:
            break
        width *= 2
    for other in ({"grouped": True}, {"bf16": True}):
        layout = replace(choose(found).layout, **other) if found else None
        if layout is not None and (ns := measure(layout)) is not None:
            found.append(Timing(layout, ns))
    return found


def choose(timings: Sequence[Timing]) -> Timing:
    """The first that no later one beats by more than a margin."""
    best = timings[0]
    for timing in timings[1:]:
        if best.share_ns > _MARGIN * timing.share_ns:
            best = timing
    return best


def alone(timings: Sequence[Timing]) -> Timing | None:
    """The best for a trial that has the device to itself, where that was measured."""
    found = [t for t in timings if t.layout.slots == 1 and not t.layout.bf16]
    return min(found, key=lambda t: t.step_ns, default=None)


# -- remembering -----------------------------------------------------------------------------------


def cache_key(device: str, cores: int, image: Sequence[int]) -> str:
    """What a measurement holds for: the device, the versions, the network and the images."""
    folder = Path(__file__).parent
    code = b"".join((folder / name).read_bytes() for name in _SOURCES)
    digest = hashlib.sha256(code).hexdigest()[:12]
    return f"{device}, {cores} cores, torch {version('torch')}, {tuple(image)}, {digest}"


def read_cache(path: Path, key: str) -> list[Timing]:
    """What was measured before under this key; nothing where the file is missing or is no such."""
    try:
        return [from_json(entry) for entry in read_json(path)[key]]
    except (ValueError, KeyError, TypeError):
        return []  # it is measured again


def write_cache(path: Path, key: str, timings: Sequence[Timing]) -> None:
    """Remember a measurement beside those under other keys."""
    try:
        content = read_json(path)
        content = content if isinstance(content, dict) else {}
    except ValueError:
        content = {}
    content[key] = [to_json(timing) for timing in timings]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError:
        pass  # a cache that cannot be written costs a second at the next start


def to_json(timing: Timing) -> dict[str, Any]:
    """A timing as JSON has it."""
    return {"layout": asdict(timing.layout), "step_ns": timing.step_ns}


def from_json(entry: Mapping[str, Any]) -> Timing:
    """What `to_json` gave; raises KeyError, TypeError or ValueError where it is no such."""
    layout, step_ns = Layout(**entry["layout"]), entry["step_ns"]
    for name, value in [*asdict(layout).items(), ("step_ns", step_ns)]:
        is_switch = isinstance(getattr(_LARGEST, name, 0), bool)
        most = getattr(_LARGEST, name, 1 << 62)
        if not (type(value) is bool if is_switch else type(value) is int and 1 <= value <= most):
            raise ValueError(f"a layout's {name} is at most {most}, got {str(value)[:40]}")
    return Timing(layout, step_ns)
