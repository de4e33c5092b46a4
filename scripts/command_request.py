"""What `tune.py --command` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.trial import SIGNS
from tuner.workers.commands import Command
from tuner.workers.functions import Workers, locate
from tuner.workers.pool import WorkerPool


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
    cluster: str | None = None
    hung_after_minutes: float | None = None

    @property
    def workers(self) -> Workers:
        """Where the command is run, and how."""
        return Workers(
            self.device,
            slots=self.slots,
            memory_gib=self.memory_gib,
            hung_after_minutes=self.hung_after_minutes,
            cluster=self.cluster,
        )

    def pool(self, directory: Path) -> WorkerPool:
        """The workers, not started yet; raises ValueError where a device is not there."""
        where, workers = locate(Command.from_json(self.command)), self.workers
        return workers.pool(workers.setup(where, self.sign, directory))

    @property
    def sign(self) -> float:
        """-1 where scores are losses, else 1."""
        return SIGNS[self.mode]

    @property
    def score_name(self) -> str:
        """What pictures call the scores, of which a higher one is better there."""
        return "score" if self.mode == "max" else "score, negated"
