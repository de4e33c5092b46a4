"""A study: ask for configurations and tell what they gave, or let `tune` do both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import index
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tuner.budget import MOST_MINUTES, Budget, Kind, budget_ns, to_minutes, to_ns
from tuner.confirm import Expected, chosen, expected_score
from tuner.entry import ETA, entry_rungs, make_entry
from tuner.fidelity import UNLIMITED, FidelityPolicy, FullFidelity
from tuner.history import History, HistoryView
from tuner.naming import pick
from tuner.reader import RunRow, study_file, study_name
from tuner.runner import Runner
from tuner.scheduler import Recorder, Scheduler, mark_interrupted
from tuner.seeding import checked_seed, trial_seed
from tuner.space import Conditional, Config, Domain, SearchSpace
from tuner.store import Store
from tuner.tables import to_frame, write_csv
from tuner.trial import ADDED, SIGNS, Observation, Trial, TrialState, negated
from tuner.warm_start import EarlierStudy, Taken, read_study, take_over

if TYPE_CHECKING:
    import pandas


class Study:
    """A search under the caller's own control: `ask`, run it wherever, `tell`.

    >>> from tuner import Float, SearchSpace, Study
    >>> study = Study(SearchSpace(x=Float(0, 1)), searcher="random")
    >>> trial = study.ask()
    >>> study.tell(trial.number, score=trial.config["x"])
    >>> study.best.number
    0

    Args:
        space: a SearchSpace, or a mapping from names to domains.
        searcher: an entry, such as `bayes` or `tpe`.
        seed: of the searcher.
        path: an SQLite file that keeps the study; an existing one goes on, and must hold the
            same space, searcher, seed, mode, max_epochs and rungs.
        mode: "max" where a higher score is better, "min" for a loss.

    Raises:
        ValueError: unknown searcher or mode; a file that is damaged, in use, of a newer version,
            or of another study.
    """

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Domain | Conditional],
        searcher: str = "bayes",
        seed: int = 0,
        path: str | Path | None = None,
        *,
        mode: str = "max",
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        eta: int = ETA,
        budget_minutes: float | None = None,
    ) -> None:
        self.space = space if isinstance(space, SearchSpace) else SearchSpace(space)
        self.sign = pick(mode, SIGNS, "mode")
        # What makes no sense is refused before a file is made.
        self.entry, self.seed, eta = searcher, checked_seed(seed), index(eta)
        max_epochs = None if max_epochs is None else index(max_epochs)
        min_epochs = None if min_epochs is None else index(min_epochs)
        self.searcher, self.policy = make_entry(
            searcher, self.space, self.seed, epochs=max_epochs, min_epochs=min_epochs, eta=eta
        )
        limit_ns = None if budget_minutes is None else budget_ns(budget_minutes)
        self._store: Store | None = None
        if path is None:
            self._history = History(max_epochs, limit_ns)
            self._recorder = Recorder(Budget(limit_ns))
        else:
            row = RunRow(0, searcher, self.seed, self.space, max_epochs, limit_ns, 0, None, None)
            is_full = isinstance(self.policy, FullFidelity)  # which compares nobody
            rungs = () if is_full else (eta, *entry_rungs(max_epochs, min_epochs, eta))
            self._open(Path(path), row, mode, rungs)

    def _open(self, path: Path, wanted: RunRow, mode: str, rungs: Sequence[int]) -> None:
        store = Store(path, create=not path.exists())
        try:
            rows = store.runs()
            if not rows:
                rows = [
                    store.add_run(
                        wanted.searcher,
                        wanted.seed,
                        wanted.space,
                        wanted.max_epochs,
                        wanted.budget_ns,
                    )
                ]
                store.set_meta("mode", mode)
            row = rows[0]
            mode_kept = store.meta("mode")
            kept = (row.space, row.searcher, row.seed, row.max_epochs, mode_kept, len(rows))
            asked = (wanted.space, wanted.searcher, wanted.seed, wanted.max_epochs, mode, 1)
            if kept != asked:
                raise ValueError(
                    f"{path} holds another study: (space, searcher, seed, max_epochs, mode, runs) "
                    f"is {kept}, and {asked} was asked for"
                )
            rungs_kept = store.meta("rungs")
            if rungs_kept is None:  # of a study that an older version began
                store.set_meta("rungs", list(rungs))
            elif rungs_kept != list(rungs):
                raise ValueError(
                    f"{path} holds a study with (eta, rungs) {rungs_kept}, and {list(rungs)} was "
                    "asked for: leave min_epochs and eta as they were"
                )
            if wanted.budget_ns is not None and wanted.budget_ns != row.budget_ns:
                store.set_budget(row.id, wanted.budget_ns)
                row = replace(row, budget_ns=wanted.budget_ns)
            self._history = store.history(row)
            self._recorder = Recorder(store.budget(row), store, row.id, row.clock)
            store.commit()
        except BaseException:
            store.close()
            raise
        self._store = store

    # -- ask and tell ------------------------------------------------------------------------------

    def ask(self) -> Trial:
        """A new trial to run; several may be out at once, and searchers see them as pending.

        Raises SpaceExhausted where a finite space has nothing left, and ValueError where trials
        train in parts, which `tell` knows nothing of: `tune` does that.
        """
        if not isinstance(self.policy, FullFidelity):
            raise ValueError(
                "ask and tell are for whole trainings; an entry that pauses them needs tune()"
            )
        number = len(self._history)
        config = self.searcher.propose(self._history.view())
        repeat = self._history.trainings(config)
        trial = Trial(
            number,
            config,
            trial_seed(self.seed, config, repeat),
            self._history.max_epochs or UNLIMITED,
            started_ns=self._recorder.budget.spent_ns,
            note=self.searcher.fallback,
            repeat=repeat,
        )
        self._history.start(trial)
        self._recorder.commit()
        return trial

    def tell(
        self,
        number: int,
        score: float | None = None,
        minutes: float = 0.0,
        *,
        state: str = "completed",
        reason: str = "",
    ) -> None:
        """Report a trial's result.

        Args:
            number: of the trial that `ask` gave.
            score: a finite number; needed where the state is "completed" or "stopped".
            minutes: device minutes that the trial took.
            state: "completed", "stopped", "infeasible" (the configuration's own fault) or
                "failed" (not its fault).
            reason: why, in words.

        Raises:
            ValueError: no such trial, one that has ended, a score that is missing or no finite
                number, negative minutes, or an unknown state.
        """
        states = {s.name.lower(): s for s in TrialState if s.is_final}
        final = pick(state.lower(), states, "state to tell")
        needs_score = final in (TrialState.COMPLETED, TrialState.STOPPED)
        score = None if score is None else float(score)
        cost_ns = self._cost_ns(minutes)
        if needs_score and (score is None or not math.isfinite(score)):
            raise ValueError(
                f"trial {number}: a {state} trial needs a finite score, got {score}; a training "
                'that diverged is told as state="infeasible"'
            )
        waiting = [t.number for t in self._history.running]
        if number not in waiting:
            is_known = 0 <= number < len(self._history)
            why = f"it is {self._history[number].state.name}" if is_known else "there is none such"
            raise ValueError(
                f"trial {number} is not waiting for a result, {why}: asked and not yet told "
                f"are {waiting}"
            )
        self._recorder.charge({Kind.TRAIN: cost_ns}, number)
        if score is not None and math.isfinite(score):
            trial = self._history[number]
            at_ns = self._recorder.budget.spent_ns
            observed = Observation(trial.epoch + 1, self.sign * score, cost_ns, at_ns)
            self._history.observe(number, observation=observed)
        else:
            self._history.update(number, partial_ns=cost_ns)
        self._history.close(number, final, reason)
        self._recorder.commit()

    def add(self, config: Config, score: float, minutes: float = 0.0) -> Trial:
        """Add a result from before, as a completed trial with the source `added`.

        It costs what `minutes` say. Searchers learn from it and `best` may be it; policies that
        compare trials at rungs compare those that the study trained itself.

        Raises ValueError where the configuration is not in the space, the score is not finite or
        the minutes are no number from 0 up.
        """
        # NumPy's numbers as plain ones, which JSON can write.
        config = {k: getattr(v, "item", lambda v=v: v)() for k, v in config.items()}
        config = self.space.completed(config)
        self.space.check(config)
        if score is None or not math.isfinite(score):
            raise ValueError(f"a score is a finite number, got {score}")
        self._cost_ns(minutes)
        number = len(self._history)
        target = self._history.max_epochs or UNLIMITED
        repeat = self._history.trainings(config)
        seed = trial_seed(self.seed, config, repeat)
        now = self._recorder.budget.spent_ns
        trial = Trial(number, config, seed, target, started_ns=now, source=ADDED, repeat=repeat)
        self._history.start(trial)
        self.tell(number, score, minutes)
        return self._outward(self._history[number])

    def add_from(self, earlier: str | Path | EarlierStudy) -> tuple[Trial, ...]:
        """Take over what an earlier study found, and return those trials; they cost nothing.

        What fits into the space is taken, of all its runs: `tuner.warm_start` has the rules. Each
        trial has the earlier study's name as its `source`. Searchers learn from them and `best`
        may be one of them. A study is taken over once: the next time nothing happens, even where
        one of that name is not there any more.

        Args:
            earlier: a folder with a `study.sqlite`, or the file itself, which may be in use; or
                what `tuner.integrations.optuna.read_study` returns.

        Raises:
            ValueError: no study there, this one itself, one that maximises where this minimises,
                or nothing in it that fits; and which knob or range is off.
        """
        if not isinstance(earlier, EarlierStudy):
            path = study_file(Path(earlier))
            if not path.exists() and study_name(path) in self._sources():
                return ()
            earlier = read_study(path)
            if self._store is not None and self._store.path.samefile(earlier.path):
                raise ValueError(
                    f"{earlier.path} is this study itself, which knows its own results"
                )
        return tuple(self._outward(t) for t in self.take_over(earlier).trials)

    def take_over(self, earlier: EarlierStudy) -> Taken:
        """As `add_from`, and also how many were left out and why.

        The trials that it returns have scores as the searcher maximises them. Raises ValueError as
        `add_from` does.
        """
        if (earlier.mode == "min") != (self.sign < 0):
            raise ValueError(
                f"{earlier.path} has mode={earlier.mode!r}: its scores are not of this study's kind"
            )
        known = self._sources()
        if earlier.name in known:
            mine = [t for t in self._history if t.source == earlier.name]
            if not earlier.has(mine, self.space):
                raise ValueError(
                    f"{earlier.path} is not the study {earlier.name!r} whose results are here "
                    "already: they are told apart by that name; give it another"
                )
            return Taken(earlier.name, (), {})
        first, length = len(self._history), self._history.max_epochs
        if self._store is not None:  # what the other had from this one is known here
            known = known | {study_name(self._store.path)}
        (taken,) = take_over([earlier], self.space, length, first=first, known=known)
        for trial in taken.trials:
            self._history.adopt(trial)
        self._recorder.commit()
        return taken

    def _cost_ns(self, minutes: float) -> int:
        """Minutes that a trial took, in ns; ValueError where no trial can have taken them."""
        spent = self.minutes_spent
        if not 0 <= minutes < MOST_MINUTES - spent:
            raise ValueError(
                f"a trial's minutes are a number from 0 up, with the {spent:g} before them to 1e8, "
                f"got {minutes}"
            )
        return to_ns(float(minutes))

    def _sources(self) -> set[str]:
        """The names of the studies whose results were taken over."""
        return {t.source for t in self._history} - {"", ADDED}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep all that is asked, told and added within, or none of it: one commit at the end.

        Where it is left by an error the file is as it was before, and this study is closed.
        """
        store = self._store
        if store is None:
            yield
            return
        usual, store.commit_every_s = store.commit_every_s, math.inf
        try:
            yield
            store.commit(force=True)
        except BaseException:
            self.close()
            raise
        store.commit_every_s = usual

    # -- reading -----------------------------------------------------------------------------------

    @property
    def history(self) -> HistoryView:
        """What the searcher sees: scores as it maximises them."""
        return self._history.view()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, with scores as they were told."""
        return tuple(self._outward(t) for t in self._history)

    def trial(self, number: int) -> Trial:
        """One of them."""
        return self._outward(self._history[number])

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, results from before included; None before the first.

        Where some were confirmed, the first training of the configuration with the best mean.
        """
        best = self._history.best_earlier or chosen(self._history)
        return None if best is None else self._outward(best)

    @property
    def expected_score(self) -> Expected | None:
        """What another training of `best` may be expected to score.

        None where it had only one, or is a result from before.
        """
        if self._history.best_earlier is not None:
            return None
        found = expected_score(self._history)
        return None if found is None else replace(found, mean=self.sign * found.mean)

    @property
    def minutes_spent(self) -> float:
        """Device minutes of all trials, and of whatever else the budget paid for."""
        return to_minutes(self._recorder.budget.spent_ns)

    def to_csv(self, path: str | Path) -> None:
        """Write a row per trial: number, state, epochs, score, minutes, knobs, reason."""
        write_csv(Path(path), self.trials, list(self.space))

    def to_frame(self, *, epochs: bool = False) -> pandas.DataFrame:
        """The same as a frame of pandas', or with `epochs` a row an epoch.

        Raises ValueError where pandas is not installed.
        """
        return to_frame(self.trials, list(self.space), epochs=epochs)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tuner.notebook import study_html  # and what that needs, when somebody looks
        from tuner.report import best_so_far

        line = [(to_minutes(ns), self.sign * score) for ns, score in best_so_far(self.history)]
        return study_html(self.entry, self.trials, self.best, self.minutes_spent, line)

    def close(self) -> None:
        """Let go of the file, where there is one. Reading goes on; `ask` and `tell` do not."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _outward(self, trial: Trial) -> Trial:
        return trial if self.sign == 1.0 else negated(trial)

    def scheduler(
        self, runner: Runner, policy: FidelityPolicy, on_change: Callable[[], None]
    ) -> Scheduler:
        """The loop that goes on with this study; `runner` is ready to train."""
        mark_interrupted(self._history, self._recorder, runner_keeps=False)
        return Scheduler(
            self.searcher,
            policy,
            runner,
            self._history,
            self._recorder,
            seed=self.seed,
            on_change=on_change,
        )
