"""The formulas: a known optimum, a cliff, curves that rise to the final score."""

import numpy as np
import pytest

from landscapes.synthetic import CHANCE, LANDSCAPES, make_landscape


@pytest.fixture(params=sorted(LANDSCAPES))
def landscape(request):
    return make_landscape(request.param)


def test_nothing_on_a_fine_lattice_beats_the_optimum(landscape):
    config, best = landscape.optimum()
    assert landscape.value(config) == best
    values = [landscape.value(c) for c in landscape.space.grid(81)]
    assert max(values) <= best + 1e-12
    assert max(values) > best - 0.01


def test_beyond_the_cliff_there_is_chance(landscape):
    for weight_decay in (1e-6, 1e-3, 1e-1):
        config = {"learning_rate": 1.0, "weight_decay": weight_decay}
        assert landscape.value(config) == pytest.approx(CHANCE, abs=1e-3)


def test_a_curve_ends_near_the_noise_free_value_and_costs_time(landscape):
    config = {"learning_rate": 0.003, "weight_decay": 1e-4}  # far from the cliff
    ends = [landscape.curve(config, replicate)[0][-1] for replicate in range(200)]
    error = landscape.noise / 200**0.5
    assert abs(np.mean(ends) - landscape.value(config)) < 4 * error
    scores, seconds = landscape.curve(config, 0)
    assert len(scores) == len(seconds) == landscape.epochs
    assert (seconds > 0).all()
    again = landscape.curve(config, 0)
    assert (again[0] == scores).all()
    assert (again[1] == seconds).all()
    assert (landscape.curve(config, 1)[0] != scores).any()
