"""A race: searchers × seeds, each with a budget of its own, taking turns on the device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tuner.budget import Budget, Costs
from tuner.fidelity import FidelityPolicy, FullFidelity
from tuner.history import History
from tuner.meter import apportion
from tuner.reader import RunRow
from tuner.runner import Runner
from tuner.scheduler import Noted, Recorder, Scheduler, mark_interrupted
from tuner.searchers.base import Searcher
from tuner.store import Store
from tuner.trial import Trial

TURNS = 8
"""How many turns a budget is divided into: enough that a slow hour of the machine, or a hot GPU,
falls on all searchers alike, few enough that changing over costs next to nothing."""
_LEAST_OF_TURNS = 50  # in a budget of which a part is kept


@dataclass(frozen=True)
class Run:
    """One searcher with one seed, and the scheduler that runs it."""

    row: RunRow
    scheduler: Scheduler
    recorder: Recorder

    @property
    def name(self) -> str:
        """The searcher, as it was asked for."""
        return self.row.searcher

    @property
    def can_go_on(self) -> bool:
        """Whether the budget is expected to buy what comes next, if anything does."""
        return self.scheduler.can_go_on


class Race:
    """Runs that share a device, one at a time, the least served first.

    No budget pays for another's work: a run pays for the time in which it holds the device, and
    a turn ends when its last trial in flight has finished its epoch.

    Args:
        runs: in the order in which they were asked for.
        on_change: called now and then while runs are computed in parallel.
        shares_device: whether the runs take turns; on a virtual clock each has its own device.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        shares_device: bool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs = tuple(runs)
        self.current: Run | None = None
        self.is_interrupted = False
        self._shares_device, self._on_change = shares_device, on_change

    @property
    def is_finished(self) -> bool:
        """Whether no run has anything left to do."""
        return all(run.scheduler.finished for run in self.runs)

    def go(self) -> None:
        """Run until every budget is spent, or `interrupt` is called."""
        while not self.is_interrupted and not self.is_finished:
            waiting = [run for run in self.runs if not run.scheduler.finished]
            self.current = min(waiting, key=lambda run: run.scheduler.budget.spent_ns)
            turn_ns = None
            if self._shares_device and len(waiting) > 1:
                turn_ns = (self.current.row.budget_ns or 0) // TURNS
            self.current.scheduler.run(turn_ns)
        self.current = None

    def go_keeping(self, kept_ns: Callable[[Run], int]) -> None:
        """Run until what is left of each budget is no more than what `kept_ns` says is to be kept.

        What is to be kept may change with what is found, and a turn ends when its last epoch in
        flight does: turns are of half of what may be spent, the last one of the whole.
        """
        for run in self.runs:
            self.current, budget = run, run.scheduler.budget
            while not self.is_interrupted and not run.scheduler.finished:
                spare_ns = budget.remaining_ns - kept_ns(run)
                if spare_ns <= 0:
                    break
                least_ns = min(spare_ns, (run.row.budget_ns or 0) // _LEAST_OF_TURNS)
                run.scheduler.run(max(spare_ns // 2, least_ns))
        self.current = None

    def go_in_parallel(self, replay: Callable[[RunRow], Result], processes: int) -> None:
        """Compute the runs that have not begun in processes of their own, then `go`.

        For virtual clocks, where runs share nothing: each ends as it would have alone. `replay`
        runs one from its row, and must be picklable. What an interruption breaks off is computed
        anew later, and comes out the same.
        """
        new = [run for run in self.runs if not run.scheduler.history.trained]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, _depend_on_driver) as pool:
            waiting = {pool.submit(replay, run.row): run for run in new}
            try:
                while waiting and not self.is_interrupted:
                    done, _ = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result().give_to(waiting.pop(future))
                    self._on_change()
            finally:
                if waiting:  # interrupted, or their results cannot be kept
                    pool.shutdown(wait=False, cancel_futures=True)
                    for process in multiprocessing.active_children():
                        process.terminate()
        self.go()

    def interrupt(self) -> None:
        """Stop soon without losing work. Safe to call in a signal handler."""
        self.is_interrupted = True
        if self.current is not None:
            self.current.scheduler.interrupt()

    def share_warm_up(self, device_ns: int) -> None:
        """Charge the start of the workers, in equal parts, to all runs that can still use them.

        A run whose budget does not buy what comes next pays nothing (its winner may still have to
        be tested), and none pays more than it has.
        """
        users = [run for run in self.runs if run.can_go_on]
        for run, part in zip(users, apportion(device_ns, [1] * len(users)), strict=True):
            run.scheduler.pay_warm_up(part)


def _depend_on_driver() -> None:
    """The terminal's Ctrl-C is for the driver, which ends its processes; so does its own end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = multiprocessing.parent_process()

    def watch() -> None:
        if driver is not None:
            driver.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Result:
    """What a run in memory came to, to be taken over by one that is recorded."""

    trials: tuple[Trial, ...]
    charges: tuple[tuple[Costs, int | None], ...]
    clock: int
    notes: Mapping[Noted, Any]

    @classmethod
    def of(cls, run: Run) -> Result:
        """Of a run that is finished."""
        history, recorder = run.scheduler.history, run.recorder
        return cls(history.trials, tuple(recorder.charges), recorder.clock, recorder.notes)

    def give_to(self, run: Run) -> None:
        """Record it as that of a run that has not begun; what both took over is there already."""
        for trial in self.trials:
            if not trial.source:
                run.scheduler.history.adopt(trial)
        for costs, number in self.charges:
            run.recorder.charge(costs, number)
        run.recorder.read(self.clock)
        for what, value in self.notes.items():
            run.recorder.note(what, value)
        run.scheduler.history.is_exhausted = bool(self.notes.get(Noted.EXHAUSTED))
        run.scheduler.finished = True
        run.recorder.commit()


def enter(
    store: Store | None,
    row: RunRow,
    searcher: Searcher,
    runner: Runner,
    *,
    policy: FidelityPolicy | None = None,
    keep: int = 0,
    is_replay: bool,
    on_change: Callable[[], None],
) -> Run:
    """A run as the store has it, ready to start or to go on; without a store, in memory alone.

    Without a policy every trial trains to the end. `keep` is as the Scheduler takes it.
    """
    if store is None:
        history, budget = History(row.max_epochs, row.budget_ns), Budget(row.budget_ns)
    else:
        history, budget = store.history(row), store.budget(row)
    recorder = Recorder(budget, store, row.id, row.clock)
    mark_interrupted(history, recorder, runner_keeps=is_replay)
    scheduler = Scheduler(
        searcher,
        policy or FullFidelity(),
        runner,
        history,
        recorder,
        seed=row.seed,
        keep=keep,
        on_change=on_change,
    )
    return Run(row, scheduler, recorder)
