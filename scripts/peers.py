"""Searchers from elsewhere, used as a plain user would, on the same landscapes and budgets."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Landscape
from tuner.space import Choice, Config, Float, SearchSpace, Value

_ENDLESS, _MOST_SEED = 1_000_000, 1 << 31  # SMAC's trials and seeds


@dataclass(frozen=True)
class Seen:
    """A score that was seen when `ns` of the budget had been used."""

    ns: int
    score: float
    config: Config
    epoch: int


class Stopwatch:
    """Wall time that a searcher thinks, proposal by proposal.

    What it thinks between two proposals (what becomes of a trial, what to train next) counts for
    the later one, and what comes after the last for the last.
    """

    def __init__(self) -> None:
        self._proposed: list[float] = []
        self._since = 0.0

    @contextmanager
    def thinking(self) -> Iterator[None]:
        """Time what is done inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def proposed(self) -> None:
        """Note that a proposal came of it."""
        self._proposed.append(self._since)
        self._since = 0.0

    @property
    def seconds(self) -> list[float]:
        """For each proposal, how long was thought."""
        if not self._proposed:
            return []
        return [*self._proposed[:-1], self._proposed[-1] + self._since]


class Device:
    """A landscape that is paid by the epoch, as a replay's runner pays it, until it is spent.

    Attributes:
        seen: every score, in the order in which they were seen.
        is_spent: whether a training was broken off because its next epoch did not fit.
    """

    def __init__(self, landscape: Landscape, replicate: int, budget_ns: int) -> None:
        self.space, self.epochs = landscape.space, landscape.epochs
        self._landscape, self._replicate, self._budget_ns = landscape, replicate, budget_ns
        self.spent_ns = 0
        self.seen: list[Seen] = []
        self.is_spent = False

    def train(self, config: Config) -> Iterator[float]:
        """Pay for epoch after epoch and give their scores, at last NaN where it diverges."""
        scores, seconds = self._landscape.curve(config, self._replicate)
        for epoch, (score, cost) in enumerate(zip(scores.tolist(), seconds, strict=True), 1):
            cost_ns = max(1, round(float(cost) * 1e9))  # as ReplayRunner rounds
            if self.spent_ns + cost_ns > self._budget_ns:
                self.is_spent = True
                return
            self.spent_ns += cost_ns
            if not math.isnan(score):
                self.seen.append(Seen(self.spent_ns, score, config, epoch))
            yield score
            if math.isnan(score):
                return


Play = Callable[[Device, int, Stopwatch], None]
"""Spends a device's budget with a seed, and has its thinking timed."""


def play_peer(
    name: str, landscape: Landscape, replicate: int, budget_ns: int, seed: int
) -> tuple[list[Seen], list[float]]:
    """What a peer sees within a budget, and its thinking time of every proposal in seconds."""
    device, watch = Device(landscape, replicate, budget_ns), Stopwatch()
    # Recorded, and so not shown: BoTorch says `always` to some inside of any filter.
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        PEERS[name](device, seed, watch)
    return device.seen, watch.seconds


def require(name: str) -> None:
    """Raise ValueError where what a peer needs is not installed."""
    package = name.partition(":")[0]
    if find_spec(package) is None:
        raise ValueError(f"{name} needs {package}, which is not installed; pip install {package}")


# -- Optuna ---------------------------------------------------------------------------------------


def _play_optuna(
    sampler: Callable[[Any, int], Any],
    pruner: Callable[[Any, int], Any] | None,
    device: Device,
    seed: int,
    watch: Stopwatch,
) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler(optuna, seed),
        pruner=optuna.pruners.NopPruner() if pruner is None else pruner(optuna, device.epochs),
        study_name=f"seed-{seed}",  # Hyperband draws each trial's bracket by the study's name
    )
    while True:
        with watch.thinking():
            trial = study.ask()
            config = {name: _suggest(trial, name, device.space) for name in device.space}
        watch.proposed()
        outcome = _train_trial(trial, config, device, watch, reports=pruner is not None)
        if device.is_spent:
            return
        with watch.thinking():
            study.tell(trial, **outcome)


def _train_trial(
    trial: Any, config: Config, device: Device, watch: Stopwatch, *, reports: bool
) -> dict[str, Any]:
    """Train to the end or to where it is pruned; what Optuna is to be told of it."""
    from optuna.trial import TrialState

    score = math.nan
    for epoch, score in enumerate(device.train(config), 1):
        if reports and not math.isnan(score):
            with watch.thinking():
                trial.report(score, epoch)
                is_pruned = trial.should_prune()
            if is_pruned:
                return {"state": TrialState.PRUNED}
    return {"state": TrialState.FAIL} if math.isnan(score) else {"values": score}


def _suggest(trial: Any, name: str, space: SearchSpace) -> Value:
    domain = space[name]
    if isinstance(domain, Choice):
        value: Value = trial.suggest_categorical(name, list(domain.options))
    elif isinstance(domain, Float):
        value = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    else:
        value = trial.suggest_int(name, domain.low, domain.high, log=domain.log)
    return value


def _tpe(optuna: Any, seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed)


def _hyperband(optuna: Any, epochs: int) -> Any:
    return optuna.pruners.HyperbandPruner(
        min_resource=min(2, epochs), max_resource=epochs, reduction_factor=3
    )


# -- BoTorch --------------------------------------------------------------------------------------


def _play_botorch(device: Device, seed: int, watch: Stopwatch) -> None:
    import torch
    from botorch.exceptions import ModelFittingError

    space = device.space
    start = max(10, 2 * len(space))
    sobol = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed)
    torch.manual_seed(seed)
    units: list[NDArray[np.float64]] = []
    scores: list[float] = []
    while True:
        with watch.thinking():
            is_start = len(scores) < start or np.isfinite(scores).sum() < 2
            try:
                unit = None if is_start else _most_promising(np.array(units), np.array(scores))
            except ModelFittingError:
                unit = None
            if unit is None:
                unit = sobol.draw(1, dtype=torch.float64).numpy()  # 1 x d
            config = space.from_unit(unit)[0]
        watch.proposed()
        curve = list(device.train(config))
        if device.is_spent:
            return
        units.append(space.to_unit([config])[0])
        scores.append(curve[-1])


def _most_promising(units: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The maximiser of log expected improvement given `n x d` units and n scores, `1 x d`.

    As in BoTorch's own example; the model standardises scores by itself. What diverged has no
    score, and is shown as the worst that has one.
    """
    import torch
    from botorch.acquisition import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = torch.from_numpy(units)
    y = torch.from_numpy(np.where(np.isnan(scores), np.nanmin(scores), scores)).unsqueeze(-1)
    model = SingleTaskGP(x, y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    found, _ = optimize_acqf(
        LogExpectedImprovement(model, best_f=y.max()),
        bounds=torch.stack([torch.zeros(x.shape[1]), torch.ones(x.shape[1])]).double(),
        q=1,
        num_restarts=10,
        raw_samples=256,
    )
    unit: NDArray[np.float64] = found.numpy()
    return unit


# -- SMAC -----------------------------------------------------------------------------------------


def _play_smac(facade_name: str, device: Device, seed: int, watch: Stopwatch) -> None:
    """SMAC3's facade of that name, asked and told; a start as large as BoTorch's here.

    With budgets, a configuration that is promoted goes on from where it was.
    """
    import smac
    from smac.runhistory.dataclasses import TrialValue
    from smac.runhistory.enumerations import StatusType

    facade = getattr(smac, facade_name)
    fidelity: dict[str, float] = {}
    if facade_name == "MultiFidelityFacade":
        # Budgets are the largest over powers of three: the lowest is to be about epoch 2.
        rungs = round(math.log(max(1.0, device.epochs / 2), 3))
        fidelity = {"min_budget": device.epochs / 3**rungs, "max_budget": device.epochs}
    with tempfile.TemporaryDirectory() as folder:
        scenario = smac.Scenario(
            _configuration_space(device.space, seed),
            deterministic=True,
            n_trials=_ENDLESS,
            output_directory=Path(folder),
            seed=seed % _MOST_SEED,
            **fidelity,
        )
        start = facade.get_initial_design(scenario, n_configs=max(10, 2 * len(device.space)))
        unused = _with_budget if fidelity else _without
        optimiser = facade(scenario, unused, initial_design=start, logging_level=False)
        trainings: dict[Any, _Paused] = {}
        while True:
            with watch.thinking():
                info = optimiser.ask()
                config = {name: _plain(info.config[name]) for name in device.space}
            watch.proposed()
            training = trainings.setdefault(info.config, _Paused(device.train(config)))
            training.go_on(device.epochs if info.budget is None else round(info.budget))
            if device.is_spent:
                return
            is_sound = not math.isnan(training.score)
            status = StatusType.SUCCESS if is_sound else StatusType.CRASHED
            with watch.thinking():
                cost = -training.score if is_sound else 0.0  # as bad as an accuracy can be
                optimiser.tell(info, TrialValue(cost=cost, status=status))


def _with_budget(config: Any, seed: int, budget: float) -> float:
    """For SMAC to look at the names of its arguments; it is never called."""
    raise NotImplementedError


def _without(config: Any, seed: int) -> float:
    """The same."""
    raise NotImplementedError


@dataclass
class _Paused:
    """A training that can go on, and its latest score."""

    curve: Iterator[float]
    epoch: int = 0
    score: float = math.nan

    def go_on(self, until: int) -> None:
        """Train up to an epoch, or to where it diverges."""
        while self.epoch < until and (score := next(self.curve, None)) is not None:
            self.epoch, self.score = self.epoch + 1, score


def _configuration_space(space: SearchSpace, seed: int) -> Any:
    from ConfigSpace import ConfigurationSpace
    from ConfigSpace.hyperparameters import (
        CategoricalHyperparameter,
        UniformFloatHyperparameter,
        UniformIntegerHyperparameter,
    )

    found = ConfigurationSpace(seed=seed % _MOST_SEED)
    for name, domain in space.items():
        if isinstance(domain, Choice):
            found.add(CategoricalHyperparameter(name, list(domain.options)))
        else:
            is_float = isinstance(domain, Float)
            kind = UniformFloatHyperparameter if is_float else UniformIntegerHyperparameter
            found.add(kind(name, domain.low, domain.high, log=domain.log))
    return found


def _plain(value: Any) -> Value:
    """A value of Python's own; NumPy's are no JSON."""
    plain: Value = value.item() if isinstance(value, np.generic) else value
    return plain


PEERS: dict[str, Play] = {
    "optuna:random": partial(
        _play_optuna, lambda optuna, seed: optuna.samplers.RandomSampler(seed=seed), None
    ),
    "optuna:tpe": partial(_play_optuna, _tpe, None),
    "optuna:gp": partial(
        _play_optuna, lambda optuna, seed: optuna.samplers.GPSampler(seed=seed), None
    ),
    "optuna:tpe+hyperband": partial(_play_optuna, _tpe, _hyperband),
    "optuna:tpe+median": partial(
        _play_optuna, _tpe, lambda optuna, _: optuna.pruners.MedianPruner()
    ),
    "botorch": _play_botorch,
    "smac:blackbox": partial(_play_smac, "BlackBoxFacade"),
    "smac:multifidelity": partial(_play_smac, "MultiFidelityFacade"),
}
