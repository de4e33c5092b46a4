"""What wandb wrote offline holds what was logged; its records are read with its own messages."""

import json
import struct
import time

import pytest

pytest.importorskip("wandb.proto")

from wandb.proto import wandb_internal_pb2

from tuner import Choice, Float, Study, TrialState
from tuner.integrations import wandb as logging
from tuner.reader import Snapshot

SPACE = {"x": Float(0, 1), "act": Choice(("relu", None, True))}
_BLOCK, _HEADER = 32_768, 7


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def records(path):
    """A file of wandb's is a log of LevelDB's: blocks of records with checksum, length and kind."""
    data, at, whole = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        whole += data[at : at + length]
        at += length
        if kind in (1, 4):  # all of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def named(items):
    return {(i.nested_key or [i.key])[0]: json.loads(i.value_json) for i in items}


def wait_for_the_end(folder):
    """wandb's own process may still be writing when `finish` has returned."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        paths = list(folder.rglob("*.wandb"))
        if all(any(r.HasField("exit") for r in records(path)) for path in paths):
            return
        time.sleep(0.1)


def runs_in(folder):
    """By the run's name: its configuration, its history, its summary, its exit code."""
    wait_for_the_end(folder)
    found = {}
    for path in folder.rglob("*.wandb"):
        name, history, summary, code, config = "", [], {}, None, {}
        for record in records(path):
            if record.HasField("run"):
                name = record.run.display_name
                config = named(record.run.config.update)
            elif record.HasField("history"):
                history.append(named(record.history.item))
            elif record.HasField("summary"):
                summary |= named(record.summary.update)
            elif record.HasField("exit"):
                code = record.exit.exit_code
        found[name] = (config, history, summary, code)
    return found


def test_a_search_is_all_there(tmp_path):
    study = Study(SPACE, "random")
    with logging.callback("mine", dir=str(tmp_path)) as log:
        first, second = study.ask(), study.ask()  # two at once
        log(study)
        study.tell(second.number, 0.25, minutes=0.5)
        study.tell(first.number, state="infeasible", reason="too far", minutes=0.25)
        log(study)
        study.ask()
        log(study)
    found = runs_in(tmp_path)
    assert len(found) == 3
    for trial in study.trials:
        name = f"random-0/trial-{trial.number:05d}"
        config, history, summary, code = found[name]
        act = trial.config["act"]
        assert config["x"] == trial.config["x"]
        assert config["act"] == ("None" if act is None else act)
        scores = [(row["_step"], row["score"], row["device_minutes"]) for row in history]
        assert scores == [(o.epoch, o.score, 0.5) for o in trial.curve]
        if trial.state is TrialState.RUNNING:
            assert code == 1
            continue
        assert code == (0 if trial.state is TrialState.COMPLETED else 1)
        assert summary["state"] == trial.state.name
        assert summary["reason"] == trial.reason
        assert summary["paid_minutes"] == trial.paid_ns / 60e9


def test_a_race_is_logged_from_its_folder(race_folder, tmp_path):
    count = logging.log_study(race_folder, dir=str(tmp_path))
    snapshot = Snapshot(race_folder / "study.sqlite")
    wanted = {
        f"mine/{row.searcher}-{row.seed}/trial-{t.number:05d}": t
        for row in snapshot.runs()
        for t in snapshot.trials(row)
    }
    snapshot.close()
    found = runs_in(tmp_path)
    assert found.keys() == wanted.keys()
    assert count == len(wanted)
    for name, trial in wanted.items():
        scores = [(row["_step"], row["score"]) for row in found[name][1]]
        assert scores == [(o.epoch, o.score) for o in trial.curve]
