"""Google's open-source Vizier as a searcher: shown a history as its trials and asked once.

Its own default, a Gaussian process with UCB and pure exploration (Song et al., 2024, "The Vizier
Gaussian process bandit algorithm"). A proposal takes 4 to 8 seconds on two cores, with ten trials
as with two hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuner.history import HistoryView
from tuner.searchers.base import config_key, tried
from tuner.searchers.random import draw_new
from tuner.searchers.threads import one_thread
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, Domain, Float, SearchSpace, Value
from tuner.trial import Trial, TrialState

try:
    import jax
    from jax.experimental import enable_x64
    from vizier import algorithms as vza
    from vizier import pyvizier as vz

    # Its public module also loads designers that need CVXPY.
    from vizier._src.algorithms.designers.gp_ucb_pe import VizierGPUCBPEBandit
except (ImportError, AttributeError) as error:  # the latter is what it says to a JAX that is newer
    raise ValueError(f"Vizier cannot be loaded: pip install 'tuner[vizier]' ({error})") from error

_SCORE = "score"
_ASKS = (1, 3)  # suggestions in a finite space, before a draw at random


class VizierSearcher:
    """Vizier's default designer, made anew for each proposal with a seed of its own.

    It is shown trials as complete with their latest score, also those that were stopped or are
    paused; infeasible ones as such; those under way as active, which it keeps away from. Failed
    ones without a score are not shown.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """What the designer suggests, given all that is known of the earlier trials."""
        self.fallback = ""
        finite = self._space.cardinality is not None
        seen = tried(self._space, history) if finite else set()
        if finite and len(seen) == self._space.cardinality:
            return draw_new(self._space, self._seed, "vizier-rest", history)  # says so by raising
        with one_thread(), enable_x64():  # the latter as Vizier's own service does
            for config in self._suggested(history):
                if config_key(self._space, config) not in seen:
                    return config
        self.fallback = "Vizier suggested nothing that is new: random"
        return draw_new(self._space, self._seed, "vizier-rest", history)

    def _suggested(self, history: HistoryView) -> Iterator[Config]:
        """Its first wish, and others where that is not taken."""
        seed = derive_seed(self._seed, "vizier", len(history)) % 2**32
        designer = VizierGPUCBPEBandit(_problem(self._space), rng=jax.random.PRNGKey(seed))
        shown = [s for trial in history if (s := _shown(self._space, trial)) is not None]
        done = [s for s in shown if s.is_completed]
        active = [s for s in shown if not s.is_completed]
        designer.update(vza.CompletedTrials(done), vza.ActiveTrials(active))
        for count in _ASKS:
            for suggestion in designer.suggest(count):
                found = suggestion.parameters.as_dict()
                if len(found) < len(self._space):
                    continue  # it leaves out what became no number
                knobs = {n: _value(d, found[_name(i)]) for i, (n, d) in _numbered(self._space)}
                yield self._space.pruned(knobs)


def _problem(space: SearchSpace) -> Any:
    problem = vz.ProblemStatement()
    root = problem.search_space.root
    for number, (_, domain) in _numbered(space):
        name = _name(number)
        if isinstance(domain, Choice):  # indices, so that True and 1 stay apart
            root.add_categorical_param(name, [str(i) for i in range(len(domain.options))])
            continue
        scale = vz.ScaleType.LOG if domain.log else vz.ScaleType.LINEAR
        if isinstance(domain, Float):
            root.add_float_param(name, float(domain.low), float(domain.high), scale_type=scale)
        else:
            root.add_int_param(name, int(domain.low), int(domain.high), scale_type=scale)
    goal = vz.ObjectiveMetricGoal.MAXIMIZE
    problem.metric_information.append(vz.MetricInformation(_SCORE, goal=goal))
    return problem


def _shown(space: SearchSpace, trial: Trial) -> Any:
    """A trial in Vizier's terms; None where it has nothing to say."""
    filled = space.filled(trial.config)
    params = {_name(i): _param(d, filled[n]) for i, (n, d) in _numbered(space)}
    shown = vz.Trial(id=trial.number + 1, parameters=params)
    if trial.state is TrialState.INFEASIBLE:
        shown.complete(vz.Measurement(), infeasibility_reason="infeasible")
    elif trial.state in (TrialState.RUNNING, TrialState.INTERRUPTED):
        pass
    elif trial.score is not None:
        shown.complete(vz.Measurement(metrics={_SCORE: trial.score}))
    elif trial.state.is_final:
        return None
    return shown


def _numbered(space: SearchSpace) -> Iterator[tuple[int, tuple[str, Domain]]]:
    return enumerate(space.items())


def _name(number: int) -> str:
    """Of a knob: its own may be one that means something to Vizier, such as `x[0]`."""
    return f"knob_{number}"


def _param(domain: Domain, value: Any) -> Any:
    if isinstance(domain, Choice):
        return str(domain.index(value))
    return float(value) if isinstance(domain, Float) else int(value)


def _value(domain: Domain, param: Any) -> Value:
    if isinstance(domain, Choice):
        return domain.options[int(param)]
    inside: Value = min(max(param, domain.low), domain.high)  # whatever the rounding
    return inside
