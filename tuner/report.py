"""What a race leaves for people and scripts: a summary, two tables, the best configuration."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuner.budget import Costs, Kind, to_minutes
from tuner.confirm import Expected, chosen, mean_score
from tuner.escape import in_csv, in_json
from tuner.fidelity import first_rung
from tuner.files import write_atomically
from tuner.history import History, HistoryView
from tuner.importance import importance
from tuner.progress import Line, race_progress
from tuner.reader import RunRow
from tuner.terrain import Terrain
from tuner.trial import Trial, TrialState, negated
from tuner.verdict import verdict


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        test_score: of the winner, in real training.
        value: of the winner, on a landscape: its score without noise.
        expected: what another training of the winner may be expected to score; None where nobody
            knows.
        preferred: the number of the trial that a model of the scores takes for the best; None where
            the scores themselves say who wins.
        returned_ns: what a search that may end by itself left over; None where it may not.
    """

    row: RunRow
    history: HistoryView
    ledger: Costs
    test_score: float | None
    value: float | None = None
    expected: Expected | None = None
    returned_ns: int | None = None
    preferred: int | None = None

    @property
    def winner(self) -> Trial | None:
        """The trial whose configuration a user should take."""
        return chosen(self.history) if self.preferred is None else self.history[self.preferred]


def best_so_far(history: HistoryView) -> list[tuple[int, float]]:
    """The incumbent's score each time it changed: (device ns of the run, score).

    A trial counts with its latest epoch, so an incumbent that gets worse lowers the line.
    Trials that turned out infeasible or failed never count.
    """
    seen = sorted(
        (o.at_ns, t.number, o.epoch, o.score)
        for t in history.trained
        if t.state not in (TrialState.INFEASIBLE, TrialState.FAILED)
        for o in t.curve
    )
    latest: dict[int, float] = {}
    line: list[tuple[int, float]] = []
    best, holder = float("-inf"), -1
    for at_ns, number, _, score in seen:
        latest[number] = score
        if score > best or number == holder:
            # Only the incumbent's own fall needs a look at all the others.
            holder = number if score >= best else max(latest, key=lambda n: (latest[n], -n))
            best = latest[holder]
            if not line or line[-1][1] != best:
                line.append((at_ns, best))
    return line


def main_knobs(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """The two knobs whose value alone explains most of the scores' variance.

    Scores are ranked, so that a cliff does not decide; each knob is cut into five cells, and what
    counts is the share of the variance that lies between the cells (eta squared).
    """
    space = outcomes[0].row.space
    names = list(space)
    trials = [t for o in outcomes for t in o.history.trained if t.score is not None]
    if len(names) <= 2 or len(trials) < 10:
        return names[0], names[min(1, len(names) - 1)]
    ranks = np.argsort(np.argsort([t.score or 0.0 for t in trials])).astype(float)
    units = space.to_unit([t.config for t in trials])  # n x d
    shares = []
    for column in units.T:
        cells = np.minimum((column * 5).astype(int), 4)
        means = [ranks[cells == c].mean() for c in cells]
        shares.append(np.var(means))
    first, second = np.argsort(shares)[::-1][:2]
    return names[first], names[second]


def as_told(outcome: Outcome, sign: float) -> Outcome:
    """The same with the scores that were told, for tables: -1 is the sign of a minimised one."""
    if sign > 0:
        return outcome
    history = History(outcome.row.max_epochs, outcome.row.budget_ns)
    for trial in outcome.history:
        history.restore(negated(trial))
    return replace(outcome, history=history)


def run_summary(outcome: Outcome, sign: float = 1.0) -> dict[str, Any]:
    """One entry of `runs` in summary.json. Scores are as they were told, times are minutes."""
    history, best, winner = outcome.history, outcome.history.best, outcome.winner
    expected, returned, trained = outcome.expected, outcome.returned_ns, history.trained
    return {
        "searcher": outcome.row.searcher,
        "seed": outcome.row.seed,
        "trials": len(trained),
        "states": dict(sorted(Counter(t.state.name for t in trained).items())),
        "best_score": None if best is None or best.score is None else sign * best.score,
        "best_trial": None if winner is None else winner.number,
        "best_trial_score": None if winner is None or winner.score is None else sign * winner.score,
        "best_config": None if winner is None else dict(winner.config),
        "expected_score": None
        if expected is None
        else replace(expected, mean=sign * expected.mean).to_json(),
        "confirmations": sum(t.confirms is not None for t in history),
        "test_score": outcome.test_score,
        "value": outcome.value,
        "minutes_spent": to_minutes(sum(outcome.ledger.values())),
        "minutes_returned": None if returned is None else to_minutes(returned),
        "ledger": {kind.value: to_minutes(ns) for kind, ns in outcome.ledger.items()},
        "fallbacks": sum(bool(t.note) for t in trained),
        "best_so_far": [[to_minutes(ns), sign * score] for ns, score in best_so_far(history)],
    }


def summary(settings: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The content of summary.json."""
    found = importance(outcomes[0].row.space, (t for o in outcomes for t in o.history.trained))
    keys = ("device", "unit", "data", "landscape", "measure", "epochs", "budget_minutes", "slots")
    return {
        **{key: settings.get(key) for key in keys},
        "runs": [run_summary(outcome) for outcome in outcomes],
        "progress": (progress := race_progress(lines_of(outcomes), settings["budget_minutes"])),
        "verdict": judge(settings, outcomes, progress),
        "importance": None if found is None else found.to_json(),
        "earlier": earlier_results(outcomes),
        "first_rungs": first_rungs(outcomes),
        "pace": pace(outcomes, settings.get("pace")),
    }


def pace(outcomes: Sequence[Outcome], calibration: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a device minute bought, over all runs; None where nothing was trained.

    `calibration` is what was timed at the start: `layout`, `share_ns` and `alone_ns`, the device
    time of an epoch of the default recipe here and alone on the device. What trials paid, they
    paid for a share; `alone_ratio` is by what factor they would have held the device alone.
    """
    curves = [t.curve for o in outcomes for t in o.history.trained]
    epochs = sum(map(len, curves))
    minutes = sum(to_minutes(sum(o.ledger.values())) for o in outcomes)
    if not epochs or not minutes:
        return None
    idle = sum(to_minutes(o.ledger.get(Kind.SEARCH, 0)) for o in outcomes)
    known = calibration or {}
    alone = known.get("alone_ns")
    return {
        "trials_per_minute": len(curves) / minutes,
        "epochs_per_minute": epochs / minutes,
        "idle_share": idle / minutes,
        "layout": known.get("layout"),
        "alone_ratio": alone / known["share_ns"] if alone else None,
    }


def first_rungs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How well the first rung foretold the end, for each searcher that broke trials off."""
    found = {
        name: first_rung([o.history for o in group])
        for name, group in by_searcher(outcomes).items()
    }
    return {
        name: {**vars(rung), "warning": rung.warning}
        for name, rung in found.items()
        if rung is not None
    }


def earlier_results(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What every run knew from the beginning, by the study that it was taken over from.

    `is_ahead` says whether its best beats all that the race has trained itself.
    """
    taken = [t for t in outcomes[0].history if t.source]
    ahead = best_earlier(outcomes)
    found = []
    for source in dict.fromkeys(t.source for t in taken):
        mine = [t for t in taken if t.source == source]
        scored = [t for t in mine if t.score is not None]
        best = max(scored, key=lambda t: (t.score or 0.0, -t.number), default=None)
        found.append(
            {
                "source": source,
                "trials": len(mine),
                "best_score": None if best is None else best.score,
                "best_config": None if best is None else dict(best.config),
                "is_ahead": best is not None and ahead is not None and best.score == ahead.score,
            }
        )
    return found


def best_earlier(outcomes: Sequence[Outcome]) -> Trial | None:
    """The best result from before, where it beats all that the race has trained itself."""
    # All runs took over the same, so whatever beats the best of them beats them all.
    found = [o.history.best_earlier for o in outcomes]
    return found[0] if all(found) else None


def by_searcher(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each searcher, in order of seeds."""
    names = dict.fromkeys(o.row.searcher for o in outcomes)
    ordered = sorted(outcomes, key=lambda o: o.row.seed)
    return {name: [o for o in ordered if o.row.searcher == name] for name in names}


def lines_of(outcomes: Sequence[Outcome]) -> dict[str, list[Line]]:
    """Each searcher's best-so-far lines, in minutes."""
    return {
        name: [[(to_minutes(ns), score) for ns, score in best_so_far(o.history)] for o in group]
        for name, group in by_searcher(outcomes).items()
    }


TEST_ACCURACY = "test accuracy"
SCORE_NAME = "validation accuracy"


def worth(terrain: Terrain, incumbent: Trial | None, seed: int, trainings: int = 1) -> float | None:
    """What a user would get of a run's incumbent on a landscape; None where nobody can know.

    Nothing found, and a training that breaks off when it is done again, are worth 0, or the lowest
    score there is where scores are below that. `trainings` is how often the run trained its
    configuration.
    """
    nothing = min(0.0, getattr(terrain, "lowest", 0.0))  # accuracies have no other bound
    if incumbent is None:
        return nothing
    shown = () if trainings == 1 else (trainings,)
    value = terrain.value(incumbent.config, seed, *shown)
    return nothing if value is not None and math.isnan(value) else value


def judge(
    settings: dict[str, Any], outcomes: Sequence[Outcome], progress: dict[str, Any]
) -> dict[str, Any]:
    """The verdict on a race, by what a user would get of each run; how soon is said beside it."""
    is_replay = settings.get("landscape") is not None
    groups = by_searcher(outcomes)
    best = {name: [o.history.best for o in group] for name, group in groups.items()}
    found = verdict(
        {n: [o.value if is_replay else o.test_score for o in g] for n, g in groups.items()},
        {name: [None if t is None else t.score for t in trials] for name, trials in best.items()},
        measure=settings["measure"],
        caveat=settings.get("caveat", ""),
        minutes=settings["budget_minutes"],
    )
    for standing in found["standings"]:
        standing["text"] += how_soon(progress, standing["searcher"])
    return found


def how_soon(progress: dict[str, Any], searcher: str) -> str:
    """Minutes to the common target and mean rank, as the end of a sentence; empty for neither."""
    target, one = progress["target"], progress["searchers"][searcher]
    if target is None or len(progress["searchers"]) < 2:
        return ""
    minutes = one["minutes_to_target"]
    when = "never" if minutes is None else f"after {minutes:.1f} minutes"
    return f"; at {target:.4f} {when} (median), mean rank {one['mean_rank'][-1]:.2f} at the end"


def winner(outcomes: Sequence[Outcome]) -> tuple[Outcome, Trial] | None:
    """The run whose winner is the best of all, and that; None without a score.

    By what is expected of each where that is known of all, for a lucky score beats the winner that
    a model took for better than its own score; else by mean scores.
    """
    found = [(o, o.winner) for o in outcomes]
    scored = [(o, t) for o, t in found if t is not None and t.score is not None]
    expected = [o.expected.mean for o, _ in scored if o.expected is not None]
    means = [mean_score(o.history, t) for o, t in scored]
    ranked = expected if len(expected) == len(scored) else means
    return scored[max(range(len(scored)), key=ranked.__getitem__)] if scored else None


def write_files(
    directory: Path, settings: dict[str, Any], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Write summary.json, trials.csv, curves.csv and best_config.json; the summary."""
    content = summary(settings, outcomes)
    write_atomically(directory / "summary.json", _json(content))
    write_atomically(directory / "trials.csv", trials_csv(outcomes))
    write_atomically(directory / "curves.csv", curves_csv(outcomes))
    best, earlier = winner(outcomes), best_earlier(outcomes)
    if earlier is not None:
        nobody = dict.fromkeys(("searcher", "seed", "expected_score", "test_score"))
        known = {"source": earlier.source, "trial": earlier.number, "score": earlier.score}
        known |= {**nobody, "config": dict(earlier.config)}
        write_atomically(directory / "best_config.json", _json(known))
    elif best is not None:
        outcome, trial = best
        chosen = {
            "searcher": outcome.row.searcher,
            "seed": outcome.row.seed,
            "trial": trial.number,
            "score": trial.score,
            "expected_score": None if outcome.expected is None else outcome.expected.to_json(),
            "test_score": outcome.test_score,
            "config": dict(trial.config),
        }
        write_atomically(directory / "best_config.json", _json(chosen))
    return content


def _json(content: dict[str, Any]) -> str:
    return in_json(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def trials_csv(outcomes: Sequence[Outcome]) -> str:
    """The content of trials.csv: a row a trial."""
    knobs = list(outcomes[0].row.space)
    fixed = ["searcher", "seed", "trial", "state", "epochs", "score", "minutes"]
    rows = (
        [
            *(o.row.searcher, o.row.seed, t.number, t.state.name, t.epoch, t.score),
            *(to_minutes(t.paid_ns), to_minutes(t.started_ns)),
            *(t.config[name] for name in knobs),
            t.remark,
        ]
        for o in outcomes
        for t in o.history
    )
    return _csv([*fixed, "started_at_minute", *knobs, "reason"], rows)


def curves_csv(outcomes: Sequence[Outcome]) -> str:
    """The content of curves.csv: a row an epoch."""
    rows = (
        [o.row.searcher, o.row.seed, t.number, e.epoch, e.score, to_minutes(e.at_ns)]
        for o in outcomes
        for t in o.history
        for e in t.curve
    )
    return _csv(["searcher", "seed", "trial", "epoch", "score", "minutes"], rows)


def _csv(header: list[str], rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([in_csv(cell) for cell in row] for row in (header, *rows))
    return text.getvalue()
