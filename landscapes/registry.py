"""Finding a landscape: by its name, with its dimension, or by the path of a file."""

from __future__ import annotations

from pathlib import Path

from landscapes.landscape import Landscape
from landscapes.synthetic import FORMULAS, make_landscape
from landscapes.table import load_table
from tuner.naming import pick

RECORDED = Path(__file__).parent / "recorded"


def recorded_names() -> list[str]:
    """The recordings that are shipped with the code."""
    return sorted(path.stem for path in RECORDED.glob("*.npz"))


def open_landscape(text: str) -> Landscape:
    """The landscape that `text` stands for.

    `bumpy`, or `bumpy:4` in four dimensions; `cnn_sample_2d`, a shipped recording; or the path of
    an .npz table or of an .onnx surrogate. Raises ValueError where there is none.
    """
    if text.endswith(".onnx"):
        from landscapes.surrogate import load_surrogate

        return load_surrogate(_existing(text))
    if text.endswith(".npz"):
        return load_table(_existing(text))
    if "/" in text:
        raise ValueError(f"a landscape's file is an .npz table or an .onnx surrogate, got {text!r}")
    name, colon, dimensions = text.partition(":")
    pick(name, dict.fromkeys([*FORMULAS, *recorded_names()]), "landscape")
    if name not in FORMULAS:
        if colon:
            raise ValueError(f"{name} was recorded in its own dimensions; leave out :{dimensions}")
        return load_table(RECORDED / f"{name}.npz")
    if colon and not (dimensions.isascii() and dimensions.isdigit()):
        raise ValueError(f"a landscape's dimension is a number, as in {name}:4, got {text!r}")
    return make_landscape(name, int(dimensions)) if colon else make_landscape(name)


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"there is no file {text}")
    return path
