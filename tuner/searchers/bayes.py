"""Bayesian optimisation: a Gaussian process and the log of noisy expected improvement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuner.brackets import rung_epochs
from tuner.history import HistoryView
from tuner.searchers.candidates import Candidates, sobol_start
from tuner.searchers.fit import FitError
from tuner.searchers.random import draw_new
from tuner.searchers.surrogate import START, Belief, Outlook, Surrogate
from tuner.searchers.threads import one_thread
from tuner.searchers.trust_region import SPREAD, has_region, region_of
from tuner.seeding import derive_seed
from tuner.space import Config, SearchSpace
from tuner.trial import TrialState

_SPREAD = 2.0  # see Outlook
_LADDER = 3  # curves are looked at where their epoch is a third of the next


class BayesSearcher:
    """Noisy expected improvement, in its logarithmic form, under a Gaussian process.

    Letham et al. (2019) for the noise, Ament et al. (2023) for the logarithm.

    - The first five trials are a scrambled Sobol sequence.
    - What the process is, and what it is shown, is in `surrogate`.
    - Where a policy ends or pauses trials early, all curves are data, at the epochs that they
      reached; the improvement is always sought at the full length.
    - Trials in flight are believed to yield what the model expects of them.
    - An improvement counts as much as its configuration is likely to be feasible.
    - With many knobs it is sought near the best so far: see `trust_region`.
    - Where the model cannot be fitted the proposal is a random draw, and `fallback` says so.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed
        self._surrogate = Surrogate(space)
        self.fallback = ""

    def propose(self, history: HistoryView) -> Config:
        """The next point of the Sobol start, or the maximiser of the acquisition."""
        return self.propose_many(history, 1)[0]

    def propose_many(self, history: HistoryView, count: int) -> list[Config]:
        """The same, and up to `count` in all that are the best with those before them in flight.

        They are chosen among the candidates of the first, so that a pack of many trials that end
        at once does not wait for as many searches. Those before are believed at the full length.
        """
        self.fallback = ""
        if not has_model(history):
            return [sobol_start(self._space, self._seed, history)]
        seed = derive_seed(self._seed, "bayes", len(history))
        with one_thread():
            try:
                outlook = self._look(history)
            except FitError as error:
                self.fallback = f"the model could not be fitted ({type(error).__name__}): random"
            else:
                value, centres = outlook.log_improvement, outlook.centres
                box = region_of(outlook, history)
                around = Candidates.around(self._space, value, centres, history, seed, box)
                return around.several(outlook.improvements, count)
        return [draw_new(self._space, self._seed, "bayes-fallback", history)]

    def belief(self, history: HistoryView, configs: Sequence[Config]) -> Belief | None:
        """What the model makes of m configurations; None while there is no model yet."""
        return belief_of(self._look, history, configs)

    def _look(self, history: HistoryView) -> Outlook:
        full = history.max_epochs or max(t.epoch for t in history)
        ended = [t for t in history if t.state.is_final and t.score is not None]
        stops_early = any(
            t.epoch < full and t.curve and t.state in (TrialState.STOPPED, TrialState.PAUSED)
            for t in history
        )
        # One length of curve has nothing to say of another; where all ended alike, or too few
        # have ended for a model, whatever has been seen of the others is data as well.
        ladder = rung_epochs(1, full, _LADDER) if stops_early or len(ended) < 2 else ()
        spread = SPREAD if has_region(self._space) else _SPREAD
        return Outlook(self._surrogate, history, full, ladder, in_hand=False, spread=spread)


def belief_of(
    look: Callable[[HistoryView], Outlook],
    history: HistoryView,
    configs: Sequence[Config],
) -> Belief | None:
    """What the model that `look` fits makes of m configurations; None where there is none."""
    if not has_model(history):
        return None
    with one_thread():
        try:
            return look(history).belief(configs)
        except FitError:
            return None


def has_model(history: HistoryView) -> bool:
    """Whether the Sobol start is over, and there are scores to learn from."""
    return len(history) >= START and sum(t.score is not None for t in history) >= 2
