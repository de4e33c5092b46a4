"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import (
    clocks,
    faults,
    files,
    kills,
    owners,
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
    *kills.CAMPAIGNS,
    *owners.CAMPAIGNS,
    *powerloss.CAMPAIGNS,
    *searchers.CAMPAIGNS,
    *spending.CAMPAIGNS,
    *twins.CAMPAIGNS,
)
