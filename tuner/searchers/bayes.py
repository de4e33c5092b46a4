"""Bayesian optimisation: a Gaussian process and the log of noisy expected improvement.

Notation: n data, d knobs, b starting points of a local search. All tensors are float64.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.searchers.base import config_key
from tuner.searchers.random import draw_new
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, Float, SearchSpace
from tuner.trial import HistoryView, Trial, TrialState

with warnings.catch_warnings():  # linear_operator compiles a few functions the deprecated way
    warnings.simplefilter("ignore", FutureWarning)
    from botorch.acquisition import AcquisitionFunction
    from botorch.acquisition.analytic import _log_ei_helper
    from botorch.exceptions import ModelFittingError
    from botorch.exceptions.errors import OptimizationGradientError
    from botorch.fit import fit_gpytorch_mll
    from botorch.generation.gen import gen_candidates_scipy
    from botorch.models import MixedSingleTaskGP, SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from linear_operator.utils.errors import NanError, NotPSDError

CLAMP = 0.15
"""How far under the median, in units of best - median, the surrogate is shown scores to be.

Real learning-rate landscapes end in a cliff, and a Gaussian process that is shown the cliff spends
itself on it. What lies well below the median is all equally uninteresting, and is shown as equal.
"""

_ALONE = threading.RLock()
_FIT_ERRORS = (
    ModelFittingError,
    OptimizationGradientError,
    NotPSDError,
    NanError,
    torch.linalg.LinAlgError,
)
# The likelihood is per datum: a relative gain under 1e-3 is far below what n data can tell.
_FIT_OPTIONS = {"ftol": 1e-3, "gtol": 1e-3, "maxiter": 100}
_REFIT_EVERY = 5  # data, from the first _REFIT_ALWAYS on
_REFIT_ALWAYS = 20
_RAW_POINTS = 512
_LOCAL_POINTS = 64  # around each of the best data
_STARTS = 3
_APART = 1e-3  # proposals closer than this to a trial, in the unit cube, would tell nothing new
_COUNTABLE = 4096  # a space with at most so many configurations is searched whole


class BayesSearcher:
    """Noisy expected improvement, in its logarithmic form, under a Gaussian process.

    Letham et al. (2019) for the noise, Ament et al. (2023) for the logarithm.

    - The first max(10, 2 d) trials are a scrambled Sobol sequence.
    - The process has BoTorch's dimension-scaled log-normal prior on its lengthscales (Hvarfner et
      al., 2024) and learns its noise; choice knobs get a categorical kernel.
    - Completed and stopped trials are data with their latest score; infeasible ones are data at
      the floor of `shown_scores`; all others are pending, and believed to yield what the model
      expects of them.
    - Candidates are always legal: integers and options are searched as such, and only the
      real-valued knobs are refined by gradient.
    - Where the model cannot be fitted the proposal is a random draw, and `fallback` says so.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._start = max(10, 2 * len(space))
        self._choices = [i for i, dom in enumerate(space.values()) if isinstance(dom, Choice)]
        self._real = [i for i, dom in enumerate(space.values()) if isinstance(dom, Float)]
        self._fitted: tuple[tuple[bytes, bytes], SingleTaskGP] | None = None
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """The next point of the Sobol start, or the maximiser of the acquisition."""
        self.fallback = ""
        data = [t for t in history if _is_datum(t)]
        has_two_scores = sum(t.score is not None for t in data) >= 2
        if len(history) < self._start or not has_two_scores:
            return self._sobol(history)
        seed = derive_seed(self._seed, "bayes", len(history))
        with _quiet_and_alone(seed):
            try:
                return self._maximise(history, data, seed)
            except _FIT_ERRORS as error:
                self.fallback = f"the model could not be fitted ({type(error).__name__}): random"
        return draw_new(self._space, self._seed, "bayes-fallback", history)

    def _sobol(self, history: HistoryView) -> Config:
        engine = torch.quasirandom.SobolEngine(
            len(self._space), scramble=True, seed=derive_seed(self._seed, "sobol")
        )
        units = engine.draw(len(history) + 1, dtype=torch.float64).numpy()
        config = self._space.from_unit(units[-1:])[0]
        if self._space.cardinality is not None:
            seen = {config_key(self._space, t.config) for t in history}
            if config_key(self._space, config) in seen:
                return draw_new(self._space, self._seed, "bayes-start", history)
        return config

    # -- the model -------------------------------------------------------------------------------

    def belief(self, history: HistoryView, configs: Sequence[Config]) -> Belief | None:
        """What the model makes of m configurations; None while there is no model yet."""
        data = [t for t in history if _is_datum(t)]
        if len(history) < self._start or sum(t.score is not None for t in data) < 2:
            return None
        with _quiet_and_alone(derive_seed(self._seed, "belief", len(history))):
            try:
                acquisition = self._fitted_acquisition(history, data)
            except _FIT_ERRORS:
                return None
            at = self._encode(self._space.to_unit(configs)).unsqueeze(1)  # m x 1 x d
            with torch.no_grad():
                mean, gap_sd = acquisition.gap(at)
                model: Any = acquisition.model
                own = model.posterior(at)
                best = model.posterior(acquisition.incumbent[None]).mean
        return Belief(
            (mean + best.squeeze()).numpy(),
            own.variance.squeeze(-1).squeeze(-1).sqrt().numpy(),
            gap_sd.numpy(),
            float(best.squeeze()),
        )

    def _maximise(self, history: HistoryView, data: list[Trial], seed: int) -> Config:
        raw = self._legal_points(history, data, seed)  # r x d
        acquisition = self._fitted_acquisition(history, data)
        with torch.no_grad():
            values = acquisition(raw.unsqueeze(1))  # r
        ranked = raw[torch.argsort(values, descending=True, stable=True)]  # r x d
        if not self._real:
            return self._decode(ranked[:1])
        ends = self._refine(acquisition, ranked[:_STARTS])
        visited = self._encode(self._space.to_unit([t.config for t in history]))
        for point in torch.cat([ends, ranked]):
            if (visited - point).abs().amax(1).min() > _APART:
                return self._decode(point[None])
        return self._decode(ranked[:1])

    def _model(self, x: Tensor, scores: list[float | None]) -> SingleTaskGP:
        """The process on all of `n x d` data, its hyperparameters fitted to the first m of them.

        m is n rounded down to a multiple of _REFIT_EVERY: a few more data hardly move
        hyperparameters, and fitting them is most of the work. What was fitted last is kept, for
        speed alone: the same data would give the same again.
        """
        n = len(scores)
        m = n if n < _REFIT_ALWAYS else n - n % _REFIT_EVERY
        y = torch.from_numpy(shown_scores(scores[:m])).unsqueeze(-1)  # m x 1
        key = (x[:m].numpy().tobytes(), y.numpy().tobytes())
        if self._fitted is None or self._fitted[0] != key:
            torch.manual_seed(derive_seed(self._seed, "fit", m))  # of m, as all of the fit is
            self._fitted = (key, fit(x[:m], y, self._choices))
        model = self._fitted[1]
        if m < n:
            y = torch.from_numpy(shown_scores(scores)).unsqueeze(-1)  # n x 1
            fitted, model = model, make_model(x, y, self._choices)
            with torch.no_grad():
                for old, new in zip(fitted.parameters(), model.parameters(), strict=True):
                    new.copy_(old)
            model.eval()
        return model

    def _fitted_acquisition(
        self, history: HistoryView, data: list[Trial]
    ) -> LogImprovementOverIncumbent:
        x = self._encode(self._space.to_unit([t.config for t in data]))  # n x d
        model: Any = self._model(x, [t.score for t in data])
        pending, candidates = [t.config for t in history.running], x
        if pending:
            # Pending trials are believed to yield what the model expects of them, and any of
            # them may be the incumbent: what is sought is an improvement over those as well.
            waiting = self._encode(self._space.to_unit(pending))  # p x d
            with torch.no_grad():
                believed = model.posterior(waiting).mean  # p x 1
            model = model.condition_on_observations(waiting, believed)
            candidates = torch.cat([x, waiting])
        mean = model.posterior(candidates).mean.squeeze(-1)  # n + p
        return LogImprovementOverIncumbent(model, candidates[mean.argmax()])

    # -- candidates ------------------------------------------------------------------------------

    def _legal_points(self, history: HistoryView, data: list[Trial], seed: int) -> Tensor:
        """Unvisited configurations to start from, `r x d` in the model's coordinates."""
        if self._space.cardinality is None:
            units = np.concatenate(
                [self._sobol_units(seed), self._perturbed(data, np.random.default_rng(seed))]
            )
            if len(self._real) < len(self._space):  # each point in the middle of its cell
                units = self._space.to_unit(self._space.from_unit(units))
            return self._encode(units)
        configs: list[Config]
        if self._space.cardinality <= _COUNTABLE:
            widest = max(domain.cardinality or 1 for domain in self._space.values())
            axes = self._space.axes(widest)
            configs = [dict(zip(self._space, v, strict=True)) for v in itertools.product(*axes)]
        else:
            configs = list(self._space.from_unit(self._sobol_units(seed)))
            configs += self._space.from_unit(self._perturbed(data, np.random.default_rng(seed)))
        seen = {config_key(self._space, t.config) for t in history}
        configs = [c for c in configs if config_key(self._space, c) not in seen]
        if not configs:
            configs = [draw_new(self._space, self._seed, "bayes-rest", history)]
        return self._encode(self._space.to_unit(configs))

    def _sobol_units(self, seed: int) -> NDArray[np.float64]:
        engine = torch.quasirandom.SobolEngine(len(self._space), scramble=True, seed=seed)
        units: NDArray[np.float64] = engine.draw(_RAW_POINTS, dtype=torch.float64).numpy()
        return units

    def _perturbed(self, data: list[Trial], generator: np.random.Generator) -> NDArray[np.float64]:
        """Points around the best data, a few knobs changed each, `_LOCAL_POINTS x d` a datum."""
        best = sorted(data, key=lambda t: (t.score is None, -(t.score or 0.0), t.number))[:3]
        centres = np.repeat(self._space.to_unit([t.config for t in best]), _LOCAL_POINTS, axis=0)
        width = generator.choice([0.02, 0.1, 0.3], size=(len(centres), 1))
        moved = centres + width * generator.standard_normal(centres.shape)
        moves = generator.random(centres.shape) < max(0.3, 1.5 / len(self._space))
        jump = generator.random(centres.shape)
        # A neighbouring index means nothing to a choice: it jumps anywhere.
        moved[:, self._choices] = jump[:, self._choices]
        return np.clip(np.where(moves, moved, centres), 0.0, 1.0)

    def _refine(self, acquisition: AcquisitionFunction, starts: Tensor) -> Tensor:
        """Climb from `b x d` starts in the real-valued knobs; the ends, best first, `b x d`."""
        fixed = [i for i in range(len(self._space)) if i not in self._real]
        if not fixed:
            points, values = _climb(acquisition, starts, None)
        else:
            climbs = [_climb(acquisition, s[None], {i: float(s[i]) for i in fixed}) for s in starts]
            points = torch.cat([end for end, _ in climbs])
            values = torch.cat([value.reshape(1) for _, value in climbs])
        return points[torch.argsort(values, descending=True, stable=True)].detach()

    def _encode(self, units: NDArray[np.float64]) -> Tensor:
        """Unit coordinates as the model's, `n x d`: an option is its index."""
        x = torch.from_numpy(np.array(units))
        for i, domain in enumerate(self._space.values()):
            if isinstance(domain, Choice):
                x[:, i] = torch.floor(x[:, i] * len(domain.options))
        return x

    def _decode(self, x: Tensor) -> Config:
        units = x.detach().clone()
        for i, domain in enumerate(self._space.values()):
            if isinstance(domain, Choice):
                units[:, i] = (units[:, i].round() + 0.5) / len(domain.options)
        return self._space.from_unit(units.clamp(0, 1).numpy())[0]


class LogImprovementOverIncumbent(AcquisitionFunction):
    """The logarithm of E[max(f(x) - f(x*), 0)], with the incumbent x* as uncertain as it is.

    Expected improvement (Jones, Schonlau and Welch, 1998) takes the incumbent's value for known.
    Where scores are noisy it is not, and measuring the incumbent again looks like the best thing
    to do, trial after trial. Here f(x) and f(x*) are jointly normal, so their difference is normal
    too, with mean mu(x) - mu(x*) and variance k(x, x) + k(x*, x*) - 2 k(x, x*) in posterior
    covariances, which is 0 at x*. It is noisy expected improvement (Letham et al., 2019) with
    one baseline point and no sampling; without noise it is expected improvement.
    """

    incumbent: Tensor

    def __init__(self, model: Any, incumbent: Tensor) -> None:
        super().__init__(model)
        self.register_buffer("incumbent", incumbent.detach())

    def forward(self, X: Tensor) -> Tensor:
        """Values, `b`, at `b x 1 x d` points."""
        mean, sigma = self.gap(X)
        # The helper is accurate where the improvement is all but impossible (Ament et al., 2023).
        value: Tensor = _log_ei_helper(mean / sigma) + sigma.log()
        return value

    def gap(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of f(x) - f(x*), `b` each, at `b x 1 x d` points."""
        pairs = torch.cat([X, self.incumbent.expand_as(X)], dim=-2)  # b x 2 x d
        model: Any = self.model
        joint = model.posterior(pairs)
        mean = joint.mean.squeeze(-1)  # b x 2
        cov = joint.distribution.covariance_matrix  # b x 2 x 2
        variance = cov[:, 0, 0] + cov[:, 1, 1] - 2 * cov[:, 0, 1]
        return mean[:, 0] - mean[:, 1], variance.clamp_min(1e-12).sqrt()


@dataclass(frozen=True)
class Belief:
    """What the model makes of m configurations; all are scores, fractions.

    Attributes:
        mean, sd: of the noise-free score, m each.
        gap_sd: the standard deviation of its difference from the incumbent's, m.
        incumbent_mean: the incumbent's expected score. With these, the expected improvement over
            the incumbent by more than xi is that of a normal variable with mean
            mean - incumbent_mean - xi and standard deviation gap_sd.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    gap_sd: NDArray[np.float64]
    incumbent_mean: float


def _is_datum(trial: Trial) -> bool:
    if trial.state is TrialState.INFEASIBLE:
        return True
    return trial.state in (TrialState.COMPLETED, TrialState.STOPPED) and trial.score is not None


def shown_scores(scores: list[float | None]) -> NDArray[np.float64]:
    """What the surrogate is shown, n values: scores clamped from below at a floor.

    The floor, at which infeasible trials (None) are shown too, is
    median - CLAMP (best - median) of the known scores; see CLAMP for why.
    """
    known = np.array([s for s in scores if s is not None])
    best, median = known.max(), float(np.median(known))
    floor = median - CLAMP * (best - median)
    return np.array([floor if s is None else max(s, floor) for s in scores])


def make_model(x: Tensor, y: Tensor, choices: list[int]) -> SingleTaskGP:
    """A Gaussian process on `n x d` inputs and `n x 1` scores, hyperparameters still to be set."""
    return MixedSingleTaskGP(x, y, cat_dims=choices) if choices else SingleTaskGP(x, y)


def fit(x: Tensor, y: Tensor, choices: list[int]) -> SingleTaskGP:
    """A Gaussian process on `n x d` inputs and `n x 1` scores, standardised inside.

    Raises one of BoTorch's or the linear algebra's errors where no fit succeeds.
    """
    model = make_model(x, y, choices)
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": _FIT_OPTIONS})
    return model


def _climb(
    acquisition: AcquisitionFunction, starts: Tensor, fixed: dict[int, float] | None
) -> tuple[Tensor, Tensor]:
    """L-BFGS-B from `b x d` starts within the unit cube: ends, `b x d`, and their values, b."""
    points, values = gen_candidates_scipy(
        starts.unsqueeze(1),
        acquisition,
        lower_bounds=0.0,
        upper_bounds=1.0,
        fixed_features=fixed,
        options={"maxiter": 20},
    )
    return points.squeeze(1), values


@contextmanager
def _quiet_and_alone(seed: int) -> Iterator[None]:
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
