"""The runner on a simulated clock: what a driver that stalls is charged past its deadline."""

import numpy as np
import pytest

from models.layout import Layout
from tests.torture.scripted import SECOND, Habits, ScriptedPool, World
from tuner.budget import Kind
from tuner.trial import Trial
from tuner.workers.runner import WorkerRunner

STEADY = Habits(
    batch=SECOND // 100,
    start=SECOND,
    tail=1e9,
    batches=4,
    scorings=1,
    life=0,
    thinking=0,
    broken=0.0,
)


@pytest.fixture
def world():
    world = World(STEADY, np.random.default_rng(0))
    with world.clock():
        yield world


def spent(runner, until):
    """What is charged until an event of that kind, or so many moments later, and at the release."""
    events = []
    for _ in range(40):
        events += runner.wait()
        if any(event.kind.name == until for event in events):
            break
    events += runner.release()
    kinds = {kind: sum(event.costs.get(kind, 0) for event in events) for kind in Kind}
    return kinds, sum(kinds.values())


def test_a_trial_that_a_stalled_driver_launches_too_late_costs_nothing(world, tmp_path):
    pool = ScriptedPool(world, Layout(1), 1, tmp_path)
    runner = WorkerRunner(pool, "key")
    runner.hold(SECOND, 0)
    world.now += 5 * SECOND
    runner.launch(Trial(0, {"x": 0.5}, 0, 4), 4)
    kinds, total = spent(runner, "CUT")
    assert total == kinds[Kind.SEARCH] == SECOND
    pool.close()


def test_a_death_that_a_stalled_driver_notices_too_late_costs_the_time_until_the_deadline(
    world, tmp_path
):
    pool = ScriptedPool(world, Layout(2), 1, tmp_path)
    runner = WorkerRunner(pool, "key")
    runner.hold(SECOND, 0)
    runner.launch(Trial(0, {"x": 0.5}, 0, 1 << 20), 1 << 20)  # until it is cut
    world.now += SECOND // 2
    pool.workers[1].connection.kill()
    world.now += 5 * SECOND
    _, total = spent(runner, "CUT")
    assert SECOND <= total <= SECOND + STEADY.batch
    pool.close()


def test_a_death_near_the_deadline_is_not_followed_by_a_start_past_it(world, tmp_path):
    pool = ScriptedPool(world, Layout(1), 1, tmp_path)
    runner = WorkerRunner(pool, "key")
    runner.hold(SECOND, 0)
    runner.launch(Trial(0, {"x": 0.5}, 0, 1 << 20), 1 << 20)
    world.now += SECOND // 2
    pool.workers[0].connection.kill()
    kinds, total = spent(runner, "never")
    assert kinds[Kind.WARM_UP] == SECOND // 2
    assert total == SECOND
    pool.close()
