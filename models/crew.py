"""What a worker trains together: a pack, or on a CPU one trial alone; both look the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from models.knobs import Recipe
from models.packed import Pack, Shape
from models.train import DeviceData, Halt, Precision, Trainer


class Crew(Protocol):
    """Trials of one shape, each in a lane; `Pack` says what each method does."""

    @property
    def lanes(self) -> int: ...
    @property
    def free(self) -> list[int]: ...
    def enter(self, recipe: Recipe, seed: int, arrays: dict[str, NDArray[Any]] | None) -> int: ...
    def leave(self, i: int) -> None: ...
    def progress(self, i: int) -> tuple[int, int]: ...
    def trial(self, i: int) -> tuple[Recipe, int]: ...
    def run(self, halt: Callable[[], Halt]) -> Halt: ...
    def ended(self) -> dict[int, float | None]: ...
    def accuracy(
        self, lanes: Sequence[int], split: tuple[Tensor, Tensor], halt: Callable[[], Halt]
    ) -> list[float] | None: ...
    def states(self, lanes: Sequence[int]) -> list[dict[str, NDArray[Any]]]: ...


class Solo:
    """One lane, in which a `Trainer` trains whole epochs."""

    lanes = 1

    def __init__(
        self, data: DeviceData, *, epochs: int, precision: Precision, augment: bool
    ) -> None:
        self._data, self._epochs = data, epochs
        self._precision, self._augment = precision, augment
        self._trainer: Trainer | None = None
        self._trial = (Recipe(), 0)
        self._result: dict[int, float | None] = {}

    @property
    def free(self) -> list[int]:
        return [] if self._trainer else [0]

    def enter(self, recipe: Recipe, seed: int, arrays: dict[str, NDArray[Any]] | None) -> int:
        trainer = Trainer(
            self._data,
            recipe,
            seed=seed,
            epochs=self._epochs,
            precision=self._precision,
            augment=self._augment,
        )
        if arrays is not None:
            trainer.load_state(arrays)
        self._trainer, self._trial, self._result = trainer, (recipe, seed), {}
        return 0

    def leave(self, i: int) -> None:
        self._trainer = None

    def progress(self, i: int) -> tuple[int, int]:
        return self._present.epoch, self._present.batch

    def trial(self, i: int) -> tuple[Recipe, int]:
        return self._trial

    def run(self, halt: Callable[[], Halt]) -> Halt:
        result = self._present.run_epoch(halt)
        if isinstance(result, Halt):
            return result
        self._result = {0: result}
        return Halt.NO

    def ended(self) -> dict[int, float | None]:
        ended, self._result = self._result, {}
        return ended

    def accuracy(
        self, lanes: Sequence[int], split: tuple[Tensor, Tensor], halt: Callable[[], Halt]
    ) -> list[float] | None:
        score = self._present.accuracy(split, halt)
        return None if score is None else [score]

    def states(self, lanes: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        return [self._present.state()]

    @property
    def _present(self) -> Trainer:
        if self._trainer is None:
            raise ValueError("lane 0 is empty")
        return self._trainer


def make_crew(
    data: DeviceData,
    shape: Shape,
    lanes: int,
    *,
    epochs: int,
    precision: Precision,
    augment: bool,
) -> Crew:
    """Room for so many trials of a shape.

    On a GPU a single lane is a pack as well: its steps are a graph's, and cost no launches.
    """
    if lanes == 1 and data.device.type == "cpu":
        return Solo(data, epochs=epochs, precision=precision, augment=augment)
    return Pack(data, shape, lanes, epochs=epochs, precision=precision, augment=augment)
