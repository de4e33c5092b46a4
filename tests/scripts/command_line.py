"""What the tests of the command line share: to call it, to start it, and to read what it wrote."""

import importlib.util
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "tune.py"
LEDGER = ["train", "evaluate", "warm_up", "checkpoint", "search", "lost"]


def load_script():
    spec = importlib.util.spec_from_file_location("tune_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tune_script"] = module
    spec.loader.exec_module(module)
    return module


_TUNE = load_script()
APP, RUN = _TUNE.app, _TUNE.run


def tune(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments])


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def read(folder, query):
    db = sqlite3.connect(f"file:{folder / 'study.sqlite'}?mode=rw", uri=True, timeout=20)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def epochs_of(folder):
    """How many epochs are on record; none while there are no tables."""
    if not (folder / "study.sqlite").exists():
        return 0
    try:
        return read(folder, "SELECT COUNT(*) FROM observation")[0][0]
    except sqlite3.OperationalError:
        return 0  # the tables are still being made


def wait_for_epochs(process, folder, count):
    """Wait until so many epochs are on record."""
    while epochs_of(folder) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())
