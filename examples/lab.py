"""A chemist's weeks: batches of experiments by hand, some of which fail, told days later.

The experiment is a consecutive reaction A -> B -> C in a stirred vessel, B being what is wanted:
the textbook case in which too little time leaves A, and too much makes C. Rates follow Arrhenius;
the concentrations are the analytic solution for first order (O. Levenspiel, Chemical Reaction
Engineering, 3rd edition, Wiley 1999, section 8.1). What the chemist measures has a noise of one
point, and a vessel that is too hot boils over.

`python examples/lab.py [FOLDER]` plays them through. Each step could be days after the one before,
in another process: the study lies in the folder. `python examples/lab.py compare` compares
searchers.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tuner import Float, SearchSpace, Study, Trial

SPACE = SearchSpace(
    temperature=Float(40.0, 120.0),  # in degrees Celsius
    minutes=Float(1.0, 120.0, log=True),
    catalyst=Float(0.1, 5.0, log=True),  # in mole percent
)
_GAS = 8.314  # J / (mol K)
_BOILS = 112.0


def yield_of(temperature: float, minutes: float, catalyst: float) -> float:
    """The share of B, from 0 to 1, without noise."""
    kelvin = temperature + 273.15
    fast = 2.0e8 * catalyst**0.8 * np.exp(-70_000 / (_GAS * kelvin))  # A -> B, per minute
    slow = 1.5e11 * catalyst**0.3 * np.exp(-95_000 / (_GAS * kelvin))  # B -> C, per minute
    if abs(fast - slow) < 1e-12 * fast:
        return float(fast * minutes * np.exp(-fast * minutes))
    decay = np.exp(-fast * minutes) - np.exp(-slow * minutes)
    return float(fast / (slow - fast) * decay)


def true_optimum() -> float:
    """The best yield that there is, by SciPy."""
    units = np.random.default_rng(0).random((20, len(SPACE)))

    def loss(unit: np.ndarray) -> float:
        (config,) = SPACE.from_unit(np.clip(unit, 0.0, 1.0)[None])
        return -yield_of(**config) if config["temperature"] < _BOILS else 0.0

    found = [
        minimize(loss, start, method="Nelder-Mead", options={"maxiter": 600}) for start in units
    ]
    return -min(result.fun for result in found)


def do(trial: Trial) -> float | None:
    """A day in the laboratory: the yield that was measured, or None where it boiled over."""
    if trial.config["temperature"] >= _BOILS:
        return None
    noise = np.random.default_rng(trial.seed).normal(0.0, 0.01)
    return min(1.0, max(0.0, yield_of(**trial.config) + noise))


def take_notes_over(study: Study, path: Path) -> int:
    """Last year's results, from a table."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        study.add({name: float(row[name]) for name in study.space}, float(row["yield"]))
    return len(rows)


def weeks(folder: Path, batches: int = 10, size: int = 4) -> Study:
    """Ask for batches, do them, tell them: the study that knows all of it."""
    notes = folder / "last-year.csv"
    notes.write_text("temperature,minutes,catalyst,yield\n60,30,1.0,0.06\n90,10,0.5,0.09\n")
    path = folder / "study.sqlite"
    with Study(SPACE, "bayes", seed=0, path=path) as study:
        print(f"{take_notes_over(study, notes)} results of last year taken over")
    for batch in range(batches):
        with Study(SPACE, "bayes", seed=0, path=path) as study:  # Monday: ask
            asked = [study.ask() for _ in range(size)]
        results = {trial.number: do(trial) for trial in asked}  # the days between
        with Study(SPACE, "bayes", seed=0, path=path) as study:  # Friday: tell
            for number, measured in results.items():
                if measured is None:
                    study.tell(number, state="infeasible", reason="boiled over")
                else:
                    study.tell(number, measured)
            best = study.best
        print(f"batch {batch + 1}: best yield so far {best.score:.3f}" if best else "nothing yet")
    return study


def compare(experiments: int = 40, seeds: int = 8) -> None:
    """The true yield of what is called the best after so many experiments, over some seeds."""
    for searcher, size in (("bayes", 1), ("bayes", 4), ("random", 1)):
        found = []
        for seed in range(seeds):
            study = Study(SPACE, searcher, seed=seed)
            for _ in range(experiments // size):
                for trial in [study.ask() for _ in range(size)]:
                    measured = do(trial)
                    if measured is None:
                        study.tell(trial.number, state="infeasible")
                    else:
                        study.tell(trial.number, measured)
            found.append(yield_of(**study.best.config) if study.best else 0.0)
        print(f"{searcher}, batches of {size}: {np.mean(found):.3f}, {np.round(found, 3).tolist()}")


def main() -> None:
    """Play the weeks through, and compare what was found with what there is."""
    if sys.argv[1:] == ["compare"]:
        compare()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        study = weeks(folder)
        best = study.best
        if best is None:
            raise ValueError("no experiment gave a yield")
        setting = ", ".join(f"{name} {value:.3g}" for name, value in best.config.items())
        boiled = sum(trial.reason == "boiled over" for trial in study.trials)
        print(f"{len(study.trials)} experiments known, {boiled} boiled over")
        print(f"best: {setting}: measured {best.score:.3f}, true {yield_of(**best.config):.3f}")
        print(f"the best that there is: {true_optimum():.3f}")


if __name__ == "__main__":
    main()
