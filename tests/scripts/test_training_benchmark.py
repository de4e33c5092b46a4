"""The benchmark of training: the rivals see our images, and its tables say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torchvision

from models.data import load
from scripts import training_benchmark
from scripts.figures import Table, ratio, save
from scripts.plain_loops import EPOCHS, Counter
from scripts.training_benchmark import _agreement_table, _tables, lay_out_images


def test_the_rivals_see_the_images_that_we_train_and_validate_with(tmp_path):
    lay_out_images("sample", None, tmp_path)
    ours = load("sample", Path("/no/such/folder"))
    for train, split in ((True, ours.train), (False, ours.validation)):
        theirs = torchvision.datasets.FashionMNIST(tmp_path, train=train)
        assert np.array_equal(theirs.data.numpy(), split.images[:, 0])
        assert np.array_equal(theirs.targets.numpy(), split.labels)


def test_images_of_another_kind_are_refused(tmp_path, monkeypatch):
    class Other:
        class train:
            images = np.zeros((1, 3, 32, 32))

    monkeypatch.setattr("models.data.load", lambda *_: Other)
    with pytest.raises(ValueError, match="grey images of 28"):
        lay_out_images("sample", None, tmp_path)


def test_the_pace_is_counted_from_the_end_of_the_first_epoch(monkeypatch):
    clock = iter([100.0, 102.0, 104.0, 111.0, 111.0])
    monkeypatch.setattr("scripts.plain_loops.time.monotonic", lambda: next(clock))
    counter = Counter(10.0)
    assert not counter.is_over
    for epoch, score in ((1, 0.5), (EPOCHS, 0.7), (1, 0.4), (2, 0.6)):
        counter.note(epoch, score)
    assert counter.is_over
    assert counter.result == {"epochs_per_s": 3 / 11, "scores": [0.7]}


def test_the_table_has_medians_ratios_by_turn_and_the_share_of_the_matrix_rate():
    def runs(*paces):
        return [{"epochs_per_s": p, "scores": [0.8], "layout": "2 processes"} for p in paces]

    found = {"ours": runs(3.0, 4.0, 2.0), "plain": runs(1.0, 2.0, 0.5)}
    limit = {"flops_per_epoch": 2e9, "matrix_flops_per_s": 6e10, "dtype": "float32"}
    (table,) = _tables(found, limit, {"plain": 2})
    assert table.rows[0] == ["this tuner (2 processes)", "180.0", "1", "10.0%", "0.8000 (3)"]
    assert table.rows[1][0].endswith("2 loader workers")
    assert table.rows[1][1:3] == ["60.0", "3.00 (2.00 to 4.00)"]


def test_a_rival_that_fails_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    def loop(name, folder, device, seconds, option, turn):
        if name == "ray" or (name == "optuna" and turn == 1):
            raise ValueError(f"{name} failed: no room")
        if name == "limit":
            return {"flops_per_epoch": 2e9, "matrix_flops_per_s": 6e10, "dtype": "float32"}
        if name == "agreement":
            return {"alone": [0.8, 0.7], "packed": [0.8, 0.7], "dtype": "float32"}
        return {"epochs_per_s": 1.0 + option, "scores": []}

    def ours(*_):
        return {"epochs_per_s": 6.0, "scores": [0.8], "layout": "2 processes"}

    monkeypatch.setattr(training_benchmark, "_loop", loop)
    monkeypatch.setattr(training_benchmark, "_ours", ours)
    monkeypatch.setattr(training_benchmark, "find_spec", lambda _: True)
    training_benchmark.training("sample", None, "cpu", 1.0, 2, "0,2", tmp_path)
    content = json.loads((tmp_path / "training.json").read_text())
    assert content["failed"] == {"ray": "ray failed: no room", "optuna": "optuna failed: no room"}
    assert {name: len(runs) for name, runs in content["repeats"].items()} == {
        **{"ours": 2, "plain": 2, "plain-1": 2}
    }
    assert content["loader_workers"]["plain"] == 2
    assert capsys.readouterr().out.count("left out: ") == 2


def test_agreement_is_shown_beside_the_spread_over_seeds():
    table = _agreement_table(
        {"alone": [0.8, 0.9, 0.7], "packed": [0.81, 0.9, 0.7], "dtype": "bfloat16"}
    )
    mean, packed, shift, largest, spread = map(float, table.rows[0])
    assert (mean, largest, spread) == (0.8, 0.01, 0.1)
    assert packed == pytest.approx(0.8033)
    assert shift == pytest.approx(0.0033)


def test_ratios_are_taken_pair_by_pair():
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == "3.00 (2.00 to 4.00)"


def test_figures_carry_their_machine_and_their_tables_make_the_page(tmp_path):
    table = Table("What it is", ["a", "b"], [["1", "2"]])
    save(tmp_path, "one", {"seeds": [0, 1]}, [table])
    save(tmp_path, "plain", {"seeds": []})
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["seeds"] == [0, 1]
    assert content["machine"]["date"]
    assert content["machine"]["versions"]["torch"]
    page = (tmp_path / "README.md").read_text()
    assert "## one" in page
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |" in page
    assert "## plain" not in page  # it has no table
