"""Which knobs mattered: found where one alone does, and not claimed where none does."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from landscapes.synthetic import make_landscape
from scripts.tune import app
from tests.helpers import search
from tuner import importance as module
from tuner.budget import to_ns
from tuner.importance import effects, importance, in_words, measured
from tuner.plots import draw_effects
from tuner.reader import RunRow
from tuner.report import Outcome
from tuner.space import Choice, Conditional, Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

SPACE = SearchSpace(
    rate=Float(1e-4, 1.0, log=True), layers=Int(1, 3), width=Int(1, 64, log=True),
    act=Choice((True, 1, "relu")),
)  # fmt: skip
PLAIN = SearchSpace(x=Float(0.0, 1.0))


def trial(number, config, *scores, state=TrialState.COMPLETED):
    curve = tuple(Observation(i + 1, score, 1) for i, score in enumerate(scores))
    return Trial(number, config, 0, len(scores), state, curve)


def plain(values, state=TrialState.COMPLETED):
    return [trial(i, {"x": x}, score, state=state) for i, (x, score) in enumerate(values)]


def trials_on(landscape, minutes):
    scheduler = search(landscape, budget_ns=to_ns(minutes))
    scheduler.run()
    return scheduler.history.trials


def test_the_one_knob_that_matters_is_found():
    pytest.importorskip("optuna")
    ridge = make_landscape("ridge", 4)
    found = importance(ridge.space, trials_on(ridge, 60))
    assert found.shares["learning_rate"] > 0.5
    assert sum(found.shares.values()) == pytest.approx(1)
    assert list(found.shares) == list(ridge.space)
    assert found.epoch == 12
    assert "What mattered: learning_rate" in in_words(found.to_json())


def test_it_is_found_as_well_where_a_searcher_has_settled_on_its_best_values():
    pytest.importorskip("optuna")
    ridge, generator = make_landscape("ridge", 4), np.random.default_rng(0)
    units = generator.random((120, 4))
    units[20:, 0] = 0.63 + 0.01 * generator.standard_normal(100)
    units[60:, 1] = 0.2 + 0.05 * generator.random(60)  # an idle knob that was left alone
    trials = [
        trial(i, c, ridge.value(c) + 0.002 * generator.standard_normal())
        for i, c in enumerate(ridge.space.from_unit(units))
    ]
    assert importance(ridge.space, trials).shares["learning_rate"] > 0.9


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_shares_do_not_depend_on_the_scale_of_the_scores(scale):
    pytest.importorskip("optuna")
    ridge = make_landscape("ridge", 4)
    trials = trials_on(ridge, 30)
    scaled = [
        replace(t, curve=tuple(o._replace(score=o.score * scale) for o in t.curve)) for t in trials
    ]
    shares = importance(ridge.space, trials).shares
    assert importance(ridge.space, scaled).shares == pytest.approx(shares, abs=0.02)


def test_scores_that_differ_by_rounding_say_nothing_of_any_knob():
    pytest.importorskip("optuna")
    values = [(x / 40, 0.7 * (1 + (x % 3) * 1e-16)) for x in range(40)]
    assert len({score for _, score in values}) > 1
    assert importance(PLAIN, plain(values)) is None
    # Where no tree finds anything to split there is no variance to be shared.
    assert importance(PLAIN, plain((0.5, i / 1e3) for i in range(20))) is None


def test_nothing_is_claimed_where_nothing_matters():
    pytest.importorskip("optuna")
    flat = make_landscape("flat", 3)
    found = importance(flat.space, trials_on(flat, 60))
    assert found.p > 0.05
    assert "no knob stands out" in in_words(found.to_json())


def test_every_kind_of_knob_can_be_the_one():
    pytest.importorskip("optuna")
    configs = [
        {"rate": 10 ** -(4 * i / 71), "layers": 1 + i % 3, "width": 1 + 7 * i % 64, "act": act}
        for i, act in enumerate([True, 1, "relu", 1, True, "relu", "relu", True, 1] * 8)
    ]
    scores = {
        "rate": lambda c: math.log10(c["rate"]) / 4,
        "layers": lambda c: -c["layers"],
        "width": lambda c: math.log(c["width"]),
        "act": lambda c: c["act"] == "relu",
    }
    for name, score in scores.items():
        trials = [trial(i, c, float(score(c))) for i, c in enumerate(configs)]
        shares = importance(SPACE, trials).shares
        assert max(shares, key=shares.get) == name


def test_too_few_or_equal_trials_say_nothing():
    assert importance(PLAIN, plain([(i / 9, i / 9) for i in range(9)])) is None
    assert importance(PLAIN, plain([(i / 20, 0.5) for i in range(20)])) is None
    assert importance(PLAIN, []) is None
    assert in_words(None).startswith("What mattered: ")


def test_without_optuna_a_race_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(module, "has_optuna", lambda: False)
    assert importance(PLAIN, plain([(i / 19, i / 19) for i in range(20)])) is None
    assert in_words(None) == "What mattered: importance needs tuner[optuna]."


def test_trials_are_compared_at_the_last_epoch_that_enough_of_them_reached():
    whole = [trial(i, {"x": i / 100}, 0.1, 0.2, 0.3 + i / 100) for i in range(9)]
    stopped = [trial(9 + i, {"x": 0.5 + i / 100}, 0.1, 0.2) for i in range(5)]
    broken = [trial(20, {"x": 0.9}, 0.1, 0.2, 0.9, state=TrialState.INFEASIBLE)]
    epoch, results = measured(PLAIN, [*whole, *stopped, *broken])
    assert epoch == 2
    assert len(results) == 14
    assert {score for _, score in results} == {0.2}


def test_what_searchers_share_counts_once():
    shared = plain([(i / 10, i / 10) for i in range(10)])
    assert len(measured(PLAIN, shared + shared)[1]) == 10


def test_a_knob_that_is_not_always_there_is_judged_by_the_trials_that_have_it(tmp_path):
    space = SearchSpace(
        kind=Choice(("sgd", "adam")),
        momentum=Conditional(Float(0.0, 0.99), "kind", ("sgd",)),
        rate=Float(0.0, 1.0),
    )
    generator = np.random.default_rng(0)
    configs = [space.sample(generator) for _ in range(60)]
    scores = [0.5 if c["momentum"] is None else c["momentum"] for c in configs]
    trials = [trial(i, c, s) for i, (c, s) in enumerate(zip(configs, scores, strict=True))]
    cells = effects(space, trials)["momentum"]
    assert sum(cell.count for cell in cells) == sum(c["kind"] == "sgd" for c in configs)
    middles = [cell.quartiles[1] for cell in cells if cell.quartiles]
    assert middles == sorted(middles)
    shares = importance(space, trials).shares
    assert max(shares, key=shares.get) == "momentum"


def test_effects_are_medians_and_quartiles_of_cells():
    values = [(0.1, 1.0), (0.2, 2.0), (0.3, 3.0), (0.4, 4.0), (0.49, 5.0)]
    values += [(0.5, 10.0), (0.6, 20.0), (0.7, 30.0), (1.0, 60.0), (0.0, 6.0)]
    left, right = effects(PLAIN, plain(values))["x"]
    assert (left.low, left.high, left.count, left.quartiles) == (0, 0.5, 6, (2.25, 3.5, 4.75))
    assert (right.low, right.high, right.count) == (0.5, 1, 4)
    assert right.quartiles == (17.5, 25.0, 37.5)


def test_cells_lie_on_each_knob_s_own_scale():
    configs = [
        {"rate": 10.0 ** -(i % 5), "layers": 1 + i % 2, "width": 1, "act": 1} for i in range(24)
    ]
    found = effects(SPACE, [trial(i, c, i / 24) for i, c in enumerate(configs)])
    assert [c.low for c in found["rate"]] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert [c.count for c in found["rate"]] == [4, 5, 5, 10]
    assert [(c.low, c.high) for c in found["layers"]] == [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5)]
    assert found["layers"][2].quartiles is None
    assert (found["width"][0].low, found["width"][-1].high) == (0.5, 64.5)
    assert [c.count for c in found["act"]] == [0, 24, 0]  # True is another option than 1


@pytest.mark.parametrize("minutes", [0.01, 1.5, 20])
def test_effects_are_drawn_of_however_few_trials(tmp_path, minutes):
    smooth = make_landscape("smooth", 3)
    scheduler = search(smooth, budget_ns=to_ns(minutes))
    scheduler.run()
    row = RunRow(1, "random", 0, smooth.space, 12, to_ns(minutes), 0, None, None)
    outcome = Outcome(row, scheduler.history, scheduler.budget.ledger, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns where there is no room
        draw_effects(tmp_path / "knobs.png", [outcome], None, "smooth")


def test_a_race_writes_what_mattered(tmp_path):
    pytest.importorskip("optuna")
    arguments = "--landscape smooth --searchers random --budget-minutes 20 --quiet --out"
    done = CliRunner().invoke(app, [*arguments.split(), str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["importance"]
    assert list(found) == ["method", "trials", "epoch", "p", "shares"]
    assert list(found["shares"]) == ["learning_rate", "weight_decay"]
    assert "What mattered: " in done.stdout
    assert (tmp_path / "run" / "knobs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
