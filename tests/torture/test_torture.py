"""A short version of every campaign, and what its numbers mean."""

import pytest

from tests.torture.campaign import Found
from tests.torture.registry import CAMPAIGNS

SEED = 0


@pytest.mark.parametrize(
    "campaign", [c for c in CAMPAIGNS if c.short], ids=lambda campaign: campaign.name
)
def test_a_promise_holds(campaign):
    found = campaign.run(campaign.short, SEED)
    if "skipped" in found.notes:
        pytest.skip(found.notes["skipped"])
    assert found.n >= campaign.short
    assert not found.failures, found.failures[:3]


def test_no_failure_in_n_bounds_the_rate_at_three_in_n():
    assert Found(1000).bound == pytest.approx(1 - 0.05 ** (1 / 1000))  # by hand: (1 - p)^n = 0.05
    assert Found(1000).bound == pytest.approx(3 / 1000, rel=0.01)
    assert Found(2, ("a", "b")).bound == 1.0
    assert 0.05 < Found(20, ("once",)).bound < 0.25
