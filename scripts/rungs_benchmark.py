"""How well early scores foretell the last ones: where the first rung should be."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from landscapes.registry import open_landscape
from scripts.errors import plain_errors
from scripts.search_benchmark import resolve_landscapes

_SHOWN = (1, 2, 3, 4, 6, 9, 17)


def rungs(
    landscapes: Annotated[
        str, typer.Option(help="Names, files, folders of .onnx files, `formulas`, `recorded`.")
    ] = "formulas,recorded",
    settings: Annotated[int, typer.Option(help="Random ones.", min=10)] = 200,
) -> None:
    """Spearman's rank correlation of the scores after each epoch with those after the last."""
    from scipy.stats import spearmanr

    console = Console()
    console.print("after epoch    " + "".join(f"{epoch:7}" for epoch in _SHOWN), highlight=False)
    with plain_errors("benchmark"):
        for name in resolve_landscapes(landscapes).values():
            landscape = open_landscape(name)
            space, generator = landscape.space, np.random.default_rng(0)
            configs = space.from_unit(generator.random((settings, len(space))))
            scores = np.array([landscape.curve(config, 0)[0] for config in configs])
            scores = scores[~np.isnan(scores).any(1)]  # what broke off has no last score
            shown = [e for e in _SHOWN if e < landscape.epochs]
            rho = [spearmanr(scores[:, e - 1], scores[:, -1]).statistic for e in shown]
            line = "".join(f"{value:7.2f}" for value in rho)
            console.print(f"{landscape.name:15}{line}", highlight=False, soft_wrap=True)
