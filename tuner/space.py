"""The search space: what may be tuned, and its map to the unit cube that searchers work in."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = float | int | str | bool | None
Config: TypeAlias = Mapping[str, Value]
Units: TypeAlias = NDArray[np.float64]
"""Coordinates in [0, 1]."""

_LARGEST, _LARGEST_INT = sys.float_info.max, 2**52
_LONGEST_NAME = 200
# Of a space that was read from a file.
_MOST_KNOBS = 1_000
_MOST_OPTIONS = 10_000
_MOST_PARENT_VALUES = 10_000
OFF = 0.5
"""The coordinate of a conditional knob where it is not there."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """NumPy's numbers, texts and truth values as Python's, which JSON can write."""
    return value.item() if isinstance(value, np.generic) else value


def value_key(value: object) -> tuple[bool, Any]:
    """By which values are told apart: true is not 1, and 1 is 1.0."""
    return isinstance(value, bool), value


def _keys(values: Sequence[Value]) -> tuple[tuple[bool, Any], ...]:
    return tuple(map(value_key, values))


def _check_range(kind: str, low: float, high: float, log: bool) -> None:
    for end in (low, high):
        if not _is_number(end) or not abs(end) <= _LARGEST:
            raise ValueError(f"{kind} needs two finite numbers, got {low!r} and {high!r}")
    if not low < high:
        raise ValueError(f"{kind} needs low < high, got [{low}, {high}], an empty range")
    if high - low > _LARGEST:
        raise ValueError(f"{kind} needs a range that a float can span, got [{low}, {high}]")
    if log and low <= 0:
        raise ValueError(f"{kind} on a log scale needs low > 0, got {low}: zero has no logarithm")


def _even(points: int) -> list[float]:
    # Quotients and not multiples of a step: equal fractions of two lattices are equal floats.
    return [0.5] if points == 1 else [i / (points - 1) for i in range(points)]


@dataclass(frozen=True)
class Float:
    """A real knob in [low, high], uniform in the value or, with `log`, in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _plain(self.low))
        object.__setattr__(self, "high", _plain(self.high))
        _check_range("Float", self.low, self.high, self.log)

    @property
    def cardinality(self) -> int | None:
        """How many values there are; None where they cannot be counted."""
        return None

    def contains(self, value: object) -> bool:
        """Whether `value` is a number in [low, high]."""
        return _is_number(value) and bool(self.low <= value <= self.high)  # type: ignore[operator]

    def to_unit(self, value: Any) -> float:
        """`value` as a coordinate in [0, 1]."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (
                math.log(self.high) - math.log(self.low)
            )
        return float((value - self.low) / (self.high - self.low))

    def from_unit(self, unit: float) -> float:
        """The value at coordinate `unit`: the ends exactly, and never outside by rounding."""
        if unit in (0.0, 1.0):
            return float(self.high if unit else self.low)
        if self.log:
            value = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + unit * (self.high - self.low)
        return float(min(max(value, self.low), self.high))

    def snap(self, units: Units) -> Units:
        """Coordinates of legal values: all are."""
        return units

    def grid(self, points: int) -> list[Value]:
        """`points` values from low to high, evenly spaced on the knob's own scale."""
        return [self.from_unit(u) for u in _even(points)]


@dataclass(frozen=True)
class Int:
    """A whole-numbered knob in [low, high], both ends included.

    In the unit interval every integer owns a cell (of equal width, or of equal width in the
    logarithm), and its coordinate is the middle of that cell.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range("Int", self.low, self.high, self.log)
        if self.low != int(self.low) or self.high != int(self.high):
            raise ValueError(f"Int needs whole ends, got [{self.low}, {self.high}]; use Float")
        if max(abs(self.low), abs(self.high)) > _LARGEST_INT:
            raise ValueError(
                f"Int needs ends up to 2^52, beyond which floats have gaps, got {self.low} and "
                f"{self.high}"
            )
        object.__setattr__(self, "low", int(self.low))
        object.__setattr__(self, "high", int(self.high))

    @property
    def cardinality(self) -> int | None:
        """How many values there are."""
        return self.high - self.low + 1

    def _edges(self) -> tuple[float, float]:
        low, high = self.low - 0.5, self.high + 0.5
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def contains(self, value: object) -> bool:
        """Whether `value` is a whole number in [low, high]."""
        is_whole = isinstance(value, (int, np.integer)) and _is_number(value)
        return is_whole and bool(self.low <= value <= self.high)  # type: ignore[operator]

    def to_unit(self, value: Any) -> float:
        """The middle of the cell that `value` owns in [0, 1]."""
        low, high = self._edges()
        if self.log:
            left, right = math.log(value - 0.5), math.log(value + 0.5)
            return ((left + right) / 2 - low) / (high - low)
        return float((value - low) / (high - low))

    def from_unit(self, unit: float) -> int:
        """The integer whose cell holds `unit`."""
        low, high = self._edges()
        value = low + unit * (high - low)
        nearest = math.floor((math.exp(value) if self.log else value) + 0.5)
        return min(max(nearest, self.low), self.high)

    def snap(self, units: Units) -> Units:
        """The middles of the cells that hold `units`, n coordinates."""
        low, high = self._edges()
        values = low + units * (high - low)
        whole = np.clip(
            np.floor((np.exp(values) if self.log else values) + 0.5), self.low, self.high
        )
        if self.log:
            return np.asarray(
                ((np.log(whole - 0.5) + np.log(whole + 0.5)) / 2 - low) / (high - low)
            )
        return np.asarray((whole - low) / (high - low))

    def grid(self, points: int) -> list[Value]:
        """At most `points` different integers, evenly spaced on the knob's own scale.

        All there are, where there are no more: on a logarithmic scale even steps miss some.
        """
        if points > self.high - self.low:
            return list[Value](range(self.low, self.high + 1))
        # From end to end, unlike to_unit, which places integers in the middle of their cells.
        scale = Float(self.low, self.high, self.log)
        values = {math.floor(scale.from_unit(u) + 0.5) for u in _even(points)}
        return list[Value](sorted(values))


@dataclass(frozen=True, eq=False)
class Choice:
    """A knob with unordered options: text, finite numbers, true and false, or None."""

    options: tuple[Value, ...]

    def __post_init__(self) -> None:
        if isinstance(self.options, str) or not isinstance(self.options, Sequence):
            raise ValueError(f"Choice needs a sequence of options, got {self.options!r}")
        object.__setattr__(self, "options", tuple(map(_plain, self.options)))
        if not self.options:
            raise ValueError("Choice needs at least one option, got none")
        for option in self.options:
            if not isinstance(option, (str, int, float, bool, type(None))):
                raise ValueError(
                    f"Choice options are text, numbers, booleans or None, got {option!r}"
                )
            if isinstance(option, float) and not math.isfinite(option):
                raise ValueError(
                    f"Choice options are finite, got {option!r}; write it as text, {str(option)!r}"
                )
        if len({value_key(o) for o in self.options}) < len(self.options):
            raise ValueError(f"Choice has an option twice: {self.options!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and _keys(self.options) == _keys(other.options)

    def __hash__(self) -> int:
        return hash(_keys(self.options))

    @property
    def cardinality(self) -> int | None:
        """How many options there are."""
        return len(self.options)

    def index(self, value: object) -> int | None:
        """Which option `value` is; None where it is none. True and 1 are different options."""
        for index, option in enumerate(self.options):
            if value_key(option) == value_key(value):
                return index
        return None

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the options."""
        return self.index(value) is not None

    def to_unit(self, value: Any) -> float:
        """The middle of the option's cell: (index + 1/2) / number of options."""
        index = self.index(value)
        if index is None:
            raise ValueError(f"{value!r} is none of the options {self.options!r}")
        return (index + 0.5) / len(self.options)

    def from_unit(self, unit: float) -> Value:
        """The option whose cell holds `unit`."""
        return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]

    def snap(self, units: Units) -> Units:
        """The middles of the cells that hold `units`, n coordinates."""
        count = len(self.options)
        return np.asarray((np.minimum(np.floor(units * count), count - 1) + 0.5) / count)

    def grid(self, points: int) -> list[Value]:
        """All options: leaving one out would be a different space, whatever `points` says."""
        return list(self.options)


Domain: TypeAlias = Float | Int | Choice
_DOMAINS: Mapping[str, type[Float] | type[Int] | type[Choice]] = {
    "float": Float,
    "int": Int,
    "choice": Choice,
}


@dataclass(frozen=True, eq=False)
class Conditional:
    """A knob that is there only where another one, its parent, has one of some values.

    >>> knobs = {"optimizer": Choice(("sgd", "adam"))}
    >>> knobs["momentum"] = Conditional(Float(0.0, 0.99), "optimizer", ("sgd",))
    >>> SearchSpace(knobs).grid(2)[-1]
    {'optimizer': 'adam', 'momentum': None}
    """

    domain: Domain
    parent: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if isinstance(self.values, list | tuple):  # a list as it is read from a file
            object.__setattr__(self, "values", tuple(map(_plain, self.values)))

    def holds(self, value: Value) -> bool:
        """Whether the knob is there where its parent has this value."""
        return any(value_key(value) == value_key(mine) for mine in self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conditional) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.domain, self.parent, _keys(self.values)


class SearchSpace(Mapping[str, Domain]):
    """An ordered, frozen mapping from the name of a knob to its domain.

    Built from keywords or from one mapping; it holds no generator. A `Conditional` knob comes after
    its parent. Every configuration names every knob: where a conditional one is not there, its
    value is None and its coordinate `OFF`, so that nothing can be learned from it.

    >>> space = SearchSpace(learning_rate=Float(1e-4, 1, log=True), layers=Int(2, 6))
    >>> space.grid(2)[0]
    {'learning_rate': 0.0001, 'layers': 2}
    """

    def __init__(
        self,
        knobs: Mapping[str, Domain | Conditional] | None = None,
        /,
        **more: Domain | Conditional,
    ) -> None:
        merged = {**(knobs or {}), **more}
        if not merged:
            raise ValueError("a search space needs at least one knob, got none")
        domains: dict[str, Domain] = {}
        conditions: dict[str, Conditional] = {}
        for name, knob in merged.items():
            if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
                raise ValueError(
                    f"knob names are non-empty text of at most {_LONGEST_NAME} characters, "
                    f"got {str(name)[:60]!r}"
                )
            domain = knob.domain if isinstance(knob, Conditional) else knob
            if not isinstance(domain, (Float, Int, Choice)):
                raise ValueError(
                    f"knob {name!r} needs a Float, Int or Choice, got {domain!r}; "
                    "a tuple of options is written Choice(options)"
                )
            if isinstance(knob, Conditional):
                _check_condition(name, knob, domains)
                conditions[name] = knob
            domains[name] = domain
        self._domains: Mapping[str, Domain] = MappingProxyType(domains)
        self.conditions: Mapping[str, Conditional] = MappingProxyType(conditions)
        """The knobs that are not always there, by name."""

    def __getitem__(self, name: str) -> Domain:
        return self._domains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __repr__(self) -> str:
        return f"SearchSpace({', '.join(f'{n}={k!r}' for n, k in self._knobs.items())})"

    def __eq__(self, other: object) -> bool:
        # Order counts: it is the order of the columns of to_unit.
        return isinstance(other, SearchSpace) and list(self._knobs.items()) == list(
            other._knobs.items()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchSpace, (self._knobs,)

    def __hash__(self) -> int:
        return hash(tuple(self._knobs.items()))

    @property
    def _knobs(self) -> dict[str, Domain | Conditional]:
        """As they were given."""
        return {**self._domains, **self.conditions}

    @property
    def cardinality(self) -> int | None:
        """How many configurations there are; None where a Float makes them uncountable."""
        parents = {condition.parent for condition in self.conditions.values()}
        axes: list[Sequence[Value]] = []
        for name, domain in self._domains.items():
            if domain.cardinality is None:
                return None
            # What a knob's values are matters only where others hang on them.
            many = domain.cardinality
            axes.append(domain.grid(many) if name in parents else range(many))
        return self.size(axes)

    def size(self, axes: Sequence[Sequence[Value]]) -> int:
        """How many different configurations these values make, an axis for each knob in order."""
        counts: dict[str, int] = {}  # of what a knob and those that hang on it may be
        for name, axis in reversed(list(zip(self, axes, strict=True))):
            hanging = [(n, c) for n, c in self.conditions.items() if c.parent == name]
            counts[name] = len(axis)
            if hanging:
                counts[name] = sum(
                    math.prod(counts[n] for n, c in hanging if c.holds(value)) for value in axis
                )
        return math.prod(counts[name] for name in self if name not in self.conditions)

    def is_there(self, name: str, config: Config) -> bool:
        """Whether a knob is one of this configuration's; its parents' values decide."""
        condition = self.conditions.get(name)
        return condition is None or (
            self.is_there(condition.parent, config) and condition.holds(config[condition.parent])
        )

    def pruned(self, config: Mapping[str, Value]) -> dict[str, Value]:
        """The configuration with None for what is not there."""
        return {name: config[name] if self.is_there(name, config) else None for name in self}

    def completed(self, config: Config) -> dict[str, Value]:
        """The configuration with None for the conditional knobs that it does not name."""
        return {**dict.fromkeys(self.conditions), **config}

    def filled(self, config: Config) -> dict[str, Value]:
        """The reverse, for those who know no conditions: the middle value for what is not there."""
        return {
            name: config[name] if self.is_there(name, config) else domain.from_unit(OFF)
            for name, domain in self._domains.items()
        }

    def contains(self, config: Config) -> bool:
        """Whether `config` names exactly these knobs, each with a value in its domain.

        The value of one that is not there is None.
        """
        return set(config) == set(self._domains) and all(
            domain.contains(config[name]) if self.is_there(name, config) else config[name] is None
            for name, domain in self._domains.items()
        )

    def check(self, config: Config) -> None:
        """Raise ValueError where `config` is not in the space, and say which knob is off."""
        unknown, missing = set(config) - set(self), set(self) - set(config)
        if unknown or missing:
            raise ValueError(
                f"a configuration needs exactly the knobs {list(self)}; "
                f"missing: {sorted(missing)}, unknown: {sorted(unknown)}"
            )
        for name, domain in self._domains.items():
            if not self.is_there(name, config):
                if config[name] is not None:
                    condition = self.conditions[name]
                    raise ValueError(
                        f"{name} = {config[name]!r}, but with {condition.parent} = "
                        f"{config[condition.parent]!r} there is no {name}: it is None"
                    )
            elif not domain.contains(config[name]):
                raise ValueError(f"{name} = {config[name]!r} is not in {domain!r}")

    def sample(self, generator: np.random.Generator) -> dict[str, Value]:
        """One configuration drawn uniformly from the unit cube."""
        return self.from_unit(generator.random((1, len(self))))[0]

    def to_unit(self, configs: Sequence[Config]) -> NDArray[np.float64]:
        """Configurations as an `n x d` float64 array in [0, 1], a column a knob in order."""
        domains = list(self._domains.items())
        if self.conditions:
            rows = [
                [d.to_unit(c[n]) if self.is_there(n, c) else OFF for n, d in domains]
                for c in configs
            ]
        else:
            rows = [[d.to_unit(c[n]) for n, d in domains] for c in configs]
        return np.asarray(rows, dtype=np.float64).reshape(len(configs), len(self))  # n x d

    def from_unit(self, units: NDArray[np.float64]) -> list[dict[str, Value]]:
        """Configurations at the rows of an `n x d` array in [0, 1]."""
        if units.ndim != 2 or units.shape[1] != len(self):
            raise ValueError(f"expected an n x {len(self)} array, got shape {units.shape}")
        configs: list[dict[str, Value]] = [
            {n: d.from_unit(float(u)) for (n, d), u in zip(self._domains.items(), row, strict=True)}
            for row in units
        ]
        return [self.pruned(config) for config in configs] if self.conditions else configs

    def snap(self, units: Units) -> Units:
        """The nearest legal coordinates, `n x d`: `to_unit(from_unit(units))`, many at once."""
        columns = {n: d.snap(units[:, i]) for i, (n, d) in enumerate(self._domains.items())}
        there: dict[str, NDArray[np.bool_]] = {}
        for name, condition in self.conditions.items():
            parent = self._domains[condition.parent]
            places = [parent.to_unit(value) for value in condition.values]
            # Values of a parent are at least 1e-4 apart, for it has so many at most.
            apart = np.abs(columns[condition.parent][:, None] - places)
            there[name] = np.asarray((apart < 1e-9).any(1))
            if condition.parent in there:
                there[name] &= there[condition.parent]
            columns[name] = np.where(there[name], columns[name], OFF)
        return np.stack(list(columns.values()), axis=1)

    def axes(self, points_per_axis: int) -> list[list[Value]]:
        """For each knob its values on a lattice with at most `points_per_axis` points a side."""
        if points_per_axis < 1:
            raise ValueError(f"a lattice needs at least 1 point an axis, got {points_per_axis}")
        return [domain.grid(points_per_axis) for domain in self._domains.values()]

    def grid(self, points_per_axis: int) -> list[dict[str, Value]]:
        """The full lattice over `axes`, the last knob running fastest."""
        return list(self.lattice(points_per_axis))

    def lattice(self, points_per_axis: int) -> Iterator[dict[str, Value]]:
        """The same, one after another.

        A knob that is not there is None, once: the work goes with the configurations there are,
        not with the product of the axes.
        """
        axes = dict(zip(self._domains, self.axes(points_per_axis), strict=True))
        names, config = list(axes), dict[str, Value]()
        values = [iter(axes[names[0]])]  # those that are left, of each knob down to one
        while values:
            name = names[len(values) - 1]
            try:
                config[name] = next(values[-1])
            except StopIteration:
                values.pop()
                continue
            if len(values) == len(names):
                yield dict(config)
            else:
                below = names[len(values)]
                values.append(iter(axes[below] if self.is_there(below, config) else (None,)))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """A JSON object from which `from_json` makes an equal space."""
        kinds = {domain: kind for kind, domain in _DOMAINS.items()}
        conditions = {
            name: {"when": {"knob": condition.parent, "values": list(condition.values)}}
            for name, condition in self.conditions.items()
        }
        return {
            name: {"type": kinds[type(domain)], **vars(domain), **conditions.get(name, {})}
            for name, domain in self._domains.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> SearchSpace:
        """The space that `to_json` wrote; ValueError where the object is not one."""
        if not isinstance(data, Mapping) or len(data) > _MOST_KNOBS:
            raise ValueError(f"a space is a JSON object of at most {_MOST_KNOBS} knobs")
        knobs: dict[str, Domain | Conditional] = {}
        for name, fields in data.items():
            kind = _DOMAINS.get(str(fields.get("type"))) if isinstance(fields, Mapping) else None
            if kind is None:
                shown = repr(fields)[:60]
                raise ValueError(f"knob {name!r}: type is float, int or choice, got {shown}")
            arguments = {k: value for k, value in fields.items() if k not in ("type", "when")}
            options, log = arguments.get("options", ()), arguments.get("log", False)
            if not isinstance(options, Sequence) or len(options) > _MOST_OPTIONS:
                raise ValueError(f"knob {name!r}: options are a list of at most {_MOST_OPTIONS:,}")
            if not isinstance(log, bool):
                raise ValueError(f"knob {name!r}: log is true or false, got {str(log)[:60]!r}")
            try:
                domain = knobs[name] = kind(**arguments)
                if "when" in fields:
                    when = fields["when"]
                    knobs[name] = Conditional(domain, when["knob"], tuple(when["values"]))
            except (TypeError, KeyError) as error:
                raise ValueError(f"knob {name!r}: {error}") from error
        return cls(knobs)


def _check_condition(name: str, knob: Conditional, before: Mapping[str, Domain]) -> None:
    """Raise ValueError where a knob that is not always there hangs on what cannot decide."""
    parent = before.get(knob.parent) if isinstance(knob.parent, str) else None
    if parent is None:
        raise ValueError(
            f"knob {name!r} hangs on {str(knob.parent)[:60]!r}, which is no knob before it"
        )
    if (parent.cardinality or _MOST_PARENT_VALUES + 1) > _MOST_PARENT_VALUES:
        raise ValueError(
            f"knob {name!r} hangs on {knob.parent!r}: that must be a Choice or an Int of at most "
            f"{_MOST_PARENT_VALUES:,} values"
        )
    if isinstance(knob.values, str) or not isinstance(knob.values, Sequence) or not knob.values:
        raise ValueError(
            f"knob {name!r} needs the values of {knob.parent!r} with which it is there"
        )
    for value in knob.values:
        if not parent.contains(value):
            raise ValueError(f"knob {name!r}: {knob.parent!r} is never {str(value)[:60]!r}")
    if len(set(_keys(knob.values))) < len(knob.values):
        raise ValueError(f"knob {name!r} names a value of {knob.parent!r} twice: {knob.values!r}")
    if isinstance(knob.domain, Choice) and knob.domain.contains(None):
        raise ValueError(f"knob {name!r} cannot have the option None: that says it is not there")
