"""A race from what was asked for to the files that it leaves: on workers, or on a landscape."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from landscapes.landscape import Landscape
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from scripts.command_request import CommandRequest
from scripts.stopping import Stopper
from scripts.workers import TrainingRequest, count_cores, start_workers
from tuner.budget import to_minutes
from tuner.confirm import (
    KEPT_FOR_MODEL,
    Expected,
    ScoreModel,
    chosen,
    expected_score,
    with_confirmations,
)
from tuner.entry import Entry, make_entry
from tuner.fidelity import FidelityPolicy
from tuner.page.assets import has_plotly
from tuner.page.film import Scene
from tuner.page.report_page import write_report
from tuner.race import Race, Result, Run, enter
from tuner.reader import RunRow, preferred_key
from tuner.report import TEST_ACCURACY, Outcome, main_knobs, worth, write_files
from tuner.runner import Runner
from tuner.searchers import Searcher, make_searcher
from tuner.searchers.known_start import KnownStart
from tuner.searchers.shared_start import SharedStart
from tuner.space import Config, SearchSpace
from tuner.stop_rule import returned_ns, with_stop
from tuner.store import Store
from tuner.terminal import LiveView, say
from tuner.trial import Trial

_RUNS_PER_PROCESS = 4


@dataclass(frozen=True, kw_only=True)
class Request(TrainingRequest):
    """Everything that was asked for; kept in the study, so that a resume needs only its folder."""

    searchers: list[str]
    seed: int
    seeds: int
    budget_minutes: float
    landscape: str | None
    grid_points: int | None
    min_epochs: int | None
    eta: int
    shared_start: int
    confirm: int = 0
    stop: str = "never"
    defaults_first: bool = False  # the default recipe is the first trial
    model: bool = False  # the winner is to become a model, within the same minutes
    space: dict[str, Any]


def entry_for(
    name: str, space: SearchSpace, seed: int, request: Request | CommandRequest
) -> tuple[Searcher, FidelityPolicy]:
    """The entry of that name as the request wants it; ValueError where it cannot be."""
    is_grid = Entry.parse(name).searcher == "grid"
    searcher, policy = make_entry(
        name,
        space,
        seed,
        epochs=request.epochs,
        min_epochs=request.min_epochs,
        eta=request.eta,
        **({"points_per_axis": request.grid_points} if is_grid else {}),
    )
    if isinstance(request, Request) and request.defaults_first:
        searcher = KnownStart(searcher, space, _defaults(space))
    if request.shared_start:
        searcher = SharedStart(searcher, space, seed, request.shared_start)
    policy = with_stop(policy, request.stop, space, seed)
    return searcher, with_confirmations(policy, request.confirm)


def _defaults(space: SearchSpace) -> list[Config]:
    """The default recipe, where it lies in the space."""
    from models.knobs import Recipe

    recipe = space.pruned({name: getattr(Recipe(), name) for name in space})
    return [recipe] if space.contains(recipe) else []


@dataclass(frozen=True)
class Track:
    """What the runs of a race are run on: a landscape, or the workers of a pool."""

    runner: Callable[[RunRow], Runner]
    device: str
    unit: str
    slots: int
    landscape: Landscape | None = None
    pool: Any = None
    warm_up_ns: int = 0


def run_race(
    stack: ExitStack,
    store: Store,
    request: Request,
    folder: Path,
    console: Console,
    quiet: bool,
    stopper: Stopper,
) -> None:
    """Run the race to its end and write its files; raises Stopped where a signal ended it."""
    race, track = hold(stack, store, request, folder, console, quiet, stopper)
    finish(store, race, track, request, folder, console)


def hold(
    stack: ExitStack,
    store: Store,
    request: Request,
    folder: Path,
    console: Console,
    quiet: bool,
    stopper: Stopper,
    go: Callable[[Race, Track], None] = lambda race, _: race.go(),
) -> tuple[Race, Track]:
    """Run the race to its end, or as far as `go` does; raises Stopped where a signal ended it."""
    if request.landscape is not None:
        track = _replay_track(request)
    else:
        track = _training_track(stack, store, request, folder, None if quiet else console)
    view = LiveView(console, track.unit, quiet=quiet)
    runs = []
    for row in store.runs():
        searcher, policy = entry_for(row.searcher, row.space, row.seed, request)
        is_replay, runner = track.pool is None, track.runner(row)
        runs.append(
            enter(
                store,
                row,
                searcher,
                runner,
                policy=policy,
                keep=request.confirm or KEPT_FOR_MODEL * _is_model_asked(row, request),
                is_replay=is_replay,
                on_change=view,
            )
        )
    race = Race(runs, shares_device=track.pool is not None, on_change=view)
    race.share_warm_up(track.warm_up_ns)
    _check_budget(race)
    processes = _processes(race) if track.pool is None else 1
    start = partial(go, race, track)
    if processes > 1:
        earlier = [t for t in race.runs[0].scheduler.history if t.source]  # the same for all
        start = partial(race.go_in_parallel, partial(_replay, request, earlier), processes)
    with view.watch(race):
        stopper.go(race, start)
    store.commit(force=True)
    stopper.check()
    return race, track


def _processes(race: Race) -> int:
    """How many processes a replay is worth: starting one takes seconds, a run may take less."""
    new = sum(not run.scheduler.history.trained for run in race.runs)
    return min(count_cores(), new // _RUNS_PER_PROCESS)


def _replay(request: Request, earlier: list[Trial], row: RunRow) -> Result:
    """One run of a replay, from what was taken over to its end, in memory."""
    track = _replay_track(request)
    searcher, policy = entry_for(row.searcher, row.space, row.seed, request)
    runner = track.runner(row)
    run = enter(None, row, searcher, runner, policy=policy, is_replay=True, on_change=lambda: None)
    for trial in earlier:
        run.scheduler.history.adopt(trial)
    run.scheduler.run()
    return Result.of(run)


def _replay_track(request: Request) -> Track:
    landscape, slots = open_landscape(request.landscape or ""), request.slots or 1
    return Track(
        lambda row: ReplayRunner(landscape, row.seed, slots),
        "simulated",
        "simulated minutes",
        slots,
        landscape,
    )


def _training_track(
    stack: ExitStack, store: Store, request: Request, folder: Path, console: Console | None
) -> Track:
    from tuner.workers.runner import WorkerRunner

    if console is not None:
        runs = len(request.searchers) * request.seeds
        console.print(f"{request.budget_minutes:g} minutes for each of {runs} run(s)")
    pool, warm_up_ns = start_workers(stack, store, request, folder, console)
    return Track(
        lambda row: WorkerRunner(pool, f"{row.searcher}-{row.seed}"),
        pool.setup.named,
        pool.setup.unit,
        pool.slots,
        pool=pool,
        warm_up_ns=warm_up_ns,
    )


def _check_budget(race: Race) -> None:
    """Refuse a budget that does not buy one epoch; nothing has been trained yet."""
    for run in race.runs:
        is_over = run.scheduler.next_ns is None  # nothing was left to try from the start
        if not run.scheduler.history.trained and not run.can_go_on and not is_over:
            raise ValueError(
                f"the budget of {to_minutes(run.row.budget_ns or 0):g} minutes is too small: "
                f"starting up took {to_minutes(run.recorder.budget.spent_ns):.3f} and one epoch "
                f"takes about {to_minutes(run.scheduler.expected_epoch_ns):.3f}"
            )


def finish(
    store: Store,
    race: Race,
    track: Track,
    request: Request,
    folder: Path,
    console: Console,
    *,
    tests: bool = True,
) -> None:
    """Find out what each run's winner is worth, and write the files and the pictures.

    With `tests` winners of real training are tested.
    """
    outcomes = [_outcome(store, run, track, request, console, tests) for run in race.runs]
    settings = {
        **vars(request),
        "device": track.device,
        "unit": track.unit,
        "slots": track.slots,
        "landscape": track.landscape.name if track.landscape else None,
        "measure": track.landscape.measure if track.landscape else TEST_ACCURACY,
        "pace": store.meta("pace"),
        "caveat": track.landscape.caveat if track.landscape else "",
    }
    content = write_files(folder, settings, outcomes)
    from tuner.plots import draw_effects, draw_race

    title = f"{settings['landscape'] or settings['data']} on {track.device}"
    for known in content["earlier"]:  # who looks at the pictures alone should know
        title += f", knowing {known['trials']} results of {known['source']}"
    draw_race(folder / "race.png", outcomes, track.unit, title)
    draw_effects(folder / "knobs.png", outcomes, content["importance"], title)
    if has_plotly():
        start = request.shared_start
        scenes = [
            Scene(
                *(o.row, o.history, o.ledger, True, o.test_score, o.value, start),
                winner=None if o.winner is None else o.winner.number,
            )
            for o in outcomes
        ]
        write_report(
            folder / "report.html",
            title,
            scenes,
            device=track.device,
            unit=track.unit,
            terrain=track.landscape,
            verdict=content["verdict"],
            pair=main_knobs(outcomes),
            importance=content["importance"],
        )


def _outcome(
    store: Store, run: Run, track: Track, request: Request, console: Console, tests: bool
) -> Outcome:
    """What a run came to; in real training its winner is tested, once, where it is to be."""
    history, row = run.scheduler.history, run.row
    preferred, expected = _judged(run, request, track)
    outcome = Outcome(
        row,
        history,
        run.scheduler.budget.ledger,
        test_score=None,
        expected=expected,
        returned_ns=returned_ns(history, request.stop),
        preferred=preferred,
    )
    store.set_meta(preferred_key(row.id), preferred)
    store.commit(force=True)
    best = outcome.winner
    if track.landscape is not None:
        trainings = 1 if best is None else history.trainings(best.config)
        return replace(outcome, value=worth(track.landscape, best, row.seed, trainings))
    mark, test_score = best.checkpoint if best is not None else None, None
    if mark is not None and mark.sha256 == row.tested:
        test_score = row.test_score
    elif mark is not None and tests:
        from models.pool import accuracy_on_test

        try:
            test_score = accuracy_on_test(track.pool, best)
            store.set_test_score(row.id, test_score, mark.sha256)
            store.commit(force=True)
        except ValueError as error:  # the search itself is not lost for that
            say(console, f"{run.name} {row.seed}: {error}")
    return replace(outcome, test_score=test_score)


def _judged(run: Run, request: Request, track: Track) -> tuple[int | None, Expected | None]:
    """Which trial a model takes for a run's winner, and what another training of it may score.

    What is expected is by the model where the race has one, and loading it costs nothing; of the
    first seed alone where the choice does not need it, or many runs would take long.
    """
    history, row = run.scheduler.history, run.row
    chooses = _is_model_asked(row, request)

    def is_there(trial: Trial) -> bool:  # a race that an older version began kept the best alone
        mark = trial.checkpoint
        return track.pool is None or bool(
            mark and (track.pool.setup.directory / mark.name).exists()
        )

    is_first = row.seed == request.seed
    if chooses or (is_first and any(_has_model(name, row.space) for name in request.searchers)):
        model = ScoreModel.of(history, row.space)
        preferred = model.preferred(is_there) if model and chooses else None
        winner = preferred or chosen(history)
        if model and winner:
            expected = model.expected(winner) if is_first else expected_score(history)
            return preferred and preferred.number, expected
    return None, expected_score(history)


def _is_model_asked(row: RunRow, request: Request) -> bool:
    """Whether a model chooses the run's winner: where nothing is trained again to choose by.

    Nor where the winner becomes a model: what is kept back for that is by the best score.
    """
    return _has_model(row.searcher, row.space) and not request.confirm and not request.model


def _has_model(entry: str, space: SearchSpace) -> bool:
    return hasattr(make_searcher(Entry.parse(entry).searcher, space, 0), "belief")
