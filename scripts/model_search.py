"""What `automl.py` does: a search, then its winner on all images, exported and tested once."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts import racing
from scripts.errors import resumable
from scripts.model_card import card
from scripts.racing import Request, Track
from scripts.stopping import Stopper, stopping_signals
from tuner.budget import to_minutes
from tuner.confirm import chosen, winner_ns
from tuner.files import write_atomically
from tuner.history import HistoryView
from tuner.race import Race, Run, enter
from tuner.reader import RunRow
from tuner.searchers.base import SpaceExhausted
from tuner.space import Config
from tuner.store import Store
from tuner.terminal import LiveView, describe, say
from tuner.trial import Checkpoint, Trial, TrialState
from tuner.workers.devices import find_devices
from tuner.workers.runner import WorkerRunner

_FIRST_SHARE = 0.2  # of the minutes, kept back while it is not known what a training costs
_SLACK, _START_SLACK = 1.3, 2.0  # of what is kept back: nothing costs just what it did before
_HOPELESS = 1.5  # times what is left: nobody else has a use for it, so that a chance is taken
RETRAINING = "retrained"
"""The folder, below the run's, of a study with one trial; and its searcher's name."""


class Again:
    """Proposes one configuration, once."""

    fallback = ""

    def __init__(self, config: Config) -> None:
        self._config = config

    def propose(self, history: HistoryView) -> Config:
        """The winner's."""
        if len(history):
            raise SpaceExhausted("the winner has been trained again")
        return self._config


@dataclass(frozen=True)
class Winner:
    """What the search came to, as the study keeps it for what follows.

    Attributes:
        number: of the trial.
        ns: what its full training is expected to cost in the search.
        left_ns: of all minutes, what the search left.
        layout: for one training that has the device to itself.
    """

    number: int
    ns: int
    left_ns: int
    layout: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What is exported.

    Attributes:
        trial: whose network it is.
        folder: of its checkpoint.
        is_retrained: whether it was trained on the images to validate on as well.
        why_not: where it was not.
        spent_ns: on trying.
    """

    trial: Trial
    folder: Path
    is_retrained: bool
    why_not: str
    spent_ns: int


@dataclass(frozen=True)
class _Work:
    """What each part of the work is done with: the search's study, and who asked and watches."""

    store: Store
    request: Request
    folder: Path
    console: Console
    quiet: bool
    stopper: Stopper

    @property
    def data_root(self) -> Path:
        return Path(self.request.data_root)


def make_model(
    store: Store,
    request: Request,
    folder: Path,
    console: Console,
    *,
    is_quiet: bool,
    as_json: bool,
) -> None:
    """Search, train the winner on all images, export and test it; say what came of it."""
    from models.data import prepare

    with resumable(folder, store, console), stopping_signals() as stopper:
        work = _Work(store, request, folder, console, is_quiet or as_json, stopper)
        if store.meta("winner") is None:
            with ExitStack() as stack:
                _search(stack, work)
        else:
            prepare(request.data, work.data_root)
        (row,) = store.runs()
        history = store.history(row)
        made = _retrain(work, history, Winner(**store.meta("winner")))
        content = _export(work, history, made)
    if as_json:
        print(json.dumps(content))
    else:
        _tell(content, folder, console)


# -- the search ------------------------------------------------------------------------------------


def _search(stack: ExitStack, work: _Work) -> None:
    store, request, folder, console = work.store, work.request, work.folder, work.console
    go = partial(_go, store, request)
    race, track = racing.hold(stack, store, request, folder, console, work.quiet, work.stopper, go)
    racing.finish(store, race, track, request, folder, console, tests=False)
    history = race.runs[0].scheduler.history
    best = chosen(history)
    if best is None or best.checkpoint is None:
        raise ValueError(
            f"no training came to a network within {request.budget_minutes:g} minutes; trials.csv "
            f"in {folder} says what became of each"
        )
    winner = Winner(
        best.number,
        winner_ns(history) or 0,
        race.runs[0].recorder.budget.remaining_ns,
        _layout(store),
    )
    store.set_meta("winner", vars(winner))
    store.commit(force=True)


def _go(store: Store, request: Request, race: Race, track: Track) -> None:
    """Search until what is left just pays for training the winner again, on more images, alone."""
    from models.data import load

    data, pace = load(request.data, Path(request.data_root)), store.meta("pace")
    # By what the study's first start measured: a later one takes the layout over, and measures it
    # alone. Where nothing was, alone on the device no training takes longer than beside others.
    alone_ratio = (pace["alone_ns"] or pace["share_ns"] * track.pool.pace.layout.slots) / pace[
        "share_ns"
    ]
    more_images = 1 + len(data.validation) / len(data.train)

    def kept_ns(run: Run) -> int:
        needed_ns = winner_ns(run.scheduler.history)
        if needed_ns is None:
            return int(_FIRST_SHARE * (run.row.budget_ns or 0))
        price_ns = more_images * alone_ratio * needed_ns
        return int(_SLACK * price_ns + _START_SLACK * track.warm_up_ns)

    race.go_keeping(kept_ns)


def _layout(store: Store) -> dict[str, Any]:
    """For one training: as was measured to be quickest, else as simple as can be."""
    from models.layout import Layout

    # One thread: several that wait for each other are slow where others want a core too.
    return store.meta("alone") or asdict(Layout(1))


# -- the retraining --------------------------------------------------------------------------------


def _retrain(work: _Work, history: HistoryView, winner: Winner) -> Made:
    """The winner trained on all images, where what is left pays for it."""
    store, folder = work.store, work.folder
    if winner.left_ns <= 0:
        return Made(history[winner.number], folder, False, "nothing was left to pay for it", 0)
    place = folder / RETRAINING
    place.mkdir(exist_ok=True)
    path = place / "study.sqlite"
    again = Store(path, create=not path.exists())
    try:
        (search_row,) = store.runs()
        if not again.runs():
            epochs, seed = work.request.epochs, work.request.seed
            again.add_run(RETRAINING, seed, search_row.space, epochs, winner.left_ns)
            again.set_meta("machine", store.meta("machine"))
            again.commit(force=True)
        (row,) = again.runs()
        if again.meta("why_not") is None and not any(t.state.is_final for t in again.trials(row)):
            with ExitStack() as stack:
                why_not = _train_again(stack, work, again, row, history, winner)
            again.set_meta("why_not", why_not)
            again.commit(force=True)
        spent_ns, trials = again.budget(row).spent_ns, again.trials(row)
        done = [t for t in trials if t.state is TrialState.COMPLETED and t.checkpoint]
        if done:
            return Made(done[0], place, True, "", spent_ns)
        why_not = again.meta("why_not") or next((t.reason for t in trials), "")
        why_not = why_not or "what was left did not pay for an epoch of it"
        return Made(history[winner.number], folder, False, why_not, spent_ns)
    finally:
        again.close()


def _train_again(
    stack: ExitStack,
    work: _Work,
    again: Store,
    row: RunRow,
    history: HistoryView,
    winner: Winner,
) -> str:
    """Train the winner once more; where that cannot be paid for, what to say of it."""
    from models.layout import Layout
    from models.pool import TrainingPool, TrainingSetup

    request, pace = work.request, work.store.meta("pace")
    device = find_devices((request.devices or [request.device])[0])[0]
    setup = TrainingSetup(
        devices=(device,),
        slots=1,
        data=request.data,
        root=work.data_root,
        epochs=request.epochs,
        augment=request.augment,
        merged=True,
        directory=again.path.parent / "checkpoints",
    )
    pool = stack.enter_context(TrainingPool(setup, Layout(**winner.layout)))
    marks = [m for t in again.trials(row) for m in (t.checkpoint, t.midway) if m]
    pool.sweep({mark.name for mark in marks})
    view = LiveView(work.console, setup.unit, quiet=work.quiet)
    warm_up_ns = pool.start()
    run = enter(
        again,
        row,
        Again(history[winner.number].config),
        WorkerRunner(pool, RETRAINING),
        is_replay=False,
        on_change=view,
    )
    race = Race([run], shares_device=True, on_change=view)
    race.share_warm_up(warm_up_ns)
    price_ns = winner.ns * pool.epoch_ns // pace["share_ns"]
    left_ns = (row.budget_ns or 0) - run.recorder.budget.spent_ns
    if not run.scheduler.history.trained and price_ns > _HOPELESS * left_ns:
        return (
            f"what was left, {to_minutes(left_ns):.2f} minutes, did not pay for it: it would have "
            f"taken about {to_minutes(price_ns):.2f}"
        )
    with view.watch(race):
        work.stopper.go(race, race.go)
    again.commit(force=True)
    work.stopper.check()
    return ""


# -- the model -------------------------------------------------------------------------------------


def _export(work: _Work, history: HistoryView, made: Made) -> dict[str, Any]:
    """Write the model's files and test it, where it has not been; the content of model.json."""
    from models import data, export
    from models.checkpoint import load
    from models.knobs import Recipe

    store, request, folder, root = work.store, work.request, work.folder, work.data_root
    (row,), mark = store.runs(), made.trial.checkpoint
    if mark is None:
        raise ValueError(f"trial {made.trial.number} of {made.folder} has no checkpoint to export")
    images = data.load(request.data, root, merged=made.is_retrained)
    names = data.class_names(request.data, root)
    recipe = Recipe.of(made.trial.config)
    architecture = export.Architecture.of(recipe, images, names)
    place = folder / "model"
    arrays = load(made.folder / "checkpoints" / mark.name, mark.sha256)
    model = export.save(place, arrays, architecture)
    tested = data.load_test(request.data, root)
    score = _test(store, row, mark, model, tested)
    best = history[store.meta("winner")["number"]]
    spent = {"search": store.budget(row).spent_ns, "retraining": made.spent_ns}
    content = {
        "test_score": score,
        "standard_error": _standard_error(score, len(tested)),
        "test_images": len(tested),
        "images": len(images.train),
        "is_retrained": made.is_retrained,
        "why_not": made.why_not,
        "validation_score": best.score,
        "searcher": row.searcher,
        "seed": row.seed,
        "trials": len(history.trained),
        "config": dict(made.trial.config),
        "epochs": made.trial.epoch,
        "augmented": ["shifted", *(["mirrored"] if images.flips else [])]
        if request.augment
        else [],
        "data": data.title(request.data),
        "minutes": {name: to_minutes(ns) for name, ns in spent.items()},
        "budget_minutes": request.budget_minutes,
        "unit": json.loads((folder / "summary.json").read_text())["unit"],
        "machine": store.meta("machine"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_atomically(place / "README.md", card(content, architecture))
    write_atomically(folder / "model.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def _standard_error(score: float, n: int) -> float:
    """Of an accuracy on n images, as if two more had been right and two wrong: never 0.

    Agresti and Coull (1998), whose interval is two of these to each side.
    """
    share = (score * n + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def _test(store: Store, row: RunRow, mark: Checkpoint, model: Any, tested: Any) -> float:
    """The accuracy of what is exported; tested once, and remembered."""
    from models.export import accuracy

    if row.tested == mark.sha256 and row.test_score is not None:
        return row.test_score
    score = accuracy(model, tested)
    store.set_test_score(row.id, score, mark.sha256)
    store.commit(force=True)
    return score


def _tell(content: dict[str, Any], folder: Path, console: Console) -> None:
    minutes, unit = content["minutes"], content["unit"]
    say(
        console,
        f"Search: {content['trials']} trials in {minutes['search']:.2f} {unit}; the best scored "
        f"{content['validation_score']:.4f} on validation, which flatters",
    )
    if content["is_retrained"]:
        say(
            console,
            f"Trained again on all {content['images']:,} images in {minutes['retraining']:.2f} "
            f"{unit}, of {content['budget_minutes']:g} in all",
        )
    else:
        say(console, f"Not trained again on all images: {content['why_not']}")
    say(
        console,
        f"Test accuracy {content['test_score']:.4f} ± {content['standard_error']:.4f}, on "
        f"{content['test_images']:,} images that nothing had seen",
    )
    say(console, describe(content["config"]))
    say(console, f"The model is in {folder / 'model'}/, and its README.md says how to use it")
