import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from scripts.doctor import app
from tests.scripts.command_line import ROOT, tune

SCRIPT = ROOT / "scripts" / "doctor.py"


def doctor(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    done = tune("--searchers", "random,random+asha", "--landscape", "bumpy", "--out", out)
    assert done.exit_code == 0
    return out


def test_a_replay_that_ended_well_is_fine(run):
    done = doctor(run, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["fine"]
    assert {finding["severity"] for finding in told["findings"]} == {"note"}


def test_damage_is_exit_code_1_and_told_in_words(run, tmp_path):
    folder = tmp_path / "b"
    folder.mkdir()
    data = (run / "study.sqlite").read_bytes()
    (folder / "study.sqlite").write_bytes(data[: len(data) // 2])
    done = doctor(folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("damage: ")
    assert done.stdout.splitlines()[-1].startswith("There is damage: ")


def test_wrong_use_is_one_line_and_exit_code_2(tmp_path):
    done = doctor(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("doctor: there is no study at ")
    assert done.stderr.count("\n") == 1


def test_the_machine_is_looked_at_without_loading_torch(tmp_path):
    done = doctor("--runs", tmp_path, "--device", "cpu", "--need-mib", 1, "--json")
    told = [finding["what"] for finding in json.loads(done.stdout)["findings"]]
    assert done.returncode == 0, told
    for words in ("a commit takes", "the monotonic clock", "train on the CPU", "data set sample"):
        assert any(words in what for what in told), words
    code = (
        "import sys\nsys.argv = ['doctor', '--device', 'cpu']\nimport runpy\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False"


def test_what_there_is_to_train_on_is_looked_at(tmp_path):
    def told(data):
        arguments = ("--device", "cpu", "--runs", tmp_path, "--data-root", tmp_path / "root")
        flags = [*arguments, "--need-mib", 1, "--json", "--data", data]
        done = CliRunner().invoke(app, [str(flag) for flag in flags])
        return done, json.loads(done.stdout or "{}").get("findings", [{}])[-1]

    folder = tmp_path / "photos"
    for name, colour in (("night", 20), ("day", 220)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (32, 32), colour + i).save(folder / name / f"{i}.png")
    done, finding = told(folder)
    assert (done.exit_code, finding["severity"]) == (0, "note")
    assert "2 classes, 20 images to train and validate on, 4 to test on" in finding["what"]
    (folder / "day" / "0.png").write_text("no image")
    done, finding = told(folder)
    assert (done.exit_code, finding["severity"]) == (1, "damage")
    assert "day/0.png cannot be read as an image" in finding["what"]
    done, finding = told(tmp_path / "nowhere.npz")
    assert (done.exit_code, finding["severity"]) == (1, "damage")
    done, finding = told("kmnist")  # which no machine has of itself
    assert (done.exit_code, finding["severity"]) == (0, "warning")
    assert "the first run fetches it" in finding["advice"]
    done, _ = told("kmnits")
    assert (done.exit_code, "did you mean 'kmnist'" in done.stderr) == (2, True)
    assert not (tmp_path / "root").exists()


def test_a_device_that_there_is_not_is_wrong_use():
    done = doctor("--device", "tpu")
    assert done.returncode == 2
    assert done.stderr.startswith("doctor: a device is auto, cpu, cuda or cuda:N")
