"""The script that ends with a model: within its minutes, with a test, and after interruptions."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from models import data, export
from models.layout import Layout
from scripts import automl, model_search, racing
from tests.scripts.command_line import LEDGER, ROOT, read, tune, wait_for_epochs
from tuner.history import History, HistoryView
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

SCRIPT = ROOT / "scripts" / "automl.py"
SMALL = ["--knob", "width=4:8"]


@pytest.fixture(scope="module")
def real(small_data):
    small = ["--data", "fashion_mnist", "--data-root", small_data, "--epochs", 3]
    return [*small, "--device", "cpu", "--slots", 1]


def make(*arguments):
    return CliRunner().invoke(automl.app, [str(a) for a in arguments])


def start(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def spent_ns(folder):
    charged = f"SELECT SUM({'+'.join(LEDGER)}) FROM charge"  # noqa: S608
    places = [path.parent for path in folder.rglob("study.sqlite")]
    return sum(read(place, charged)[0][0] or 0 for place in places)


@pytest.fixture(scope="module")
def made(tmp_path_factory, real):
    """A model that several tests look at, and what was said of it."""
    folder = tmp_path_factory.mktemp("model") / "run"
    flags = [*SMALL, "--budget-minutes", 0.3, "--searcher", "random", "--out", folder]
    process = start(*real, *flags)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    return folder, output, json.loads((folder / "model.json").read_text())


def test_the_minutes_are_those_that_were_asked_for_and_paid_for_both(made):
    folder, _, content = made
    total = sum(content["minutes"].values())
    assert spent_ns(folder) / 60e9 == pytest.approx(total, abs=1e-12)
    assert total < 0.3 + 0.5 / 60
    assert content["minutes"]["search"] > 0.1
    assert content["is_retrained"]


def test_the_winner_was_trained_again_on_what_it_was_validated_on_too(made, small_data):
    folder, _, content = made
    with closing(Store(folder / "study.sqlite", create=False)) as store:
        (row,) = store.runs()
        trials = store.trials(row)
    with closing(Store(folder / "retrained" / "study.sqlite", create=False)) as store:
        (again,) = store.trials(store.runs()[0])
    best = max((t for t in trials if t.score is not None), key=lambda t: (t.score, -t.number))
    assert dict(again.config) == dict(best.config) == content["config"]
    assert (again.state, again.epoch) == (TrialState.COMPLETED, 3)
    assert (content["images"], content["test_images"]) == (1200, 300)
    assert content["validation_score"] == best.score


def test_the_test_score_is_that_of_the_files(made, small_data):
    folder, output, content = made
    tested = data.load_test("fashion_mnist", small_data)
    model = export.load(folder / "model")
    assert export.accuracy(model, tested) == content["test_score"] > 0.3
    share = (300 * content["test_score"] + 2) / 304  # Agresti and Coull
    expected = (share * (1 - share) / 304) ** 0.5
    assert content["standard_error"] == pytest.approx(expected)
    assert f"Test accuracy {content['test_score']:.4f}" in output
    text = (folder / "model" / "README.md").read_text()
    assert f"{content['test_score']:.4f}" in text
    assert "Ankle boot" in text


def test_the_card_s_own_example_runs_without_this_project(made):
    folder, _, _ = made
    text = (folder / "model" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder / "model", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor([")


def test_it_is_tested_once_however_often_it_is_resumed(made, monkeypatch):
    folder, _, content = made
    monkeypatch.setattr(export, "accuracy", lambda *_: pytest.fail("tested again"))
    again = make("--resume", folder, "--json")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert {**found, "date": content["date"]} == content


def test_the_files_of_the_search_and_the_doctor_know_it(made):
    folder, _, _ = made
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["runs"][0]["test_score"] is None  # the test is for the model
    for place in (folder, folder / "retrained"):
        doctor = [sys.executable, SCRIPT.with_name("doctor.py"), place]
        check = subprocess.run(doctor, capture_output=True, text=True, check=True)
        assert "Fine" in check.stdout


@pytest.mark.parametrize(
    ("where", "stop"),
    [
        pytest.param("", signal.SIGKILL, marks=pytest.mark.nightly),
        ("retrained", signal.SIGKILL),
        pytest.param("", signal.SIGINT, marks=pytest.mark.nightly),
    ],
)
def test_what_is_stopped_goes_on_to_the_model(tmp_path, real, stop, where):
    out = tmp_path / "run"
    flags = [*real, "--epochs", 4, "--budget-minutes", 1, "--searcher", "grid"]
    # As many networks as a machine of any pace soon has trained: nothing here waits for minutes.
    few = ["--knobs", "learning_rate", "--knob", "learning_rate=0.02,0.05,0.1"]
    process = start(*flags, *few, "--out", out)
    wait_for_epochs(process, out / where, 1 if where else 4)
    process.send_signal(stop)
    output, errors = process.communicate(timeout=60)
    if stop is signal.SIGINT:
        assert process.returncode == 130, errors
        assert f"--resume {out}" in output
    done = make("--resume", out, "--json")
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["test_score"] > 0.3
    assert spent_ns(out) / 60e9 < 1 + 1 / 60
    assert content["is_retrained"]


@pytest.mark.parametrize(("alone_ns", "times"), [(15, 1.5), (None, 4)])
def test_a_later_start_keeps_back_what_the_first_would_have(tmp_path, alone_ns, times):
    """It has measured nothing but its layout: how long a training takes alone is on record."""
    history = History(3, 10**12)
    curve = tuple(Observation(i + 1, 0.5, 7_000 // 3, i) for i in range(3))
    history.restore(Trial(0, {}, 1, 3, TrialState.COMPLETED, curve))
    kept = []
    run = SimpleNamespace(scheduler=SimpleNamespace(history=history.view()))
    race = SimpleNamespace(go_keeping=lambda keeps: kept.append(keeps(run)))
    track = SimpleNamespace(
        pool=SimpleNamespace(pace=SimpleNamespace(layout=Layout(4))), warm_up_ns=500
    )
    request = SimpleNamespace(data="sample", data_root=str(tmp_path))
    with closing(Store(tmp_path / "study.sqlite", create=True)) as store:
        store.set_meta("pace", {"layout": "4 processes", "share_ns": 10, "alone_ns": alone_ns})
        model_search._go(store, request, race, track)
        assert model_search._layout(store) == asdict(Layout(1))
        store.set_meta("alone", asdict(Layout(1, threads=2)))
        assert model_search._layout(store) == asdict(Layout(1, threads=2))
    images = (10_000 + 2_000) / 10_000
    assert kept == [int(1.3 * images * times * 3 * (7_000 // 3) + 2 * 500)]


def test_where_nothing_is_left_the_model_is_the_search_s_own(tmp_path, real, monkeypatch):
    monkeypatch.setattr(model_search, "_go", lambda store, request, race, track: race.go())
    monkeypatch.setattr(model_search, "_HOPELESS", 1.0)
    flags = ["--budget-minutes", 0.15, "--searcher", "random", "--out", tmp_path / "run"]
    done = make(*real, *SMALL, *flags)
    assert done.exit_code == 0, done.stderr
    content = json.loads((tmp_path / "run" / "model.json").read_text())
    assert not content["is_retrained"]
    assert content["images"] == 999
    assert "pay for it" in content["why_not"]
    assert "Not trained again on all images: " in done.stdout
    assert sum(content["minutes"].values()) < 0.15 + 0.5 / 60
    assert "as it is" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.nightly
def test_a_user_s_own_folders_of_images_become_a_model(tmp_path):
    sample = data.load("sample", tmp_path)
    for label, name in ((1, "trouser"), (7, "sneaker"), (8, "bag")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i, pixels in enumerate(sample.train.images[sample.train.labels == label][:120]):
            Image.fromarray(pixels[0]).save(tmp_path / "mine" / name / f"{i}.png")
    flags = ["--data", tmp_path / "mine", "--data-root", tmp_path / "root", "--device", "cpu"]
    flags += ["--epochs", 3, "--budget-minutes", 0.2, "--slots", 1, "--searcher", "random"]
    done = make(*flags, "--knob", "width=4:8", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["data"] == "mine"
    assert content["test_images"] == 60
    assert content["test_score"] > 0.8  # they are easily told apart
    told = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert told["classes"] == ["bag", "sneaker", "trouser"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--searcher", "random,bayes"], "--searcher is one"),
        (["--data", "fashion_mnits"], "did you mean 'fashion_mnist'"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--budget-minutes", 0], "--budget-minutes"),
        (["--knobs", "learning_rat"], "did you mean 'learning_rate'"),
        (["--resume", "runs/none", "--epochs", 3], "leave out --epochs"),
        (["--resume", "/no/such"], "there is no study at"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, flags, message):
    done = make(*flags, *([] if "--resume" in flags else ["--out", tmp_path / "run"]))
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_each_script_resumes_its_own(made, tmp_path):
    folder, _, _ = made
    refused = tune("--resume", folder)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "was begun by automl.py; go on with automl.py --resume" in refused.stderr
    race = ["--landscape", "smooth", "--searchers", "random", "--budget-minutes", 1, "--quiet"]
    assert tune(*race, "--out", tmp_path / "race").exit_code == 0
    refused = make("--resume", tmp_path / "race")
    assert "was begun by tune.py; go on with tune.py --resume" in refused.stderr


def test_the_default_recipe_is_the_first_trial_where_it_is_in_the_space(
    made, tmp_path, real, monkeypatch
):
    (told,) = read(made[0], "SELECT config FROM trial WHERE number = 0")[0]
    assert json.loads(told)["width"] != 16  # the default, which is not in that space
    first = []

    def look(store, request, *_, **__):
        with closing(store):
            (row,) = store.runs()
        searcher, _ = racing.entry_for(row.searcher, row.space, row.seed, request)
        first.append(searcher.propose(HistoryView()))

    monkeypatch.setattr(model_search, "make_model", look)
    flags = ["--knob", "width=4:16", "--knobs", "width,layers,growth", "--searcher", "random"]
    assert make(*real, *flags, "--out", tmp_path / "run").exit_code == 0
    assert first == [{"width": 16, "layers": 2, "growth": 2.0}]
