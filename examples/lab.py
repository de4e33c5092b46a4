"""A week in a laboratory: experiments asked for in the evening, done by hand, told days later.

What is tuned is the yield of a nucleophilic aromatic substitution in a flow reactor:
2,4-difluoronitrobenzene and pyrrolidine in ethanol give the wanted ortho product, some para, and
both react on to the bis product. Here the laboratory is the kinetic model that was fitted to the
real one, with an error of measurement, a pump that fails now and then, and stock solutions from
which not every mixture can be made.

    python examples/lab.py [FOLDER]

Source of the rate constants: C. A. Hone, N. Holmes, G. R. Akien, R. A. Bourne and F. L. Muller,
"Rapid multistep kinetic model generation from transient flow data", React. Chem. Eng. 2 (2017),
103-108; of the ranges: the SnAr benchmark of K. Felton, J. Rittig and A. Lapkin, "Summit",
Chemistry-Methods 1 (2021), 116-122.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import NonlinearConstraint, differential_evolution

from tuner import Float, SearchSpace, Study, Trial

SPACE = SearchSpace(
    minutes=Float(0.5, 2.0),  # in the reactor
    equivalents=Float(1.0, 5.0),  # of pyrrolidine
    molar=Float(0.1, 0.5),  # difluoronitrobenzene at the inlet, mol/l
    celsius=Float(30.0, 120.0),
)
ROUNDS, BATCH = 6, 4
NOISE = 0.01  # of a measured yield: a standard deviation
PUMP_FAILS = 0.08  # a probability
STOCK_SUBSTRATE, STOCK_AMINE = 1.0, 2.0  # mol/l

# Of the steps to ortho and to para, and from each of them to bis.
_RATE_AT_90_C = np.array([57.9, 2.70, 0.865, 1.63]) * 1e-2 * 60  # l/(mol min)
_ACTIVATION = np.array([33.3, 35.3, 38.9, 44.8])  # kJ/mol
_GAS_CONSTANT = 8.314e-3  # kJ/(mol K)


# -- the laboratory --------------------------------------------------------------------------------


def true_yield(minutes: float, equivalents: float, molar: float, celsius: float) -> float:
    """The share of the substrate that leaves the reactor as the ortho product."""
    inverse = 1 / (celsius + 273.15) - 1 / (90 + 273.15)
    to_ortho, to_para, ortho_on, para_on = _RATE_AT_90_C * np.exp(
        -_ACTIVATION / _GAS_CONSTANT * inverse  # Arrhenius
    )

    def rates(_: float, amounts: NDArray[np.float64]) -> list[float]:
        substrate, amine, ortho, para = amounts
        first, second = to_ortho * substrate * amine, to_para * substrate * amine
        third, fourth = ortho_on * ortho * amine, para_on * para * amine
        return [-first - second, -first - second - third - fourth, first - third, second - fourth]

    start = [molar, equivalents * molar, 0.0, 0.0]
    solved = solve_ivp(rates, (0.0, minutes), start, method="LSODA", rtol=1e-6, atol=1e-9)
    return float(solved.y[2, -1] / molar)


def room_for_solvent(equivalents: float, molar: float) -> float:
    """The share of the flow that is left for ethanol; below 0 there is no such mixture."""
    return 1 - molar / STOCK_SUBSTRATE - equivalents * molar / STOCK_AMINE


def do(trial: Trial, study: Study) -> str:
    """Do an experiment, tell the study, and say what happened."""
    chance = np.random.default_rng([7, trial.number])
    config = trial.config
    if room_for_solvent(config["equivalents"], config["molar"]) < 0:
        study.tell(trial.number, state="infeasible", reason="the stock solutions are too thin")
        return "no such mixture"
    if chance.random() < PUMP_FAILS:
        study.tell(trial.number, state="failed", reason="the pump stopped")
        return "the pump stopped"
    measured = true_yield(**config) + NOISE * chance.normal()
    study.tell(trial.number, score=measured)
    return f"{measured:.3f}"


def old_notebook(path: Path) -> None:
    """Three measurements from before anybody thought of a study, as a sheet."""
    settings = [(1.0, 2.0, 0.2, 40.0), (1.0, 1.5, 0.2, 60.0), (2.0, 3.0, 0.15, 100.0)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*SPACE, "yield"])
        rows.writerows([*values, round(true_yield(*values), 2)] for values in settings)


# -- the study -------------------------------------------------------------------------------------


def reopen(folder: Path) -> Study:
    """The study as it is on disk. Between two visits nothing runs, and nothing is forgotten."""
    return Study(SPACE, searcher="bayes", seed=0, path=folder / "study.sqlite")


def import_from(path: Path, study: Study) -> None:
    """Add all results of a sheet, or none."""
    with study.together(), open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            study.add({name: float(row[name]) for name in SPACE}, float(row["yield"]))


def main(folder: Path) -> None:
    """Import what is known, do some rounds of experiments, and compare with the best there is."""
    folder.mkdir(parents=True, exist_ok=True)
    with reopen(folder) as study:
        if not study.trials:
            old_notebook(folder / "before.csv")
            import_from(folder / "before.csv", study)
        print(f"{len(study.trials)} results from before, the best {study.best.score:.2f}")

    for _ in range(ROUNDS):
        with reopen(folder) as study, study.together():  # in the evening
            numbers = [study.ask().number for _ in range(BATCH)]
        with reopen(folder) as study:  # days later, in whatever order they were done
            told = [do(study.trials[number], study) for number in reversed(numbers)]
            print(f"trials {numbers[-1]} to {numbers[0]}: {', '.join(told)}")

    with reopen(folder) as study:
        best = study.best
    print(f"Best: {', '.join(f'{name} {value:.3g}' for name, value in best.config.items())}")
    print(f"measured {best.score:.3f}, in truth {true_yield(**best.config):.3f}")
    print(f"the best there is: {best_yield():.3f}")


def best_yield() -> float:
    """The highest true yield of all mixtures that can be made, as SciPy finds it."""
    found = differential_evolution(
        lambda x: -true_yield(*x),
        [(domain.low, domain.high) for domain in SPACE.values()],
        constraints=NonlinearConstraint(lambda x: room_for_solvent(x[1], x[2]), 0, np.inf),
        rng=0,
        popsize=8,
        maxiter=60,
        polish=False,
    )
    return float(-found.fun)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
