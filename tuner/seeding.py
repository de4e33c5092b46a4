"""Where every random number comes from: a seed is a pure function of what it is for."""

from __future__ import annotations

import hashlib
import json
import operator
from typing import SupportsIndex

from tuner.space import Config

_BITS = 63  # of a number that a study can keep


def checked_seed(seed: SupportsIndex, name: str = "seed", bits: int = _BITS) -> int:
    """A study's seed as a plain int; ValueError, with its `name`, where it is none."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} is a whole number from 0 up to 2^{bits}, got {seed!r}")
    return number


def derive_seed(study_seed: int, *path: int | str) -> int:
    """A seed in [0, 2**63) for one purpose, such as `derive_seed(seed, "order", epoch)`.

    Hashing makes seeds of neighbouring trials and epochs unrelated, and a generator made anew
    from its purpose needs no state to be saved: what an interrupted trial draws next does not
    depend on how often it was interrupted.
    """
    text = json.dumps([study_seed, *path])  # unambiguous, unlike joined text
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


_in_order = json.JSONEncoder(sort_keys=True).encode


def config_text(config: Config) -> str:
    """A configuration as text: equal for equal ones, whatever the order of their knobs."""
    return _in_order(dict(config))


def trial_seed(study_seed: int, config: Config, repeat: int = 0) -> int:
    """The seed of a trial: of its configuration, whoever proposes it and whenever.

    Common random numbers: searchers that share a study seed get the same training for the same
    configuration, so that what tells them apart is where they look and not their luck. `repeat`
    is how many trainings of the configuration came before it in the same search: each its own.
    """
    path = [config_text(config)] if repeat == 0 else [config_text(config), repeat]
    return derive_seed(study_seed, "trial", *path)
