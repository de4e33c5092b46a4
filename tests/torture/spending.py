"""P5: a budget is overspent by one batch at most, and every nanosecond is accounted for."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

import tuner.runner
from models.layout import Layout
from tests.helpers import SPACE
from tests.torture.campaign import Campaign, Found
from tests.torture.scripted import SECOND, Habits, ScriptedPool, WatchedRunner, World, quick_store
from tuner.budget import Kind, to_ns
from tuner.entry import make_entry
from tuner.fidelity import POLICIES
from tuner.race import Run, enter
from tuner.scheduler import TrainingBrokenError
from tuner.search import tune
from tuner.seeding import derive_seed
from tuner.store import Store

EPOCHS = 4


class Killed(Exception):
    """The driver is killed here."""


class Study:
    """One simulated study from its first turn to the end of its budget."""

    def __init__(self, seed: int, folder: Path) -> None:
        generator = np.random.default_rng(seed)
        self.generator, self.folder = generator, folder
        batch = int(generator.integers(SECOND // 500, SECOND // 5))
        habits = Habits(
            batch=batch,
            start=int(generator.integers(SECOND // 5, 3 * SECOND)),
            tail=float(generator.choice([0.8, 1.2, 3.0])),
            batches=int(generator.integers(1, 12)),
            scorings=int(generator.integers(1, 4)),
            life=int(generator.choice([0, 0, 20, 60])) * SECOND,
            thinking=int(generator.choice([0, 20_000, 5_000_000])),
            broken=float(generator.choice([0.0, 0.05])),
        )
        self.world = World(habits, generator)
        self.workers, self.devices = int(generator.integers(1, 9)), 1
        if self.workers % 2 == 0 and generator.random() < 0.4:
            self.devices, self.workers = 2, self.workers // 2
        self.layout = Layout(self.workers, width=int(generator.choice([1, 1, 3])))
        self.entry = "random+" + str(generator.choice(sorted(POLICIES)))
        self.budget_ns = int(batch * (habits.batches + 2) * generator.integers(1, 150))
        self.turn_ns = self.budget_ns // 8 if generator.random() < 0.3 else None
        self.notes: Counter[str] = Counter()
        self.left = 0  # changes until something happens to the driver

    def go(self) -> list[str]:
        """Run it; what is wrong, in words."""
        with self.world.clock():
            for attempt in range(100):
                if (found := self._run(create=attempt == 0)) is not None:
                    return found
        return ["it did not end"]

    def _run(self, *, create: bool) -> list[str] | None:
        """One driver's life; None where it was interrupted or killed."""
        store = quick_store(self.folder / "study.sqlite", create=create)
        if create:
            store.add_run(self.entry, 0, SPACE, EPOCHS, self.budget_ns)
            store.commit()
        pool = ScriptedPool(self.world, self.layout, self.devices, self.folder)
        row = store.runs()[0]
        before = store.budget(row).spent_ns
        runner = WatchedRunner(pool, "run")
        searcher, policy = make_entry(self.entry, SPACE, 0, epochs=EPOCHS, min_epochs=1)
        run = enter(
            store,
            row,
            searcher,
            runner,
            policy=policy,
            is_replay=False,
            on_change=lambda: self._happen(run),
        )
        failures = self._dead_drivers_share(run, before)
        self.left = int(self.generator.choice([5, 50, 10**9]))
        try:
            failures += self._turns(run, runner)
        except Killed:
            self.notes["drivers killed"] += 1
            self.killed_at = self.world.now, runner.began, run.scheduler._base_ns
            store._db.close()
            store._lock.release()
            return failures or None
        except TrainingBrokenError:
            self.notes["paused by failures"] += 1
            store.close()
            return failures
        finally:
            pool.close()
        failures += self._ledger(store, run)
        store.close()
        if failures or run.scheduler.finished:
            return failures
        self.notes["interruptions"] += 1
        return None

    killed_at: tuple[int, int, int] | None = None

    def _happen(self, run: Run) -> None:
        """Now and then the driver is told to stop, or dies."""
        self.left -= 1
        if self.left == 0:
            if self.generator.random() < 0.5:
                raise Killed
            run.scheduler.interrupt()

    def _dead_drivers_share(self, run: Run, before: int) -> list[str]:
        """What is charged for a driver that was killed is no more than it had held."""
        if self.killed_at is None:
            return []
        at, began, base = self.killed_at
        self.killed_at = None
        spent, most = run.recorder.budget.spent_ns, base + (at - began) * self.devices
        if not before <= spent <= max(before, most):
            return [f"a dead driver is charged up to {spent}, held at most {most}, had {before}"]
        return []

    def _turns(self, run: Run, runner: WatchedRunner) -> list[str]:
        budget, devices, world = run.recorder.budget, self.devices, self.world
        failures = []
        while True:
            base = budget.spent_ns
            run.scheduler.run(self.turn_ns)
            used = budget.spent_ns - base
            end = runner.began + used // devices
            if used % devices and budget.remaining_ns:  # the last of a budget may not be even
                failures.append(f"{used} ns of {devices} devices are not held together")
            if used and not world.last_said <= end <= world.now:
                late = (end - world.last_said) / SECOND
                failures.append(f"the devices are held until {late:.9f} s after the last word")
            if run.scheduler.finished or run.scheduler._interrupted:
                return failures

    def _ledger(self, store: Store, run: Run) -> list[str]:
        budget, history, failures = run.recorder.budget, run.scheduler.history, []
        parts = store._db.execute(
            f"SELECT number, {', '.join(k.value for k in Kind)} FROM charge"  # noqa: S608
        ).fetchall()
        if sum(sum(costs) for _, *costs in parts) != budget.spent_ns:
            failures.append("the charges on disk do not add up to what was spent")
        if budget.spent_ns != sum(budget.ledger.values()):
            failures.append("the ledger does not add up to what was spent")
        for trial in history:
            lost = sum(
                costs[list(Kind).index(Kind.LOST)] for n, *costs in parts if n == trial.number
            )
            paid = sum(sum(costs) for n, *costs in parts if n == trial.number)
            if paid != trial.device_ns + trial.partial_ns + lost:
                failures.append(f"trial {trial.number} paid {paid} and shows another sum")
        over = -budget.remaining_ns
        if over > self.devices * self.world.spill:
            failures.append(
                f"overspent by {over / SECOND:.3f} s, a batch was {self.world.spill / SECOND:.3f} s"
            )
        self.notes["overspent"] += over > 0
        if run.scheduler.finished:
            longest = max((o.device_ns for t in history for o in t.curve), default=0)
            guess = run.scheduler._runner.first_guess_ns
            if budget.remaining_ns > max(longest, guess):
                failures.append(f"{budget.remaining_ns / SECOND:.3f} s are left over")
        return failures


def budgets(n: int, seed: int) -> Found:
    """Studies of 1 to 8 workers, with deaths, slow drivers, turns, kills and interruptions."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    for i in range(n):
        with tempfile.TemporaryDirectory() as folder:
            study = Study(derive_seed(seed, "budgets", i), Path(folder))
            failures += [f"study {i}: {what}" for what in study.go()]
            notes += study.notes
            notes["workers killed"] += study.world.deaths
    return Found(n, tuple(failures), dict(notes))


class _Function:
    """A training of a user's on a clock of its own, whose epochs now and then take very long."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator, self._stalls = generator, bool(generator.random() < 0.5)
        self.epochs = int(generator.integers(1, 6))
        self.began = self.now = 10**12
        self.took: list[int] = []

    def __call__(self, config: object) -> Iterator[float]:
        """Train; one score in fifty is not finite."""
        for _ in range(self.epochs):
            self.took.append(int(SECOND * (0.05 + min(100.0, self._generator.pareto(1.2)))))
            self.now += self.took[-1]
            yield float(self._generator.choice([0.1, 0.5, 0.9, np.nan], p=[0.4, 0.3, 0.28, 0.02]))

    def monotonic_ns(self) -> int:
        """Read the clock, of a driver that now and then stalls."""
        if self._stalls and self._generator.random() < 0.02:
            self.now += int(self._generator.integers(2 * SECOND))
        return self.now


def functions(n: int, seed: int) -> Found:
    """Functions of a user's, whose epochs cannot be stopped: at most one of them runs over."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    for i in range(n):
        generator = np.random.default_rng(derive_seed(seed, "functions", i))
        train, minutes = _Function(generator), int(generator.integers(1, 60)) / 60
        with patch.object(tuner.runner, "time", train):
            study = tune(
                train,
                SPACE,
                budget_minutes=minutes,
                searcher="random",
                max_epochs=train.epochs,
                seed=i,
            )
        spent, held = to_ns(study.minutes_spent), train.now - train.began
        over = spent - to_ns(minutes)
        notes["overspent"] += over > 0
        if abs(over) > max(train.took):
            failures.append(f"function {i} spent {over / SECOND:.3f} s more than it had")
        if not sum(train.took) - 1 <= spent <= held + 1:  # minutes are floating-point numbers
            failures.append(f"function {i} spent {spent}, trained {sum(train.took)} of {held}")
    return Found(n, tuple(failures), dict(notes))


CAMPAIGNS = (
    Campaign(
        "P5",
        "of a function that cannot be stopped at a batch one epoch at most runs over",
        functions,
        nightly=1_000,
        short=100,
    ),
    Campaign(
        "P5",
        "a budget is overspent by one batch at most, and its parts add up to the nanosecond",
        budgets,
        nightly=1_000,
        short=12,
    ),
)
