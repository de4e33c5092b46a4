"""P10: a searcher always answers with a legal new point, or says that there is none."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.torture.campaign import Campaign, Found
from tuner.fidelity import Sample
from tuner.history import History, HistoryView
from tuner.searchers import SEARCHERS, SpaceExhausted, fit, make_searcher
from tuner.searchers.base import Searcher, config_key, propose, tried
from tuner.searchers.bayes import has_model
from tuner.searchers.candidates import Candidates
from tuner.searchers.fit import lapack
from tuner.seeding import derive_seed
from tuner.space import Choice, Config, Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

EPOCHS = 4
SPACES = {
    "mixed": SearchSpace(
        lr=Float(1e-4, 1.0, log=True), n=Int(1, 4), act=Choice(("relu", 1, True, None))
    ),
    "real": SearchSpace(x=Float(0.0, 1.0), y=Float(1.0, 10.0, log=True)),
    "options": SearchSpace(a=Choice(tuple("abcde")), b=Choice((True, False)), c=Choice(("one",))),
    "few": SearchSpace(n=Int(1, 3), flag=Choice((True, False))),
    "single": SearchSpace(a=Choice(("only",))),
    "narrow": SearchSpace(x=Float(1.0, math.nextafter(1.0, 2.0)), y=Float(-1e-300, 1e-300)),
    "wide": SearchSpace(x=Float(-1e300, 1e300), y=Float(1e-300, 1e300, log=True)),
    "many": SearchSpace(n=Int(0, 10**5), k=Int(1, 10**6, log=True)),
}
SCORES: dict[str, Callable[[np.random.Generator], float]] = {
    "equal": lambda g: 0.5,
    "usual": lambda g: float(g.random()),
    "huge": lambda g: float(g.choice([-1e300, 1e300, -1e150, 1e150, 0.0, 0.5])),
    "nearly equal": lambda g: 0.5 + float(g.integers(3)) * 1e-16,
    "tiny": lambda g: float(g.choice([0.0, 5e-324, -5e-324, 1e-300])),
    "cliff": lambda g: float(g.choice([0.1, 0.1, 0.1, 0.9, 1e12])),
}
ENDS: dict[str, list[TrialState]] = {
    "completed": [TrialState.COMPLETED],
    "any": list(TrialState),
    "failed": [TrialState.FAILED],
    "infeasible": [TrialState.INFEASIBLE],
    "broken but two": [TrialState.INFEASIBLE] * 9 + [TrialState.COMPLETED],
    "pending": [TrialState.RUNNING] * 4 + [TrialState.COMPLETED],
    "early": [TrialState.PAUSED, TrialState.STOPPED, TrialState.COMPLETED],
}


def history_of(
    space: SearchSpace, size: int, scores: str, ends: str, generator: np.random.Generator
) -> History:
    """A history of `size` trials, of few configurations where the generator says so."""
    pool = int(generator.choice([1, 3, size + 1]))
    configs = [space.sample(generator) for _ in range(pool)]
    history = History(EPOCHS, 10**6)
    for number in range(size):
        config = configs[generator.integers(pool)] if pool <= size else space.sample(generator)
        states = ENDS[ends]
        state = states[generator.integers(len(states))]
        history.start(Trial(number, config, 0, EPOCHS))
        for epoch in range(1, _epochs(state, generator) + 1):
            cost = int(generator.choice([0, 1, 1000, 10**12]))
            history.observe(number, Observation(epoch, SCORES[scores](generator), cost, number))
        if state is TrialState.PAUSED:
            history.update(number, target=history[number].epoch)
        if state.is_final:
            history.close(number, state)
        else:
            history.update(number, state=state)
    return history


def _epochs(state: TrialState, generator: np.random.Generator) -> int:
    if state is TrialState.COMPLETED:
        return EPOCHS
    return int(generator.integers(state is TrialState.STOPPED, EPOCHS))


@dataclass(frozen=True)
class Answer:
    """What came of asking a searcher: what is wrong with it, and whether its model was used."""

    problem: str = ""
    fallback: str = ""
    is_exhausted: bool = False


def answers(n: int, seed: int) -> Found:
    """Histories that nobody would wish for, each shown to every searcher."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    kinds = [(s, y, e) for s in SPACES for y in SCORES for e in ENDS]
    names = sorted(SEARCHERS.keys() - {"vizier"})  # a proposal takes that one seconds
    for i in range(n):
        generator = np.random.default_rng(derive_seed(seed, "answers", i))
        where, scores, ends = kinds[generator.integers(len(kinds))]
        size = int(generator.choice([0, 1, 2, 6, 12, 25]))
        count = int(generator.choice([1, 5]))
        history = history_of(SPACES[where], size, scores, ends, generator)
        for name in names:
            answer = ask(name, SPACES[where], seed + i, history, count)
            notes["answers"] += 1
            notes["with a fallback"] += bool(answer.fallback)
            notes["exhausted"] += answer.is_exhausted
            if answer.problem:
                what = f"{name} on {where} after {size} trials, {scores}, {ends}, for {count}"
                failures.append(f"history {i}, {what}: {answer.problem}")
    return Found(n, tuple(failures), dict(notes))


def breakdowns(n: int, seed: int) -> Found:
    """From the k-th on one, four or all factorisations fail, for each k in turn."""
    failures: list[str] = []
    notes: Counter[str] = Counter()
    for i in range(n):
        generator = np.random.default_rng(derive_seed(seed, "breakdowns", i))
        name, k = ["bayes", "freeze-thaw"][i % 2], 1 + i // 2 % 80
        ends = ["completed", "early", "broken but two"][generator.integers(3)]
        lasts = int(generator.choice([1, 4, 10**9]))
        history = history_of(SPACES["mixed"], 16, "usual", ends, generator)
        with failing_factors(k, lasts) as counted:
            answer = ask(name, SPACES["mixed"], seed + i, history, 1)
        notes["with a fallback"] += bool(answer.fallback)
        notes["factorisations failed"] += max(0, min(counted["calls"] - k + 1, lasts))
        if answer.problem:
            failures.append(f"{i}: {name}, {ends}, {lasts} from {k} on: {answer.problem}")
    return Found(n, tuple(failures), dict(notes))


def crowds(n: int, seed: int) -> Found:
    """500 scores, and 2,000 trials in flight or none: an answer, and how long it takes."""
    failures: list[str] = []
    seconds: dict[str, list[float]] = {}
    for i in range(n):
        generator = np.random.default_rng(derive_seed(seed, "crowds", i))
        name, in_flight = ["bayes", "freeze-thaw", "bohb", "grid"][i % 4], [0, 2000][i // 4 % 2]
        history = history_of(SPACES["mixed"], 500, "usual", "completed", generator)
        for number in range(500, 500 + in_flight):
            history.start(Trial(number, SPACES["mixed"].sample(generator), 0, EPOCHS))
        began = time.perf_counter()
        answer = ask(name, SPACES["mixed"], seed, history, 1)
        seconds.setdefault(f"{name}, {in_flight:,} in flight", []).append(
            time.perf_counter() - began
        )
        if answer.problem:
            failures.append(f"{name}, {in_flight:,} in flight: {answer.problem}")
    p99 = {f"p99 of {what}": f"{np.quantile(s, 0.99):.2f} s" for what, s in seconds.items()}
    return Found(n, tuple(failures), p99)


def ask(name: str, space: SearchSpace, seed: int, history: History, count: int) -> Answer:
    """Ask as the scheduler would, and hold the answer against what is promised of it."""
    searcher, view, before = make_searcher(name, space, seed), history.view(), history.trials
    with warnings.catch_warnings(), watched() as looks:
        warnings.simplefilter("ignore")  # of overflow, where scores are that large
        try:
            configs = _proposed(searcher, view, count)
        except SpaceExhausted:
            left = space.cardinality is None or len(tried(space, view)) < space.cardinality
            return Answer("it says that nothing is left" if left else "", is_exhausted=True)
        except Exception as error:
            return Answer(f"{type(error).__name__}: {error}")
    if history.trials != before:
        return Answer("it changed the history")
    return Answer(_wrong(name, space, view, configs, searcher.fallback, looks), searcher.fallback)


def _proposed(searcher: Searcher, view: HistoryView, count: int) -> list[Config]:
    """What the scheduler would get: nothing of one that would rather go on with a trial."""
    next_action = getattr(searcher, "next_action", None)
    if next_action is not None and not isinstance(next_action(view), Sample):
        return []
    return propose(searcher, view, count)


def _wrong(
    name: str,
    space: SearchSpace,
    history: HistoryView,
    configs: list[Config],
    fallback: str,
    looks: list[Candidates],
) -> str:
    for config in configs:
        if not space.contains(config):
            return f"{config} is outside the space"
    keys = [config_key(space, config) for config in configs]
    is_new = len(set(keys)) == len(keys) and not set(keys) & tried(space, history)
    if space.cardinality is not None and not is_new:
        return f"{configs} are not all new"
    has_asked = bool(looks) and bool(np.isfinite(looks[-1].values).any())
    is_due = name in ("bayes", "freeze-thaw") and has_model(history)
    if configs and is_due and not (has_asked or fallback):
        return "the model was not used, and nothing says so"
    return ""


@contextmanager
def watched() -> Iterator[list[Candidates]]:
    """Where the acquisition was looked at, within the block."""
    looks: list[Candidates] = []
    around = Candidates.around

    def noted(*arguments: Any) -> Candidates:
        looks.append(around(*arguments))
        return looks[-1]

    with patch.object(Candidates, "around", noted):
        yield looks


@contextmanager
def failing_factors(first: int, lasts: int) -> Iterator[Counter[str]]:
    """LAPACK says of so many factorisations, from the first one on, that there is none."""
    counted: Counter[str] = Counter()

    def dpotrf(*arguments: Any, **options: Any) -> Any:
        counted["calls"] += 1
        factor, info = lapack.dpotrf(*arguments, **options)
        return factor, 1 if first <= counted["calls"] < first + lasts else info

    own = SimpleNamespace(dpotrf=dpotrf, dpotri=lapack.dpotri, dpotrs=lapack.dpotrs)
    with patch.object(fit, "lapack", own):
        yield counted


CAMPAIGNS = (
    Campaign(
        "P10",
        "every searcher answers adversarial histories with a legal new point, or says why not",
        answers,
        nightly=5_000,
        short=12,
    ),
    Campaign(
        "P10",
        "a factorisation that fails, at each call, ends in a legal point and is on record",
        breakdowns,
        nightly=2_000,
        short=40,
    ),
    Campaign(
        "P10",
        "an answer after 500 trials, with thousands in flight",
        crowds,
        nightly=160,
        short=4,
    ),
)
