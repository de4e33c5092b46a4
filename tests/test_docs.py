"""The documentation is built, and every snippet on its pages is run, in the order of the page.

What would take minutes is cut: budgets, seeds, recordings. Nothing else is changed.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is printed on the page for labs is what its commands print: tests/scripts/test_lab.py.
PAGES = sorted({*(ROOT / "docs").glob("*.md"), ROOT / "README.md"} - {ROOT / "docs" / "lab.md"})
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (\w+\.py)\n")
_CUTS = (
    (r"--device cuda\b", "--device cpu"),  # tests of GPUs are elsewhere
    (r"--cluster auto\b", "--cluster local"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--searchers grid,random,bayes,random\+asha", "--searchers bayes,random+asha"),
    (r"--data fashion_mnist\b", "--data sample"),
    (r"--design lattice:15,5 --epochs 8 --replicates 3", "--design lattice:2,2 --epochs 1"),
)
_REAL_MINUTES, _COMMAND_MINUTES, _MOST_SIMULATED = 0.12, 0.07, 15.0
_LONGER_MINUTES = 0.25  # where there is more to pay for than one search
_SERVING = ("make demo",)  # what stands with it, in the README, is run by whoever runs this


def blocks_of(page):
    return [match.groups() for match in _BLOCK.finditer(page.read_text())]


@pytest.fixture
def checkout(tmp_path):
    """What a reader's checkout looks like, with a `runs/` of its own."""
    for name in ("scripts", "tuner", "models", "landscapes", "examples", "tests", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    return tmp_path


def commands(text):
    """The commands of a block, each whole, on however many lines it was written."""
    return re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip())


def cut(line):
    """A command as it is run here."""
    for pattern, short in _CUTS:
        line = re.sub(pattern, short, line)
    most = _REAL_MINUTES
    if "--landscape" in line:
        most = _MOST_SIMULATED
        if ".npz" in line:  # of a few short trainings, which would be repeated by the hundred
            most = 0.5
    elif "--command" in line:
        most = _COMMAND_MINUTES
    elif "--resume" in line or "automl.py" in line:
        most = _LONGER_MINUTES

    def minutes(match):
        return f"--budget-minutes {min(float(match[1]), most):g}"

    return re.sub(r"--budget-minutes ([0-9.]+)", minutes, line)


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def serve(folder):
    """The page comes up, and stays."""
    command = [folder / ".venv/bin/python", "scripts/page.py", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(4)
    alive = process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert alive, output
    assert "http://127.0.0.1:" in output


# Real training by commands that other tests run too:
LONG = ("automl", "cluster", "compare", "demo", "friends", "gpu-box", "landscapes", "searchers")


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.nightly] if p.stem in LONG else []) for p in PAGES],
    ids=lambda page: page.stem,
)
def test_every_snippet_of_a_page_runs(checkout, page):
    for i, (language, text) in enumerate(blocks_of(page)):
        if "vizier" in text and importlib.util.find_spec("vizier") is None:
            continue  # an extra that the tests do not install: it wants a JAX of its own
        if language == "python":
            name = _NAME.match(text)  # by which later ones import it
            path = checkout / (name[1] if name else f"snippet_{i}.py")
            path.write_text(text)
            run([sys.executable, path.name], checkout)
            continue
        if any(line.strip().startswith(_SERVING) for line in text.splitlines()):
            serve(checkout)
            continue
        run(["sh", "-e", "-c", "\n".join(map(cut, commands(text)))], checkout)


def test_the_snippets_are_found():
    assert sum(len(blocks_of(page)) for page in PAGES) >= 15


def test_the_pages_are_built(tmp_path):
    pytest.importorskip("mkdocs")
    run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        ROOT,
    )
    assert (tmp_path / "site" / "index.html").exists()
