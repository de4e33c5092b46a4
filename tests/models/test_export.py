"""What is exported is the network that was trained, and files of strangers are read with care."""

import json
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import data, export
from models.crew import make_crew
from models.export import Architecture
from models.knobs import Recipe
from models.packed import Pack, Shape
from models.train import PLAIN, DeviceData, Halt

RECIPE = Recipe(width=6, layers=3, growth=1.5, dropout=0.2, batch_size=50)


@pytest.fixture(scope="module")
def images(small_data):
    data.prepare("fashion_mnist", small_data)
    return data.load("fashion_mnist", small_data)


@pytest.fixture(scope="module")
def trained(images):
    """A network after an epoch: its arrays, and its accuracy as its own training measures it."""
    held = DeviceData(images, torch.device("cpu"))
    crew = make_crew(held, Shape.of(RECIPE), 1, epochs=1, precision=PLAIN, augment=False)
    crew.enter(RECIPE, 5, None)
    while 0 not in crew.ended():
        crew.run(lambda: Halt.NO)
    (score,) = crew.accuracy([0], held.validation, lambda: Halt.NO)
    return crew.states([0])[0], score


@pytest.fixture(scope="module")
def saved(tmp_path_factory, images, trained):
    folder = tmp_path_factory.mktemp("model")
    classes = data.class_names("fashion_mnist", folder)
    model = export.save(folder, trained[0], Architecture.of(RECIPE, images, classes))
    return folder, model


def test_it_is_the_network_that_was_trained(saved, images, trained):
    folder, model = saved
    assert export.accuracy(model, images.validation) == trained[1] > 0.3
    assert export.accuracy(export.load(folder), images.validation) == trained[1]


def test_a_network_of_a_pack_is_exported_as_well(tmp_path, images):
    held = DeviceData(images, torch.device("cpu"))
    pack = Pack(held, Shape.of(RECIPE), 2, epochs=1)
    lanes = [pack.enter(RECIPE, seed, None) for seed in (1, 2)]
    pack.run(lambda: Halt.NO)
    scores = pack.accuracy(lanes, held.validation)
    architecture = Architecture.of(RECIPE, images, data.class_names("fashion_mnist", tmp_path))
    for lane, score in zip(lanes, scores, strict=True):
        model = export.save(tmp_path / str(lane), pack.states([lane])[0], architecture)
        assert export.accuracy(model, images.validation) == pytest.approx(score, abs=0.005)


def test_the_program_needs_nothing_of_ours_and_takes_any_number_of_images(saved, images):
    folder, model = saved
    program = torch.export.load(folder / export.PROGRAM).module()
    for n in (1, 2, 7, 60):
        shown = torch.from_numpy(images.validation.images[:n])
        with torch.inference_mode():
            torch.testing.assert_close(program(shown), model(shown))


def test_nothing_in_the_files_is_a_pickle(saved):
    folder, _ = saved
    with zipfile.ZipFile(folder / export.PROGRAM) as archive:
        for member in archive.infolist():
            start = archive.read(member)[:2]
            assert start not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")


def test_a_description_comes_back_whole(saved, images):
    folder, _ = saved
    told = json.loads((folder / export.CONFIG).read_text())
    found = Architecture.from_json(told)
    assert found == Architecture.of(RECIPE, images, told["classes"])
    assert (found.width, found.layers, found.growth) == (6, 3, 1.5)
    pixels = images.train.images.astype(float)
    assert found.mean[0] == pytest.approx(pixels.mean(), rel=1e-5)
    assert found.spread[0] == pytest.approx(pixels.std(), rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"width": True},
        {"layers": 0},
        {"layers": 17},
        {"image": [1, 28]},
        {"image": [1, 10**6, 28]},
        {"growth": 1e9},
        {"growth": "2"},
        {"mean": [float("nan")]},
        {"spread": [0.0]},
        {"spread": [1.0, 1.0]},
        {"classes": ["only"]},
        {"classes": [1, 2]},
        {"classes": None},
    ],
)
def test_a_description_that_makes_no_sense_is_refused_before_anything_is_made(
    saved, tmp_path, change
):
    told = json.loads((saved[0] / export.CONFIG).read_text())
    (tmp_path / export.CONFIG).write_text(json.dumps({**told, **change}))
    with pytest.raises(ValueError, match=r"config\.json"):
        export.load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), cut=st.booleans(), flip=st.integers(1, 255))
def test_weights_that_are_damaged_are_refused_or_are_numbers(
    saved, tmp_path_factory, share, cut, flip
):
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray((saved[0] / export.WEIGHTS).read_bytes())
    place = int(share * len(whole))
    if cut:
        del whole[place:]
    else:
        whole[place] ^= flip
    (folder / export.WEIGHTS).write_bytes(whole)
    (folder / export.CONFIG).write_bytes((saved[0] / export.CONFIG).read_bytes())
    try:
        model = export.load(folder)
    except ValueError as error:
        message = str(error)
    else:
        message = f"model.safetensors {model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape}"
    assert "model.safetensors" in message


def test_weights_of_another_network_are_refused(saved, tmp_path):
    told = json.loads((saved[0] / export.CONFIG).read_text())
    (tmp_path / export.CONFIG).write_text(json.dumps({**told, "width": 7}))
    (tmp_path / export.WEIGHTS).write_bytes((saved[0] / export.WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match=r"model\.safetensors holds no such network"):
        export.load(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        export.load(tmp_path / "gone")


def test_images_of_three_channels_are_normalised_channel_by_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 12, 10), dtype=np.uint8)
    pixels[:, 1] //= 4
    pixels[:, 2] = 200  # of two colours, in a file made for three
    split = data.Split(pixels, np.arange(40) % 2)
    mine = data.ImageData("mine", split, split, 2, flips=False)
    held = DeviceData(mine, torch.device("cpu"))
    architecture = Architecture.of(RECIPE, mine, ["a", "b"])
    model = export.Classifier(architecture)
    shown = torch.from_numpy(pixels)
    ours = (shown.float() - model.mean) * model.scale
    torch.testing.assert_close(ours, held.normalise(shown))
    assert (architecture.mean[2], architecture.spread[2]) == (200, 1)
    assert not ours[:, 2].any()
    assert Architecture.from_json(json.loads(json.dumps(asdict(architecture)))) == architecture
