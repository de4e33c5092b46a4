"""The arithmetic of successive halving and Hyperband, in whole numbers alone.

A floating logarithm loses a level now and then (3^5, 10^3): levels are counted by multiplying.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """One run of successive halving: `sizes[k]` trials train until epoch `epochs[k]`."""

    sizes: tuple[int, ...]
    epochs: tuple[int, ...]


def rung_epochs(min_epochs: int, max_epochs: int, eta: int) -> tuple[int, ...]:
    """The epochs at which trials are compared, ascending; the last is `max_epochs`.

    From the top down, max_epochs / eta^k to the nearest whole epoch, as long as that is not
    below `min_epochs`: so the rungs that matter most, the late ones, are eta apart exactly.

    >>> rung_epochs(1, 81, 3), rung_epochs(2, 52, 3)
    ((1, 3, 9, 27, 81), (2, 6, 17, 52))

    Raises ValueError where eta is below 2 or min_epochs is not in [1, max_epochs].
    """
    if eta < 2:
        raise ValueError(f"eta, the share that goes on, is one in 2 or more, got {eta}")
    if not 1 <= min_epochs <= max_epochs:
        raise ValueError(
            f"min-epochs is at least 1 and at most the full length, {max_epochs}, got {min_epochs}"
        )
    rungs, power = [max_epochs], eta
    while (rung := (2 * max_epochs + power) // (2 * power)) >= min_epochs and rung < rungs[-1]:
        rungs.append(rung)
        power *= eta
    return tuple(reversed(rungs))


def halving_bracket(rungs: tuple[int, ...], eta: int) -> Bracket:
    """Successive halving over all rungs, with just enough trials that one reaches the last."""
    top = len(rungs) - 1
    return Bracket(tuple(eta ** (top - k) for k in range(len(rungs))), rungs)


def hyperband_brackets(rungs: tuple[int, ...], eta: int) -> tuple[Bracket, ...]:
    """Hyperband's brackets, the most exploring first (Li et al., 2018, algorithm 1).

    For s = s_max, …, 0: n = ceil(eta^s (s_max + 1) / (s + 1)) trials begin at the s-th rung from
    the top, and n_i = floor(n / eta^i) of them train until the i-th rung after it. With R = 81
    and eta = 3 that is 81, 34, 15, 8 and 5 trials. (A table of the first preprint has 27, 9 and 6
    instead, of an earlier formula.)
    """
    s_max = len(rungs) - 1
    brackets = []
    for s in range(s_max, -1, -1):
        n = -(-(eta**s) * (s_max + 1) // (s + 1))  # rounded up
        brackets.append(Bracket(tuple(n // eta**i for i in range(s + 1)), rungs[s_max - s :]))
    return tuple(brackets)


def promoted(finished: int, eta: int) -> int:
    """Of so many trials that have finished a rung, how many may go on (Li et al., 2020).

    The best floor(n / eta) of all of them, less those that went on already: not of what is left,
    which would let everyone through in the end.
    """
    return finished // eta
