import hashlib
import json
import os
import sqlite3
import subprocess
import sys

import pytest

from tests.helpers import SPACE, alter
from tuner.budget import Kind
from tuner.doctor import Severity, examine
from tuner.report import Outcome, write_files
from tuner.schema import SCHEMA_VERSION
from tuner.store import Store
from tuner.study import Study
from tuner.trial import Checkpoint, Observation, Trial, TrialState

SETTINGS = {"measure": "test accuracy", "budget_minutes": 1.0, "data": "sample"}


def content(number):
    return b"weights of trial %d" % number


def mark(number):
    return Checkpoint(f"random-3-{number}.safetensors", hashlib.sha256(content(number)).hexdigest())


def make(folder, change=lambda store, row, history: None):
    """A run of three trials: completed and best, completed and worse, and one to go on with."""
    store = Store(folder / "study.sqlite", create=True)
    store.set_meta("machine", {"versions": {"numpy": "1.0", "torch": "2.0"}})
    row = store.add_run("random", 3, SPACE, 2, 1000)
    history = store.history(row)
    (folder / "checkpoints").mkdir()
    for number, scores in enumerate([(0.5, 0.9), (0.4, 0.3), (0.6,)]):
        history.start(Trial(number, {"x": number / 4, "y": 0.5}, number, 2))
        for epoch, score in enumerate(scores, 1):
            observation = Observation(epoch, score, 10, 10 * epoch)
            history.observe(number, observation, checkpoint=mark(number))
            store.charge(row.id, {Kind.TRAIN: 8, Kind.EVALUATE: 2}, number)
        if len(scores) == 2:
            history.close(number, TrialState.COMPLETED)
        else:
            history.update(number, state=TrialState.PAUSED)
        if number != 1:  # nobody will ask for it
            (folder / "checkpoints" / mark(number).name).write_bytes(content(number))
    change(store, row, history)
    store.commit()
    outcome = Outcome(row, history, store.budget(row).ledger, None)
    store.close()
    write_files(folder, SETTINGS, [outcome])
    return folder


def said(folder, severity=None, **versions):
    return [
        f"{finding.what} – {finding.advice}"
        for finding in examine(folder, versions)
        if severity in (None, finding.severity)
    ]


def one(folder, severity=Severity.DAMAGE):
    (finding,) = said(folder, severity)
    return finding


def everything(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def test_a_sound_run_is_fine_and_nothing_in_it_changes(tmp_path):
    make(tmp_path)
    before = everything(tmp_path)
    findings = examine(tmp_path, {"numpy": "1.0"})
    assert [f.what for f in findings] == [
        f"nobody has the study open; the last was process {os.getpid()} on {os.uname().nodename}",
        "1 trial(s) are not finished",
    ]
    assert {f.severity for f in findings} == {Severity.NOTE}
    assert everything(tmp_path) == before


def test_a_driver_at_work_is_seen_and_not_disturbed(tmp_path):
    make(tmp_path)
    code = (
        "import sys, pathlib\nfrom tuner.store import Store\n"
        f"store = Store(pathlib.Path({str(tmp_path / 'study.sqlite')!r}), create=False)\n"
        "print('open', flush=True)\nsys.stdin.readline()\n"
        "store.set_meta('a', 1)\nstore.commit()\nprint('written', flush=True)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "open\n"
    before = everything(tmp_path)
    (note,) = said(tmp_path)
    assert note.startswith(f"a driver is at work: process {holder.pid} on ")
    assert everything(tmp_path) == before
    out, _ = holder.communicate("go on\n")
    assert (out, holder.returncode) == ("written\n", 0)
    assert said(tmp_path)[0].startswith("nobody has the study open")


def test_a_flipped_byte_in_a_row_is_damage_and_the_others_are_counted(tmp_path):
    make(tmp_path)
    db = sqlite3.connect(tmp_path / "study.sqlite")
    db.execute("UPDATE observation SET score = 0.99 WHERE number = 0 AND epoch = 1")
    db.commit()
    db.close()
    assert one(tmp_path).startswith(
        "1 row(s) of the table observation are not as they were written – 4 rows are as they were"
    )


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_a_file_that_is_no_database_any_more_is_damage(tmp_path, how):
    path = make(tmp_path) / "study.sqlite"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:5000], "empty": b"", "text": b"no study " * 999}[how])
    assert said(tmp_path, Severity.DAMAGE)
    assert "take study.sqlite from a backup" in said(tmp_path)[0]


def test_another_format_is_said_to_be_one(tmp_path):
    make(tmp_path)
    alter(tmp_path / "study.sqlite", "UPDATE meta SET value = '99' WHERE key = 'schema'")
    assert one(tmp_path).startswith(
        f"the study is of format 99, this version reads {SCHEMA_VERSION}"
    )


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "DELETE FROM observation WHERE number = 0 AND epoch = 1",
            "trial 0, epoch 2: no such epoch",
        ),
        ("DELETE FROM trial WHERE number = 2", "1 row(s) of the table observation belong to no"),
        ("UPDATE charge SET number = 7 WHERE id = 1", "1 row(s) of the table charge belong to no"),
        ("UPDATE charge SET train = train + 1 WHERE id = 1", "charged 21 ns, 21 of it not lost"),
        ("UPDATE charge SET train = -8 WHERE id = 1", "a charge is below zero"),
        ("DELETE FROM charge WHERE id = 5", "trial 2 was charged 0 ns, 0 of it not lost, and its"),
        (
            'UPDATE trial SET config = \'{"x": 2.0, "y": 0.5}\' WHERE number = 1',
            "x = 2.0 is not in",
        ),
        (
            "UPDATE observation SET device_ns = -1 WHERE number = 1",
            "trial 1, epoch 1: no such epoch",
        ),
        (
            "UPDATE observation SET score = 9e999 WHERE number = 1",
            "trial 1, epoch 1: no such epoch",
        ),
    ],
)
def test_rows_that_do_not_fit_together_are_damage(tmp_path, statement, words):
    make(tmp_path)
    alter(tmp_path / "study.sqlite", statement)
    assert any(words in line for line in said(tmp_path, Severity.DAMAGE))


def test_lost_minutes_of_a_trial_are_no_fault(tmp_path):
    def lose(store, row, history):
        store.charge(row.id, {Kind.LOST: 33}, 2)

    make(tmp_path, lose)
    assert not said(tmp_path, Severity.DAMAGE)


@pytest.mark.parametrize(
    ("spent", "severity"), [(950, None), (960, Severity.NOTE), (961, Severity.WARNING)]
)
def test_a_budget_may_be_overspent_by_an_epoch_at_most(tmp_path, spent, severity):
    # Its trials took 50 ns, an epoch of theirs 10, and the budget is 1,000.
    make(tmp_path, lambda store, row, history: store.charge(row.id, {Kind.SEARCH: spent}, None))
    found = [f.severity for f in examine(tmp_path) if "more than its budget" in f.what]
    assert found == ([severity] if severity else [])


@pytest.mark.parametrize(("number", "is_winner"), [(0, True), (2, False)])
def test_a_checkpoint_that_is_needed_must_be_as_it_was(tmp_path, number, is_winner):
    path = make(tmp_path) / "checkpoints" / mark(number).name
    path.write_bytes(content(number)[:-1] + b"!")
    finding = one(tmp_path)
    assert f"the checkpoint of trial {number} is not as it was written" in finding
    assert ("train it again" in finding) == is_winner
    path.unlink()
    assert f"the checkpoint of trial {number} is missing" in one(tmp_path)


def test_a_checkpoint_whose_name_leads_elsewhere_is_not_followed(tmp_path):
    make(tmp_path)
    alter(
        tmp_path / "study.sqlite",
        "UPDATE trial SET checkpoint = '../../etc/passwd' WHERE number = 2",
    )
    assert any(
        "a checkpoint is a file of its own folder" in line
        for line in said(tmp_path, Severity.DAMAGE)
    )


def test_what_a_killed_driver_left_is_a_note(tmp_path):
    def hold(store, row, history):
        store.set_held(row.id, 50 + 120_000_000_000)

    make(tmp_path, hold)
    (tmp_path / "checkpoints" / "random-3-9.safetensors").write_bytes(b"orphan")
    (tmp_path / ".trials.csv.17.tmp").write_bytes(b"half")
    notes = said(tmp_path)
    assert not said(tmp_path, Severity.DAMAGE)
    assert any("1 checkpoint(s) that no row names, such as random-3-9" in line for line in notes)
    assert any("1 file(s) that a driver left" in line for line in notes)
    assert any("2.000 minutes were held when its driver ended" in line for line in notes)


def test_a_file_of_held_times_that_is_cut_is_a_warning(tmp_path):
    path = make(tmp_path) / "study.sqlite.held"
    path.write_bytes(path.read_bytes()[:-1])
    assert "is not whole" in one(tmp_path, Severity.WARNING)
    path.unlink()
    assert "is not whole" in one(tmp_path, Severity.WARNING)


def test_why_a_run_was_paused_is_told(tmp_path):
    make(tmp_path)
    store = Store(tmp_path / "study.sqlite", create=False)
    store.pause("the disk is full")
    store.close()
    assert "paused: the disk is full – --resume does" in said(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "trials.csv", "curves.csv"])
def test_a_report_that_says_something_else_is_a_warning(tmp_path, name):
    path = make(tmp_path) / name
    path.write_text(path.read_text().replace("0.9", "0.95", 1))
    assert one(tmp_path, Severity.WARNING).startswith(f"{name} do not say what the study says")
    path.write_text("{")
    assert one(tmp_path, Severity.WARNING).startswith(name)
    path.unlink()  # a run that has not ended has none
    assert not said(tmp_path, Severity.WARNING)


def test_other_versions_are_a_note(tmp_path):
    make(tmp_path)
    notes = said(tmp_path, numpy="2.0", torch="2.0")
    assert [line for line in notes if "was begun with" in line] == [
        "the study was begun with numpy 1.0; here it is 2.0 – scores may differ a little from "
        "here on"
    ]


def test_a_folder_without_a_study_is_wrong_use(tmp_path):
    with pytest.raises(ValueError, match="there is no study at"):
        examine(tmp_path)


def test_findings_come_worst_first(tmp_path):
    make(tmp_path)
    (tmp_path / "trials.csv").write_text("")
    (tmp_path / "checkpoints" / mark(2).name).unlink()
    assert [f.severity for f in examine(tmp_path)] == [
        Severity.DAMAGE,
        Severity.WARNING,
        Severity.NOTE,
        Severity.NOTE,
    ]
    assert json.dumps([f.severity.value for f in examine(tmp_path)])


def test_a_study_that_is_asked_and_told_is_fine_and_waits(tmp_path):
    path = tmp_path / "lab.sqlite"
    with Study(SPACE, "random", path=path) as study:
        for _ in range(4):
            study.ask()
        study.tell(0, 0.5, minutes=3)
        study.tell(1, state="infeasible", minutes=3)
        study.tell(2, state="failed", minutes=3, reason="the flask broke")
    told = examine(path)  # by its own name
    assert {finding.severity for finding in told} == {Severity.NOTE}
    assert [f.what for f in told if "trial" in f.what] == ["1 trial(s) wait for their results"]
    with Study(SPACE, "random", path=path) as study:
        assert study.minutes_spent == 9
