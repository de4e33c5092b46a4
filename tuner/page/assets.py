"""The page's own files, and Plotly's script."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

STATIC = Path(__file__).parent / "static"


def has_plotly() -> bool:
    """Whether Plotly is installed, without loading it."""
    return find_spec("plotly") is not None


def plotly_script() -> bytes:
    """Plotly's own script, out of its Python package."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
