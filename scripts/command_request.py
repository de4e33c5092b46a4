"""What `tune.py --command` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.trial import SIGNS
from tuner.workers.commands import Command
from tuner.workers.functions import FunctionSetup, Workers, locate


@dataclass(frozen=True, kw_only=True)
class CommandRequest:
    """Everything that was asked for; kept in the study, so that a resume needs only its folder.

    Attributes:
        command: as `Command.to_json` gives it.
        epochs: the full length of a training, or the number of replicates; None for as long as
            the program goes on.
        mode: `max`, or `min` where a lower score is better.
    """

    command: dict[str, Any]
    mode: str
    searchers: list[str]
    seed: int
    seeds: int
    budget_minutes: float
    epochs: int | None
    min_epochs: int | None
    eta: int
    grid_points: int | None
    shared_start: int
    confirm: int
    stop: str
    device: str
    slots: int
    memory_gib: float | None
    space: dict[str, Any]

    def setup(self, directory: Path) -> FunctionSetup:
        """For the workers; raises ValueError where a device is not there."""
        workers = Workers(self.device, slots=self.slots, memory_gib=self.memory_gib)
        command = Command.from_json(self.command)
        return workers.setup(locate(command), SIGNS[self.mode], directory)

    @property
    def score_name(self) -> str:
        """What pictures call the scores, of which a higher one is better there."""
        return "score" if self.mode == "max" else "score, negated"
