"""The knobs of the built-in training: their defaults, their ranges, and how to write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from tuner.naming import pick
from tuner.space import Choice, Conditional, Config, Domain, Float, Int, SearchSpace, Value


@dataclass(frozen=True)
class Recipe:
    """Everything that a training needs to know besides its data, device and seed."""

    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    dropout: float = 0.0
    layers: int = 2
    width: int = 16
    batch_size: int = 64
    momentum: float = 0.9
    label_smoothing: float = 0.1
    growth: float = 2.0

    @classmethod
    def of(cls, config: Config) -> Recipe:
        """The default recipe with the configuration's knobs put in, as far as they are there."""
        there = {name: value for name, value in config.items() if value is not None}
        return cls(**there)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Knob:
    """The range that is searched by default, and the bounds that any range must keep to."""

    domain: Domain
    low: float
    high: float = math.inf
    open_ended: bool = False  # whether the bounds themselves are out of reach


KNOBS: Mapping[str, Knob] = {
    "learning_rate": Knob(Float(1e-4, 1.0, log=True), 0.0, open_ended=True),
    "weight_decay": Knob(Float(1e-6, 1e-1, log=True), 0.0),
    "dropout": Knob(Float(0.0, 0.6), 0.0, 1.0),
    "layers": Knob(Int(1, 4), 1, 16),
    "width": Knob(Int(4, 32, log=True), 1, 4096),
    "batch_size": Knob(Int(32, 256, log=True), 1, 1 << 20),
    "momentum": Knob(Float(0.0, 0.98), 0.0, 1.0),
    "label_smoothing": Knob(Float(0.0, 0.2), 0.0, 1.0),
    # Of the channels from block to block. A choice: trials of one shape train as one program.
    "growth": Knob(Choice((1.0, 1.5, 2.0)), 1.0, 8.0),
}
DEFAULT_KNOBS = ("learning_rate", "weight_decay")
_WHOLE = {field.name for field in fields(Recipe) if field.type == "int"}


def make_space(names: Iterable[str], ranges: Iterable[str] = ()) -> SearchSpace:
    """The space of the named knobs, with `NAME=RANGE` texts in place of default ranges.

    A knob that only has a range is searched too. Raises ValueError for an unknown knob, a range
    that cannot be read, and one that a training cannot use.
    """
    chosen: dict[str, Domain] = {
        name: pick(name, KNOBS, "knob").domain for name in map(str.strip, names) if name
    }
    for text in ranges:
        name, equals, written = text.partition("=")
        if not equals:
            raise ValueError(f"a knob's range is written NAME=LOW:HIGH[:log], got {text!r}")
        pick(name, KNOBS, "knob")
        chosen[name] = parse_domain(name, written)
    return SearchSpace(_with_conditions(chosen))


def _with_conditions(chosen: Mapping[str, Domain]) -> dict[str, Domain | Conditional]:
    """The knobs, those last that are there only where others have some of their values."""
    found: dict[str, Domain | Conditional] = dict(chosen)
    layers = chosen.get("layers")
    if "growth" in chosen and layers is not None and layers.contains(1):
        many = tuple(layers.grid(layers.cardinality or 1))
        deep = tuple(n for n in many if n != 1)
        growth = found.pop("growth")
        found["growth"] = Conditional(chosen["growth"], "layers", deep) if deep else growth
    return found


def parse_domain(name: str, text: str) -> Domain:
    """`1e-4:1:log` or `0:0.5` as a range, `32,64,128` as a choice, for the knob `name`."""
    if "," in text:
        values = [_number(name, part) for part in text.split(",")]
        _check_bounds(name, values)
        try:
            return Choice(tuple(values))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] != "log"):
        raise ValueError(
            f"{name}: a range is written LOW:HIGH or LOW:HIGH:log, a choice A,B,C, got {text!r}"
        )
    low, high = (_number(name, part) for part in parts[:2])
    log = len(parts) == 3
    try:
        # Emptiness first: it is the likelier slip, and the plainer message.
        domain = Int(int(low), int(high), log) if name in _WHOLE else Float(low, high, log)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    _check_bounds(name, [low, high])
    return domain


def _number(name: str, text: str) -> float | int:
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"{name} needs {kind}, got {text!r}") from None


def _check_bounds(name: str, values: Iterable[Value]) -> None:
    knob = KNOBS[name]
    for value in values:
        number = float(value)  # type: ignore[arg-type]
        inside = knob.low < number if knob.open_ended else knob.low <= number
        if not (inside and number < knob.high):
            low = "over" if knob.open_ended else "at least"
            high = "" if knob.high == math.inf else f" and under {knob.high:g}"
            raise ValueError(f"{name} must be {low} {knob.low:g}{high}, got {value}")
