"""Random search (Bergstra and Bengio, 2012): the yardstick of every other searcher."""

from __future__ import annotations

from tuner.history import HistoryView
from tuner.searchers.base import SpaceExhausted, config_key, generator, tried
from tuner.space import Config, SearchSpace

_DRAWS_BEFORE_COUNTING = 100


class RandomSearcher:
    """Independent uniform draws from the unit cube; a finite space is drawn without repeats."""

    fallback = ""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, history: HistoryView) -> Config:
        """The draw that belongs to this seed and this number of trials."""
        return draw_new(self._space, self._seed, "random", history)


def draw_new(space: SearchSpace, seed: int, name: str, history: HistoryView) -> Config:
    """A uniform draw that is not in the history; raises SpaceExhausted where all are."""
    source = generator(seed, name, history)
    if space.cardinality is None:
        return space.sample(source)
    seen = tried(space, history)
    for _ in range(_DRAWS_BEFORE_COUNTING):
        config = space.sample(source)
        if config_key(space, config) not in seen:
            return config
    # Nearly all is seen: count what is left and draw from that.
    points = max(domain.cardinality or 1 for domain in space.values())
    left = [config for config in space.grid(points) if config_key(space, config) not in seen]
    if not left:
        raise SpaceExhausted(f"all {space.cardinality} configurations have been tried")
    return left[int(source.integers(len(left)))]
