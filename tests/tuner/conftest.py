import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def race_folder(tmp_path_factory):
    """A finished race of two searchers and two seeds on a landscape."""
    folder = tmp_path_factory.mktemp("races") / "mine"
    flags = ["--landscape", "bumpy", "--searchers", "random,bayes", "--seeds", "2"]
    more = ["--budget-minutes", "3", "--quiet", "--out", str(folder)]
    subprocess.run([sys.executable, "scripts/tune.py", *flags, *more], cwd=ROOT, check=True)
    return folder
