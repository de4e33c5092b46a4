"""Hyperparameters by maximum a posteriori, with the gradient worked out by hand.

Rasmussen and Williams (2006), section 5.4.1. It maximises what BoTorch's `fit_gpytorch_mll`
does; tests hold value and gradient against GPyTorch's. The constant mean, which has no prior, is
at its optimum in closed form and no variable of the search.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import blas, lapack
from scipy.optimize import minimize

from tuner.searchers.kernels import Array, Kernel

# The likelihood is per datum: a relative gain under 1e-3 is far below what n data can tell.
_OPTIONS = {"ftol": 1e-3, "gtol": 1e-3, "maxiter": 60}
_IMPOSSIBLE = 1e10
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_JITTERS = (0.0, 1e-8, 1e-7, 1e-6)


class FitError(RuntimeError):
    """The model cannot be fitted to these data."""


def fit(kernel: Kernel, x: Array, y: Array) -> Array:
    """Hyperparameters for `n x (d + 1)` points and n scores, p logarithms: see Kernel.

    Scores are standardised first. Raises FitError where no fit succeeds.
    """
    z = standardised(y)[0]
    result = minimize(
        lambda theta: _negative(kernel, theta, x, z),
        kernel.start,
        jac=True,
        bounds=[(floor, None) for floor in kernel.floor],
        method="L-BFGS-B",
        options=_OPTIONS,
    )
    if not (np.isfinite(result.x).all() and result.fun < _IMPOSSIBLE):
        raise FitError("the likelihood has no maximum that can be found")
    return np.asarray(result.x, dtype=np.float64)


def standardised(y: Array) -> tuple[Array, float, float]:
    """Scores with mean 0 and standard deviation 1, and what the two were; FitError where huge."""
    centre = float(y.mean())
    scale = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    if not (math.isfinite(centre) and math.isfinite(scale)):
        raise FitError("the scores are too far apart for floating-point numbers")
    scale = scale or 1.0
    return (y - centre) / scale, centre, scale


def log_posterior(kernel: Kernel, theta: Array, x: Array, z: Array) -> tuple[float, Array]:
    """Log posterior density of p hyperparameters, per datum, and its gradient, p.

    The density is that of the hyperparameters themselves, not of their logarithms, by which the
    gradient is taken. Raises FitError where the covariance has no Cholesky factor.
    """
    n, covariance = len(z), kernel.at(theta)
    factor = cholesky(covariance(x, x), covariance.noise)
    mean, weights = solve_mean(factor, z)
    value = -0.5 * (z - mean) @ weights - np.log(factor.diagonal()).sum() - n * _HALF_LOG_2PI
    # W = (weights weights' - K^-1) / 2 (equation 5.9), with each pair of data once, at double.
    slope, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    slope = blas.dsyr(1.0, weights, a=np.negative(slope, out=slope), lower=1, overwrite_a=1).T
    slope[np.diag_indices(n)] *= 0.5
    by_noise = covariance.noise * slope.trace()
    gradient = np.concatenate([[by_noise], covariance.contracted(x, slope)])
    has_prior = np.isfinite(kernel.prior_sd)
    sd = kernel.prior_sd[has_prior]
    deviation = (theta - kernel.prior_mean)[has_prior] / sd
    value -= (0.5 * deviation**2 + theta[has_prior] + np.log(sd) + _HALF_LOG_2PI).sum()
    gradient[has_prior] -= 1 + deviation / sd
    return float(value) / n, gradient / n


def _negative(kernel: Kernel, theta: Array, x: Array, z: Array) -> tuple[float, Array]:
    try:
        value, gradient = log_posterior(kernel, theta, x, z)
    except FitError:  # a line search that went too far comes back from here
        return _IMPOSSIBLE, np.zeros_like(theta)
    return -value, -gradient


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


def solve_mean(factor: Array, z: Array) -> tuple[float, Array]:
    """The likeliest constant mean of n scores, and K^-1 (z - mean), n."""
    both, _ = lapack.dpotrs(factor, np.column_stack([z, np.ones_like(z)]), lower=1)
    mean = float(both[:, 0].sum() / both[:, 1].sum())
    return mean, both[:, 0] - mean * both[:, 1]
