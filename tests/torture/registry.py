"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import hostile, page
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *hostile.CAMPAIGNS,
    *page.CAMPAIGNS,
)
