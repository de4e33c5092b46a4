"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import faults, files, kills, powerloss
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (
    *faults.CAMPAIGNS,
    *files.CAMPAIGNS,
    *kills.CAMPAIGNS,
    *powerloss.CAMPAIGNS,
)
