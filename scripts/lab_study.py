"""What the commands of a lab do to a study: open it, ask, tell and import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.sheets import (
    Measurement,
    read_measurements,
    read_results,
    read_sheet,
    result_columns,
)
from tuner.confirm import chosen
from tuner.entry import make_entry
from tuner.escape import visible
from tuner.fidelity import FullFidelity
from tuner.history import History
from tuner.naming import pick
from tuner.reader import RunRow, Snapshot, study_file
from tuner.searchers import SpaceExhausted
from tuner.seeding import checked_seed, config_text
from tuner.space import SearchSpace
from tuner.space_file import read_space
from tuner.study import SIGNS, Study
from tuner.trial import Trial, TrialState

_WORDS = {
    TrialState.COMPLETED: "with a score",
    TrialState.INFEASIBLE: "infeasible",
    TrialState.FAILED: "failed",
}


@dataclass(frozen=True)
class Wishes:
    """What a new study is to be, and an old one has to be; None for what was not said."""

    space: Path | None = None
    searcher: str | None = None
    seed: int | None = None
    mode: str | None = None


@dataclass(frozen=True)
class Terms:
    """What a study is of, for good."""

    space: SearchSpace
    searcher: str
    seed: int
    mode: str
    max_epochs: int | None = None


@dataclass(frozen=True)
class Reading:
    """A study as it was a moment ago; scores as they were told."""

    space: SearchSpace
    waiting: Sequence[Trial]
    best: Trial | None
    counts: str


def read_only(study: Path) -> Reading:
    """What is in a study, be it in use or not; raises ValueError where there is none."""
    snapshot = Snapshot(study_file(study))
    try:
        row, mode = _only_run(snapshot)
        history = History(row.max_epochs, row.budget_ns)
        for trial in snapshot.trials(row):
            history.restore(trial)
    finally:
        snapshot.close()
    best = history.best_earlier or chosen(history)
    if best is not None and SIGNS[mode] < 0:
        best = replace(best, curve=tuple(o._replace(score=-o.score) for o in best.curve))
    return Reading(row.space, history.running, best, _counts(history.trials))


@contextmanager
def open_study(study: Path, wishes: Wishes | None = None) -> Iterator[Study]:
    """The study, to ask and to tell; made where `wishes` come with a space and there is none.

    Raises ValueError where there is none, where it is in use, or where it is not as wished.
    """
    path = study_file(study)
    terms = _terms(path, wishes)
    _make_folder(path.parent)
    with Study(
        terms.space,
        terms.searcher,
        terms.seed,
        path,
        mode=terms.mode,
        max_epochs=terms.max_epochs,
    ) as opened:
        yield opened


def ask_for(study: Study, count: int) -> list[Trial]:
    """So many new experiments, or as many as a finite space has left; at least one.

    Each is proposed with those before it, and all that wait, in mind. All are on record, or none.
    """
    asked: list[Trial] = []
    with study.together():
        try:
            for _ in range(count):
                asked.append(study.ask())
        except SpaceExhausted as error:
            if not asked:
                raise ValueError(f"there is nothing left to ask for: {error}") from error
    return asked


def tell_sheet(study: Study, path: Path) -> list[str]:
    """Tell all results of a sheet, or none, and say in a few lines what was told."""
    sheet = read_sheet(path, ["trial", "score"])
    results = read_results(sheet, study.space, study.trials)
    with study.together():
        for result in results:
            state = result.state.name.lower()
            study.tell(
                result.trial, result.score, result.minutes, state=state, reason=result.reason
            )
    told = Counter(result.state for result in results)
    kinds = ", ".join(f"{count} {_WORDS[state]}" for state, count in told.items())
    lines = [f"{len(results)} told{f' ({kinds})' if kinds else ''}; {still(study)}"]
    return lines + _unread(sheet.unread({"trial", *result_columns(study.space), *study.space}))


def import_sheet(study: Path, wishes: Wishes, path: Path, score: str) -> list[str]:
    """Add all results of a sheet, or none, and say in a few lines what was added.

    Nothing is made or changed before the sheet is found to fit. What is in the study already is
    not added: it would count twice. A sheet all of which is, is refused.
    """
    terms = _terms(study_file(study), wishes)
    if score in terms.space:
        raise ValueError(f"--score {score} is the name of a knob; name the column with the scores")
    sheet = read_sheet(path, [*terms.space, score])
    measured = read_measurements(sheet, terms.space, score)
    with open_study(study, wishes) as opened:
        known = Counter(
            (config_text(t.config), t.score) for t in opened.trials if t.score is not None
        )
        new = []
        for one in measured:
            key = config_text(one.config), one.score
            if known[key]:
                known[key] -= 1  # a replicate of the same score is another result
            else:
                new.append(one)
        if not new:
            raise ValueError(f"all {len(measured)} results of {path} are in {study} already")
        with opened.together():
            _add(opened, new)
        best = opened.best
        lines = [f"{len(new)} results imported; {still(opened)}"]
        if len(new) < len(measured):
            lines.append(f"{len(measured) - len(new)} more are in the study already, and stay once")
        if best is not None:
            lines.append(f"The best so far is trial {best.number}: {best.score:.6g}")
    return lines + _unread(sheet.unread({score, *terms.space}))


def _add(study: Study, measured: Sequence[Measurement]) -> None:
    for one in measured:
        study.add(one.config, one.score)


# -- parts -----------------------------------------------------------------------------------------


def _only_run(snapshot: Snapshot) -> tuple[RunRow, str]:
    rows, mode = snapshot.runs(), snapshot.meta("mode")
    if len(rows) != 1 or mode not in SIGNS:
        raise ValueError(
            f"{snapshot.path} is a race, not a study that is asked and told; its results are in "
            "its summary.json"
        )
    return rows[0], mode


def _terms(path: Path, wishes: Wishes | None) -> Terms:
    """Of the study that is there, or that is to be made."""
    wishes = wishes or Wishes()
    space = None if wishes.space is None else read_space(wishes.space)
    if not path.exists():
        if space is None:
            raise ValueError(f"there is no study at {path}; ask with --space FILE makes a new one")
        return _new_terms(space, wishes)
    snapshot = Snapshot(path)
    try:
        row, mode = _only_run(snapshot)
    finally:
        snapshot.close()
    kept = Terms(row.space, row.searcher, row.seed, mode, row.max_epochs)
    asked = {"searcher": wishes.searcher, "seed": wishes.seed, "mode": wishes.mode}
    for name, value in asked.items():
        if value is not None and value != getattr(kept, name):
            raise ValueError(
                f"{path} goes on with --{name} {getattr(kept, name)}, and {value} was asked for; "
                "choose another place for another study"
            )
    if space is not None and space != kept.space:
        raise ValueError(
            f"{path} has other knobs than {wishes.space}; leave --space out, or choose another "
            "place for another study"
        )
    return kept


def _new_terms(space: SearchSpace, wishes: Wishes) -> Terms:
    terms = Terms(space, wishes.searcher or "bayes", wishes.seed or 0, wishes.mode or "max")
    pick(terms.mode, SIGNS, "mode")
    checked_seed(terms.seed, "--seed")
    _, policy = make_entry(terms.searcher, space, terms.seed, epochs=None)
    if not isinstance(policy, FullFidelity):
        raise ValueError(
            f"{terms.searcher} trains in parts, and an experiment is done once; take bayes"
        )
    return terms


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _counts(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.state for trial in trials)
    waiting = sum(not trial.state.is_final for trial in trials)
    parts = [f"{counts[state]} {word}" for state, word in _WORDS.items() if counts[state]]
    experiments = f"{len(trials)} experiment{'' if len(trials) == 1 else 's'}"
    return ", ".join([experiments, *parts, f"{waiting} waiting"])


def still(study: Study) -> str:
    """How many wait, in words."""
    waiting = len(study.history.running)
    return f"{waiting} still wait{'s' if waiting == 1 else ''}."


def _unread(columns: Sequence[str]) -> list[str]:
    names = ", ".join(visible(name, 60) for name in columns)
    return [f"Not read: the column{'' if len(columns) == 1 else 's'} {names}"] if columns else []
