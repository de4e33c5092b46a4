"""The covariance of the model, as plain arithmetic, and how it changes with its hyperparameters.

The tests state the same in GPyTorch's terms, and hold this against it. The arithmetic is
here because it is most of a proposal: what GPyTorch adds (lazy tensors, batches, a graph for the
gradient) costs several times more than the numbers do at the sizes of a search, and loading it
more than a whole replayed race.

Notation: n and m points, d knobs. A point is d coordinates of a configuration, from -0.5 to 0.5
(an option is its index), and one of an epoch, log(epoch) / log(full length).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Array: TypeAlias = NDArray[np.float64]

# Means and standard deviations of the logarithms: all priors are log-normal.
_NOISE = (-4.0, 1.0)  # BoTorch's for standardised scores
_SIZE, _SLOPES_SIZE = (0.0, 1.0), (-1.0, 1.0)
_EPOCHS_LENGTH, _SLOPE_LENGTH = (0.0, 1.0), (math.sqrt(2), 1.0)
_NO_PRIOR = (0.0, math.inf)


@dataclass(frozen=True)
class Kernel:
    """What is alike in any way, and what a slope in each ordered knob says of the far end.

        k(x, z) = s M(x, z) C(x, z) E(x, z) + t sum_j (4 x_j z_j / b_j^2) F(x, z)

    M is the Matern kernel of smoothness 5/2 of the ordered knobs, with a lengthscale each, whose
    prior widens with d as BoTorch's dimension-scaled one does (Hvarfner et al., 2024); C the
    categorical kernel exp(-mean_j [x_j != z_j] / c_j) of the options; E and F squared exponentials
    of the epochs, which say how much of a curve's end is known from its beginning. Without the
    slopes a process knows nothing of the corners of a large space, where optima often are.

    Hyperparameters are one vector of logarithms: of the noise's variance, s, E's lengthscale, M's
    and C's, and where there are ordered knobs t, F's lengthscale and the b_j.

    Attributes:
        d: the number of knobs.
        choices: which of them are options.
        ordered: which of them are not.
        start: where a fit starts, p.
        floor: the least that each may be, p.
        prior_mean, prior_sd: of each, p; the sd is infinite where there is none.
    """

    d: int
    choices: Sequence[int]
    ordered: Sequence[int] = field(init=False)
    start: Array = field(init=False)
    floor: Array = field(init=False)
    prior_mean: Array = field(init=False)
    prior_sd: Array = field(init=False)

    def __post_init__(self) -> None:
        ordered = [i for i in range(self.d) if i not in self.choices]
        knob = (math.sqrt(2) + math.log(self.d) / 2, math.sqrt(3))
        mode = knob[0] - knob[1] ** 2  # of a log-normal density, as a logarithm
        rows = [
            (_NOISE[0] - _NOISE[1] ** 2, 1e-4, _NOISE),
            (0.0, 1e-4, _SIZE),
            (0.0, 5e-2, _EPOCHS_LENGTH),
            *[(max(mode, math.log(2.5e-2)), 2.5e-2, knob) for _ in ordered],
            *[(math.log(math.log(2.0)), 1e-6, _NO_PRIOR) for _ in self.choices],
        ]
        if ordered:
            rows += [(-1.0, 1e-4, _SLOPES_SIZE), (0.0, 5e-2, _EPOCHS_LENGTH)]
            rows += [(math.log(2.0), 5e-2, _SLOPE_LENGTH) for _ in ordered]
        start, floor, prior = zip(*rows, strict=True)
        self._set("ordered", ordered)
        self._set("start", np.array(start))
        self._set("floor", np.log(floor))
        self._set("prior_mean", np.array([mean for mean, _ in prior]))
        self._set("prior_sd", np.array([sd for _, sd in prior]))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # what is derived once, in a frozen class

    def at(self, theta: Array) -> Covariance:
        """The covariance function with the hyperparameters `theta`, p logarithms."""
        return Covariance(self, theta)


class Covariance:
    """A kernel with its hyperparameters: `n x (d + 1)` and `m x (d + 1)` points to `n x m`.

    Attributes:
        theta: the hyperparameters, p logarithms.
        noise: the variance of the scores' noise.
        lengths: the lengthscales of the ordered knobs.
    """

    def __init__(self, kernel: Kernel, theta: Array) -> None:
        self._kernel, self.theta = kernel, theta
        knobs, options = len(kernel.ordered), len(kernel.choices)
        values = np.exp(theta)
        self.noise, self._size, self._epochs_length = values[:3].tolist()
        self.lengths, self._option_lengths, rest = np.split(values[3:], [knobs, knobs + options])
        self._slopes_size = float(rest[0]) if knobs else 0.0
        self._slope_epochs_length = float(rest[1]) if knobs else 1.0
        self._slope_lengths = rest[2:]

    def __call__(self, a: Array, b: Array) -> Array:
        """Covariances of the noise-free scores at n and m points, `n x m`."""
        both = self._alike(a, b)[0]
        if self._kernel.ordered:
            both += self._sloping(a, b)
        return both

    def diagonal(self, a: Array) -> Array:
        """The variances of the noise-free scores at n points, n."""
        steep = a[:, self._kernel.ordered] / self._slope_lengths
        return np.asarray(self._size + 4 * self._slopes_size * (steep**2).sum(1))

    def contracted(self, a: Array, weights: Array) -> Array:
        """sum_ij W_ij dK_ij / dtheta_k of `n x n` weights, for each hyperparameter but the noise.

        K is that of n points with themselves; only sums over symmetric terms are taken, so that W
        may be all in one triangle. p - 1 values.
        """
        alike, by_distance = self._alike(a, a, slope=True)
        mass = weights * alike
        found = [mass.sum(), self._by_epochs(a, mass, self._epochs_length)]
        if self._kernel.ordered:
            pull = weights * by_distance
            x = a[:, self._kernel.ordered]
            # sum_ij W_ij (x_i - x_j)^2 of each knob, without an n x n array for each.
            ends = (pull.sum(0) + pull.sum(1)) @ x**2
            found += ((ends - 2 * ((pull @ x) * x).sum(0)) / self.lengths**2).tolist()
        for at, length in zip(self._kernel.choices, self._option_lengths, strict=True):
            differs = a[:, None, at] != a[None, :, at]
            found.append(mass[differs].sum() / (length * len(self._option_lengths)))
        if self._kernel.ordered:
            mass = weights * self._sloping(a, a)
            found += [mass.sum(), self._by_epochs(a, mass, self._slope_epochs_length)]
            mass = weights * _by_epochs(a, a, self._slope_epochs_length)
            steep = ((mass @ x) * x).sum(0) / self._slope_lengths**2
            found += (-8 * self._slopes_size * steep).tolist()
        return np.array(found)

    def _alike(self, a: Array, b: Array, slope: bool = False) -> tuple[Array, Array]:
        """What is alike, s M C E, and with `slope` its derivative by -r^2 / 2, `n x m` each.

        r is the knobs' distance (Rasmussen and Williams, 2006, equation 4.17).
        """
        kernel = self._kernel
        common: Array = self._size * _by_epochs(a, b, self._epochs_length)
        if kernel.choices:
            at, by = list(kernel.choices), self._option_lengths
            common = common * np.exp(-((a[:, None, at] != b[None, :, at]) / by).mean(-1))
        if not kernel.ordered:
            return np.broadcast_to(common, (len(a), len(b))).copy(), common
        at, by = list(kernel.ordered), self.lengths
        r = cdist(a[:, at] / by, b[:, at] / by)
        r *= math.sqrt(5)
        fall = np.exp(-r)
        fall *= common
        linear = r + 1
        r *= r
        r *= 1 / 3
        r += linear
        r *= fall
        if slope:
            linear *= fall
            linear *= 5 / 3
        return r, linear

    def _sloping(self, a: Array, b: Array) -> Array:
        at, by = list(self._kernel.ordered), self._slope_lengths
        lines: Array = (a[:, at] * (4 * self._slopes_size / by**2)) @ b[:, at].T
        lines *= _by_epochs(a, b, self._slope_epochs_length)
        return lines

    def _by_epochs(self, a: Array, mass: Array, length: float) -> float:
        """sum_ij M_ij (e_i - e_j)^2 / length^2, e the epochs of n points."""
        e = a[:, -1]
        return float(((mass.sum(0) + mass.sum(1)) @ e**2 - 2 * (mass @ e) @ e) / length**2)


def _by_epochs(a: Array, b: Array, length: float) -> Array:
    """The squared exponential of the epochs, `n x m`, `1 x m`, `n x 1` or `1 x 1`.

    Epochs are few, so it is worked out once for each pair of them; a side that has only one is
    left to broadcasting.
    """
    (these, at), (those, to) = (np.unique(x[:, -1], return_inverse=True) for x in (a, b))
    values: Array = np.exp(-0.5 * ((these[:, None] - those) / length) ** 2)
    if len(these) > 1:
        values = values[at]
    return values[:, to] if len(those) > 1 else values
