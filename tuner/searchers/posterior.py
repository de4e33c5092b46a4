"""The process given data: what it predicts, and what an improvement is worth by it.

BoTorch's own posterior builds the joint covariance of all points that are asked for; here only
what the acquisition needs is worked out, from one Cholesky factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import blas, lapack
from scipy.special import erfcx, ndtr

from tuner.searchers.fit import Prior, cholesky, standardised
from tuner.searchers.kernels import Array, Covariance

_LEAST_VARIANCE = 1e-12
_LIMIT = -1e4
_SQRT_2PI = math.sqrt(2 * math.pi)
_BATCH = 256  # points at once: their covariances stay in the processor's cache


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process given n data; predictions are exact.

    Attributes:
        covariance: with its hyperparameters.
        points: n x (d + 1).
        factor: lower Cholesky factor of their covariances with noise, n x n.
        weights: the inverse of these times what the scores are above `constant`, n.
        constant: the process's mean.
        centre, scale: of the scores, which the process knows standardised.
    """

    covariance: Covariance
    points: Array
    factor: Array
    weights: Array
    constant: float
    centre: float
    scale: float

    @classmethod
    def of(cls, prior: Prior, points: Array, y: Array) -> Posterior:
        """Given n scores; raises FitError where the covariances have no Cholesky factor."""
        covariance, (z, centre, scale) = prior.covariance, standardised(y)
        factor = cholesky(covariance(points, points), covariance.noise)
        weights = lapack.dpotrs(factor, z - prior.mean, lower=1)[0]
        return cls(covariance, points, factor, weights, prior.mean, centre, scale)

    @property
    def noise_sd(self) -> float:
        """The standard deviation of a score's noise."""
        return math.sqrt(self.covariance.noise) * self.scale

    def mean(self, points: Array) -> Array:
        """The expected score at m points, m."""
        return self._score(self.covariance(points, self.points) @ self.weights)

    def mean_sd(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free score at m points, m each."""
        cross = self.covariance(points, self.points)  # m x n
        mean = self._score(cross @ self.weights)
        return mean, self._sd(self.covariance.diagonal(points), self.solve(cross))

    def gap(self, points: Array, rival: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of f(x) - f(x*) at m points x and one rival x*, m each.

        The two are jointly normal, so the difference is normal, with variance
        k(x, x) + k(x*, x*) - 2 k(x, x*) in posterior covariances: 0 at x* itself.
        """
        star = rival.reshape(1, -1)
        at_star = self.covariance(star, self.points)  # 1 x n
        means, sds = [np.empty(0)], [np.empty(0)]
        for batch in np.split(points, range(_BATCH, len(points), _BATCH)):
            # One solve for both: the difference's covariance with the data is the difference's.
            cross = self.covariance(batch, self.points)
            cross -= at_star
            prior = self.covariance.diagonal(batch) + self.covariance.diagonal(star)
            prior -= 2 * self.covariance(batch, star)[:, 0]
            means.append(cross @ self.weights * self.scale)
            sds.append(self._sd(prior, self.solve(cross)))
        return np.concatenate(means), np.concatenate(sds)

    def left_out(self) -> Array:
        """By how much each score is above what is expected of it given all the others, n.

        Rasmussen and Williams (2006), equation 5.12.
        """
        inverse, _ = lapack.dpotri(self.factor, lower=1)
        return np.asarray(self.weights / inverse.diagonal() * self.scale)

    def joint(self, points: Array) -> tuple[Array, Array]:
        """Mean and covariance of the noise-free scores at m points, m and m x m."""
        cross = self.covariance(points, self.points)  # m x n
        mean = self._score(cross @ self.weights)
        solved = self.solve(cross)
        return mean, (self.covariance(points, points) - solved.T @ solved) * self.scale**2

    def believing(self, points: Array) -> Posterior:
        """As if each of m points had yielded what is expected of it (the kriging believer).

        What is expected changes no mean, so that the new weights are 0; the factor grows by a
        block (Golub and Van Loan, 2013, section 4.2.9).
        """
        n, m = len(self.points), len(points)
        if not m:
            return self
        below = self.solve(self.covariance(points, self.points))  # n x m
        left = self.covariance(points, points) - below.T @ below
        factor = np.zeros((n + m, n + m), order="F")
        factor[:n, :n], factor[n:, :n] = self.factor, below.T
        factor[n:, n:] = cholesky(left, self.covariance.noise)
        return replace(
            self,
            points=np.concatenate([self.points, points]),
            factor=factor,
            weights=np.concatenate([self.weights, np.zeros(m)]),
        )

    def _score(self, standard: Array) -> Array:
        return (standard + self.constant) * self.scale + self.centre

    def _sd(self, prior: Array, solved: Array) -> Array:
        """From m prior variances and `n x m` solved cross-covariances."""
        variance = prior - np.einsum("nm,nm->m", solved, solved)
        return np.asarray(np.sqrt(np.maximum(variance, _LEAST_VARIANCE)) * self.scale)

    def solve(self, cross: Array) -> Array:
        """The factor's inverse times the transpose of `m x n` covariances, `n x m`."""
        solved: Array = blas.dtrsm(1.0, self.factor, cross.T, lower=1)
        return solved


class Gaps:
    """f(x) - f(x*) at m points x and one rival x*, while some of the points come to be believed.

    Each of these would cost a solve for all points; here the factor grows by a row (Golub and Van
    Loan, 2013, section 4.2.9), and what was solved with it.

    Args:
        posterior: of n data.
        points: m x (d + 1).
        rival: d + 1.
        most: of the points that may come to be believed.
    """

    def __init__(self, posterior: Posterior, points: Array, rival: Array, most: int) -> None:
        star, k = rival.reshape(1, -1), posterior.covariance
        self._posterior, self._points = posterior, points
        n, m = len(posterior.points), len(points)
        cross = k(np.concatenate([points, star]), posterior.points)
        # Rows to come are 0 until they are known: of the points, and in the last column of x*.
        self._solved = np.zeros((n + most, m + 1), order="F")
        self._solved[:n] = posterior.solve(cross)
        self._rows = n
        self._by_star = k(points, star)[:, 0]
        self._own = k.diagonal(points)
        self.mean = (cross[:-1] - cross[-1]) @ posterior.weights * posterior.scale
        """Of the difference, m; what is believed does not change it."""
        apart = self._solved[:, :-1] - self._solved[:, -1:]
        self._variance = self._own + k.diagonal(star) - 2 * self._by_star
        self._variance -= np.einsum("nm,nm->m", apart, apart)

    @property
    def sd(self) -> Array:
        """The difference's standard deviation, m."""
        return np.asarray(
            np.sqrt(np.maximum(self._variance, _LEAST_VARIANCE)) * self._posterior.scale
        )

    def believe(self, j: int) -> None:
        """As if point j had yielded what is expected of it."""
        k = self._posterior.covariance
        mine = self._solved[:, j].copy()
        left = self._own[j] + k.noise - mine @ mine
        prior = np.append(k(self._points, self._points[j : j + 1])[:, 0], self._by_star[j])
        row = (prior - mine @ self._solved) / math.sqrt(max(left, _LEAST_VARIANCE))
        self._solved[self._rows] = row
        self._rows += 1
        self._variance -= (row[:-1] - row[-1]) ** 2


def log_expected_improvement(mean: Array, sd: Array) -> Array:
    """Log E[max(g, 0)] of m normal variables g, accurate far into the tail.

    Ament et al. (2023), equation 9, as BoTorch's LogExpectedImprovement has it.
    """
    z = np.asarray(mean / sd, dtype=np.float64)
    near, far = np.maximum(z, -1.0), np.clip(z, _LIMIT, -1.0)
    # phi(z) + z Phi(z) where little cancels; else phi(z) (1 - |z| Phi(z) / phi(z)) by erfcx,
    # and where that too has cancelled its limit, phi(z) / z^2.
    plain = np.log(np.exp(-0.5 * near**2) / _SQRT_2PI + near * ndtr(near))
    left = np.log1p(math.sqrt(math.pi / 2) * far * erfcx(-far / math.sqrt(2)))
    left = np.where(z > _LIMIT, left, -2 * np.log(np.maximum(-z, 1.0)))
    tail = -0.5 * z**2 - math.log(_SQRT_2PI) + left
    return np.asarray(np.where(z > -1.0, plain, tail) + np.log(sd))
