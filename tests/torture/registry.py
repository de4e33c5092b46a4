"""All campaigns, by promise."""

from __future__ import annotations

from tests.torture import files
from tests.torture.campaign import Campaign

CAMPAIGNS: tuple[Campaign, ...] = (*files.CAMPAIGNS,)
