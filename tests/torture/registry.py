"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import searchers, spending
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *searchers.CAMPAIGNS,
    *spending.CAMPAIGNS,
)
