"""A user's function in worker processes, held against the same function in this process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.tuner.workers import trainings
from tuner import Choice, Float, SearchSpace, Study, tune
from tuner.budget import Kind, to_ns
from tuner.scheduler import TrainingBrokenError
from tuner.store import Store
from tuner.trial import TrialState
from tuner.workers.functions import FunctionSetup, Workers, locate
from tuner.workers.pool import WorkerPool, WorkerStartError

ROOT = Path(__file__).parents[3]
SPACE = SearchSpace(x=Float(0.0, 1.0))


FEW = SearchSpace(x=Choice((0.2, 0.4, 0.6, 0.8)))
"""A space that is soon tried out, whatever a machine's pace: a budget that is not spent."""


def search(train, *, space=SPACE, minutes=0.5, epochs=trainings.EPOCHS, **options):
    """In worker processes on the CPU."""
    options = {"searcher": "random", "seed": 3, "device": "cpu", **options}
    return tune(train, space, budget_minutes=minutes, max_epochs=epochs, **options)


HALVING = {"searcher": "random+asha", "min_epochs": 1, "eta": 2}


def curves(study):
    return {
        t.number: (t.config["x"], [o.score for o in t.curve])
        for t in study.trials
        if t.state is TrialState.COMPLETED
    }


def charges(folder):
    store = Store(folder / "study.sqlite", create=False)
    ledger = store.budget(store.runs()[0]).ledger
    store.close()
    return ledger


@pytest.mark.parametrize("slots", [1, 2])
def test_workers_find_what_this_process_finds(tmp_path, slots):
    here = tune(
        trainings.steps,
        SPACE,
        budget_minutes=0.01,
        searcher="random",
        seed=3,
        max_epochs=trainings.EPOCHS,
    )
    there = search(trainings.steps, minutes=0.03, slots=slots, directory=tmp_path)
    both = curves(here).keys() & curves(there).keys()
    assert len(both) > 5
    assert {n: curves(there)[n] for n in both} == {n: curves(here)[n] for n in both}
    for x, scores in curves(there).values():
        assert scores == [trainings.score_after({"x": x}, e) for e in range(1, 5)]


def test_what_the_device_was_held_for_is_charged_and_no_more(tmp_path):
    study = search(trainings.saving, minutes=0.04, directory=tmp_path)
    ledger = charges(tmp_path)
    assert sum(ledger.values()) == round(study.minutes_spent * 60e9)
    assert 0.015 < study.minutes_spent < 0.04 + 0.05 / 60  # a step of Python at most
    assert ledger[Kind.WARM_UP] > 0
    assert ledger[Kind.CHECKPOINT] > 0
    paid = sum(t.paid_ns for t in study.trials)
    assert paid == ledger[Kind.TRAIN] + ledger[Kind.CHECKPOINT]


def test_a_trial_that_is_promoted_goes_on_from_its_folder(tmp_path):
    study = search(trainings.saving, minutes=0.03, directory=tmp_path, **HALVING)
    done = curves(study)
    assert done
    assert any(t.epoch == 1 for t in study.trials)  # and was left behind at its first rung
    for x, totals in done.values():
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)])
    assert charges(tmp_path)[Kind.LOST] < to_ns(0.002)  # nothing is done twice


def test_without_a_checkpoint_what_is_promoted_begins_anew_at_the_studys_expense(tmp_path):
    study = search(trainings.steps, minutes=0.03, directory=tmp_path, **HALVING)
    for x, scores in curves(study).values():
        assert scores == [trainings.score_after({"x": x}, e) for e in range(1, 5)]
    assert charges(tmp_path)[Kind.LOST] > 0


def test_epochs_that_were_not_saved_are_done_again_and_recorded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINING_NOTES", str(tmp_path / "notes"))
    study = search(
        trainings.saving_now_and_then, epochs=7, minutes=0.04, directory=tmp_path / "run"
    )
    scores = [o.score for o in study.trials[0].curve]
    assert scores == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert (tmp_path / "notes").read_text().splitlines()[:2] == ["from 0", "from 4"]
    assert study.trials[0].faults == 1


def test_a_function_that_returns_a_number_is_one_epoch(tmp_path):
    study = search(trainings.number, epochs=None, space=FEW)
    assert study.best.score == max(t.config["x"] for t in study.trials if t.curve)


def test_losses_are_minimised(tmp_path):
    study = search(trainings.number, epochs=None, space=FEW, mode="min")
    assert study.best.score == min(t.config["x"] for t in study.trials if t.curve)


def test_trials_have_seeds_of_their_own():
    study = search(trainings.seeded, epochs=1, space=FEW)
    for trial in study.trials:
        assert trial.score in (None, trial.seed % 1000 / 1000)


@pytest.mark.parametrize(
    ("train", "reason"),
    [(trainings.diverging, "score nan"), (trainings.infeasible, "x is too large")],
)
def test_the_configurations_own_fault_is_infeasible(train, reason):
    study = search(train, epochs=1, space=FEW)
    ended = [t for t in study.trials if t.state.is_final]
    assert {t.state for t in ended if t.config["x"] > 0.5} == {TrialState.INFEASIBLE}
    assert {t.reason for t in ended if t.config["x"] > 0.5} == {reason}
    assert {t.state for t in ended if t.config["x"] <= 0.5} == {TrialState.COMPLETED}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_trial_that_takes_too_much_memory_is_infeasible():
    study = search(trainings.without_memory, epochs=2, minutes=0.05, memory_gib=0.3)
    ended = [t for t in study.trials if t.state.is_final]
    large = [t for t in ended if t.config["x"] > 0.5]
    assert large
    assert {t.state for t in large} == {TrialState.INFEASIBLE}
    assert all("GiB used of 0.3" in t.reason for t in large)
    assert {t.state for t in ended if t.config["x"] <= 0.5} == {TrialState.COMPLETED}


def test_a_bug_ends_the_search_with_its_reason(tmp_path):
    with pytest.raises(TrainingBrokenError, match="KeyError: 'no such layer'"):
        search(trainings.broken, directory=tmp_path)
    assert "in broken" in (tmp_path / "checkpoints" / "worker-0.log").read_text()


def test_a_trial_that_kills_its_worker_fails_alone(tmp_path):
    study = search(trainings.killing, epochs=2, minutes=0.1, slots=2)
    large = [t for t in study.trials if t.state is TrialState.FAILED]
    assert large
    assert all(t.config["x"] > 0.7 and "SIGKILL" in t.reason for t in large)
    small = [t for t in study.trials if t.config["x"] <= 0.7 and t.state.is_final]
    assert {t.state for t in small} == {TrialState.COMPLETED}


def test_a_trial_that_hangs_is_ended(tmp_path):
    study = search(trainings.sleeping, epochs=2, minutes=0.1, hung_after_minutes=0.01)
    hung = [t for t in study.trials if t.state is TrialState.INFEASIBLE]
    assert hung
    assert all(t.config["x"] > 0.5 and "no sign of life for" in t.reason for t in hung)


def test_what_is_said_before_the_first_score_tells_no_pace(tmp_path, monkeypatch):
    """A program says hello at once, and trains its first epoch in silence."""
    monkeypatch.setattr("tuner.workers.functions.HUNG_AFTER_S", 0.3)
    study = search(trainings.slow_to_score, epochs=2, minutes=0.06)
    assert study.best.score == 0.2
    assert {t.state for t in study.trials if t.state.is_final} == {TrialState.COMPLETED}


@pytest.mark.parametrize("train", [trainings.endless, trainings.deaf])
def test_the_deadline_ends_what_never_yields(tmp_path, monkeypatch, train):
    monkeypatch.setenv("TRAINING_NOTES", str(tmp_path / "notes"))
    study = search(train, minutes=0.04, directory=tmp_path / "run")
    is_deaf = train is trainings.deaf
    assert 0.04 <= study.minutes_spent < 0.04 + (1.5 if is_deaf else 0.3) / 60
    assert study.trials[0].state is TrialState.PAUSED
    assert study.trials[0].reason == "budget spent"
    if not is_deaf:
        assert (tmp_path / "notes").read_text().splitlines() == ["begun", "cleaned up"]


def test_a_worker_sees_its_devices_and_no_others():
    study = search(trainings.environment, epochs=1, space=FEW, slots=1)
    assert study.best.score == len(os.sched_getaffinity(0))


SCRIPT = """
import sys
from tests.tuner.workers.trainings import saving as imported
from tuner import Float, tune

def mine(config, checkpoint):
    yield from imported(config, checkpoint)

GUARD:
    study = tune(
        mine, {"x": Float(0, 1)}, budget_minutes=float(sys.argv[2]), searcher="random", seed=3,
        max_epochs=4, directory=sys.argv[1], device="cpu", slots=2,
    )
    print(len(study.trials))
"""


def start(path, *arguments):
    return subprocess.Popen(
        [sys.executable, path, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT.replace("GUARD", 'if __name__ == "__main__"'))
    return path


def epochs_on_record(folder):
    try:
        store = Store(folder / "study.sqlite", create=False)
    except ValueError:
        return 0
    count = sum(t.epoch for t in store.trials(store.runs()[0]))
    store.close()
    return count


def test_a_driver_that_is_killed_goes_on_as_its_twin(tmp_path, script):
    twin = start(script, tmp_path / "twin", 0.06)
    assert twin.communicate(timeout=60)[1] == ""
    out = tmp_path / "run"
    for _ in range(3):
        process = start(script, out, 0.06)
        time.sleep(0.9)
        process.kill()
        process.communicate()
    _, errors = start(script, out, 0.16).communicate(timeout=60)
    assert errors == ""
    studies = [
        Study(SPACE, "random", 3, tmp_path / n / "study.sqlite", max_epochs=4)
        for n in ("twin", "run")
    ]
    twin_curves, found = map(curves, studies)
    both = twin_curves.keys() & found.keys()
    assert len(both) > 5
    for number in both:
        assert found[number] == twin_curves[number]


def test_ctrl_c_saves_what_is_under_way_and_nothing_is_left_running(tmp_path, script):
    process = start(script, tmp_path / "run", 5)
    until = time.monotonic() + 30
    while time.monotonic() < until and not list((tmp_path).glob("run/checkpoints/*.checkpoint")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    with Study(SPACE, "random", 3, tmp_path / "run" / "study.sqlite", max_epochs=4) as study:
        states = {t.state for t in study.trials}
    assert states
    assert states <= {TrialState.COMPLETED, TrialState.PAUSED}  # neither lost nor cut off


def test_ctrl_c_that_is_lost_while_workers_start_ends_the_search_all_the_same(
    tmp_path, monkeypatch
):
    """Python drops what is raised in a finalizer or in a library's callback."""

    def start_and_lose(pool):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return started(pool)

    started, before = WorkerPool.start, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(WorkerPool, "start", start_and_lose)
    with pytest.raises(KeyboardInterrupt):
        search(trainings.steps, minutes=20, directory=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert sum(charges(tmp_path).values()) < to_ns(1)
    monkeypatch.undo()
    assert curves(search(trainings.steps, minutes=0.08, directory=tmp_path))


def test_a_script_without_a_guard_is_told_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT.replace("GUARD", "if True"))
    _, errors = start(path, tmp_path / "run", 0.01).communicate(timeout=60)
    assert "if __name__ == '__main__':" in errors


def test_a_function_without_a_name_is_refused_and_goes_as_a_copy_where_that_is_wanted(tmp_path):
    factor = 2.0

    def local(config):
        yield factor * config["x"]

    for train, kind in ((local, "within another function"), (lambda c: c["x"], "a lambda")):
        with pytest.raises(ValueError, match=f"{kind}.*pickle=True"):
            search(train, directory=tmp_path / "run")
    with pytest.raises(ValueError, match="no function with a name"):
        search(partial(trainings.number, {}), directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    study = search(local, epochs=1, space=FEW, pickle=True)
    assert study.best.score == factor * study.best.config["x"]


def test_a_name_that_stands_for_something_else_is_refused(monkeypatch):
    replaced = trainings.number
    monkeypatch.setattr(trainings, "number", lambda config: 0.0)
    with pytest.raises(ValueError, match="is not the function that was passed"):
        locate(replaced)


def test_a_function_that_wants_a_checkpoint_needs_a_device():
    with pytest.raises(ValueError, match="device='cpu'"):
        tune(trainings.saving, SPACE, budget_minutes=0.01)


def test_a_module_that_cannot_be_imported_ends_the_search_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "module_of_mine.py").write_text("def train(config):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import module_of_mine

    (tmp_path / "module_of_mine.py").write_text("import no_such_package\n")
    with pytest.raises(WorkerStartError, match="No module named 'no_such_package'"):
        search(module_of_mine.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "a device is auto, cpu"),
        ({"device_count": 2}, "device_count is 2, and 'cpu' stands for 1"),
        ({"slots": 0}, "slots is at least 1"),
        ({"memory_gib": -1.0}, "memory_gib is a number greater than 0"),
        ({"gpu_memory_gib": 1.0}, "there is none in use"),
        ({"hung_after_minutes": float("inf")}, "hung_after_minutes is a number"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        search(trainings.steps, directory=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_every_gpu_has_its_own_worker_by_the_drivers_numbers(monkeypatch):
    monkeypatch.setattr("tuner.workers.devices._count_gpus", lambda: 3)
    setup = Workers("cuda", slots=2).setup({}, 1.0, Path())
    assert setup.devices == ("cuda:0", "cuda:1", "cuda:2")
    assert [setup.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,GPU-ab")
    assert [setup.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "7", "GPU-ab"]
    assert Workers("cuda", 2).setup({}, 1.0, Path()).devices == ("cuda:0", "cuda:1")
    assert isinstance(setup, FunctionSetup)


# -- what a training may do ------------------------------------------------------------------------


def test_a_process_that_a_training_starts_may_be_terminated():
    assert search(trainings.ending_children, epochs=1, space=FEW).best.score == 0.0


def test_what_a_training_prints_is_in_its_log(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    search(trainings.printing, epochs=1, space=FEW, directory=tmp_path)
    assert "hello from a training" in (tmp_path / "checkpoints" / "worker-0.log").read_text()


def test_a_training_may_go_into_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = search(trainings.wandering, epochs=1, space=FEW, directory="here")
    assert [t.state for t in study.trials] == [TrialState.COMPLETED] * 4
    best = tmp_path / "here" / "checkpoints" / study.best.checkpoint.name
    assert float((best / "x").read_text()) == study.best.score


def test_a_training_that_exits_has_failed_with_what_it_said():
    study = search(trainings.leaving, epochs=2, space=FEW)
    failed = {t.config["x"]: t.reason for t in study.trials if t.state is TrialState.FAILED}
    assert failed == dict.fromkeys((0.6, 0.8), "SystemExit: no such model")


def test_a_score_in_time_is_kept_however_long_the_training_is_about_its_end():
    study = search(trainings.tidying, epochs=1, minutes=0.05)
    assert study.best.score == study.trials[0].config["x"]


def test_what_is_started_by_spawn_finds_the_script(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import multiprocessing\n"
        "from tuner import Choice, tune\n"
        "def square(x):\n"
        "    return x * x\n"
        "def train(config):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        yield pool.map(square, [config['x']])[0]\n"
        "if __name__ == '__main__':\n"
        "    space = {'x': Choice((1, 3))}\n"
        "    study = tune(train, space, budget_minutes=1, max_epochs=1, searcher='random', "
        "device='cpu')\n"
        "    print(study.best.score)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "9.0\n"), done.stderr[-2000:]
