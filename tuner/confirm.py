"""No lucky winner: the best of many noisy scores is mostly luck, so the best are trained again."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tuner.fidelity import (
    UNLIMITED,
    Action,
    Done,
    FidelityPolicy,
    Repeat,
    Resume,
    Sample,
    Stop,
    Wait,
)
from tuner.history import History, HistoryView
from tuner.space import Config, SearchSpace
from tuner.trial import Trial, TrialState

_SLACK = 1.1  # of what is kept back: no training costs just what it did before
KEPT_FOR_MODEL = 5
"""How many completed trials' networks are kept where a model chooses the winner among them."""
_MOST_DATA = 2_000  # of which a Gaussian process is made in a second or two


class Confirming:
    """Has another policy decide while there are minutes, and keeps some back to confirm with.

    A confirmation is another full training, with a seed of its own, of a configuration that was
    trained to its end. The K best by their first score are confirmed once each: none of them before
    it is certain that those still in flight cannot take its place. What is left of the budget when
    all are back, but for a search that ended by itself, trains again who leads by its mean.
    """

    def __init__(self, inner: FidelityPolicy, count: int) -> None:
        self._inner, self._count = inner, count

    def next_action(self, history: HistoryView) -> Action:
        """What the inner policy says while the confirmations can still be paid for after it."""
        action = self._inner.next_action(history)
        if isinstance(action, Stop):
            return action
        groups, cost_ns, left_ns = full_trainings(history), training_ns(history), history.left_ns
        if not groups or cost_ns is None or left_ns is None:
            return action
        in_flight = sum(t.state is TrialState.RUNNING for t in history.own)
        # One whose confirmation broke off cannot be confirmed: the next best takes its place.
        broke = {t.confirms for t in history if t.confirms is not None and t.state.is_broken}
        sound = [g for g in groups if g[0].number not in broke]
        best = [g[0] for g in sorted(sound, key=lambda g: _rank(g[0]))[: self._count]]
        begun = {t.confirms for t in history}
        to_confirm = [t for t in best if t.number not in begun]
        if isinstance(action, Sample | Resume):
            # Who is in flight, and who begins now, may be among the K best in the end.
            others = min(self._count, len(to_confirm) + in_flight + 1) - len(to_confirm)
            kept_ns = _SLACK * (sum(map(_paid_ns, to_confirm)) + others * cost_ns)
            price_ns = _price_ns(action, history, cost_ns)
            one_more_ns = _one_more_ns(history, history.mean_epoch_ns)
            if left_ns - one_more_ns >= _overhead(history) * (price_ns + kept_ns):
                return action
        if isinstance(action, Wait) and in_flight:
            return action
        if to_confirm:
            certain = best[: max(0, self._count - in_flight)]
            to_repeat = [t for t in to_confirm if t in certain]
        elif isinstance(action, Done) or not best:
            return action
        else:
            leader = min(sound, key=lambda g: (g[0] not in best, -_mean(g), g[0].number))[0]
            to_repeat = [leader] if _all_are_back(best, history) else []
        for trial in to_repeat:
            one_more_ns = _one_more_ns(history, trial.device_ns // len(trial.curve))
            if left_ns - one_more_ns >= _overhead(history) * _paid_ns(trial):
                return Repeat(trial.number, history.max_epochs or UNLIMITED)
        is_any_in_flight = any(t.state is TrialState.RUNNING for t in history.running)
        return Wait() if is_any_in_flight else Done()


def with_confirmations(policy: FidelityPolicy, count: int) -> FidelityPolicy:
    """The policy, which keeps minutes back for so many confirmations; itself where there are none.

    Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"the number of settings to confirm is at least 0, got {count}")
    return Confirming(policy, count) if count else policy


def _one_more_ns(history: HistoryView, epoch_ns: int | None) -> int:
    """What must be left beside a training: an epoch, where it says itself that it is complete.

    That is seen when it is asked for one more.
    """
    return (epoch_ns or 0) if history.max_epochs is None else 0


def _paid_ns(trial: Trial) -> int:
    """What a training cost, with what it did after its last score."""
    return trial.device_ns + trial.partial_ns


def _all_are_back(best: list[Trial], history: HistoryView) -> bool:
    """Whether each of the K best has been trained again, or has broken off when it was."""
    numbers = {t.number for t in best}
    ended = {t.confirms for t in history if t.confirms in numbers and t.state.is_final}
    return ended == numbers


# -- who won --------------------------------------------------------------------------------------


def chosen(history: HistoryView) -> Trial | None:
    """The winner: the first training of the configuration that a user should take.

    Where configurations were confirmed, that with the highest mean over all its trainings, of
    those: others had one score only, which may be luck. One that broke off when it was trained
    again is out. Where none was confirmed it is the best score seen.
    """
    groups = full_trainings(history)
    confirmed = [g for g in groups if any(t.confirms is not None for t in g)]
    others = [g for g in groups if len(g) == 1]
    for candidates in (confirmed, others) if confirmed else ():
        sound = [g for g in candidates if _mean(g) > -math.inf]
        if sound:
            return min(sound, key=lambda group: (-_mean(group), group[0].number))[0]
    best = history.best
    return best if best is None or best.confirms is None else history[best.confirms]


def mean_score(history: HistoryView, trial: Trial) -> float:
    """Of a trial's configuration, over all its full trainings; its own where there is none."""
    for group in full_trainings(history):
        if group[0].number == trial.number:
            return _mean(group)
    return trial.score or 0.0


@dataclass(frozen=True)
class Expected:
    """What another training of a winner may be expected to score.

    Attributes:
        mean: over its trainings, or of a Gaussian process on all of them.
        sd: how far off that may be: the standard error of the mean of its trainings, or by the
            process, see `ScoreModel.expected`.
        trainings: how many the configuration had.
        by: `trainings` or `model`.
    """

    mean: float
    sd: float
    trainings: int
    by: str

    def to_json(self) -> dict[str, Any]:
        """As summary.json has it."""
        return asdict(self)


def expected_score(history: HistoryView) -> Expected | None:
    """Of the winner, by its trainings; None where it had one alone.

    Two trainings can be alike by chance: its variance is taken to be at least the median one of
    all configurations that were trained several times.
    """
    winner = chosen(history)
    several = [g for g in full_trainings(history) if len(g) > 1 and _mean(g) > -math.inf]
    mine = next((g for g in several if winner is not None and g[0].number == winner.number), None)
    if mine is None:
        return None
    usual = statistics.median(_variance(g) for g in several)
    sd = math.sqrt(max(usual, _variance(mine)) / len(mine))
    return Expected(_mean(mine), sd, len(mine), "trainings")


class ScoreModel:
    """A Gaussian process on all full trainings of a search, to judge its winner by."""

    @classmethod
    def of(cls, history: HistoryView, space: SearchSpace) -> ScoreModel | None:
        """None where it cannot be had: of too few trainings, or too many."""
        from tuner.searchers.fit import FitError

        try:
            return cls(history, space)
        except FitError:
            return None

    def __init__(self, history: HistoryView, space: SearchSpace) -> None:
        import numpy as np

        from tuner.searchers.bayes import has_model
        from tuner.searchers.fit import FitError
        from tuner.searchers.surrogate import Surrogate
        from tuner.searchers.threads import one_thread

        full = [t for t in history if t.state in (TrialState.COMPLETED, TrialState.INFEASIBLE)]
        known = History(history.max_epochs, history.budget_ns)
        for number, trial in enumerate(full):
            known.restore(replace(trial, number=number))
        if len(full) > _MOST_DATA or not has_model(known.view()):
            raise FitError(f"{len(full)} trainings are too few to judge a winner by, or too many")
        self._history, self._space = history, space
        self._length = history.max_epochs or max(t.epoch for t in full)
        self._surrogate = Surrogate(space)
        data = self._surrogate.data(known.view(), self._length)
        with one_thread():
            self._posterior = self._surrogate.posterior(data)
            off = self._posterior.left_out()[data.scores >= np.median(data.scores)]
        self._off = math.sqrt(np.mean(off**2))

    def preferred(self, is_there: Callable[[Trial], bool] = lambda trial: True) -> Trial | None:
        """The winner by its mean: of the few with the highest scores, whose networks are kept.

        Of those, the ones of which `is_there` says that the network really is. None where the best
        score seen is not of one of them, and so of a full training, of which alone it knows; and
        where there are fewer than `enough_scores`: of a few it makes a landscape that is far off.
        """
        best = self._history.best
        ended = [t for t in self._history.trained if t.state is TrialState.COMPLETED]
        if best not in ended or len(ended) < enough_scores(self._space):
            return None
        few = [t for t in worth_keeping(self._history, ended, KEPT_FOR_MODEL) if is_there(t)]
        if best not in few:
            return None
        means, _ = self._mean_sd([t.config for t in few])
        return few[max(range(len(few)), key=means.__getitem__)]

    def expected(self, winner: Trial) -> Expected:
        """What another training of a winner may be expected to score.

        Its variance is the process's own there and, for the noise of another training and for what
        the process has wrong, the mean square by which it is off for each of the better half of
        the scores when that one is left out. The noise that was fitted is mostly less.
        """
        (mean,), (sd,) = self._mean_sd([winner.config])
        trainings = sum(
            t.config == winner.config
            for t in self._history
            if t.state in (TrialState.COMPLETED, TrialState.INFEASIBLE)
        )
        return Expected(mean, math.sqrt(sd**2 + self._off**2), trainings, "model")

    def _mean_sd(self, configs: Sequence[Config]) -> tuple[list[float], list[float]]:
        from tuner.searchers.threads import one_thread

        units, length = self._space.to_unit(configs), self._length
        with one_thread():
            mean, sd = self._posterior.mean_sd(self._surrogate.points(units, length, length))
        return mean.tolist(), sd.tolist()


def enough_scores(space: SearchSpace) -> int:
    """How many full trainings a model needs before anything is concluded from it alone."""
    return max(10, 2 * len(space)) + 5


def worth_keeping(history: HistoryView, ended: Iterable[Trial], count: int) -> list[Trial]:
    """Of trials that ended with a score, those that may still be chosen: to keep checkpoints of.

    The best of all and, where `count` are to be confirmed, so many of the completed ones, and all
    whose confirmation has begun.
    """
    found = sorted((t for t in ended if t.confirms is None), key=_rank)
    completed = [t for t in found if t.state is TrialState.COMPLETED]
    begun = {t.confirms for t in history} if count else set()
    confirmed = [t for t in found if t.number in begun]
    return list({t.number: t for t in (*found[:1], *completed[:count], *confirmed)}.values())


# -- what a history says --------------------------------------------------------------------------


def full_trainings(history: HistoryView) -> list[list[Trial]]:
    """This search's trainings of each configuration trained to its end, the first one first.

    One that broke off when it was trained again is among them, without a score.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in history:
        if trial.source:
            continue
        if trial.state is TrialState.COMPLETED:
            groups.setdefault(trial.setting, []).append(trial)
        elif trial.state is TrialState.INFEASIBLE and trial.repeat:
            group = groups.get(trial.setting)
            if group is not None:
                group.append(trial)
    return [g for g in groups.values() if g[0].score is not None]


def training_ns(history: HistoryView) -> int | None:
    """What a full training costs on average, by those that were completed here; None before."""
    costs = [_paid_ns(t) for t in history if t.state is TrialState.COMPLETED and not t.source]
    if costs:
        return sum(costs) // len(costs)
    if history.mean_epoch_ns is None or history.max_epochs is None:
        return None
    return history.mean_epoch_ns * history.max_epochs


def winner_ns(history: HistoryView) -> int | None:
    """What a full training of the winner is expected to cost here; None before the first.

    What its own did, at its full length, or what one costs on average where that is more.
    """
    winner, usual_ns = chosen(history), training_ns(history)
    if winner is None or usual_ns is None or not winner.epoch:
        return usual_ns
    epochs = history.max_epochs or winner.epoch
    return max(usual_ns, winner.device_ns * epochs // winner.epoch)


def _overhead(history: HistoryView) -> float:
    """What the run paid since its first trial began, over what its trials cost: at least 1."""
    charged = history.charged_ns
    if not charged:
        return 1.0
    return max(1.0, (history.spent_ns - history.trained[0].started_ns) / charged)


def _price_ns(action: Sample | Resume, history: HistoryView, cost_ns: int) -> int:
    if isinstance(action, Resume):
        trial = history[action.number]
        return (action.until_epoch - trial.epoch) * trial.device_ns // max(1, trial.epoch)
    if history.max_epochs is None:
        return cost_ns
    return cost_ns * action.until_epoch // history.max_epochs


def _mean(group: list[Trial]) -> float:
    """Over a configuration's trainings; infinitely bad where one of them broke off."""
    scores = [-math.inf if t.score is None else t.score for t in group]
    return statistics.fmean(scores)


def _variance(group: list[Trial]) -> float:
    return statistics.variance(t.score or 0.0 for t in group)


def _rank(trial: Trial) -> tuple[float, int]:
    return (-(trial.score or 0.0), trial.number)
