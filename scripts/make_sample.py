"""Make the embedded sample again from the full Fashion-MNIST files."""

import sys
from pathlib import Path

from models.data import default_root, make_sample

if __name__ == "__main__":
    print(make_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else default_root()))
