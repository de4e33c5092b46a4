"""The model of the model-based searchers: a Gaussian process over knobs and epochs.

Notation: n data, d knobs, m points to predict. A point is d coordinates of a configuration, from
-0.5 to 0.5 (an option is its index), and one of an epoch, log(epoch) / log(full length). Tensors
are float64.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

from tuner.seeding import derive_seed
from tuner.space import Choice, Config, SearchSpace, Units
from tuner.trial import HistoryView, Trial, TrialState

with warnings.catch_warnings():  # linear_operator compiles a few functions the deprecated way
    warnings.simplefilter("ignore", FutureWarning)
    from botorch.acquisition.analytic import _log_ei_helper
    from botorch.exceptions import ModelFittingError
    from botorch.exceptions.errors import OptimizationGradientError
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.kernels import CategoricalKernel
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import (
        AdditiveKernel,
        Kernel,
        MaternKernel,
        ProductKernel,
        RBFKernel,
        ScaleKernel,
    )
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior
    from linear_operator.utils.cholesky import psd_safe_cholesky
    from linear_operator.utils.errors import NanError, NotPSDError

CLAMP = 0.15
"""How far under the median, in units of best - median, the surrogate is shown scores to be.

Real learning-rate landscapes end in a cliff, and a Gaussian process that is shown the cliff spends
itself on it. What lies well below the median is all equally uninteresting, and is shown as equal.
"""

FIT_ERRORS = (
    ModelFittingError,
    OptimizationGradientError,
    NotPSDError,
    NanError,
    torch.linalg.LinAlgError,
)
"""What a fit may fail with."""

_CENTRES = 5  # of the local search
_EXACT = "donot_use_mm_for_euclid_dist"  # the quick way is inexact where points are close

Covariance = Callable[[Tensor, Tensor], Tensor]
_ALONE = threading.RLock()
# The likelihood is per datum: a relative gain under 1e-3 is far below what n data can tell.
_FIT_OPTIONS = {"ftol": 1e-3, "gtol": 1e-3, "maxiter": 60}


@dataclass(frozen=True)
class Data:
    """What is known of the scores: n observations, in the order in which they were made.

    Attributes:
        points: n x (d + 1).
        scores: n.
        trials: whose each of them is, n.
        start: how many trials come before a model chooses any.
    """

    points: Tensor
    scores: NDArray[np.float64]
    trials: NDArray[np.int64]
    start: int

    def __len__(self) -> int:
        return len(self.scores)

    def shown(self, m: int) -> Tensor:
        """What the process is shown of the first m scores, m: see `shown_scores`."""
        latest = dict(zip(self.trials[:m].tolist(), self.scores[:m].tolist(), strict=True))
        first = np.array(list(latest.values()))[: self.start]
        return torch.from_numpy(shown_scores(self.scores[:m], first))


class Surrogate:
    """Fits the process to a history; what was fitted last is kept, for speed alone.

    Args:
        space: of the configurations.
        seed: of whatever the fit draws.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self._seed = space, seed
        self.choices = [i for i, dom in enumerate(space.values()) if isinstance(dom, Choice)]
        self._fitted: dict[str, tuple[tuple[bytes, bytes], SingleTaskGP]] = {}

    def points(self, units: NDArray[np.float64], epochs: Any, full: int) -> Tensor:
        """The model's points, `m x (d + 1)`, at `m x d` unit coordinates and m (or one) epochs."""
        units = np.asarray(units, dtype=np.float64).reshape(-1, len(self.space))
        x = units - 0.5
        for i in self.choices:
            x[:, i] = np.floor(units[:, i] * len(list(self.space.values())[i].options))  # type: ignore[union-attr]
        at = np.broadcast_to(np.log(epochs) / math.log(max(2, full)), (len(x),))
        return torch.from_numpy(np.column_stack([x, at]))

    def data(self, history: HistoryView, full: int, ladder: Sequence[int] = ()) -> Data:
        """The observations of a history.

        Without a ladder, the last of each trial that ended. With one, all curves, at the epochs
        of the ladder, and the last of each trial that is not running.
        """
        curves, looked_at = bool(ladder), frozenset(ladder)
        rows: list[tuple[int, int, int, float, Trial]] = []
        for trial in history:
            if trial.score is None or not (curves or trial.state.is_final):
                continue
            last = trial.curve[-1].epoch
            is_settled = trial.state is not TrialState.RUNNING
            seen = [
                o
                for o in trial.curve
                if (o.epoch == last and is_settled) or (curves and o.epoch in looked_at)
            ]
            rows += [(o.at_ns, trial.number, o.epoch, o.score, trial) for o in seen]
        rows.sort(key=lambda row: row[:3])
        units = self.space.to_unit([row[4].config for row in rows])
        epochs = np.array([row[2] for row in rows], dtype=np.float64)
        scores = np.array([row[3] for row in rows], dtype=np.float64)
        trials = np.array([row[1] for row in rows], dtype=np.int64)
        return Data(self.points(units, epochs, full), scores, trials, start_size(self.space))

    def posterior(self, data: Data) -> Posterior:
        """The process given all data, its hyperparameters fitted to the first m of them.

        m is a function of n: a few more data hardly move hyperparameters, and fitting them is
        most of the work. Raises one of FIT_ERRORS where no fit succeeds.
        """
        m = fitted_size(len(data))
        # Of the first m alone, the clamp as well: so the same fit serves until m grows.
        fitted = self._fit("score", data.points[:m], data.shown(m))
        return Posterior(fitted, data.points, data.shown(len(data)))

    def feasibility(self, history: HistoryView, full: int) -> Posterior | None:
        """A process on +1 for each trial with a score and -1 for each infeasible one.

        P(feasible) = Phi(mean / sd) by it; None where all trials were feasible. A separate model:
        infeasible is not a bad score, and how bad it would be nobody can say.
        """
        trials = [t for t in history if t.curve or t.state is TrialState.INFEASIBLE]
        labels = [-1.0 if t.state is TrialState.INFEASIBLE else 1.0 for t in trials]
        if -1.0 not in labels or 1.0 not in labels:
            return None
        points = self.points(self.space.to_unit([t.config for t in trials]), full, full)
        y = torch.tensor(labels, dtype=torch.float64)
        m = fitted_size(len(labels))
        if len(set(labels[:m])) < 2:
            m = len(labels)
        return Posterior(self._fit("feasible", points[:m], y[:m]), points, y)

    def _fit(self, what: str, x: Tensor, y: Tensor) -> SingleTaskGP:
        key = (x.numpy().tobytes(), y.numpy().tobytes())
        kept = self._fitted.get(what)
        if kept is None or kept[0] != key:
            torch.manual_seed(derive_seed(self._seed, "fit", what, len(y)))
            kept = (key, fit(x, y.unsqueeze(-1), self.choices))
            self._fitted[what] = kept
        return kept[1]


@dataclass(frozen=True)
class Belief:
    """What the model makes of m configurations; all are scores, fractions.

    Attributes:
        mean, sd: of the noise-free score, m each.
        gap_sd: the standard deviation of its difference from the incumbent's, m, as the search
            takes it: see `spread` of Outlook.
        incumbent_mean: the incumbent's expected score. With these, the expected improvement over
            the incumbent by more than xi is that of a normal variable with mean
            mean - incumbent_mean - xi and standard deviation gap_sd.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    gap_sd: NDArray[np.float64]
    incumbent_mean: float


class Outlook:
    """The model of a history, ready to be asked about the full length of a training.

    Attributes:
        posterior: of the scores, given the data.
        believed: the same, as if all trials in flight had yielded what is expected of them.
        incumbent: the point over which an improvement is sought, d + 1.
        centres: the most promising configurations so far, `c x d`.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        history: HistoryView,
        full: int,
        ladder: Sequence[int],
        *,
        in_hand: bool,
        spread: float = 1.0,
    ) -> None:
        """See the class; raises one of FIT_ERRORS.

        Args:
            surrogate: of the space.
            history: with at least two scores.
            full: the length of a whole training.
            ladder: as `Surrogate.data` takes it.
            in_hand: whether the incumbent is what a trial has reached, at its last epoch, and not
                what it would be expected to reach at the full length.
            spread: how much wider an improvement's standard deviation is taken to be. Fitted
                hyperparameters are taken for the truth, and with few data they are not. The
                process is too sure of itself, and a search that believes it stays where it is.
        """
        self._spread = spread
        self._surrogate, self._full, self.space = surrogate, full, surrogate.space
        self.posterior = surrogate.posterior(surrogate.data(history, full, ladder))
        self.believed = self.posterior.believing(_in_flight(surrogate, history, full))
        self._feasible = surrogate.feasibility(history, full)
        scored = [t for t in history if t.score is not None]
        units = surrogate.space.to_unit([t.config for t in scored])
        promise = self.believed.mean_sd(self.points(units))[0]
        self.centres = units[np.argsort(-promise, kind="stable")[:_CENTRES]]
        rivals, value = self.points(units), promise
        if in_hand:
            rivals = surrogate.points(units, [t.epoch for t in scored], full)
            value = self.believed.mean_sd(rivals)[0]
        self.incumbent = rivals[int(np.argmax(value))]

    def points(self, units: Units) -> Tensor:
        """The model's points at the full length, `m x (d + 1)`."""
        return self._surrogate.points(units, self._full, self._full)

    def log_improvement(self, units: Units) -> NDArray[np.float64]:
        """Log of the expected improvement times the chance that it can be had, m."""
        points = self.points(units)
        value = log_expected_improvement(*self._gap(points))
        if self._feasible is None:
            return value
        # Constrained expected improvement (Gardner et al., 2014, equation 5).
        mean, sd = self._feasible.mean_sd(points)
        return np.asarray(value + log_ndtr(mean / sd))

    def belief(self, configs: Sequence[Config]) -> Belief:
        """What the model makes of m configurations."""
        points = self.points(self._surrogate.space.to_unit(configs))
        gap, gap_sd = self._gap(points)
        best = float(self.believed.mean_sd(self.incumbent[None])[0][0])
        return Belief(gap + best, self.posterior.mean_sd(points)[1], gap_sd, best)

    def _gap(self, points: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean, sd = self.believed.gap(points, self.incumbent)
        return mean, self._spread * sd


def _in_flight(surrogate: Surrogate, history: HistoryView, full: int) -> Tensor:
    """Where results are to come: the trials in flight, each at the epoch that it trains to."""
    waiting = [t for t in history.running if t.state is not TrialState.PAUSED or not t.curve]
    units = surrogate.space.to_unit([t.config for t in waiting])
    return surrogate.points(units, [min(t.target, full) for t in waiting], full)


class Posterior:
    """A Gaussian process given n data, by one Cholesky factor; predictions are exact and cheap.

    BoTorch's own posterior builds the joint covariance of all points that are asked for; here
    only what the acquisition needs is worked out.
    """

    def __init__(
        self,
        model: SingleTaskGP,
        points: Tensor,
        y: Tensor,
        standard: tuple[float, float] | None = None,
    ) -> None:
        self._model, self._points, self._y = model, points, y
        self._kernel = plain(model.covar_module)
        self.centre, self.scale = standard or (float(y.mean()), float(y.std()) or 1.0)
        with torch.no_grad():
            self.noise_sd = float(model.likelihood.noise.sqrt()) * self.scale
            gram = self._kernel(points, points) + model.likelihood.noise * torch.eye(
                len(y), dtype=torch.float64
            )
            self._constant = model.mean_module.constant.detach()
            self._factor = psd_safe_cholesky(gram)  # n x n
            residual = (y - self.centre) / self.scale - self._constant
            self._weights = torch.cholesky_solve(residual.unsqueeze(-1), self._factor)  # n x 1

    def mean_sd(self, points: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of the noise-free score at m points, m each."""
        with torch.no_grad():
            cross = self._kernel(points, self._points)  # m x n
            mean = (cross @ self._weights).squeeze(-1) + self._constant
            solved = self._solve(cross)  # n x m
            variance = self._variance(points) - (solved**2).sum(0)
        sd = variance.clamp_min(1e-12).sqrt()
        return mean.numpy() * self.scale + self.centre, sd.numpy() * self.scale

    def gap(self, points: Tensor, rival: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of f(x) - f(x*) at m points x and one rival x*, m each.

        The two are jointly normal, so the difference is normal, with variance
        k(x, x) + k(x*, x*) - 2 k(x, x*) in posterior covariances: 0 at x* itself.
        """
        with torch.no_grad():
            star = rival.reshape(1, -1)
            cross, cross_star = (self._kernel(at, self._points) for at in (points, star))
            mean = ((cross - cross_star) @ self._weights).squeeze(-1)
            # One solve for both: the difference's covariance with the data is cross - cross_star.
            solved = self._solve(cross - cross_star)  # n x m
            prior = self._variance(points) + self._variance(star)
            prior = prior - 2 * self._kernel(points, star).squeeze(-1)
            variance = prior - (solved**2).sum(0)
        sd = variance.clamp_min(1e-12).sqrt()
        return mean.numpy() * self.scale, sd.numpy() * self.scale

    def joint(self, points: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and covariance of the noise-free scores at m points, m and m x m."""
        with torch.no_grad():
            cross = self._kernel(points, self._points)  # m x n
            mean = (cross @ self._weights).squeeze(-1) + self._constant
            solved = self._solve(cross)  # n x m
            covariance = self._kernel(points, points) - solved.T @ solved
        return mean.numpy() * self.scale + self.centre, covariance.numpy() * self.scale**2

    def believing(self, points: Tensor) -> Posterior:
        """As if each of m points had yielded what is expected of it (the kriging believer)."""
        if not len(points):
            return self
        expected = torch.from_numpy(self.mean_sd(points)[0])
        return Posterior(
            self._model,
            torch.cat([self._points, points]),
            torch.cat([self._y, expected]),
            (self.centre, self.scale),
        )

    def _variance(self, x: Tensor) -> Tensor:
        """The prior's, m: a batch of m covariances, each of a point with itself."""
        return self._kernel(x[:, None], x[:, None]).flatten()

    def _solve(self, cross: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self._factor, cross.T, upper=False)
        return solved


def log_expected_improvement(
    mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log E[max(g, 0)] of m normal variables g, accurate far into the tail (Ament et al., 2023)."""
    z = torch.from_numpy(mean / sd)
    value: NDArray[np.float64] = _log_ei_helper(z).numpy() + np.log(sd)
    return value


def fitted_size(n: int) -> int:
    """To how many of n data hyperparameters are fitted: all at first, then in growing steps."""
    if n < 15:
        return n
    if n < 40:
        return n - n % 3
    size = 40
    while size + max(5, size // 8) <= n:
        size += max(5, size // 8)
    return size


def start_size(space: SearchSpace) -> int:
    """How many trials are drawn before there is a model."""
    return max(5, len(space) + 1)


def shown_scores(scores: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the surrogate is shown, n values: scores clamped from below at a floor.

    The floor is median - CLAMP (best - median), the best of all, the median of the first trials
    alone: those were drawn, and show what is usual. A search that does its work comes back to
    where scores are high, and the median of all would rise until the noise is all that is shown.
    """
    best, median = float(np.max(scores)), float(np.median(first))
    return np.maximum(scores, min(median, best) - CLAMP * max(0.0, best - median))


def make_kernel(d: int, choices: list[int]) -> Kernel:
    """What is alike in any way, and what a slope in each ordered knob says of the far end.

    A product of kernels of knobs and of epochs, whose lengthscales have a prior that widens with
    d, BoTorch's dimension-scaled one (Hvarfner et al., 2024); and linear functions of the ordered
    knobs. Without the slopes a process knows nothing of the corners of a large space, where
    optima often are. The epochs' kernel says how much of a curve's end is known from its beginning.
    """
    ordered = tuple(i for i in range(d) if i not in choices)
    parts: list[Kernel] = [_epochs_kernel(d)]
    if ordered:
        prior = LogNormalPrior(math.sqrt(2) + math.log(d) / 2, math.sqrt(3))
        parts.append(
            MaternKernel(
                ard_num_dims=len(ordered),
                active_dims=ordered,
                lengthscale_prior=prior,
                lengthscale_constraint=GreaterThan(2.5e-2, initial_value=prior.mode.item()),
            )
        )
    if choices:
        parts.append(
            CategoricalKernel(
                ard_num_dims=len(choices),
                active_dims=tuple(choices),
                lengthscale_constraint=GreaterThan(1e-6),
            )
        )
    kernel: Kernel = ScaleKernel(
        ProductKernel(*parts),
        outputscale_prior=LogNormalPrior(0.0, 1.0),
        outputscale_constraint=GreaterThan(1e-4, initial_value=1.0),
    )
    if ordered:
        slopes = _Slopes(
            ard_num_dims=len(ordered),
            active_dims=ordered,
            lengthscale_prior=LogNormalPrior(math.sqrt(2), 1.0),
            lengthscale_constraint=GreaterThan(5e-2, initial_value=2.0),
        )
        kernel = kernel + ScaleKernel(
            slopes * _epochs_kernel(d),
            outputscale_prior=LogNormalPrior(-1.0, 1.0),
            outputscale_constraint=GreaterThan(1e-4, initial_value=math.exp(-1.0)),
        )
    return kernel


class _Slopes(Kernel):  # type: ignore[misc]  # GPyTorch says nothing of its types
    """Linear functions through the middle of the space: k(x, z) = sum_j 4 x_j z_j / l_j^2.

    GPyTorch's LinearKernel is the same with other parameters, and cannot be pickled.
    """

    has_lengthscale = True

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """`n x m` for `n x d` and `m x d`, or the n of the diagonal."""
        a, b = 2 * x1 / self.lengthscale, 2 * x2 / self.lengthscale
        covariance: Tensor = (a * b).sum(-1) if diag else a @ b.transpose(-1, -2)
        return covariance


def _epochs_kernel(d: int) -> Kernel:
    return RBFKernel(
        active_dims=(d,),
        lengthscale_prior=LogNormalPrior(0.0, 1.0),
        lengthscale_constraint=GreaterThan(5e-2, initial_value=1.0),
    )


def plain(kernel: Kernel) -> Covariance:
    """A fitted kernel as a function of two sets of points, `… x n x d` and `… x m x d`.

    What it computes is what GPyTorch does, without its bookkeeping for gradients, batches and
    lazy evaluation, which costs more than the arithmetic where matrices are small.
    """
    if isinstance(kernel, ScaleKernel):
        inner, scale = plain(kernel.base_kernel), kernel.outputscale.detach()
        return lambda a, b: scale * inner(a, b)
    if isinstance(kernel, ProductKernel | AdditiveKernel):
        parts = [plain(part) for part in kernel.kernels]
        join = torch.mul if isinstance(kernel, ProductKernel) else torch.add
        return lambda a, b: reduce(join, (part(a, b) for part in parts))
    at, by = kernel.active_dims, kernel.lengthscale.detach()
    if isinstance(kernel, CategoricalKernel):
        return lambda a, b: torch.exp(-((a[..., :, None, at] != b[..., None, :, at]) / by).mean(-1))
    if isinstance(kernel, _Slopes):
        return lambda a, b: 4 * (a[..., at] / by**2) @ b[..., at].transpose(-1, -2)
    correlation = _matern if isinstance(kernel, MaternKernel) else _rbf
    return lambda a, b: correlation(
        torch.cdist(a[..., at] / by, b[..., at] / by, compute_mode=_EXACT)
    )


def _matern(r: Tensor) -> Tensor:
    """Of smoothness 5/2 (Rasmussen and Williams, 2006, equation 4.17)."""
    r = math.sqrt(5) * r
    return (1 + r + r**2 / 3) * torch.exp(-r)


def _rbf(r: Tensor) -> Tensor:
    return torch.exp(-(r**2) / 2)


def fit(x: Tensor, y: Tensor, choices: list[int]) -> SingleTaskGP:
    """A Gaussian process on `n x (d + 1)` points and `n x 1` scores, standardised inside.

    Raises one of FIT_ERRORS where no fit succeeds.
    """
    d = x.shape[-1] - 1
    model = SingleTaskGP(x, y, covar_module=make_kernel(d, choices))
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": _FIT_OPTIONS})
    return model


@contextmanager
def quiet_and_alone(seed: int) -> Iterator[None]:
    """No warnings on the terminal, one thread, and the global generator put back afterwards.

    The matrices are small: more threads would cost more than they give, and the cores belong to
    whoever is training.
    """
    _ALONE.acquire()  # what follows is the whole process's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Recorded, and so not shown: BoTorch says `always` to some inside of any filter.
        with warnings.catch_warnings(record=True), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        _ALONE.release()
