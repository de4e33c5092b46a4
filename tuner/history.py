"""What has happened in one search: read by everyone, written by the scheduler or a study alone."""

from __future__ import annotations

import math
import statistics
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tuner.ranking import OpenRanking, Ranking
from tuner.seeding import config_text
from tuner.space import Config
from tuner.trial import ADDED, Observation, Trial, TrialState


class HistoryView:
    """What searchers and policies may read of a history: everything, and change nothing.

    Trials that were taken over from an earlier study are in it as any other, to be learnt from.
    What the search itself has done and found counts the trials that it `trained`, alone.

    Attributes:
        max_epochs: the full length of a training; None where the training itself says when.
        budget_ns: the device time that the search may use in all; None where it is not limited.
        is_exhausted: whether the searcher has nothing more to propose.
    """

    def __init__(self, max_epochs: int | None = None, budget_ns: int | None = None) -> None:
        self.max_epochs = max_epochs
        self.budget_ns = budget_ns
        self.is_exhausted = False
        self._trials: list[Trial] = []
        self._own: list[int] = []
        self._open: dict[int, None] = {}  # unfinished trials, an ordered set
        self._under_way: dict[int, None] = {}  # those of them that have not reached their target
        self._waiting: dict[int, OpenRanking] = {}  # those that wait for a decision, by epoch
        self._finished_at: dict[int, OpenRanking] = {}  # for the epochs that were asked for
        self._means_until: dict[int, list[float]] = {}  # likewise
        self._best: Trial | None = None
        self._best_ended: Trial | None = None
        self._epochs = 0
        self._epochs_ns = 0
        self._cheapest_ns: int | None = None
        self._partial_ns = 0
        self._reading_ns = 0  # the latest of the run's device time
        self._begun: Counter[str] = Counter()  # trainings of each configuration

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials by number."""
        return tuple(self._trials)

    @property
    def own(self) -> tuple[Trial, ...]:
        """All trials that a policy answers for, by number.

        Not those taken over from another search, nor trainings that only repeat one.
        """
        return tuple(self._trials[n] for n in self._own)

    @property
    def own_numbers(self) -> Sequence[int]:
        """The numbers of `own`, ascending: without a look at all of them."""
        return self._own

    @property
    def trained(self) -> tuple[Trial, ...]:
        """All trials of this search itself, by number, repeats included: not those taken over."""
        return tuple(t for t in self._trials if not t.source)

    def trainings(self, config: Config) -> int:
        """How many trainings of a configuration this search itself has begun."""
        return self._begun[config_text(config)]

    @property
    def running(self) -> tuple[Trial, ...]:
        """Trials whose result is still to come, by number: running, paused, interrupted."""
        return tuple(self._trials[n] for n in sorted(self._open))

    @property
    def under_way(self) -> tuple[Trial, ...]:
        """Trials that have not come as far as they were sent, in flight or not, by number."""
        return tuple(self._trials[n] for n in sorted(self._under_way))

    @property
    def waiting(self) -> Mapping[int, Ranking]:
        """Trials that have come as far as they were sent and wait, ranked, by their epoch."""
        return self._waiting

    @property
    def finished(self) -> tuple[Trial, ...]:
        """Trials that will never train again, by number."""
        return tuple(t for t in self._trials if t.state.is_final)

    @property
    def best(self) -> Trial | None:
        """The incumbent: the highest latest score of this search itself, finished or not.

        The earlier one on a tie.
        """
        return self._best

    @property
    def best_earlier(self) -> Trial | None:
        """The best result from before, where it beats all that this search has trained itself."""
        found = max((t for t in self._trials if t.source), key=_rank, default=None)
        if found is None or found.score is None:
            return None
        best = self.best
        is_ahead = best is None or best.score is None or found.score > best.score
        return found if is_ahead else None

    @property
    def epochs_seen(self) -> int:
        """How many epochs all trials of this search itself have finished."""
        return self._epochs

    @property
    def charged_ns(self) -> int:
        """Device time that was charged to trials of this search, broken-off epochs included."""
        return self._epochs_ns + self._partial_ns

    @property
    def spent_ns(self) -> int:
        """Device time that this search has spent, as far as its trials show it.

        What was charged to no trial shows in the reading of the meter at the next event.
        """
        return max(self.charged_ns, self._reading_ns)

    @property
    def left_ns(self) -> int | None:
        """What may still be spent, less what trials in flight hold back; None without a limit."""
        if self.budget_ns is None:
            return None
        reserved = sum(t.reserved_ns for t in self.running if t.state is TrialState.RUNNING)
        return self.budget_ns - self.spent_ns - reserved

    @property
    def mean_epoch_ns(self) -> int | None:
        """Mean device time of an epoch of this search itself; None before the first."""
        return self._epochs_ns // self._epochs if self._epochs else None

    @property
    def cheapest_epoch_ns(self) -> int | None:
        """Device time of the cheapest epoch of `own` trials; None before the first."""
        return self._cheapest_ns

    def finished_at(self, epoch: int) -> Ranking:
        """The ranking of `own` trials at an epoch.

        Who broke on the way to it is in it, infinitely bad; who broke on the way to an earlier
        rung was never sent here. Made of the whole history when it is first asked for, and kept
        from then on.
        """
        if epoch not in self._finished_at:
            ranking = self._finished_at[epoch] = OpenRanking()
            for number in self._own:
                _rank_at(epoch, ranking, None, self._trials[number])
        return self._finished_at[epoch]

    def means_until(self, epoch: int) -> Sequence[float]:
        """Of every completed `own` trial the mean score until an epoch, ascending.

        Made of the whole history when it is first asked for, and kept from then on.
        """
        if epoch not in self._means_until:
            whole = (t for t in self.own if t.state is TrialState.COMPLETED and t.curve)
            self._means_until[epoch] = sorted(_mean_until(t, epoch) for t in whole)
        return self._means_until[epoch]

    def scores_at(self, epoch: int) -> dict[int, float]:
        """Scores at exactly this epoch, by trial number, of all trials that reached it."""
        return {
            t.number: o.score
            for t in self._trials
            for o in t.curve[epoch - 1 :]
            if o.epoch == epoch
        }

    def view(self) -> HistoryView:
        """A view that follows this history and has no way to change it."""
        other = HistoryView.__new__(HistoryView)
        other.__dict__ = self.__dict__  # one shared state, two sets of methods
        return other


class History(HistoryView):
    """The append-only record of one search. A subclass may also write it down."""

    def start(self, trial: Trial) -> Trial:
        """Append a new trial, whose number must be the next one."""
        if trial.number != len(self._trials):
            raise ValueError(f"expected trial {len(self._trials)} to start, got {trial.number}")
        self._begin(trial)
        return self._place(trial)

    def restore(self, trial: Trial) -> None:
        """Append a trial as it is on record, with its curve and state; it is not written down."""
        self._begin(trial)
        for observation in trial.curve:
            self._count(trial, observation)
        History._place(self, trial)  # not a subclass's: this is no news

    def adopt(self, trial: Trial) -> None:
        """Append a trial that another history has seen, with its curve and state, as news."""
        self.restore(trial)

    def observe(self, number: int, observation: Observation, **changes: object) -> Trial:
        """Append the next epoch to an open trial; `changes` go into other fields of the trial."""
        trial = self._open_trial(number)
        if observation.epoch != trial.epoch + 1:
            raise ValueError(
                f"trial {number} is at epoch {trial.epoch}: epoch {observation.epoch} is not next"
            )
        if not math.isfinite(observation.score):
            raise ValueError(f"trial {number}: a score is a finite number, got {observation.score}")
        self._count(trial, observation)
        curve = (*trial.curve, observation)
        return self._place(_changed(trial, curve=curve, **changes))

    def update(self, number: int, **changes: object) -> Trial:
        """Change the state or the book-keeping of an open trial, never its curve or config."""
        return self._place(_changed(self._open_trial(number), **changes))

    def close(self, number: int, state: TrialState, reason: str = "") -> Trial:
        """Put an open trial into a final state."""
        if not state.is_final:
            raise ValueError(f"a trial is closed as COMPLETED, STOPPED, …, not as {state.name}")
        return self.update(number, state=state, reason=reason)

    def _begin(self, trial: Trial) -> None:
        if not trial.source:
            self._begun[config_text(trial.config)] += 1
            self._reading_ns = max(self._reading_ns, trial.started_ns)

    def _count(self, trial: Trial, observation: Observation) -> None:
        if not trial.source:
            self._epochs += 1
            self._epochs_ns += observation.device_ns
        if trial.source in ("", ADDED):  # which may have cost something
            self._reading_ns = max(self._reading_ns, observation.at_ns)
        if trial.is_own and (
            self._cheapest_ns is None or observation.device_ns < self._cheapest_ns
        ):
            self._cheapest_ns = observation.device_ns

    def _open_trial(self, number: int) -> Trial:
        if not 0 <= number < len(self._trials):
            raise ValueError(f"there is no trial {number}; the last is {len(self._trials) - 1}")
        if number not in self._open:
            raise ValueError(f"trial {number} has ended: {self._trials[number].state.name}")
        return self._trials[number]

    def _place(self, trial: Trial) -> Trial:
        """Put a trial, new or changed, where every question will find it."""
        number = trial.number
        if number == len(self._trials):
            old = None
            self._trials.append(trial)
            if trial.is_own:
                self._own.append(number)
        else:
            old = self._trials[number]
            self._trials[number] = trial
        if (
            old is None
            or old.state is not trial.state
            or not (old.epoch < old.target and trial.epoch < trial.target)
        ):  # else it was under way and still is
            self._sort(old, trial)
        if not trial.source:
            self._partial_ns += trial.partial_ns - (old.partial_ns if old else 0)
            self._choose(old, trial)
        if trial.is_own:
            self._compare(old, trial)
        return trial

    def _sort(self, old: Trial | None, trial: Trial) -> None:
        """Keep what is open, and whether that is under way or waits."""
        number = trial.number
        if trial.state.is_final:
            self._open.pop(number, None)
        else:
            self._open[number] = None
        if not trial.state.is_final and trial.epoch < trial.target:
            self._under_way[number] = None
        else:
            self._under_way.pop(number, None)
        if old is not None and old.waits:
            self._waiting[old.epoch].remove(number, old.curve[-1].score)
        if trial.waits:
            ranking = self._waiting.setdefault(trial.epoch, OpenRanking())
            ranking.add(number, trial.curve[-1].score)

    def _choose(self, old: Trial | None, trial: Trial) -> None:
        """Keep the incumbent: of what has ended, which never changes, and of what is open."""
        if trial.state.is_final and _is_better(trial, self._best_ended):
            self._best_ended = trial
        if old is None or old is not self._best:
            if _is_better(trial, self._best):
                self._best = trial
        elif not _is_better(old, trial):
            self._best = trial
        else:  # the incumbent fell, and another may be the best now
            self._best = self._best_ended
            for number in self._open:
                other = self._trials[number]
                if not other.source and _is_better(other, self._best):
                    self._best = other

    def _compare(self, old: Trial | None, trial: Trial) -> None:
        """Keep what policies compare trials by."""
        for epoch, ranking in self._finished_at.items():
            _rank_at(epoch, ranking, old, trial)
        if trial.state is TrialState.COMPLETED and trial.curve:
            for epoch, means in self._means_until.items():
                insort(means, _mean_until(trial, epoch))


def _changed(trial: Trial, **changes: object) -> Trial:
    """As `dataclasses.replace`, without a look at every field: each epoch does this."""
    new = object.__new__(Trial)
    fields = new.__dict__
    fields.update(trial.__dict__)
    fields.update(changes)
    if len(fields) > len(trial.__dict__):
        unknown = changes.keys() - trial.__dict__.keys()
        raise TypeError(f"a trial has no {', '.join(sorted(unknown))}")
    return new


def _rank(trial: Trial) -> tuple[float, int]:
    score = trial.score
    return (-float("inf") if score is None else score, -trial.number)


def _is_better(trial: Trial, other: Trial | None) -> bool:
    """Whether a trial has a score, and a higher one than the other; the earlier one on a tie."""
    score = trial.score
    if score is None or other is None:
        return score is not None
    best = other.score
    return best is None or score > best or (score == best and trial.number < other.number)


def _rank_at(epoch: int, ranking: OpenRanking, old: Trial | None, new: Trial) -> None:
    """Enter a trial that has finished an epoch, or broken on the way, since it was as `old`."""
    if _is_at(epoch, new) and not (old is not None and _is_at(epoch, old)):
        ranking.add(new.number, new.score_at(epoch))


def _is_at(epoch: int, trial: Trial) -> bool:
    return len(trial.curve) >= epoch or (trial.state.is_broken and trial.target >= epoch)


def _mean_until(trial: Trial, epoch: int) -> float:
    return statistics.fmean(o.score for o in trial.curve[:epoch])
