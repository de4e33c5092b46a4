"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import clocks, owners, searchers, spending, twins
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *searchers.CAMPAIGNS,
    *spending.CAMPAIGNS,
    *twins.CAMPAIGNS,
    *clocks.CAMPAIGNS,
    *owners.CAMPAIGNS,
)
