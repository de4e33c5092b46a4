"""How long a proposal takes, ours and what a user would use otherwise, by turns in one process."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from scripts.errors import plain_errors
from scripts.figures import FOLDER, Table, ratio, save
from scripts.peers import require
from tuner.history import History
from tuner.searchers import Searcher, make_searcher
from tuner.space import Config, Float, SearchSpace, Units
from tuner.trial import Observation, Trial, TrialState

SPACE = SearchSpace(
    learning_rate=Float(1e-4, 1.0, log=True),
    weight_decay=Float(1e-6, 1e-1, log=True),
    dropout=Float(0.0, 0.7),
    momentum=Float(0.0, 0.99),
)
PENDING = 4
OURS, RIVALS = "bayes", ("Optuna GPSampler", "Optuna TPESampler", "plain BoTorch")
FRESH, WARM = "fresh", "one more trial"
_TOP = np.array([0.7, 0.3, 0.2, 0.8])

Result = tuple[Config, float]


class Contender(Protocol):
    """A searcher that knows n scores, and that some more trials are pending."""

    def suggest(self) -> Config:
        """The next configuration, which is pending from then on; this is what is timed."""

    def tell(self, score: float) -> None:
        """The first pending trial has ended."""


def results(n: int, seed: int) -> list[Result]:
    """What n trials of a search found, and some pending: half anywhere, half near the top."""
    generator = np.random.default_rng([n, seed])
    units = generator.random((n + PENDING, len(SPACE)))
    late = slice(n // 2, n)
    near = _TOP + 0.1 * generator.standard_normal(units[late].shape)
    units[late] = np.clip(near, 0.0, 1.0)
    noise = 0.005 * generator.standard_normal(len(units))
    scores = score(units) + noise
    return list(zip(SPACE.from_unit(units), scores.tolist(), strict=True))


def score(units: Units) -> Any:
    """A bumpy hill, n scores at `n x d`."""
    return 0.9 - ((units - _TOP) ** 2).sum(1) / 4 + 0.02 * np.sin(10 * units).sum(1)


class _Ours:
    def __init__(self, known: Sequence[Result], seed: int) -> None:
        self._searcher: Searcher = make_searcher("bayes", SPACE, seed)
        self._history = History(1)
        for config, _ in known:
            self._start(config)
        for _, value in known[:-PENDING]:
            self.tell(value)

    def _start(self, config: Config) -> None:
        self._history.start(Trial(len(self._history), config, 0, 1))

    def suggest(self) -> Config:
        config = self._searcher.propose(self._history.view())
        self._start(config)
        return config

    def tell(self, score: float) -> None:
        number = next(t.number for t in self._history if t.state is TrialState.RUNNING)
        self._history.observe(number, Observation(1, score, 1_000_000_000))
        self._history.close(number, TrialState.COMPLETED)


class _Optuna:
    def __init__(self, name: str, known: Sequence[Result], seed: int) -> None:
        import optuna
        from optuna.trial import TrialState as State

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = getattr(optuna.samplers, name)(seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._domains = {
            name: optuna.distributions.FloatDistribution(dom.low, dom.high, log=dom.log)
            for name, dom in SPACE.items()
            if isinstance(dom, Float)
        }
        for i, (config, value) in enumerate(known):
            ended = i < len(known) - PENDING
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=dict(config),
                    distributions=self._domains,
                    value=value if ended else None,
                    state=State.COMPLETE if ended else State.RUNNING,
                )
            )

    def suggest(self) -> Config:
        # As `ask` with its distributions does: all knobs at once.
        return self._study.ask(self._domains).params

    def tell(self, score: float) -> None:
        number = next(t.number for t in self._study.get_trials(deepcopy=False) if t.value is None)
        self._study.tell(number, score)


class _BoTorch:
    """As in BoTorch's tutorials: a standard model and the logarithm of noisy q-EI."""

    def __init__(self, known: Sequence[Result], seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        self._units = [SPACE.to_unit([config])[0] for config, _ in known]
        self._scores = [value for _, value in known[:-PENDING]]

    def suggest(self) -> Config:
        import torch
        from botorch.acquisition import qLogExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood

        x, y = torch.tensor(np.array(self._units)), torch.tensor(self._scores).double()
        model = SingleTaskGP(x[: len(y)], y.unsqueeze(-1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        found, _ = optimize_acqf(
            qLogExpectedImprovement(model, best_f=y.max(), X_pending=x[len(y) :]),
            bounds=torch.tensor([[0.0] * len(SPACE), [1.0] * len(SPACE)]).double(),
            q=1,
            num_restarts=10,
            raw_samples=256,
        )
        self._units.append(found[0].numpy())
        return SPACE.from_unit(found.numpy())[0]

    def tell(self, score: float) -> None:
        self._scores.append(score)


CONTENDERS: dict[str, Callable[[Sequence[Result], int], Contender]] = {
    OURS: _Ours,
    RIVALS[0]: lambda known, seed: _Optuna("GPSampler", known, seed),
    RIVALS[1]: lambda known, seed: _Optuna("TPESampler", known, seed),
    RIVALS[2]: _BoTorch,
}


def time_proposals(n: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds for a proposal, by situation and contender, one for each repeat.

    All are told the same trials. A fresh one has been asked nothing before, as after a resume;
    then one of the pending trials ends, and it is asked again.
    """
    found: dict[str, dict[str, list[float]]] = {
        situation: {name: [] for name in CONTENDERS} for situation in (FRESH, WARM)
    }
    for seed in range(repeats):
        known = results(n, seed)
        # In turn each is the first, so that none always follows the same one.
        names = list(CONTENDERS)
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            contender = CONTENDERS[name](known, seed)
            for situation in (FRESH, WARM):
                began = time.perf_counter()
                contender.suggest()
                found[situation][name].append(time.perf_counter() - began)
                contender.tell(known[n][1])
    return found


def suggest(
    sizes: Annotated[str, typer.Option(help="How many trials have ended.")] = "50,200,500,1000",
    repeats: Annotated[int, typer.Option(min=1, help="Of each, by turns.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = FOLDER,
) -> None:
    """How long one proposal takes with four knobs and four pending trials."""
    with plain_errors("benchmark"):
        try:
            counts = [int(word) for word in sizes.split(",")]
        except ValueError:
            counts = []
        if not counts or min(counts) < 10:
            raise ValueError(f"--sizes is numbers from 10 up, as in 50,200; got {sizes!r}")
        for package in ("optuna", "botorch"):
            require(package)
        with warnings.catch_warnings(record=True):  # BoTorch says `always` inside of any filter
            warnings.simplefilter("ignore")
            time_proposals(20, 1)  # what is loaded and compiled on first use is no proposal's time
            seconds = {
                n: time_proposals(n, repeats)
                for n in track(counts, "suggest", console=Console(stderr=True))
            }
    content = {"knobs": len(SPACE), "pending": PENDING, "seeds": repeats, "seconds": seconds}
    tables = [_table(situation, seconds) for situation in (FRESH, WARM)]
    save(out, "suggest", content, tables)


def _table(situation: str, seconds: dict[int, dict[str, dict[str, list[float]]]]) -> Table:
    about = {
        FRESH: "One proposal of a searcher that is new to the trials",
        WARM: "The next proposal, when one more trial has ended",
    }
    columns = ["trials", *(f"{name}, ms" for name in CONTENDERS)]
    rows = []
    for n, found in seconds.items():
        each = found[situation]
        medians = [f"{1e3 * statistics.median(times):.0f}" for times in each.values()]
        rows.append([str(n), *medians, *(ratio(each[name], each[OURS]) for name in RIVALS)])
    return Table(
        f"{about[situation]}: median milliseconds, and how many times {OURS}' time each rival "
        "takes, median and extremes over repeats",
        [*columns, *(f"{name} / {OURS}" for name in RIVALS)],
        rows,
    )
