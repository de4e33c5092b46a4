"""What is logged of a trial, whoever keeps the log: one place that knows what is new."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tuner.budget import to_minutes
from tuner.escape import visible
from tuner.reader import Snapshot, study_file, study_name
from tuner.study import Study
from tuner.trial import Observation, Trial, TrialState

_ODD = re.compile(r"[^\w\-. ]")
_LONGEST = 120


@dataclass(frozen=True)
class Search:
    """Which search a trial is of; `study` is the name of the folder that it is read from."""

    searcher: str
    seed: int
    study: str = ""

    @property
    def name(self) -> str:
        """Harmless as a path, such as `random-0` or `my-race/random-0`."""
        parts = filter(None, [self.study, f"{self.searcher}-{self.seed}"])
        return "/".join(plain_names([part])[0] for part in parts)


class TrialLog(Protocol):
    """Where one trial is logged."""

    def write(self, trial: Trial, news: Sequence[Observation]) -> None:
        """Log new epochs and, where the trial has ended, its end.

        While a trial is not running, nothing needs to be held open for it.
        """

    def close(self) -> None:
        """Let go of a trial that has not ended."""


Begin = Callable[[Search, Trial], TrialLog | None]
"""Makes the log of a trial; None where all of it was logged before."""


@dataclass
class _Open:
    log: TrialLog
    epochs: int = 0
    state: TrialState | None = None


@dataclass
class _Seen:
    next: int = 0
    open: dict[int, _Open] = field(default_factory=dict)


class TrialLogger:
    """Logs every trial that a search trains itself, as it goes on; a callback of `tune`.

    With trials that you run yourself call it with the study whenever something has changed, and
    `close` it, or use it in a `with`.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._seen: dict[Search, _Seen] = {}

    def __call__(self, study: Study) -> None:
        """Log what is new in a study."""
        self.follow(Search(study.entry, study.seed), len(study.history), study.trial)

    def follow(self, search: Search, count: int, trial_of: Callable[[int], Trial]) -> None:
        """Log what is new in the first `count` trials of a search."""
        seen = self._seen.setdefault(search, _Seen())
        for number in range(seen.next, count):
            trial = trial_of(number)
            log = None if trial.source else self._begin(search, trial)
            if log is not None:
                seen.open[number] = _Open(log)
        seen.next = max(seen.next, count)
        for number, known in list(seen.open.items()):
            trial = trial_of(number)
            if trial.epoch > known.epochs or trial.state is not known.state:
                known.log.write(trial, trial.curve[known.epochs :])
                known.epochs, known.state = trial.epoch, trial.state
            if trial.state.is_final:
                del seen.open[number]

    def close(self) -> None:
        """Let go of trials that have not ended."""
        for seen in self._seen.values():
            while seen.open:
                seen.open.popitem()[1].log.close()

    def __enter__(self) -> TrialLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def log_place(logger: TrialLogger, place: str | Path) -> int:
    """Log what a folder's `study.sqlite`, or a file, holds, all runs of a race; how many trials.

    It is only read, and may be in use. Raises ValueError where there is no study, or none that can
    be read.
    """
    snapshot = Snapshot(study_file(Path(place)))
    count = 0
    try:
        sign = -1.0 if snapshot.meta("mode") == "min" else 1.0
        with logger:
            for row in snapshot.runs():
                trials = [outward(t, sign) for t in snapshot.trials(row)]
                search = Search(row.searcher, row.seed, name_of(place))
                logger.follow(search, len(trials), trials.__getitem__)
                count += sum(not t.source for t in trials)
    finally:
        snapshot.close()
    return count


def name_of(place: str | Path) -> str:
    """Of a study, by its folder or file."""
    return study_name(study_file(Path(place)))


def outward(trial: Trial, sign: float) -> Trial:
    """A trial with its scores as they were told."""
    if sign > 0:
        return trial
    return replace(trial, curve=tuple(o._replace(score=-o.score) for o in trial.curve))


def trial_name(trial: Trial) -> str:
    """Such as `trial-00007`."""
    return f"trial-{trial.number:05d}"


def numbers_of(trial: Trial, seen: Observation) -> dict[str, float]:
    """What is logged of an epoch: the score, the device minutes so far, and what else there is."""
    minutes = to_minutes(sum(o.device_ns for o in trial.curve[: seen.epoch]))
    found = {"score": seen.score, "device_minutes": minutes}
    metrics = seen.metrics if isinstance(seen.metrics, Mapping) else {}
    names = plain_names(metrics)
    for name, value in zip(names, metrics.values(), strict=True):
        if isinstance(value, int | float) and math.isfinite(value):
            found[f"metrics/{name}"] = float(value)
    return found


def facts_of(search: Search, trial: Trial) -> dict[str, str]:
    """What is known of a trial beside numbers."""
    facts = {
        "searcher": search.searcher,
        "seed": str(search.seed),
        "trial": str(trial.number),
        "state": trial.state.name,
        "reason": trial.remark,
    }
    return {key: visible(text) for key, text in facts.items()}


def knobs_of(trial: Trial) -> dict[str, float | int | str | bool]:
    """The configuration with names that every log accepts; None is text."""
    names = plain_names(trial.config)
    return {
        name: visible(str(value)) if value is None or isinstance(value, str) else value
        for name, value in zip(names, trial.config.values(), strict=True)
    }


def paid_minutes(trial: Trial) -> float:
    """Device minutes that the search paid for it, epochs that were broken off included."""
    return to_minutes(trial.paid_ns)


def plain_names(names: Iterable[str]) -> list[str]:
    """Names of letters, digits, `_`, `-`, `.` and blanks, no two alike and none a way elsewhere."""
    found: dict[str, None] = {}
    for name in names:
        plain = _ODD.sub("_", visible(name))[:_LONGEST].strip(" .") or "_"
        unique = plain
        for count in range(2, len(found) + 2):
            if unique not in found:
                break
            unique = f"{plain}_{count}"
        found[unique] = None
    return list(found)
