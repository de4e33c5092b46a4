"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import kills, powerloss
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *kills.CAMPAIGNS,
    *powerloss.CAMPAIGNS,
)
