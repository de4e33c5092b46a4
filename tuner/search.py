"""A search over a user's own training: in this process, or in worker processes on devices."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from tuner.callbacks import Callback, calling, check_callbacks
from tuner.confirm import with_confirmations
from tuner.entry import ETA
from tuner.fidelity import FullFidelity
from tuner.runner import FunctionRunner, Runner, TrainFunction
from tuner.scheduler import Scheduler
from tuner.space import Conditional, Domain, SearchSpace
from tuner.stop_rule import check_stop, with_stop
from tuner.study import Study
from tuner.warm_start import EarlierStudy
from tuner.workers.functions import Workers, locate, refuse_while_loading, takes_checkpoint
from tuner.workers.runner import WorkerRunner


def tune(
    train: TrainFunction,
    space: SearchSpace | Mapping[str, Domain | Conditional],
    *,
    budget_minutes: float,
    searcher: str = "bayes",
    max_epochs: int | None = None,
    min_epochs: int | None = None,
    eta: int = ETA,
    seed: int = 0,
    directory: str | Path | None = None,
    mode: str = "max",
    confirm: int = 0,
    stop: str = "never",
    warm_start: str | Path | EarlierStudy | Sequence[str | Path | EarlierStudy] = (),
    on_change: Callable[[], None] = lambda: None,
    callbacks: Sequence[Callback] = (),
    device: str | None = None,
    device_count: int | None = None,
    slots: int = 1,
    memory_gib: float | None = None,
    gpu_memory_gib: float | None = None,
    hung_after_minutes: float | None = None,
    pickle: bool = False,
    cluster: str | None = None,
) -> Study:
    """Spend a budget of minutes on finding the configuration that `train` scores best.

    >>> def train(config):
    ...     for epoch in range(3):
    ...         yield 1 - (config["x"] - 0.3) ** 2
    >>> study = tune(train, {"x": Float(0, 1)}, budget_minutes=0.001, searcher="random")

    Without a `device` it runs in this process, one trial at a time, and is stopped after an epoch.
    With one it runs in worker processes, as this project's own networks do: it may be called as
    `train(config, checkpoint)`, with a `tuner.workers.checkpoints.TrialCheckpoint` to save to and
    go on from; it may yield None between batches, where Ctrl-C can stop it; at the deadline it is
    ended wherever it is; and what it crashes is a worker. There a function is found by its name: it
    stands at the top of a module, or of a script whose search starts under
    `if __name__ == "__main__":`.

    Args:
        train: called with a configuration (a dict); a generator that yields a score after each
            epoch, or a function that returns one. Infeasible, MemoryError, arithmetic errors and
            scores that are not finite mark the configuration as infeasible; five other exceptions
            in a row end the search.
        space: a SearchSpace, or a mapping from names to domains.
        budget_minutes: without a device wall minutes inside `train` and the searcher; an epoch
            that has begun is finished, so at most one epoch runs over. Else device minutes, which
            are overspent by at most one step of Python, or a second where there is no end of it.
        searcher: an entry, such as `bayes`, `random+asha`, `bohb` or `freeze-thaw`.
        max_epochs: stop a training after so many scores; None leaves it to the generator, and
            only entries that train every trial to the end can do without.
        min_epochs: the first rung, where trials are compared; by default the second epoch, or
            a 27th of a long training.
        eta: one in `eta` goes on from each rung.
        seed: of the searcher and the trials.
        directory: where `study.sqlite` and `trials.csv` are kept; a study there goes on.
        mode: "max", or "min" for losses.
        confirm: keep minutes back to train so many of the best configurations again, each once,
            and have `best` be the one with the best mean; `train` must not give every training of
            a configuration the same random numbers.
        stop: "auto" ends the search when what its minutes could still find is less than the noise
            of a score; "never" spends them all.
        warm_start: earlier studies, by their folders or files or as read from Optuna, whose
            results are taken over as `Study.add_from` does; they cost nothing.
        on_change: called after each epoch and each new trial.
        callbacks: each called with the study as often, and once at the end; see
            `tuner.callbacks`. Those of `tuner.integrations` log the trials elsewhere.
        device: where worker processes run it: "auto", "cpu", "cuda" (all GPUs) or "cuda:N"; None
            for this process.
        device_count: use so many of those; None for all.
        slots: trials at once on each.
        memory_gib: of a trial's processes together, on Linux; beyond it is infeasible.
        gpu_memory_gib: of a trial, by PyTorch's allocator; beyond it is infeasible.
        hung_after_minutes: without a sign of life, after which a trial is ended; None for twenty
            times the longest wait so far, at least a minute, and never before the first score.
        pickle: send a copy of the function by cloudpickle, where it has no name to be found by.
        cluster: the address of a Ray cluster, such as "auto", whose devices are meant: all of its
            GPUs draw on the one budget.

    Returns:
        The study, closed if it was on disk, with `best`, `trials` and `to_csv`.

    Raises:
        ValueError: arguments that make no sense; a function that workers cannot find.
        TrainingBrokenError: five trials in a row raised.
        WorkerStartError: a worker cannot be started, for instance since its imports fail.
        KeyboardInterrupt: after Ctrl-C, once what is under way has been saved.
    """
    refuse_while_loading()
    limits = (memory_gib, gpu_memory_gib, hung_after_minutes)
    if cluster is not None:
        device = device or "auto"
    workers = (
        None if device is None else Workers(device, device_count, slots, *limits, pickle, cluster)
    )
    if max_epochs is not None and max_epochs < 1:
        raise ValueError(f"max_epochs is at least 1 or None, got {max_epochs}")
    check_stop(stop)  # refused before a file is made, as are:
    check_callbacks(callbacks)
    with_confirmations(FullFidelity(), confirm)
    _check_function(train, workers)
    path: Path | None = None
    if directory is not None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        path = Path(directory) / "study.sqlite"
    study = Study(
        space,
        searcher,
        seed,
        path,
        mode=mode,
        max_epochs=max_epochs,
        min_epochs=min_epochs,
        eta=eta,
        budget_minutes=budget_minutes,
    )
    try:
        one = (str, Path, EarlierStudy)
        for earlier in [warm_start] if isinstance(warm_start, one) else warm_start:
            study.add_from(earlier)
        policy = with_confirmations(with_stop(study.policy, stop, study.space, study.seed), confirm)
        with (
            _gently() if workers else nullcontext(_at_once) as interrupts,
            _running(study, train, workers, path) as (runner, warm_up_ns),
            calling(callbacks, study, on_change) as changed,
        ):
            scheduler = study.scheduler(runner, policy, changed)
            scheduler.pay_warm_up(warm_up_ns)
            interrupts(scheduler)
            scheduler.run()
    finally:
        if path is not None:
            study.to_csv(path.with_name("trials.csv"))
        study.close()
    return study


@contextmanager
def _running(
    study: Study, train: TrainFunction, workers: Workers | None, path: Path | None
) -> Iterator[tuple[Runner, int]]:
    """A runner for a user's function, and the device time that its start took, in ns.

    Raises ValueError where there is no such device, or not so many.
    """
    if workers is None:
        runner = FunctionRunner(train, study.sign)
        try:
            yield runner, 0
        finally:
            runner.close()
        return
    with TemporaryDirectory() if path is None else nullcontext(path.parent) as folder:
        where = locate(train, pickle=workers.pickle)
        setup = workers.setup(where, study.sign, Path(folder) / "checkpoints")
        with workers.pool(setup) as pool:
            marks = [m for t in study.history for m in (t.checkpoint, t.midway) if m]
            pool.sweep({mark.name for mark in marks})
            warm_up_ns = pool.start()
            yield WorkerRunner(pool, f"{study.seed}"), warm_up_ns


def _check_function(train: TrainFunction, workers: Workers | None) -> None:
    """Raise ValueError where it cannot be run as it is to be."""
    if workers is not None:
        locate(train, pickle=workers.pickle)
        workers.check()
    elif takes_checkpoint(train):
        raise ValueError(
            "train asks for a checkpoint, which only worker processes have: pass a device, such "
            "as device='cpu' or device='cuda'"
        )


def _at_once(scheduler: Scheduler) -> None:
    """Ctrl-C ends it as it ends any program."""


@contextmanager
def _gently() -> Iterator[Callable[[Scheduler], None]]:
    """Let the first Ctrl-C save what is under way, and raise KeyboardInterrupt after that.

    What it gives is called with the scheduler when that is about to run; before, while workers
    start, there is nothing to save, and Ctrl-C ends it at once. It is listened to from the start,
    for a shell's background job ignores it, and remembered: what is raised in a finalizer is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield _at_once
        return
    before = signal.getsignal(signal.SIGINT)
    was_asked, running = False, None

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        if was_asked or running is None:
            was_asked = True
            raise KeyboardInterrupt
        was_asked = True
        running.interrupt()

    def interrupts(scheduler: Scheduler) -> None:
        nonlocal running
        running = scheduler
        if was_asked:
            scheduler.interrupt()

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
    if was_asked:
        raise KeyboardInterrupt
