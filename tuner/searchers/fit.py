"""Hyperparameters by maximum a posteriori, with the gradient worked out by hand.

Rasmussen and Williams (2006), section 5.4.1. What is maximised is what BoTorch's
`fit_gpytorch_mll` maximises; tests hold value, gradient and end against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack
from scipy.optimize import minimize
from scipy.special import expit

from tuner.searchers.kernels import Array, Covariance, Kernel

# The likelihood is per datum: a relative gain under 1e-3 is far below what n data can tell.
_OPTIONS = {"ftol": 1e-3, "gtol": 1e-3, "maxiter": 60}
_IMPOSSIBLE = 1e10
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_JITTERS = (0.0, 1e-8, 1e-7, 1e-6)


class FitError(RuntimeError):
    """The model cannot be fitted to these data."""


@dataclass(frozen=True)
class Prior:
    """A process before data: its covariance, and its mean, which is constant."""

    covariance: Covariance
    mean: float


def fit(kernel: Kernel, x: Array, y: Array) -> Prior:
    """The process for `n x (d + 1)` points and n scores, which are standardised first.

    Variables, start and end of the search are those of `fit_gpytorch_mll`: the noise's variance
    itself, a softplus above the floor for the others, and an end at a gain of 1e-3. To go on to
    the very maximum, as a search in logarithms does, makes the process too sure of itself.
    Raises FitError where no fit succeeds.
    """
    z = standardised(y)[0]
    floor = np.exp(kernel.floor)

    def objective(raw: Array) -> tuple[float, Array]:
        theta, slope = _logarithms(raw[:-1], floor)
        try:
            value, gradient = log_posterior(kernel, theta, raw[-1], x, z)
        except FitError:  # a line search that went too far comes back from here
            return _IMPOSSIBLE, np.zeros_like(raw)
        gradient[:-1] *= slope
        return -value, -gradient

    values = np.exp(kernel.start)
    start = np.append(np.log(np.expm1(values - floor)), 0.0)
    start[0] = values[0]
    bounds = [(floor[0], None), *[(None, None)] * (len(start) - 1)]
    result = minimize(
        objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options=_OPTIONS
    )
    if not (np.isfinite(result.x).all() and result.fun < _IMPOSSIBLE):
        raise FitError("the likelihood has no maximum that can be found")
    return Prior(kernel.at(_logarithms(result.x[:-1], floor)[0]), float(result.x[-1]))


def _logarithms(raw: Array, floor: Array) -> tuple[Array, Array]:
    """The logarithms of p hyperparameters, and their derivatives by the search's variables."""
    values, slope = floor + np.logaddexp(0.0, raw), expit(raw)
    values[0], slope[0] = raw[0], 1.0
    return np.log(values), slope / values


def standardised(y: Array) -> tuple[Array, float, float]:
    """Scores with mean 0 and standard deviation 1, and what the two were; FitError where huge."""
    centre = float(y.mean())
    scale = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    if not (math.isfinite(centre) and math.isfinite(scale)):
        raise FitError("the scores are too far apart for floating-point numbers")
    scale = scale or 1.0
    return (y - centre) / scale, centre, scale


def log_posterior(
    kernel: Kernel, theta: Array, mean: float, x: Array, z: Array
) -> tuple[float, Array]:
    """Log posterior density of p hyperparameters and the mean, per datum; its gradient, p + 1.

    The density is that of the hyperparameters themselves, not of their logarithms, by which the
    gradient is taken. Raises FitError where the covariance has no Cholesky factor.
    """
    n, covariance = len(z), kernel.at(theta)
    factor = cholesky(covariance(x, x), covariance.noise)
    weights = lapack.dpotrs(factor, z - mean, lower=1)[0]
    value = -0.5 * (z - mean) @ weights - np.log(factor.diagonal()).sum() - n * _HALF_LOG_2PI
    # W = (weights weights' - K^-1) / 2 (equation 5.9), with each pair of data once, at double.
    slope, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    slope = blas.dsyr(1.0, weights, a=np.negative(slope, out=slope), lower=1, overwrite_a=1).T
    slope[np.diag_indices(n)] *= 0.5
    by_noise = covariance.noise * slope.trace()
    gradient = np.concatenate([[by_noise], covariance.contracted(x, slope), [weights.sum()]])
    has_prior = np.isfinite(kernel.prior_sd)
    sd = kernel.prior_sd[has_prior]
    deviation = (theta - kernel.prior_mean)[has_prior] / sd
    value -= (0.5 * deviation**2 + theta[has_prior] + np.log(sd) + _HALF_LOG_2PI).sum()
    gradient[:-1][has_prior] -= 1 + deviation / sd
    return float(value) / n, gradient / n


def cholesky(covariance: Array, noise: float) -> Array:
    """The lower factor of `n x n` covariances with noise, in columns as LAPACK has them.

    With as little jitter as it takes; raises FitError where that is too much.
    """
    for jitter in _JITTERS:
        gram = covariance.copy()
        gram[np.diag_indices(len(gram))] += noise + jitter
        factor, info = lapack.dpotrf(gram.T, lower=1, clean=1, overwrite_a=1)
        if info == 0 and math.isfinite(factor.trace()):
            return np.asarray(factor, dtype=np.float64)
    raise FitError("the covariance is not positive definite")
