"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import faults, kills, powerloss
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *faults.CAMPAIGNS,
    *kills.CAMPAIGNS,
    *powerloss.CAMPAIGNS,
)
