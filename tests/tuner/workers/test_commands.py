"""Commands as trainings: what they say is what is recorded, and they leave nothing running."""

import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tuner.workers.test_functions import charges, curves
from tuner import Choice, Conditional, Float, SearchSpace, tune
from tuner.budget import Kind
from tuner.scheduler import TrainingBrokenError
from tuner.trial import TrialState
from tuner.workers.commands import Command, score_in
from tuner.workers.memory import members

PROGRAM = str(Path(__file__).with_name("program.py"))
SPACE = SearchSpace(x=Float(0.0, 1.0))
METRIC = "val_acc=([0-9.]+)"


def parsed(text, metric=METRIC, space=SPACE, directory=Path(), **options):
    return Command.parse(text, metric, space, directory, **options)


def command(mode, rest="", **options):
    return parsed(f"{sys.executable} {PROGRAM} {mode} {{x}} {{checkpoint_dir}} {rest}", **options)


def search(train, *, minutes=0.05, epochs=4, space=SPACE, **options):
    options = {"searcher": "random", "seed": 3, "device": "cpu", **options}
    return tune(train, space, budget_minutes=minutes, max_epochs=epochs, **options)


def test_each_line_that_matches_is_an_epoch(tmp_path):
    study = search(command("train"), slots=2, directory=tmp_path)
    done = curves(study)
    assert len(done) > 3
    for x, totals in done.values():
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)], abs=1e-5)
    assert study.minutes_spent < 0.05 + 0.1 / 60
    assert "epoch 4 val_acc=" in (tmp_path / "checkpoints" / "worker-0.log").read_text()


def test_what_is_promoted_goes_on_from_its_checkpoint_dir(tmp_path):
    halving = {"searcher": "random+asha", "min_epochs": 1, "eta": 2}
    study = search(command("train"), minutes=0.08, directory=tmp_path, **halving)
    assert any(t.epoch == 1 for t in study.trials)
    for x, totals in curves(study).values():
        assert totals == pytest.approx([x * s for s in (1, 3, 6, 10)], abs=1e-5)
    log = (tmp_path / "checkpoints" / "worker-0.log").read_text()
    assert "going on from epoch 1" in log
    assert "going on from epoch 2" in log
    assert charges(tmp_path)[Kind.CHECKPOINT] > 0
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_program_that_has_nothing_left_to_do_has_ended_well():
    """It trains for four epochs, whoever asks it to go on."""
    longer = {"searcher": "random+asha", "min_epochs": 4, "eta": 2, "epochs": 8}
    study = search(command("train"), minutes=0.08, **longer)
    assert not [t.reason for t in study.trials if t.state is TrialState.FAILED]
    assert [t for t in study.trials if t.state is TrialState.COMPLETED and t.epoch == 4]


def test_no_shell_reads_an_argument():
    nasty = SearchSpace(x=Float(0.0, 1.0), text=Choice(("; exit 7", "$(exit 7) {x}", "'\" *")))
    whole = parsed(
        f"{sys.executable} {PROGRAM} arguments {{x}} folder {{text}} --both={{text}}{{{{x}}}}",
        space=nasty,
    )
    study = search(whole, minutes=0.05, epochs=1, space=nasty)
    assert {t.score for t in study.trials if t.curve} == {6.0}  # arguments, whatever is in them


def test_a_placeholder_that_a_value_holds_stays_as_it_is(tmp_path):
    space = SearchSpace(a=Choice(("{b}", "{seed}")), b=Choice(("1", "2")))
    echo = parsed("echo val_acc=0.5 {a} {b} {{a}}", space=space)
    search(echo, minutes=0.05, epochs=1, space=space, directory=tmp_path)
    said = set((tmp_path / "checkpoints" / "worker-0.log").read_text().splitlines())
    assert said <= {f"val_acc=0.5 {a} {b} {{a}}" for a in ("{b}", "{seed}") for b in "12"}
    assert said


def test_an_argument_of_a_knob_that_is_not_there_is_left_out(tmp_path):
    space = SearchSpace(
        kind=Choice(("sgd", "adam")),
        momentum=Conditional(Float(0.0, 0.99), "kind", ("sgd",)),
        rate=Float(0.0, 1.0),
    )
    echo = parsed("echo val_acc={rate} {kind} --momentum={momentum}", space=space)
    study = search(echo, minutes=0.05, epochs=1, space=space, directory=tmp_path, seed=1)
    said = (tmp_path / "checkpoints" / "worker-0.log").read_text().splitlines()
    kinds = [t.config["kind"] for t in study.trials if t.curve]
    assert set(kinds) == {"sgd", "adam"}
    assert [("--momentum=" in line) for line in said[: len(kinds)]] == [k == "sgd" for k in kinds]
    assert not any("None" in line for line in said)
    with pytest.raises(ValueError, match=r"write the two as one, --momentum=\{momentum\}"):
        parsed("echo {kind} {rate} --momentum {momentum}", space=space)


def test_an_exit_code_that_says_so_is_infeasible():
    study = search(command("fail", infeasible_exits=(3,)), minutes=0.05, epochs=2)
    ended = [t for t in study.trials if t.state.is_final]
    assert {t.state for t in ended if t.config["x"] > 0.5} == {TrialState.INFEASIBLE}
    assert {t.reason for t in ended if t.config["x"] > 0.5} == {"exit code 3: no such layer"}


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", "exit code 3: no such layer"),
        ("silent", "no line of the command matched .*; the last: nothing to see"),
    ],
)
def test_a_command_that_is_broken_ends_the_search_with_what_it_said(mode, message):
    with pytest.raises(TrainingBrokenError, match=message):
        search(command(mode), epochs=2, minutes=0.5)


def test_memory_that_runs_out_is_infeasible():
    study = search(command("memory"), minutes=0.05)
    assert {t.state for t in study.trials if t.state.is_final} == {TrialState.INFEASIBLE}


def test_all_that_a_command_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINING_NOTES", str(tmp_path / "pids"))
    study = search(command("children"), minutes=0.05)
    assert study.minutes_spent < 0.05 + 1.2 / 60
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until = time.monotonic() + 5
    while time.monotonic() < until and any(map(is_running, pids)):
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_replicates_are_measured_again_and_their_median_counts(tmp_path):
    noisy = command("noisy", metric=r"time ([0-9.]+) s", replicates=5)
    study = search(noisy, epochs=5, mode="min", minutes=0.04, directory=tmp_path)
    log = (tmp_path / "checkpoints" / "worker-0.log").read_text().splitlines()
    measured = [float(line.split()[1]) for line in log if line.startswith("time")]
    first = study.trials[0]
    assert [o.score for o in first.curve] == pytest.approx(
        [statistics.median(measured[:n]) for n in range(1, 6)]
    )
    assert study.best.score == min(t.score for t in study.trials if t.curve)


def test_a_measurement_that_is_broken_off_keeps_its_replicates(tmp_path):
    halving = {"searcher": "random+asha", "min_epochs": 1, "eta": 2}
    noisy = command("noisy", metric=r"time ([0-9.]+) s", replicates=4)
    study = search(noisy, mode="min", minutes=0.04, directory=tmp_path, **halving)
    log = (tmp_path / "checkpoints" / "worker-0.log").read_text().splitlines()
    measured = [line for line in log if line.startswith("time")]
    assert len(measured) <= sum(t.epoch for t in study.trials) + 1  # none is measured twice


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        ("", METRIC, "--command is empty"),
        ("python 'x {x}", METRIC, "cannot be split"),
        ("python {x} {y}", METRIC, r"has \{y\}, and there are \{checkpoint_dir\}, \{seed\}, \{x\}"),
        ("python train.py", METRIC, r"lacks \{x\}"),
        ("python {x}", "acc=[0-9]+", "needs a group"),
        ("python {x}", "acc=([0-9", "no regular expression"),
        ("no-such-program {x}", METRIC, "there is no program 'no-such-program'"),
        ("./missing.sh {x}", METRIC, "there is no program './missing.sh'"),
    ],
)
def test_nonsense_is_refused(text, metric, message):
    with pytest.raises(ValueError, match=message):
        parsed(text, metric)


def test_a_knob_may_not_have_our_names():
    with pytest.raises(ValueError, match="a knob cannot be called seed"):
        parsed("python {seed}", space=SearchSpace(seed=Float(0.0, 1.0)))


def test_a_command_comes_back_from_json_as_it_was():
    whole = command("noisy", replicates=3, infeasible_exits=(3, 4))
    assert Command.from_json(whole.to_json()) == whole


def test_a_program_is_found_where_the_command_runs(tmp_path):
    (tmp_path / "train.sh").write_text("#!/bin/sh\necho val_acc=$1\n")
    os.chmod(tmp_path / "train.sh", 0o700)
    study = search(parsed("./train.sh {x}", directory=tmp_path), epochs=1, minutes=0.05)
    assert study.best.score == pytest.approx(study.best.config["x"])


def test_a_program_sees_the_path_of_its_user_and_not_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/outer")
    few = SearchSpace(x=Choice((0.1, 0.2)))
    program = parsed("sh -c 'echo loss=$1 path=$PYTHONPATH' - {x}", r"loss=(\S+)", few)
    study = search(program, epochs=1, space=few, minutes=0.5, directory=tmp_path)
    assert study.best.score == 0.2
    log = (tmp_path / "checkpoints" / "worker-0.log").read_text()
    assert set(log.split()) & {"path=/outer"}
    assert log.count("path=") == log.count("path=/outer\n")


def test_what_a_program_leaves_in_the_background_is_not_waited_for():
    few = SearchSpace(x=Choice((0.1, 0.2)))
    program = parsed("sh -c 'echo loss=$1; sleep 600 & exit 0' - {x}", r"loss=(\S+)", few)
    study = search(program, epochs=None, space=few, minutes=0.5)
    assert [t.state for t in study.trials] == [TrialState.COMPLETED] * 2


@pytest.mark.parametrize(
    ("line", "metric", "score"),
    [
        ("loss=1e-05", r"loss=([0-9.]+)", 1e-05),
        ("loss=2.5E+3 s", r"loss=([0-9.]+)", 2500.0),
        ("the accuracy is 0.95.", r"is ([0-9.]+)", 0.95),
        ("loss=-0.5", r"loss=(\S+)", -0.5),
        ("loss=.5", r"loss=(\S+)", 0.5),
        ("loss=inf", r"loss=(\S+)", math.inf),
        ("acc=0.1 acc=0.2\racc=0.9", r"acc=([0-9.]+)", 0.9),
    ],
)
def test_a_number_is_read_as_it_was_printed(line, metric, score):
    assert score_in(line, re.compile(metric)) == score


@pytest.mark.parametrize("text", ["1,234.5", "0x1F", "12:30"])
def test_what_is_no_number_is_not_half_read(text):
    with pytest.raises(RuntimeError, match="no number"):
        score_in(f"loss={text}", re.compile(r"loss=(\S+)"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone lists processes so")
def test_a_process_whose_name_is_no_text_is_found_like_any_other():
    named = (
        "import ctypes, sys\n"
        "ctypes.CDLL(None).prctl(15, b'(\\xc3 ) Z 1')  # PR_SET_NAME\n"
        "print('named', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", named]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdout.readline() == b"named\n"
        assert list(members(process.pid)) == [process.pid]
        process.stdin.close()
