"""What a searcher believed, and what it would really have tried next."""

import pytest

from landscapes.synthetic import make_landscape
from tests.helpers import search
from tuner.budget import to_minutes, to_ns
from tuner.page.belief import belief
from tuner.page.film import Scene
from tuner.reader import RunRow
from tuner.searchers.shared_start import SharedStart

X, Y = "learning_rate", "weight_decay"


@pytest.mark.parametrize("shared", [0, 14])
def test_the_next_point_is_the_one_that_the_search_went_to(shared):
    smooth = make_landscape("smooth")
    scheduler = search(smooth, budget_ns=to_ns(27), name="bayes", seed=2)
    inner = scheduler._searcher
    scheduler._searcher = SharedStart(inner, smooth.space, 2, shared)
    scheduler.run()
    row = RunRow(0, "bayes", 2, smooth.space, 12, to_ns(27), 0, None, None)
    scene = Scene(row, scheduler.history, scheduler.budget.ledger, True, shared_start=shared)
    for number in (12, 15):
        began = to_minutes(scheduler.history[number].started_ns)
        found = belief(scene, began, X, Y, {}, points=4)
        assert found["trials"] == number
        config = dict(scheduler.history[number].config)
        assert found["next"] == pytest.approx(config, rel=1e-6)


def test_a_searcher_without_a_model_has_no_belief():
    smooth = make_landscape("smooth")
    scheduler = search(smooth, budget_ns=to_ns(5), name="random")
    scheduler.run()
    row = RunRow(0, "random", 0, smooth.space, 12, to_ns(5), 0, None, None)
    scene = Scene(row, scheduler.history, scheduler.budget.ledger, True)
    with pytest.raises(ValueError, match="no model"):
        belief(scene, 4.0, X, Y, {})
