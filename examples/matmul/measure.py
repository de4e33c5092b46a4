"""Compile matmul.c with some flags and tiles, run it, and pass on what it says.

`measure.py --opt O3 --tile-i 64 --tile-j 64 --tile-k 64 --unroll 4 --native yes --fast-math no`
Exit code 3: the compiler or the program refuses these. GCC is needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("matmul.c")
REFUSED = 3


def main() -> int:
    """Compile, run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opt", choices=("O1", "O2", "O3"), required=True)
    for name in ("tile-i", "tile-j", "tile-k", "unroll"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("native", "fast-math"):
        parser.add_argument(f"--{name}", choices=("yes", "no"), required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "matmul"
        flags = [
            f"-{asked.opt}",
            f"-DTILE_I={asked.tile_i}",
            f"-DTILE_J={asked.tile_j}",
            f"-DTILE_K={asked.tile_k}",
            f"-DUNROLL={asked.unroll}",
            *(["-march=native"] if asked.native == "yes" else []),
            *(["-ffast-math"] if asked.fast_math == "yes" else []),
        ]
        command = ["gcc", *flags, str(SOURCE), "-lm", "-o", str(program)]
        if subprocess.run(command, check=False).returncode:
            return REFUSED
        return subprocess.run([program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
