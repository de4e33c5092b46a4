"""A race: searchers × seeds, each with a budget of its own, taking turns on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuner.budget import Kind
from tuner.fidelity import FullFidelity
from tuner.meter import apportion
from tuner.runner import Runner
from tuner.scheduler import Recorder, Scheduler, mark_interrupted
from tuner.searchers.base import Searcher
from tuner.store import RunRow, Store

TURNS = 8
"""How many turns a budget is divided into: enough that a slow hour of the machine, or a hot GPU,
falls on all searchers alike, few enough that changing over costs next to nothing."""


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
        """Whether the budget is expected to buy another epoch."""
        return self.recorder.budget.remaining_ns >= self.scheduler.expected_epoch_ns


class Race:
    """Runs that share a device, one at a time, the least served first.

    No budget pays for another's work: a run pays for the time in which it holds the device, and
    a turn ends when its last trial in flight has finished its epoch.

    Args:
        runs: in the order in which they were asked for.
        shares_device: whether the runs take turns; on a virtual clock each has its own device.
    """

    def __init__(self, runs: Sequence[Run], *, shares_device: bool) -> None:
        self.runs = tuple(runs)
        self.current: Run | None = None
        self.is_interrupted = False
        self._shares_device = shares_device

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

    def interrupt(self) -> None:
        """Stop soon without losing work. Safe to call in a signal handler."""
        self.is_interrupted = True
        if self.current is not None:
            self.current.scheduler.interrupt()

    def share_warm_up(self, device_ns: int) -> None:
        """Charge the start of the workers, in equal parts, to all runs that can still use them.

        A run whose budget does not buy another epoch pays nothing (its winner may still have to
        be tested), and none pays more than it has.
        """
        users = [run for run in self.runs if run.can_go_on]
        for run, part in zip(users, apportion(device_ns, [1] * len(users)), strict=True):
            paid = min(part, run.recorder.budget.remaining_ns)
            run.recorder.charge({Kind.WARM_UP: paid}, None)
            run.recorder.commit()


def enter(
    store: Store,
    row: RunRow,
    searcher: Searcher,
    runner: Runner,
    *,
    is_replay: bool,
    on_change: Callable[[], None],
) -> Run:
    """A run as the store has it, ready to start or to go on."""
    history = store.history(row)
    recorder = Recorder(store.budget(row), store, row.id, row.clock)
    mark_interrupted(history, recorder, runner_keeps=is_replay)
    scheduler = Scheduler(
        searcher,
        FullFidelity(),
        runner,
        history,
        recorder,
        seed=row.seed,
        on_change=on_change,
    )
    return Run(row, scheduler, recorder)
