"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import (
    clocks,
    faults,
    files,
    hostile,
    kills,
    owners,
    page,
    powerloss,
    searchers,
    spending,
    twins,
)
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *clocks.CAMPAIGNS,
    *faults.CAMPAIGNS,
    *files.CAMPAIGNS,
    *hostile.CAMPAIGNS,
    *kills.CAMPAIGNS,
    *owners.CAMPAIGNS,
    *page.CAMPAIGNS,
    *powerloss.CAMPAIGNS,
    *searchers.CAMPAIGNS,
    *spending.CAMPAIGNS,
    *twins.CAMPAIGNS,
)
