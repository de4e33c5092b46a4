"""Optuna: our searchers as its samplers, and its studies as results from before.

The other way round, Optuna's samplers as searchers of ours, is `tuner.searchers.optuna_samplers`.
"""

from __future__ import annotations

import secrets
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from tuner.entry import DECIDES_ITSELF
from tuner.history import History
from tuner.naming import pick
from tuner.searchers import SEARCHERS, Searcher, SpaceExhausted, make_searcher
from tuner.seeding import derive_seed
from tuner.space import SearchSpace
from tuner.study import Study
from tuner.warm_start import EarlierStudy, Taken

try:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler, RandomSampler
    from optuna.search_space import intersection_search_space
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState as Shown
except ImportError as error:
    raise ValueError("Optuna is not installed: pip install 'tuner[optuna]'") from error

from tuner.integrations.optuna_storage import load_study
from tuner.integrations.optuna_trials import (
    as_trial,
    domain_of,
    from_domain,
    sign_of,
    to_config,
)

_PROPOSED = "tuner:proposed"
_FALLBACK = "tuner:fallback"


class TunerSampler(BaseSampler):
    """One of our searchers as a sampler of Optuna's.

    >>> import optuna
    >>> study = optuna.create_study(sampler=TunerSampler("bayes", seed=0))
    >>> study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=3)

    What is searched is what all complete trials have in common; what else a trial asks for, and all
    of the first one, is drawn at random. With a `search_space` that is searched from the start.

    The searcher sees complete trials, those under way, and failed ones as such, and pruned ones
    with the curve that they reported: `tuner.integrations.optuna_trials.as_trial` has the rules.
    Which trials are pruned is the pruner's to say.

    A proposal depends on the seed, the space and the trials before it alone. Where several
    processes share a study, give each another seed, or none. Where a searcher could not use its
    model, the trial's system attribute `tuner:fallback` says why.

    Args:
        searcher: by name, such as `bayes`, `random`, `grid` or `bohb`.
        seed: of all proposals; None for one that nobody knows.
        search_space: Optuna's distributions by the parameters' names; None to find out.

    Raises:
        ValueError: no such searcher, or one that also says how long each trial trains; later on a
            study with several objectives.
    """

    def __init__(
        self,
        searcher: str = "bayes",
        seed: int | None = None,
        *,
        search_space: Mapping[str, BaseDistribution] | None = None,
    ) -> None:
        if not searcher.startswith("optuna:"):
            pick(searcher, SEARCHERS, "searcher")
        if searcher in DECIDES_ITSELF:
            raise ValueError(
                f"{searcher} itself says how long each trial trains, which in Optuna is the "
                "pruner's to say; use bayes with a pruner"
            )
        self._name = searcher
        self._seed = secrets.randbits(63) if seed is None else seed
        self._given = None if search_space is None else dict(search_space)
        self._searcher: tuple[SearchSpace, Searcher] | None = None  # the last one, for speed alone
        self._alone = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_searcher": None, "_alone": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _alone=threading.Lock())

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What all complete trials have in common, as far as there is a choice."""
        sign_of(study.directions)  # several objectives are refused before anything is drawn
        found = self._given
        if found is None:
            found = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: d for name, d in found.items() if not d.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The searcher's proposal; nothing where there is no space yet, or none of it is left."""
        if not search_space:
            return {}
        space = SearchSpace({name: domain_of(d) for name, d in search_space.items()})
        with self._alone:  # trials of other threads are seen with what was proposed to them
            searcher = self._make(space)
            try:
                config = searcher.propose(_history(study, trial, search_space).view())
            except SpaceExhausted as error:
                warnings.warn(f"{error}; drawn at random from now on", stacklevel=2)
                return {}
            params = {name: from_domain(d, config[name]) for name, d in search_space.items()}
            # Under way, a trial shows only the parameters that its objective has asked for so far.
            kept = {name: d.to_internal_repr(params[name]) for name, d in search_space.items()}
            _note(study, trial, _PROPOSED, kept)
            if searcher.fallback:
                _note(study, trial, _FALLBACK, searcher.fallback)
        return params

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A draw by Optuna's RandomSampler, of this seed, trial and parameter."""
        sign_of(study.directions)
        seed = derive_seed(self._seed, "independent", trial.number, param_name)
        sampler = RandomSampler(seed=seed % 2**32)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _make(self, space: SearchSpace) -> Searcher:
        if self._searcher is None or self._searcher[0] != space:
            self._searcher = space, make_searcher(self._name, space, self._seed)
        return self._searcher[1]


def _history(
    study: optuna.Study, current: FrozenTrial, space: Mapping[str, BaseDistribution]
) -> History:
    """All trials but the current one that have a configuration in the space."""
    sign = sign_of(study.directions)
    history = History()
    for shown in study.get_trials(deepcopy=False):
        if shown.number == current.number or shown.state is Shown.WAITING:
            continue
        config = to_config(_params(shown, space), space)
        if config is not None:
            history.restore(as_trial(shown, len(history), config, sign))
    return history


def _params(shown: FrozenTrial, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    proposed = {} if shown.state.is_finished() else shown.system_attrs.get(_PROPOSED, {})
    known = {n: d.to_external_repr(proposed[n]) for n, d in space.items() if n in proposed}
    return {**known, **shown.params}


def _note(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


# -- results from before ---------------------------------------------------------------------------


def take_over(study: Study, source: optuna.Study | str, study_name: str | None = None) -> Taken:
    """Take over what an Optuna study found, by the rules of `tuner.warm_start`; it costs nothing.

    Trials that fit into the space come along with the source `optuna:NAME`, pruned ones with their
    curves. A study is taken over once: the next time nothing happens.

    Args:
        study: that is to know the results.
        source: an Optuna study, or the URL of its storage, such as `sqlite:///study.db`.
        study_name: in the storage; needed where it holds several.

    Returns:
        The trials, with scores as the searcher maximises them, and how many were left out and why;
        as text, `str(taken)`, in words.

    Raises:
        ValueError: no such study, several objectives, one that maximises where this minimises, or
            nothing in it that fits; and which knob or range is off.
    """
    return study.take_over(read_study(source, study_name))


def read_study(source: optuna.Study | str, study_name: str | None = None) -> EarlierStudy:
    """An Optuna study as `Study.add_from` and `tune(…, warm_start=…)` take it.

    Raises ValueError where there is no such study, or it has several objectives.
    """
    found = load_study(source, study_name) if isinstance(source, str) else source
    sign = sign_of(found.directions)
    trials = [
        as_trial(shown, number, {name: _plain(v) for name, v in shown.params.items()}, sign)
        for number, shown in enumerate(found.get_trials(deepcopy=False))
    ]
    name = f"optuna:{found.study_name}"
    return EarlierStudy(name, name, [(None, trials)], "max" if sign > 0 else "min", {})


def _plain(value: Any) -> Any:
    """NumPy's numbers as plain ones, which JSON can write."""
    return getattr(value, "item", lambda: value)()
