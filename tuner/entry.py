"""An entry of a race: who proposes, and how long each proposal trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.brackets import rung_epochs
from tuner.fidelity import POLICIES, FidelityPolicy, default_min_epochs
from tuner.naming import pick
from tuner.searchers import SEARCHERS, Searcher, make_searcher
from tuner.space import SearchSpace

DECIDES_ITSELF = frozenset({"freeze-thaw"})
"""Searchers that also say how long each trial trains."""

_SHORT = {"bohb": ("bohb", "hyperband")}
_ALONE = {**SEARCHERS, **{name: "" for name in POLICIES if name != "full"}}
ETA = 3


@dataclass(frozen=True)
class Entry:
    """A searcher and a fidelity policy, by name."""

    searcher: str
    fidelity: str

    @classmethod
    def parse(cls, text: str, fidelity: str = "full") -> Entry:
        """The entry that `random`, `random+asha`, `hyperband` or `bohb` stands for.

        A policy alone is short for random search with it; `bohb` for its searcher with Hyperband.
        A searcher alone goes with `fidelity`. Raises ValueError for a name that there is not.
        """
        _policy(fidelity)
        searcher, plus, policy = text.partition("+")
        if plus:
            entry = cls(_searcher(searcher), _policy(policy))
        elif text in POLICIES and text != "full":
            entry = cls("random", text)
        elif text in _SHORT:
            entry = cls(*_SHORT[text])
        else:
            own = "full" if text in DECIDES_ITSELF else fidelity
            entry = cls(_searcher(text, _ALONE), own)
        if entry.searcher in DECIDES_ITSELF and entry.fidelity != "full":
            raise ValueError(
                f"{entry.searcher} itself says how long each trial trains; leave out +{policy}"
            )
        return entry

    def __str__(self) -> str:
        if Entry.parse(self.searcher) == self:
            return self.searcher
        return f"{self.searcher}+{self.fidelity}"


def entry_rungs(epochs: int | None, min_epochs: int | None, eta: int) -> tuple[int, ...]:
    """The epochs at which an entry's trials are compared; none where they have no full length.

    Raises ValueError where they make no sense.
    """
    if epochs is None:
        return ()
    return rung_epochs(
        default_min_epochs(epochs) if min_epochs is None else min_epochs, epochs, eta
    )


def make_entry(
    text: str,
    space: SearchSpace,
    seed: int,
    *,
    epochs: int | None,
    min_epochs: int | None = None,
    eta: int = ETA,
    **options: Any,
) -> tuple[Searcher, FidelityPolicy]:
    """The searcher and the policy of the entry that `text` stands for.

    Args:
        text: as `Entry.parse` takes it.
        space: of the searcher.
        seed: of the searcher.
        epochs: the full length of a training; needed by all policies but `full`.
        min_epochs: the first rung; by default `default_min_epochs`.
        eta: one in `eta` goes on from each rung.
        options: of the searcher.

    Raises:
        ValueError: no such searcher or policy, rungs that make no sense, or no full length.
    """
    entry = Entry.parse(text)
    decides_itself = entry.searcher in DECIDES_ITSELF
    is_full = entry.fidelity == "full" and not decides_itself
    if epochs is None and not is_full:
        raise ValueError(
            f"{entry} compares trials at rungs up to their full length: it needs max_epochs, or "
            "--epochs"
        )
    # Rungs that make no sense are refused even where nobody looks at them.
    rungs = entry_rungs(epochs, min_epochs, eta)
    if decides_itself:
        both: Any = make_searcher(entry.searcher, space, seed, rungs=rungs, **options)
        return both, both
    searcher = make_searcher(entry.searcher, space, seed, **options)
    return searcher, POLICIES[entry.fidelity](rungs, eta)


def _searcher(name: str, table: Mapping[str, str] = SEARCHERS) -> str:
    if not name.startswith("optuna:"):  # any of Optuna's, by the name of its class
        pick(name, table, "searcher")
    return name


def _policy(name: str) -> str:
    pick(name, POLICIES, "fidelity")
    return name
