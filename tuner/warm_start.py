"""Results of earlier studies as the first trials of a new one: which can be taken over, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.reader import Snapshot, study_file, study_name
from tuner.seeding import config_text
from tuner.space import Choice, Config, Domain, SearchSpace
from tuner.trial import ADDED, Trial, TrialState


@dataclass(frozen=True)
class EarlierStudy:
    """A study as far as another can learn from it.

    Attributes:
        name: of its folder, or of its file where that has a name of its own.
        path: where it is, to be named where something is wrong with it.
        runs: the full length of a training, None for no limit, and the trials of each run.
        mode: "max", or "min" where its scores are negated losses.
        request: what `scripts/tune.py` was asked for; empty where the study is a library's.
    """

    name: str
    path: Path | str
    runs: Sequence[tuple[int | None, Sequence[Trial]]]
    mode: str
    request: Mapping[str, Any]

    def has(self, taken: Iterable[Trial], space: SearchSpace) -> bool:
        """Whether trials that were taken over from a study of this name can be from this one.

        It may have gone on since, and may lie elsewhere now. Of a trial that had not ended the last
        score may be another one now: Optuna's trials end with a score that they have not reported.
        """
        curves: dict[str, list[list[float]]] = {}
        for trial in (t for _, trials in self.runs for t in trials):
            scores = [o.score for o in trial.curve]
            curves.setdefault(config_text(space.completed(trial.config)), []).append(scores)
        return all(
            any(
                scores[:settled] == [o.score for o in trial.curve[:settled]]
                for settled in [trial.epoch - (trial.state is TrialState.STOPPED)]
                for scores in curves.get(config_text(trial.config), ())
            )
            for trial in taken
        )


@dataclass(frozen=True)
class Taken:
    """What a new study takes over of an earlier one.

    Attributes:
        trials: numbered on from where the new study was; final, free and without a checkpoint.
        left_out: how many trials were not, by the reason.
    """

    name: str
    trials: Sequence[Trial]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        """How many were taken over, how many were not, and why."""
        count = len(self.trials)
        text = f"{count} result{'' if count == 1 else 's'} from {self.name}"
        return f"{text}; left out: {in_words(self.left_out)}" if self.left_out else text

    @property
    def best(self) -> Trial | None:
        """The one with the highest score; None where there is none with a score."""
        scored = [t for t in self.trials if t.score is not None]
        return max(scored, key=lambda t: (t.score or 0.0, -t.number), default=None)


def read_study(place: Path) -> EarlierStudy:
    """The study in a folder, or in a file, as it is now; nobody who writes it is disturbed.

    Raises ValueError where there is no study, or none that can be read.
    """
    path = study_file(place)
    snapshot = Snapshot(path)
    try:
        return EarlierStudy(
            study_name(path),
            path,
            [(row.max_epochs, snapshot.trials(row)) for row in snapshot.runs()],
            snapshot.meta("mode") or "max",
            snapshot.request(),
        )
    finally:
        snapshot.close()


def take_over(
    studies: Iterable[EarlierStudy],
    space: SearchSpace,
    max_epochs: int | None,
    *,
    first: int = 0,
    known: Iterable[str] = (),
) -> list[Taken]:
    """What can be taken over of each study into a space and a full length of training.

    A configuration must have exactly the knobs of the space, each with a value in its domain:
    ranges may differ, and what lies outside is left out. Curves come along, cut at `max_epochs`.
    A trial that is complete at that length is COMPLETED, one with a shorter curve STOPPED, and an
    infeasible one INFEASIBLE. The same configuration from several runs is taken as often.

    What a study had taken over itself comes along once, under the name of the study that it is
    from, unless that is among `studies` or was come across before.

    Args:
        studies: in the order of their trials.
        space: that the trials have to lie in.
        max_epochs: the full length of a training now; None for no limit.
        first: the number of the first trial.
        known: studies whose results the new one has already.

    Raises ValueError where a study has nothing that can be taken over, and says why.
    """
    studies = list(studies)
    for study in studies:
        if study.name == ADDED:
            raise ValueError(
                f"the results of {study.path} could not be told from those that are added by hand, "
                f"which are known as {ADDED!r}: give it another name"
            )
    known = {*known, *(study.name for study in studies)}
    found = []
    for study in studies:
        trials: list[Trial] = []
        left_out: Counter[str] = Counter()
        passed_on: set[str] = set()
        for run, (whole, old) in enumerate(study.runs):
            for trial in old:
                is_own = trial.source in ("", ADDED)
                if not is_own and (run > 0 or trial.source in known):
                    continue
                trial = replace(trial, config=space.completed(trial.config))
                if problem := _problem(trial, space):
                    left_out[problem] += 1
                    continue
                new = _as_earlier(trial, space, whole, max_epochs)
                source = study.name if is_own else trial.source
                passed_on.add(source)
                trials.append(replace(new, number=first + len(trials), source=source))
        if not trials:
            why = in_words(left_out) if left_out else "it has no trials of its own"
            raise ValueError(f"nothing in {study.path} can be taken over: {why}")
        found.append(Taken(study.name, trials, left_out))
        first += len(trials)
        known |= passed_on
    return found


def in_words(left_out: Mapping[str, int]) -> str:
    """How many were left out and why, the commonest reason first."""
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(
        f"{count} trial{' has' if count == 1 else 's have'} {why}" for why, count in ranked
    )


def _problem(trial: Trial, space: SearchSpace) -> str:
    """Why a trial cannot be taken over; empty where it can."""
    missing = [name for name in space if name not in trial.config]
    unknown = [name for name in trial.config if name not in space]
    if missing or unknown:
        parts = ("no knob " + ", ".join(missing)) if missing else ""
        more = ("the further knob " + ", ".join(unknown)) if unknown else ""
        return " and ".join(filter(None, [parts, more]))
    for name, domain in space.items():
        if not space.is_there(name, trial.config):
            if trial.config[name] is not None:
                return f"a {name} where there is none"
        elif not domain.contains(trial.config[name]):
            return f"{name} outside {_range(domain)}"
    if not trial.curve and trial.state is not TrialState.INFEASIBLE:
        return "no finished epoch"
    return ""


def _range(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return "the options " + ", ".join(map(str, domain.options))
    return f"{domain.low:g} to {domain.high:g}"


def _as_earlier(
    trial: Trial, space: SearchSpace, whole: int | None, max_epochs: int | None
) -> Trial:
    """A trial as one of another study, which was full at `whole` epochs where it is at `max`."""
    curve = tuple(o._replace(at_ns=0) for o in trial.curve[:max_epochs])
    is_cut = max_epochs is not None and len(trial.curve) >= max_epochs  # before it broke
    if trial.state is TrialState.INFEASIBLE and not is_cut:
        state = TrialState.INFEASIBLE
    elif len(curve) == max_epochs or _said_so_itself(trial, whole):
        state = TrialState.COMPLETED
    else:
        state = TrialState.STOPPED
    config: Config = {name: trial.config[name] for name in space}
    return Trial(
        trial.number,
        config,
        trial.seed,
        max(1, len(curve)),
        state,
        curve,
        reason=trial.reason if state is TrialState.INFEASIBLE else "",
        repeat=trial.repeat,
    )


def _said_so_itself(trial: Trial, whole: int | None) -> bool:
    """Whether the training itself was at its end, and not its study at the full length."""
    return trial.state is TrialState.COMPLETED and trial.epoch != whole
