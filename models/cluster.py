"""The worker processes that train CNNs on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.data import default_root
from models.layout import Layout
from models.pool import Pace, TrainingPool, TrainingSetup
from tuner.workers.cluster import Place, RayPool
from tuner.workers.pool import Setup, WorkerPool


class TrainingRayPool(RayPool):
    """Workers that train CNNs, on the devices of a cluster, all laid out alike.

    Args:
        setup: what the workers are told. A root that is this user's usual one is, on each node,
            the usual one there.
        places: the devices.
        layout: as of a `TrainingPool`; where it is None, as measures best on the first device.
    """

    def __init__(
        self, setup: TrainingSetup, places: list[Place], layout: Layout | None = None
    ) -> None:
        super().__init__(setup, places)
        self._layout = layout
        self._root = None if setup.root == default_root() else setup.root

    def _start_all(self) -> None:
        first, rest = self._places[:1], self._places[1:]
        if self._layout is not None:
            first, rest = self._places, []
        paces: list[Pace] = self._start_hosts(first, self._make(self._layout))
        if rest:  # as many at once, and by the same arithmetic
            paces += self._start_hosts(rest, self._make(paces[0].layout))
        self.pace = replace(paces[0], step_ns=max(pace.step_ns for pace in paces))
        self._width = paces[0].layout.width

    def _make(self, layout: Layout | None) -> Callable[[Setup], WorkerPool]:
        return partial(_pool_on_node, layout=layout, root=self._root)


def _pool_on_node(setup: TrainingSetup, layout: Layout | None, root: Path | None) -> TrainingPool:
    """The pool of a device on this node, with this node's copy of the data."""
    setup = replace(setup, root=root or default_root(), fetches=True)
    return TrainingPool(setup, layout, default_root().parent / "layouts.json")
