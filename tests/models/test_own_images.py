"""A user's own images: folders and npz files, what is refused, and what a run remembers of them."""

import os

import numpy as np
import pytest
from PIL import Image

from models import data
from models.own_images import is_own, named


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def draw(path, colour, size=(12, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def folder_of(where, classes=("cat", "dog"), count=12, **options):
    for i, name in enumerate(classes):
        for j in range(count):
            draw(where / name / f"{j}.png", (10 * i, j, 7), **options)
    return where


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def images(n, *shape):
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_a_folder_with_a_folder_a_class_is_split_in_three(tmp_path, root):
    name = data.prepare(str(folder_of(tmp_path / "pets")), root)
    found, test = data.load(name, root), data.load_test(name, root)
    assert data.class_names(name, root) == ["cat", "dog"]
    assert [len(found.train), len(found.validation), len(test)] == [16, 4, 4]
    assert found.train.images.shape == (16, 3, 9, 12)
    assert (found.classes, found.flips) == (2, False)
    drawn = []
    for part in (found.train, found.validation, test):
        assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
        assert (part.images[:, 0] == 10 * part.labels[:, None, None]).all()
        assert (part.images[:, 2] == 7).all()
        drawn += zip(part.labels.tolist(), part.images[:, 1, 0, 0].tolist(), strict=True)
    assert sorted(drawn) == [(i, j) for i in range(2) for j in range(12)]  # each image once


def test_a_test_set_of_its_own_is_left_as_it_is(tmp_path, root):
    folder_of(tmp_path / "pets" / "train")
    folder_of(tmp_path / "pets" / "test", count=1)
    name = data.prepare(str(tmp_path / "pets"), root)
    assert len(data.load(name, root).train) == 20
    assert len(data.load_test(name, root)) == 2
    folder_of(tmp_path / "pets" / "test", classes=("owl",), count=1)
    with pytest.raises(ValueError, match="has the class owl, of which none is to train on"):
        data.prepare(str(tmp_path / "pets"), root)


def test_images_of_several_sizes_become_squares_and_gray_ones_stay_gray(tmp_path, root):
    for i, size in enumerate([(100, 80), (70, 90), (64, 64)] * 4):
        for label in "ab":
            draw(tmp_path / "gray" / label / f"{i}.png", 9, size, "L")
    found = data.load(data.prepare(str(tmp_path / "gray"), root), root)
    assert found.train.images.shape[1:] == (1, 64, 64)
    assert (found.train.images == 9).all()


def test_an_npz_file_is_taken_as_it_is(tmp_path, root):
    pixels, labels = images(60, 8, 6, 3), np.arange(60) % 3
    tested = images(6, 8, 6, 3)
    name = saved(
        tmp_path / "mine.npz",
        train_images=pixels,
        train_labels=labels,
        test_images=tested,
        test_labels=np.arange(6) % 3,
        classes=np.array(["x", "y", "z"]),
    )
    name = data.prepare(name, root)
    found = data.load(name, root, merged=True)
    assert found.train.images.shape == (60, 3, 8, 6)
    key = {pixels[i].tobytes(): labels[i] for i in range(60)}
    for image, label in zip(found.train.images, found.train.labels, strict=True):
        assert key[image.transpose(1, 2, 0).tobytes()] == label
    assert (data.load_test(name, root).images == tested.transpose(0, 3, 1, 2)).all()
    assert data.class_names(name, root) == ["x", "y", "z"]


def test_merged_data_are_those_to_train_and_to_validate_on(tmp_path, root):
    name = data.prepare(
        saved(tmp_path / "mine.npz", train_images=images(60, 8, 6), train_labels=np.arange(60) % 3),
        root,
    )
    apart, merged = data.load(name, root), data.load(name, root, merged=True)
    assert len(merged.train) == len(apart.train) + len(apart.validation)
    assert (merged.train.images[len(apart.train) :] == apart.validation.images).all()
    assert (merged.train.labels[: len(apart.train)] == apart.train.labels).all()


def test_a_run_remembers_what_was_there(tmp_path, root):
    folder = folder_of(tmp_path / "pets")
    name = data.prepare(str(folder), root)
    assert data.prepare(name, root) == name
    draw(folder / "cat" / "new.png", (1, 2, 3))
    assert data.prepare(name, root) == name  # the copy of what it began with is still there
    assert len(data.load(name, root).train) == 16
    assert data.prepare(str(folder), root) != name
    assert data.title(name) == "pets"
    for copy in (root / "own").iterdir():
        copy.unlink()
    with pytest.raises(ValueError, match="has changed since this run began"):
        data.prepare(name, root)


def test_a_path_may_hold_the_mark_that_names_have(tmp_path, root):
    """`owls#2` is a folder's own name, and not what was in `owls`."""
    name = data.prepare(str(folder_of(tmp_path / "owls#2", count=18)), root)
    folder_of(tmp_path / "owls")
    found = [len(data.load(name, root, merged=True).train), len(data.load_test(name, root))]
    assert found == [30, 6]
    assert (data.prepare(name, root), data.title(name)) == (name, "owls#2")
    path = tmp_path / "a#b" / "mine#1.npz"
    path.parent.mkdir()
    saved(path, train_images=images(60, 8, 6), train_labels=np.arange(60) % 3)
    name = data.prepare(str(path), root)
    assert data.title(name) == "mine#1"
    merged = data.load(name, root, merged=True)
    assert len(merged.train) + len(data.load_test(name, root)) == 60


def test_two_folders_whose_files_look_alike_are_two_data_sets(tmp_path, root):
    """As archives leave them: the same names, sizes and times, and other pixels."""
    names = []
    for which, colour in (("one", 10), ("two", 99)):
        for i in range(12):
            draw(tmp_path / which / "ab"[i % 2] / f"{i}.bmp", colour, (8, 8), "L")
        for path in (tmp_path / which).rglob("*.bmp"):
            os.utime(path, (0, 0))
        names.append(data.prepare(str(tmp_path / which), root))
    pixels = [set(data.load(name, root).train.images.ravel().tolist()) for name in names]
    assert pixels == [{10}, {99}]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "lacks train_images or train_labels"),
        ({"train_images": images(9, 4, 4)}, "lacks train_images or train_labels"),
        ({"train_images": images(9, 4, 4) / 255.0, "train_labels": np.arange(9)}, "entries of"),
        ({"train_images": images(9, 4, 4, 4), "train_labels": np.arange(9)}, "that x 1 or x 3"),
        ({"train_images": images(9, 4, 4), "train_labels": np.arange(8)}, "for each image"),
        ({"train_images": images(9, 4, 4), "train_labels": np.arange(9) - 1}, "from 0 up"),
        (
            {"train_images": images(9, 4, 4), "train_labels": np.full(9, 2**32 - 1)},
            "below 100000, got 4294967295",
        ),
        ({"train_images": images(9, 1025, 4), "train_labels": np.arange(9)}, "at most 1024 pixels"),
        ({"train_images": images(9, 4, 4), "train_labels": np.zeros(9, int)}, "at least 2 classes"),
        (
            {"train_images": images(30, 4, 4), "train_labels": np.repeat([0, 2], 15)},
            "with 6 images each to train on, got 0 of '1'",
        ),
        (
            {
                "train_images": images(30, 4, 4),
                "train_labels": np.arange(30) % 2,
                "test_images": images(2, 5, 4),
                "test_labels": np.arange(2),
            },
            "not of the shape of those to train on",
        ),
        (
            {
                "train_images": images(30, 4, 4),
                "train_labels": np.arange(30) % 2,
                "test_images": images(2, 4, 4),
            },
            "and not the other",
        ),
        (
            {
                "train_images": images(30, 4, 4),
                "train_labels": np.arange(30) % 2,
                "classes": np.array(["a"]),
            },
            "2 classes, and 1 names",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_name(tmp_path, root, arrays, message):
    with pytest.raises(ValueError, match=r"mine\.npz") as found:
        data.prepare(saved(tmp_path / "mine.npz", **arrays), root)
    assert message in str(found.value)


def test_folders_that_cannot_be_used_are_refused(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        data.prepare(str(tmp_path / "empty"), root)
    with pytest.raises(ValueError, match="gone"):
        data.prepare(str(tmp_path / "gone.npz"), root)
    folder = folder_of(tmp_path / "pets")
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read as an image"):
        data.prepare(str(folder), root)
    assert not list((root / "own").glob("*"))


def test_photographs_are_read_as_they_are_meant_to_be_seen(tmp_path, root):
    """Turned by their EXIF tag; palettes, alpha and four inks are colours; notes are no class."""
    for i in range(7):
        upright = Image.new("RGB", (10, 16), (200, 0, 0))
        upright.paste((0, 0, 200), (0, 0, 10, 8))  # blue above red
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        place = tmp_path / "mine" / "turned" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        upright.transpose(Image.Transpose.ROTATE_90).save(place, exif=exif, quality=95)
    for i, mode in enumerate(["P", "RGBA", "CMYK", "L", "LA", "RGB", "RGB"]):
        suffix = "tiff" if mode in ("CMYK", "LA") else "png"
        draw(tmp_path / "mine" / "plain" / f"{i}.{suffix}", 0, (10, 16), mode)
    (tmp_path / "mine" / ".cache").mkdir()
    (tmp_path / "mine" / "plain" / "._0.png").write_bytes(b"a Mac's note")
    found = data.load(data.prepare(str(tmp_path / "mine"), root), root, merged=True)
    assert found.train.images.shape[1:] == (3, 16, 10)
    turned = found.train.images[found.train.labels == 1]
    assert (turned[:, 2, 2] > 150).all()
    assert (turned[:, 0, 13] > 150).all()


def test_folders_that_are_links_are_folders(tmp_path, root):
    folder_of(tmp_path / "elsewhere")
    (tmp_path / "mine").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(data.load(data.prepare(str(tmp_path / "mine"), root), root).train) == 16


def test_images_of_16_bits_are_refused_and_not_cut_off(tmp_path, root):
    folder_of(tmp_path / "pets")
    Image.fromarray(np.full((9, 12), 40_000, np.uint16)).save(tmp_path / "pets" / "cat" / "x.png")
    with pytest.raises(ValueError, match=r"x\.png cannot be .* more than 8 bits"):
        data.prepare(str(tmp_path / "pets"), root)


def test_the_name_of_a_known_set_is_that_set(tmp_path, monkeypatch):
    folder_of(tmp_path / "sample")
    monkeypatch.chdir(tmp_path)
    assert data.prepare("sample", tmp_path / "root") == "sample"
    assert data.class_names("sample", tmp_path)[0] == "T-shirt/top"
    assert is_own("sample")
    assert named("sample", tmp_path).startswith(str(tmp_path / "sample#"))
    with pytest.raises(ValueError, match="data set"):
        data.prepare("smaple", tmp_path / "root")
