"""The laboratory of the example: its chemistry against closed forms, its week by running it."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tuner import TrialState

SCRIPT = Path(__file__).parents[2] / "examples" / "lab.py"


@pytest.fixture
def lab():
    spec = importlib.util.spec_from_file_location("lab_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("equivalents", "molar", "minutes"), [(1.0, 0.3, 1.0), (2.5, 0.1, 0.5)])
def test_with_the_first_step_alone_it_is_a_second_order_reaction(
    lab, monkeypatch, equivalents, molar, minutes
):
    rate = 0.579 * 60  # l/(mol min) at 90 °C
    monkeypatch.setattr(lab, "_RATE_AT_90_C", np.array([rate, 0, 0, 0]))
    if equivalents == 1.0:
        share = rate * molar * minutes / (1 + rate * molar * minutes)
    else:  # of unequal amounts (Levenspiel, Chemical Reaction Engineering, ch. 3)
        grown = math.exp(rate * molar * (equivalents - 1) * minutes)
        share = equivalents * (grown - 1) / (equivalents * grown - 1)
    assert lab.true_yield(minutes, equivalents, molar, 90.0) == pytest.approx(share, rel=1e-4)


def test_hot_and_long_with_much_amine_it_reacts_on(lab):
    assert lab.true_yield(2.0, 5.0, 0.5, 120.0) < 0.5 < lab.true_yield(1.5, 2.0, 0.3, 40.0)


def test_which_mixtures_can_be_made(lab):
    assert lab.room_for_solvent(1.0, 0.5) == pytest.approx(1 - 0.5 - 0.25)
    assert lab.room_for_solvent(5.0, 0.5) < 0


def test_the_week_ends_near_the_best_there_is_and_can_go_on(lab, tmp_path):
    for rounds in (1, 2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        with lab.reopen(tmp_path) as study:
            trials, best = study.trials, study.best
        assert len(trials) == 3 + rounds * lab.ROUNDS * lab.BATCH
    states = {trial.state for trial in trials}
    assert states == {TrialState.COMPLETED, TrialState.INFEASIBLE, TrialState.FAILED}
    top = float(done.stdout.split()[-1])
    truth = lab.true_yield(**best.config)
    assert truth <= top + 1e-3
    assert truth > top - 0.03
    rng = np.random.default_rng(1)
    units = rng.random((100, len(lab.SPACE)))
    feasible = [
        lab.true_yield(**config)
        for config in lab.SPACE.from_unit(units)
        if lab.room_for_solvent(config["equivalents"], config["molar"]) >= 0
    ]
    assert max(feasible) <= top + 1e-3  # SciPy's optimum is one
