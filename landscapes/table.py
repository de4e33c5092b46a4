"""Landscapes recorded from real training: an npz with curves, and a card that says where from.

The npz, read with `allow_pickle=False`, holds n settings of d knobs, r replicates, e epochs:

    space       0-d text: the search space as JSON, as `SearchSpace.to_json` writes it
    configs     n x d float64: raw values in the space's order; of a choice, the option's index
    scores      n x r x e float64: the score after each epoch, higher is better; NaN from where a
                training went no further, all NaN where a setting has fewer trainings than r
    seconds     n x r x e float64: device seconds of each epoch; NaN where there was none
    infeasible  n x r bool, optional: the training broke off after its last score, by its own fault
    seeds       n x r int64, optional: the study seed with which each was trained

The card lies beside it under the same name, ending in .json; it is optional for tables from
elsewhere. A `sha256` in it must be the npz's.

**Between recorded settings** curves are interpolated, which is no measurement. Distances are in
the unit cube, on each knob's own scale. Where the settings are a full lattice the rule is
multilinear between the corners of the cell; elsewhere it is Shepard's: the 2 d + 4 nearest
settings, weighted by distance to the power -(d + 1). Both give every recorded setting back exactly.
Where more than half of the weight is on trainings that broke off, so does this one. A training
that was only recorded in part keeps its last score and costs its mean epoch from there on.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Curve
from tuner.arrays import arrays_in
from tuner.escape import in_json
from tuner.files import write_atomically
from tuner.foreign import parse_json, read_capped, read_json
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, Domain, Int, SearchSpace

RULE = {
    True: "multilinear in the unit cube between the corners of the lattice cell",
    False: "Shepard: the 2 d + 4 nearest settings by distance in the unit cube to the power -(d+1)",
}

# Of a file, and of all its arrays together: some twenty times a table of LCBench.
_MOST_FILE = 64 << 20
_MOST_ITEMS = 4_000_000
_KINDS = {
    "space": "U",
    "configs": "fiu",
    "scores": "fiu",
    "seconds": "fiu",
    "infeasible": "biuf",
    "seeds": "iu",
}
_NO_CARD = {"about": "A table without a card.", "badge": "of unknown origin"}


@dataclass(frozen=True, eq=False)
class Table:
    """Recorded curves; see the module for what each array holds and for the rule in between.

    A seed is shown, at every setting, one of that setting's replicates: the one that was trained
    with this seed, or else one drawn by (seed, setting). Everyone within a seed sees the same. Who
    trains a setting again is shown the next of its replicates, and after the last the first.
    """

    name: str
    space: SearchSpace
    configs: NDArray[np.float64]  # n x d
    scores: NDArray[np.float64]  # n x r x e
    seconds: NDArray[np.float64]  # n x r x e
    infeasible: NDArray[np.bool_]  # n x r
    card: Mapping[str, Any] = field(default_factory=dict)
    seeds: NDArray[np.int64] | None = None  # n x r

    def __post_init__(self) -> None:
        _check(self)

    @property
    def epochs(self) -> int:
        """The full length of a training."""
        epochs: int = self.scores.shape[2]
        return epochs

    @property
    def is_lattice(self) -> bool:
        """Whether the recorded settings are a full lattice."""
        return math.prod(map(len, self._axes)) == len(self.configs)

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Score and device seconds of every epoch, two arrays of length `epochs`.

        From where a training breaks off by its own fault the scores are NaN.
        """
        rows, weights = self._around(config)
        shown = self._shown(rows, replicate, repeat)
        infeasible = self.infeasible[rows, shown]
        scores, seconds = self._whole
        seconds = weights @ seconds[rows, shown]
        if weights[infeasible].sum() > 0.5:
            heaviest = int(np.argmax(np.where(infeasible, weights, -1.0)))
            known = ~np.isnan(self.scores[rows[heaviest], shown[heaviest]])
            curve = np.where(known, scores[rows[heaviest], shown[heaviest]], np.nan)
            return curve, seconds
        # What broke off has no say in how the others score.
        weights = np.where(infeasible, 0.0, weights)
        return weights @ scores[rows, shown] / weights.sum(), seconds

    @property
    def measure(self) -> str:
        """What `value` is: an estimate."""
        return "accuracy in another training"

    @property
    def caveat(self) -> str:
        """Other trainings are few, and seeds do not draw them anew."""
        return "of this one recording, whose noise all seeds share"

    def value(
        self, config: Config, replicate: int | None = None, trainings: int = 1
    ) -> float | None:
        """The mean final score over the replicates, as near to noise-free as the record goes.

        With `replicate`, over those that this seed was not shown in so many trainings, so that a
        lucky score is not counted for the setting that had it; None where of most of what stands
        for the configuration no other is recorded. NaN where most of it breaks off.
        """
        rows, weights = self._around(config)
        counted = self._is_there[rows].copy()  # k x r
        if replicate is not None:
            for repeat in range(trainings):
                counted[np.arange(len(rows)), self._shown(rows, replicate, repeat)] = False
        known = counted.any(1)
        if weights[known].sum() < 0.5:
            return None
        counted &= ~self.infeasible[rows]
        counts = counted.sum(1)
        if weights[known & (counts == 0)].sum() > 0.5 * weights[known].sum():
            return math.nan
        means = np.where(counted, self._whole[0][rows, :, -1], 0.0).sum(1) / np.maximum(counts, 1)
        weights = np.where(counts == 0, 0.0, weights)
        return float(weights @ means / weights.sum())

    @property
    def lowest(self) -> float:
        """The lowest score that was recorded."""
        return float(np.nanmin(self.scores, initial=math.inf))

    def optimum(self) -> tuple[Config, float]:
        """The recorded setting with the highest mean final score, and that mean.

        No interpolated setting is higher. The mean of few replicates flatters the best of many.
        """
        values = np.array([self.value(config) for config in self.settings], dtype=np.float64)
        best = int(np.nanargmax(values))
        return self.settings[best], float(values[best])

    @cached_property
    def settings(self) -> list[dict[str, Any]]:
        """The recorded configurations, n of them."""
        return [_to_config(self.space, row) for row in self.configs]

    # -- how the arrays are used -----------------------------------------------------------------

    @cached_property
    def _units(self) -> NDArray[np.float64]:
        return self.space.to_unit(self.settings)  # n x d

    @cached_property
    def _axes(self) -> list[NDArray[np.float64]]:
        return [np.unique(column) for column in self._units.T]

    @cached_property
    def _row(self) -> dict[tuple[float, ...], int]:
        return {tuple(row): i for i, row in enumerate(self._units.tolist())}

    @cached_property
    def _is_there(self) -> NDArray[np.bool_]:
        """Which replicates of each setting were trained at all, n x r."""
        return ~np.isnan(self.scores[:, :, 0]) | self.infeasible

    @cached_property
    def _whole(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores and seconds with what was not recorded filled in, both n x r x e."""
        known, timed = ~np.isnan(self.scores), ~np.isnan(self.seconds)
        last = np.maximum(known.sum(2, keepdims=True) - 1, 0)
        scores = np.where(known, self.scores, np.take_along_axis(self.scores, last, 2))
        total = np.where(timed, self.seconds, 0.0).sum(2, keepdims=True)
        mean = total / np.maximum(timed.sum(2, keepdims=True), 1)
        return np.nan_to_num(scores), np.where(timed, self.seconds, mean)

    def _shown(self, rows: NDArray[np.int64], replicate: int, repeat: int = 0) -> NDArray[np.int64]:
        """Which replicate of each of the rows a seed is shown in its first or a later training."""
        shown = []
        for row in rows.tolist():
            there = np.flatnonzero(self._is_there[row])
            first = derive_seed(replicate, "replicate", row) % len(there)
            if self.seeds is not None and (self.seeds[row, there] == replicate).any():
                first = int(np.argmax(self.seeds[row, there] == replicate))
            shown.append(int(there[(first + repeat) % len(there)]))
        return np.array(shown)

    def _around(self, config: Config) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The recorded settings that stand for `config`, and their weights, which add up to 1."""
        unit = self.space.to_unit([config])[0]
        at = self._row.get(tuple(unit.tolist()))
        if at is not None:
            return np.array([at]), np.ones(1)
        return self._corners(unit) if self.is_lattice else self._nearest(unit)

    def _corners(self, unit: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        sides: list[list[tuple[float, float]]] = []  # for each knob: coordinate, weight
        for axis, u in zip(self._axes, unit, strict=True):
            right = int(np.searchsorted(axis, u))
            if right in (0, len(axis)) or axis[right] == u:  # beyond the ends, or on a value
                sides.append([(float(axis[min(right, len(axis) - 1)]), 1.0)])
            else:
                low, high = float(axis[right - 1]), float(axis[right])
                share = (float(u) - low) / (high - low)
                sides.append([(low, 1 - share), (high, share)])
        corners = list(itertools.product(*sides))
        rows = [self._row[tuple(c for c, _ in corner)] for corner in corners]
        return np.array(rows), np.array([math.prod(w for _, w in corner) for corner in corners])

    def _nearest(self, unit: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        apart = self._units - unit
        for i, domain in enumerate(self.space.values()):
            if isinstance(domain, Choice):  # another option is another option, near or far
                apart[:, i] = apart[:, i] != 0
        # Scaled first: the squares of what is very near would be 0.
        largest = np.maximum(np.abs(apart).max(1, keepdims=True), np.finfo(float).tiny)
        distance = largest[:, 0] * np.sqrt(((apart / largest) ** 2).sum(1))
        d = len(self.space)
        rows = np.argsort(distance, kind="stable")[: 2 * d + 4]
        weights = (distance[rows[0]] / distance[rows]) ** (d + 1)
        return rows, weights / weights.sum()


def to_row(space: SearchSpace, config: Config) -> tuple[float, ...]:
    """A configuration as a row of `configs`; ValueError where it is not in the space."""
    space.check(config)
    return tuple(
        float(domain.index(config[name]) or 0)
        if isinstance(domain, Choice)
        else float(config[name])  # type: ignore[arg-type]
        for name, domain in space.items()
    )


def _to_config(space: SearchSpace, row: NDArray[np.float64]) -> dict[str, Any]:
    def value(domain: Domain, number: float) -> Any:
        if isinstance(domain, Choice):
            return domain.options[int(number)]
        return int(number) if isinstance(domain, Int) else number

    return {n: value(d, x) for (n, d), x in zip(space.items(), row.tolist(), strict=True)}


def _check(table: Table) -> None:
    """Raise ValueError where the arrays do not fit each other or the space."""
    if table.space.conditions:
        raise ValueError(
            f"a recording's knobs are always there; {', '.join(table.space.conditions)} is "
            "conditional"
        )
    n, d = table.configs.shape if table.configs.ndim == 2 else (0, 0)
    if table.scores.ndim != 3 or table.scores.shape[0] != n or not table.scores.size:
        raise ValueError(
            f"a table has configs, n x d, and scores, n x r x e, got shapes "
            f"{table.configs.shape} and {table.scores.shape}"
        )
    if d != len(table.space):
        raise ValueError(f"the space has {len(table.space)} knobs, but configs has {d} columns")
    if (
        table.seconds.shape != table.scores.shape
        or table.infeasible.shape != (table.scores.shape[:2])
    ):
        raise ValueError(
            f"seconds must be {table.scores.shape} and infeasible {table.scores.shape[:2]}, as "
            f"scores are; got {table.seconds.shape} and {table.infeasible.shape}"
        )
    if table.seeds is not None and table.seeds.shape != table.scores.shape[:2]:
        raise ValueError(f"seeds must be {table.scores.shape[:2]}, got {table.seeds.shape}")
    for column, (name, domain) in zip(table.configs.T, table.space.items(), strict=True):
        for number in column.tolist():
            if isinstance(domain, Choice):
                inside = number in range(len(domain.options))
            else:
                whole = int(number) if isinstance(domain, Int) and number.is_integer() else number
                inside = domain.contains(whole)
            if not inside:
                raise ValueError(f"a recorded {name} is {number:g}, which is not in {domain!r}")
    if len(np.unique(table.configs, axis=0)) < n:
        raise ValueError("a setting is in the table twice; put repeats into replicates")
    known = ~np.isnan(table.scores)
    if np.isinf(table.scores).any() or (known[:, :, 1:] & ~known[:, :, :-1]).any():
        raise ValueError("a curve's scores are finite numbers, then NaN from where it ended")
    there = known[:, :, 0] | table.infeasible  # n x r
    if not there.any(1).all() or table.infeasible[there].all():
        raise ValueError("a setting has no score at all and is not marked as infeasible")
    timed = ~np.isnan(table.seconds)
    is_timed = timed.any(2) | ~there
    if (known & ~timed).any() or not (table.seconds[timed] > 0).all() or not is_timed.all():
        raise ValueError("every epoch that has a score needs its seconds, more than 0")
    if not np.isfinite(table.seconds[timed]).all():
        raise ValueError("seconds are finite numbers")


# -- files ----------------------------------------------------------------------------------------


def save_table(path: Path, table: Table) -> None:
    """Write the npz and its card. Each is whole or absent; the card is the last."""
    buffer = io.BytesIO()
    arrays = {
        "space": np.array(json.dumps(table.space.to_json())),
        "configs": table.configs,
        "scores": table.scores,
        "seconds": table.seconds,
        "infeasible": table.infeasible,
    }
    if table.seeds is not None:
        arrays["seeds"] = table.seeds
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    n, r, e = table.scores.shape
    card = {
        **table.card,
        "settings": n,
        "replicates": r,
        "epochs": e,
        "between_settings": RULE[table.is_lattice],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomically(path, data)
    text = in_json(json.dumps(card, indent=1, ensure_ascii=False)) + "\n"
    write_atomically(path.with_suffix(".json"), text)


def load_table(path: Path) -> Table:
    """Read what `save_table`, or anyone who keeps to the schema, wrote.

    Raises ValueError where it is not that, or not the file that its card is about.
    """
    try:
        data = read_capped(path, _MOST_FILE)
        card = _read_card(path.with_suffix(".json"))
        kept = card.get("sha256")
        if kept is not None and kept != hashlib.sha256(data).hexdigest():
            raise ValueError("its SHA-256 is not the one in its card")
        arrays = arrays_in(data, _KINDS, _MOST_ITEMS)
        if arrays["space"].ndim:
            raise ValueError("the space is one text")
        space = SearchSpace.from_json(parse_json(str(arrays["space"])))
        scores = np.asarray(arrays["scores"], dtype=np.float64)
        infeasible = arrays.get("infeasible", np.zeros(scores.shape[:2]))
        return Table(
            path.stem,
            space,
            np.asarray(arrays["configs"], dtype=np.float64),
            scores,
            np.asarray(arrays["seconds"], dtype=np.float64),
            np.asarray(infeasible, dtype=bool),
            card,
            np.asarray(arrays["seeds"], dtype=np.int64) if "seeds" in arrays else None,
        )
    except KeyError as error:
        raise ValueError(f"{path} is no landscape: it has no array {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is no landscape: {error}") from error


def _read_card(path: Path) -> dict[str, Any]:
    if not (path.exists() or path.is_symlink()):
        return dict(_NO_CARD)
    card = read_json(path)
    if not isinstance(card, dict):
        raise ValueError("the card is not a JSON object")
    return card
