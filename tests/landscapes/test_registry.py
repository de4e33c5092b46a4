"""Finding a landscape by name, dimension or file."""

from itertools import product

import numpy as np
import pytest

from landscapes import registry
from landscapes.registry import open_landscape, recorded_names
from landscapes.table import Table, save_table
from tuner.space import Float, SearchSpace

NAMES = ["bumpy", "cliff", "deceptive", "flat", "ridge", "smooth"]


def small_table():
    space = SearchSpace(x=Float(0.0, 1.0), y=Float(0.0, 1.0))
    scores = np.arange(8.0).reshape(4, 1, 2) / 10
    return Table(
        "small",
        space,
        np.array(list(product([0.0, 1.0], repeat=2))),
        scores,
        scores + 1,
        np.zeros((4, 1), dtype=bool),
        {"about": "Small.", "badge": "by hand"},
    )


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder of shipped recordings with two in it."""
    folder = tmp_path / "recorded"
    folder.mkdir()
    monkeypatch.setattr(registry, "RECORDED", folder)
    for name in ("zebra", "cnn_small"):
        save_table(folder / f"{name}.npz", small_table())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_is_opened_by_its_name_in_two_dimensions(name):
    landscape = open_landscape(name)
    assert (landscape.name, len(landscape.space)) == (name, 2)


def test_a_formula_is_opened_in_as_many_dimensions_as_are_asked_for():
    assert len(open_landscape("bumpy:4").space) == 4
    assert len(open_landscape("ridge:9").space) == 9
    assert len(open_landscape("smooth:1").space) == 1


@pytest.mark.parametrize("text", ["bumpy:", "bumpy:x", "bumpy:-1", "bumpy:2.5", "bumpy:2:3"])
def test_a_dimension_that_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"as in bumpy:4, got '" + text):
        open_landscape(text)


@pytest.mark.parametrize("text", ["bumpy:0", "bumpy:13", "ridge:1", "ridge:10"])
def test_a_dimension_that_the_formula_does_not_come_in_is_refused(text):
    with pytest.raises(ValueError, match=f"dimensions.*got {text.split(':')[1]}"):
        open_landscape(text)


def test_recordings_are_opened_by_name_and_listed_in_order(recorded):
    assert recorded_names() == ["cnn_small", "zebra"]
    landscape = open_landscape("cnn_small")
    assert landscape.name == "cnn_small"
    assert landscape.card["badge"] == "by hand"
    assert landscape.value({"x": 1.0, "y": 1.0}) == pytest.approx(0.7)


def test_what_is_no_recording_in_their_folder_is_not_listed(recorded):
    (recorded / "notes.txt").write_text("not a landscape")
    assert recorded_names() == ["cnn_small", "zebra"]


@pytest.mark.parametrize("text", ["zebra:2", "zebra:", "zebra:x"])
def test_a_recording_has_its_own_dimensions(recorded, text):
    with pytest.raises(ValueError, match="zebra was recorded in its own dimensions"):
        open_landscape(text)


def test_without_recordings_the_formulas_are_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "RECORDED", tmp_path / "absent")
    assert recorded_names() == []
    assert open_landscape("flat").name == "flat"


def test_an_unknown_name_is_refused_with_the_nearest_and_with_all(recorded):
    with pytest.raises(ValueError, match="did you mean 'smooth'") as caught:
        open_landscape("smoth")
    for name in [*NAMES, "cnn_small", "zebra"]:
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="did you mean 'cnn_small'"):
        open_landscape("cnn_smal")
    with pytest.raises(ValueError, match="there is no landscape ''"):
        open_landscape("")


def test_a_file_is_opened_by_its_path(tmp_path, monkeypatch):
    save_table(tmp_path / "mine.npz", small_table())
    assert open_landscape(str(tmp_path / "mine.npz")).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert open_landscape("mine.npz").name == "mine"


@pytest.mark.parametrize("name", ["absent.npz", "absent.onnx", "folder.npz", "folder.onnx"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"there is no file .*{name}"):
        open_landscape(str(tmp_path / name))


@pytest.mark.parametrize("text", ["runs/mine", "./bumpy", "mine/t.csv", "/"])
def test_a_path_of_another_kind_is_refused(text):
    with pytest.raises(ValueError, match=r"an \.npz table or an \.onnx surrogate"):
        open_landscape(text)


@pytest.mark.parametrize("name", ["t.npz", "t.onnx"])
def test_a_file_with_something_else_in_it_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{name} is no "):
        open_landscape(str(tmp_path / name))
