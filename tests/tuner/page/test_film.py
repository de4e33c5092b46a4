"""What the page is told of a race: whole, as what has changed, and as it was at a moment."""

import json
from dataclasses import replace

import pytest

from landscapes.synthetic import make_landscape
from tests.helpers import search
from tuner.budget import to_minutes, to_ns
from tuner.page.film import Camera, Scene, film, history_at, make_slice, surface, trial_frame
from tuner.reader import RunRow
from tuner.space import Choice, Conditional, Float, Int, SearchSpace
from tuner.trial import TrialState


@pytest.fixture(scope="module")
def scheduler():
    terrain = replace(make_landscape("cliff"), diverges=0.6)
    scheduler = search(terrain, budget_ns=to_ns(20), name="random", slots=2)
    scheduler.run()
    return scheduler


def scene_of(scheduler):
    space = make_landscape("cliff").space
    row = RunRow(1, "random", 0, space, 12, to_ns(20), 0, None, None)
    return Scene(row, scheduler.history, scheduler.budget.ledger, True)


def test_a_camera_tells_everything_once_and_then_what_is_new(scheduler):
    camera, scene = Camera(), scene_of(scheduler)
    first = camera.shoot([scene])
    assert len(first["runs"]) == 1
    assert len(first["trials"]) == len(scheduler.history)
    assert camera.shoot([scene]) == {"runs": [], "trials": []}
    changed = replace(scheduler.history[2], reason="something else")
    past = history_at(scheduler.history, 1 << 62)
    past._trials[2] = changed
    news = camera.shoot([replace(scene, history=past)])
    running = [t.number for t in scheduler.history.running]  # not yet ended then
    assert [t["number"] for _, t in news["trials"]] == [2, *running]


def test_a_film_is_json_that_a_browser_can_read(scheduler):
    whole = film(
        "finished",
        "</script><b>",
        [scene_of(scheduler)],
        device="simulated",
        unit="simulated minutes",
        terrain=make_landscape("cliff"),
    )
    text = json.dumps(whole, allow_nan=False)  # no NaN, which is no JSON
    assert json.loads(text) == whole
    assert whole["knobs"][0] == {
        "name": "learning_rate",
        "type": "float",
        "low": 1e-4,
        "high": 1.0,
        "log": True,
    }


def test_an_infeasible_trial_has_an_end_and_no_curve(scheduler):
    broken = [t for t in scheduler.history if t.state is TrialState.INFEASIBLE]
    assert broken
    frame = trial_frame(broken[0], make_landscape("cliff").space)
    assert frame["curve"] == []
    assert frame["ended"] == pytest.approx(frame["started"] + to_minutes(broken[0].partial_ns))


def test_a_history_at_a_moment_is_what_a_search_that_stops_there_has_seen(scheduler):
    # Two slots share the device, so a search with half the time is not the first half of this one
    # at its end; what had been observed by then is.
    half = to_ns(9)
    past = history_at(scheduler.history, half)
    assert 0 < len(past) < len(scheduler.history)
    for then, now in zip(past, scheduler.history, strict=False):
        assert then.config == now.config
        assert then.curve == tuple(o for o in now.curve if o.at_ns <= half)
        if then.curve != now.curve:
            assert then.state is TrialState.RUNNING
    assert all(t.started_ns > half for t in scheduler.history.trials[len(past) :])
    assert history_at(scheduler.history, 1 << 62).best == scheduler.history.best


def test_a_slice_holds_the_other_knobs_and_lists_options():
    space = SearchSpace(
        lr=Float(1e-3, 1, log=True), layers=Int(1, 4), act=Choice(("relu", None)), drop=Float(0, 1)
    )
    others = {"lr": 0.1, "layers": 2, "act": None, "drop": 0.5}
    where = make_slice(space, "layers", "act", others, 48)
    assert where.xs == [1, 2, 3, 4]
    assert where.ys == ["relu", None]
    assert where.held == {"lr": 0.1, "drop": 0.5}
    assert len(where.configs) == 8
    assert all(space.contains(config) for config in where.configs)
    assert where.configs[1] == {"lr": 0.1, "layers": 2, "act": "relu", "drop": 0.5}
    assert where.rows(map(float, range(8))) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match="there is no knob 'width'"):
        make_slice(space, "width", "act", others, 4)


def test_a_slice_fills_and_prunes_what_is_not_always_there():
    space = SearchSpace(
        kind=Choice(("sgd", "adam")),
        momentum=Conditional(Float(0, 0.8), "kind", ("sgd",)),
        lr=Float(0, 1),
        beta=Conditional(Float(0, 1), "kind", ("adam",)),
    )
    best = {"kind": "adam", "momentum": None, "lr": 0.5, "beta": 0.25}
    where = make_slice(space, "kind", "lr", best, 2)
    assert where.configs[:2] == [
        {"kind": "sgd", "momentum": 0.4, "lr": 0.0, "beta": None},
        {"kind": "adam", "momentum": None, "lr": 0.0, "beta": 0.25},
    ]
    assert where.held == {"momentum": 0.4, "beta": 0.25}
    assert space.to_unit(where.configs).shape == (4, 4)
    assert make_slice(space, "lr", "beta", best, 2).held == {"kind": "adam"}


def test_where_training_breaks_off_a_map_has_a_hole():
    found = surface(make_landscape("cliff"), "learning_rate", "weight_decay", 12)
    assert all(row[-1] is None for row in found["z"])
    assert all(row[0] is not None for row in found["z"])
