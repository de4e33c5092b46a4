"""Data to train on in a moment."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

SAMPLE = Path(__file__).parents[1] / "models" / "sample" / "fashion_mnist_sample.npz"


def write_small_data(root: Path) -> Path:
    """Make a data root whose Fashion-MNIST is 1,200 + 300 real images, in the packed idx layout."""
    with np.load(SAMPLE, allow_pickle=False) as file:
        for part, prefix, n in (("train", "train", 1200), ("test", "t10k", 300)):
            for what, array in (
                ("images-idx3", file[f"{part}_images"][:n]),
                ("labels-idx1", file[f"{part}_labels"][:n]),
            ):
                head = b"\x00\x00\x08" + bytes([array.ndim])
                sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
                packed = root / f"{prefix}-{what}-ubyte.gz"
                packed.write_bytes(gzip.compress(head + sizes + array.tobytes(), 1))
    return root
