"""Optuna's samplers as searchers: shown a history as an Optuna study and asked once."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tuner.history import HistoryView
from tuner.naming import pick
from tuner.searchers.base import config_key, tried
from tuner.searchers.random import draw_new
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, Domain, Float, SearchSpace, Value
from tuner.trial import Trial, TrialState

_INSTALL = "Optuna's samplers need more packages: pip install 'tuner[optuna]'"

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState as Shown
except ImportError as error:
    raise ValueError(_INSTALL) from error

_SHORT = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "optuna-gp": "GPSampler",
    "optuna-random": "RandomSampler",
    "optuna-qmc": "QMCSampler",
}
_STATELESS = frozenset({"TPESampler", "GPSampler", "RandomSampler"})  # see only the trials
_READS_PRUNED = frozenset({"TPESampler"})
_DEFAULTS: dict[str, dict[str, Any]] = {
    # Without scrambling all seeds would have the same sequence.
    "QMCSampler": {"scramble": True, "warn_independent_sampling": False},
}
_ASKS = 3  # in a finite space, before a draw at random
_ALONE = threading.RLock()
_ONCE = datetime(2000, 1, 1)  # Optuna wants to know when; nothing here depends on it


class OptunaSearcher:
    """One of Optuna's samplers, by its class's name or a short one, `options` passed on.

    What a sampler is shown, trial by trial:

    - Completed trials are complete and failed ones failed, which all samplers ignore.
    - Trials without a score yet are running: TPE and the Gaussian process keep away from them.
    - TPE reads pruned trials too, the further advanced the better. Stopped trials are that, and so
      are running and paused ones that have a score: they have taught something. Infeasible ones
      break a constraint, which TPE ranks below everything else.
    - The others read complete trials alone. Stopped and paused trials are shown to them as
      complete with their latest score, as Optuna's own CMA-ES takes pruned trials where it is
      told to consider them: without, they would learn next to nothing under successive halving.
      Infeasible ones are complete with the worst score in the history: for a sampler that ranks,
      that is the bottom, and for one that models values a number of their own size.

    Most samplers keep a state in what they have asked. For those the history is replayed: each
    trial is asked for again, after all earlier ones have been told with what is known of them
    now, and then takes the configuration that it really has. In a sequential search that is what
    happened. What is kept between proposals is for speed alone.

    CMA-ES searches numbers only: Optuna draws its choice knobs at random.
    """

    def __init__(self, space: SearchSpace, seed: int, sampler: str = "tpe", **options: Any) -> None:
        self._name = _SHORT.get(sampler) or pick(sampler, _classes(), "Optuna sampler")
        if self._name == "CmaEsSampler" and importlib.util.find_spec("cmaes") is None:
            raise ValueError(_INSTALL)
        self._space, self._seed = space, seed
        self._options = options
        self._distributions = {name: _distribution(domain) for name, domain in space.items()}
        self._converted: dict[int, tuple[Trial, float, FrozenTrial]] = {}
        self._replay: _Replay | None = None
        self.fallback = ""
        with _quiet_and_alone():
            self._sampler()  # wrong options are better refused now than after a training

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is kept for speed.
        make = functools.partial(OptunaSearcher, sampler=self._name, **self._options)
        return make, (self._space, self._seed)

    def propose(self, history: HistoryView) -> Config:
        """What the sampler asks for, given all that is known of the earlier trials."""
        self.fallback = ""
        finite = self._space.cardinality is not None
        seen = tried(self._space, history) if finite else set()
        if finite and len(seen) == self._space.cardinality:
            return draw_new(self._space, self._seed, "optuna-rest", history)  # says so by raising
        with _quiet_and_alone():
            for params in self._asked(self._show(history)):
                config = self._space.pruned(
                    {n: _value(dom, params[n]) for n, dom in self._space.items()}
                )
                if config_key(self._space, config) not in seen:
                    return config
        self.fallback = "the sampler asked only for what has been tried: random"
        return draw_new(self._space, self._seed, "optuna-rest", history)

    def _sampler(self, *purpose: int) -> Any:
        """A new sampler, seeded for that purpose."""
        seed = derive_seed(self._seed, "optuna", self._name, *purpose) % 2**32
        options = {**_DEFAULTS.get(self._name, {}), **self._options}
        return getattr(optuna.samplers, self._name)(seed=seed, **options)

    # -- what the sampler is shown ---------------------------------------------------------------

    def _show(self, history: HistoryView) -> list[FrozenTrial]:
        """The history in Optuna's terms; the same objects again where nothing has changed."""
        worst = min((t.score for t in history if t.score is not None), default=0.0)
        shown = []
        for trial in history:
            kept = self._converted.get(trial.number)
            depends = worst if trial.state is TrialState.INFEASIBLE else 0.0
            if kept is None or kept[0] is not trial or kept[1] != depends:
                kept = (trial, depends, self._convert(trial, worst))
                self._converted[trial.number] = kept
            shown.append(kept[2])
        return shown

    def _convert(self, trial: Trial, worst: float) -> FrozenTrial:
        if self._name in _READS_PRUNED:
            state, value, constraints = _as_pruned(trial)
        else:
            state, value = _as_complete(trial, worst)
            constraints = {}
        return _Template(
            number=trial.number,
            trial_id=-1,
            state=state,
            value=value,
            datetime_start=_ONCE,
            datetime_complete=_ONCE if state.is_finished() else None,
            params={
                n: _param(self._space[n], value)
                for n, value in self._space.filled(trial.config).items()
            },
            distributions=self._distributions,
            user_attrs={},
            system_attrs=constraints,
            intermediate_values={o.epoch: o.score for o in trial.curve},
        )

    # -- how it is asked -------------------------------------------------------------------------

    def _asked(self, shown: list[FrozenTrial]) -> Iterator[dict[str, Any]]:
        """Parameters for the next trial, the sampler's first wish first."""
        if self._name not in _STATELESS:
            yield self._replayed(shown)
            return
        study = _study(self._sampler(len(shown)))
        study.add_trials(shown)
        for _ in range(_ASKS):
            yield study.ask(self._distributions).params  # running from now on: to be kept away from

    def _replayed(self, shown: list[FrozenTrial]) -> dict[str, Any]:
        replay, self._replay = self._replay, None  # lost where Optuna raises midway
        if replay is None or not replay.is_start_of(shown):
            replay = _Replay(_study(self._sampler()))
        for trial in shown[len(replay.told) :]:
            replay.ask(self._distributions)
            replay.tell(trial)
        params = replay.ask(self._distributions)
        self._replay = replay
        return params


class _Template(FrozenTrial):
    """A trial to be added to studies; its copies share what no one writes to, for speed."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        copy = FrozenTrial.__new__(FrozenTrial)
        copy.__dict__.update(self.__dict__)
        return copy


@dataclass
class _Replay:
    """A study in which trials were asked for and told one after the other.

    Attributes:
        told: the trials so far, as they were shown.
        asked: the one after them, asked for and not told yet.
    """

    study: optuna.Study
    told: list[FrozenTrial] = field(default_factory=list)
    asked: optuna.Trial | None = None

    def is_start_of(self, shown: list[FrozenTrial]) -> bool:
        """Whether what was told is the beginning of what is shown."""
        same = (a is b for a, b in zip(self.told, shown, strict=False))
        return len(self.told) <= len(shown) and all(same)

    def ask(self, distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Parameters for the trial after those told; asking again gives them again."""
        if self.asked is None:
            self.asked = self.study.ask(distributions)
        return self.asked.params

    def tell(self, shown: FrozenTrial) -> None:
        """Let the trial asked for become the one shown, keeping what the sampler wrote on it."""
        if self.asked is None:
            raise RuntimeError("a trial is told that was not asked for")
        for name, distribution in shown.distributions.items():
            value = distribution.to_internal_repr(shown.params[name])
            self.study._storage.set_trial_param(self.asked._trial_id, name, value, distribution)
        if shown.state.is_finished():
            self.study.tell(self.asked, shown.value, state=shown.state)
        self.told.append(shown)
        self.asked = None


def _as_pruned(trial: Trial) -> tuple[Shown, float | None, dict[str, Any]]:
    """State, value and constraints of a trial for a sampler that reads pruned trials."""
    if trial.state is TrialState.COMPLETED and trial.score is not None:
        return Shown.COMPLETE, trial.score, {}
    if trial.state is TrialState.INFEASIBLE:
        return Shown.PRUNED, None, {"constraints:infeasible": 1.0}  # > 0: broken
    if trial.score is not None:
        return Shown.PRUNED, trial.score, {}
    return (Shown.FAIL if trial.state.is_final else Shown.RUNNING), None, {}


def _as_complete(trial: Trial, worst: float) -> tuple[Shown, float | None]:
    """State and value of a trial for a sampler that reads complete trials alone."""
    if trial.state is TrialState.INFEASIBLE:
        return Shown.COMPLETE, worst
    if trial.state in (TrialState.RUNNING, TrialState.INTERRUPTED):
        return Shown.RUNNING, None
    if trial.score is not None:
        return Shown.COMPLETE, trial.score
    return (Shown.FAIL if trial.state.is_final else Shown.RUNNING), None


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):  # indices, so that True and 1 stay apart
        return CategoricalDistribution(range(len(domain.options)))
    if isinstance(domain, Float):
        return FloatDistribution(float(domain.low), float(domain.high), log=domain.log)
    return IntDistribution(int(domain.low), int(domain.high), log=domain.log)


def _param(domain: Domain, value: Any) -> Any:
    if isinstance(domain, Choice):
        return domain.index(value)
    return float(value) if isinstance(domain, Float) else int(value)


def _value(domain: Domain, param: Any) -> Value:
    if isinstance(domain, Choice):
        return domain.options[int(param)]
    inside: Value = min(max(param, domain.low), domain.high)  # whatever the rounding
    return inside


def _classes() -> dict[str, str]:
    """Optuna's samplers that need nothing but a seed."""
    names = {}
    for name in optuna.samplers.__all__:
        kind = getattr(optuna.samplers, name)
        if not inspect.isclass(kind) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        if "seed" in {p.name for p in parameters if p.default is not p.empty} and not any(
            p.default is p.empty for p in parameters
        ):
            names[name] = name
    return names


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    pruner = optuna.pruners.NopPruner()  # who is stopped is not Optuna's to say
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)


@contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """No word of Optuna's on the terminal, and its logger put back as it was afterwards."""
    logger = logging.getLogger("optuna")
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


tpe = functools.partial(OptunaSearcher, sampler="tpe")
cmaes = functools.partial(OptunaSearcher, sampler="cmaes")
gp = functools.partial(OptunaSearcher, sampler="optuna-gp")
