"""Data sets: the embedded sample, the stratified split, and torchvision's layouts."""

from __future__ import annotations

import fcntl
import gzip
import json
import struct
import threading
import urllib.request
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from models import data, kept

CLASS_OF = {
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}


@pytest.fixture(autouse=True)
def _cut_off(monkeypatch, tmp_path):
    """No test may reach the network, or the data sets that Debian installed on this machine."""

    def refuse(*args, **kwargs):
        pytest.fail(f"tried to fetch {args}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "no-such-debian-folder")


def fake_torchvision(monkeypatch, name, images, *, attribute="targets", labels):
    """Put a class in place of torchvision's; the list of how it was asked for is returned."""
    asked = []

    class Fake:
        def __init__(self, root, **options):
            asked.append({"root": root, **options})
            self.data = images
            setattr(self, attribute, labels)

    monkeypatch.setattr(torchvision.datasets, CLASS_OF[name], Fake)
    return asked


def break_torchvision(monkeypatch, name, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torchvision.datasets, CLASS_OF[name], fail)


# -- the sample ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return data.load("sample", Path("/no/such/folder"))


@pytest.fixture(scope="module")
def sample_test():
    return data.load_test("sample", Path("/no/such/folder"))


def test_the_sample_holds_10000_2000_and_2000_images_of_28_by_28_bytes(sample, sample_test):
    for split, size in ((sample.train, 10_000), (sample.validation, 2_000), (sample_test, 2_000)):
        assert len(split) == size
        assert split.images.shape == (size, 1, 28, 28)
        assert split.labels.shape == (size,)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
    assert (sample.name, sample.classes, sample.flips) == ("sample", 10, True)


def test_the_sample_has_every_class_equally_often(sample, sample_test):
    for split in (sample.train, sample.validation, sample_test):
        counts = Counter(split.labels.tolist())
        assert counts == dict.fromkeys(range(10), len(split) // 10)


def test_no_image_of_the_sample_is_in_two_of_its_parts(sample, sample_test):
    train, validation, test = (
        {image.tobytes() for image in split.images}
        for split in (sample.train, sample.validation, sample_test)
    )
    assert len(train) == 10_000
    assert len(validation) == 2_000
    assert not train & validation
    assert not test & (train | validation)


def test_the_sample_is_small_and_its_notice_and_card_lie_beside_it():
    size = data.SAMPLE.stat().st_size
    assert size <= 8_000_000
    notice = (data.SAMPLE.parent / "LICENSE").read_text()
    assert "MIT License" in notice
    assert "Zalando" in notice
    assert "shall be included in all" in notice
    card = json.loads(data.SAMPLE.with_suffix(".json").read_text())
    assert card["images"] == {"train": 10_000, "validation": 2_000, "test": 2_000}
    assert card["bytes"] == size


def test_loading_the_sample_reads_nothing_of_its_test_part(monkeypatch, tmp_path):
    read = []
    original = zipfile.ZipFile.open

    def spy(self, member, *more, **options):
        read.append(getattr(member, "filename", member).removesuffix(".npy"))
        return original(self, member, *more, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    data.load("sample", tmp_path)
    assert set(read) == {"train_images", "train_labels", "validation_images", "validation_labels"}
    read.clear()
    data.load_test("sample", tmp_path)
    assert set(read) == {"test_images", "test_labels"}


def test_the_sample_needs_no_folder_and_makes_none(tmp_path):
    data.prepare("sample", tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_making_a_sample_draws_its_parts_from_the_right_sets(monkeypatch, tmp_path):
    # 24,000 train and 6,000 test images in three classes, each with its own number written in it.
    def numbered(numbers):
        return np.stack([numbers // 256, numbers % 256], 1).astype(np.uint8)[:, None]  # n x 1 x 2

    class Fake:
        def __init__(self, root, *, train, download):
            numbers = np.arange(24_000) if train else np.arange(24_000, 30_000)
            self.data, self.targets = numbered(numbers), numbers % 3

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    path = tmp_path / "small.npz"
    card = data.make_sample(tmp_path / "root", path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    seen = {}
    for part, size in (("train", 10_000), ("validation", 2_000), ("test", 2_000)):
        high, low = arrays[f"{part}_images"][:, 0].astype(int).T
        numbers = 256 * high + low
        assert (arrays[f"{part}_labels"] == numbers % 3).all()
        assert len(set(numbers.tolist())) == len(numbers)
        assert abs(len(numbers) - size) <= 3 / 2  # each of three classes is off by a half at most
        assert card["images"][part] == len(numbers)
        seen[part] = set(numbers.tolist())
    assert not seen["train"] & seen["validation"]
    assert max(seen["train"] | seen["validation"]) < 24_000 <= min(seen["test"])
    assert card["bytes"] == path.stat().st_size
    assert json.loads(path.with_suffix(".json").read_text()) == card


# -- stratified ------------------------------------------------------------------------------------


@st.composite
def labels_and_sizes(draw):
    """Shuffled labels of one to six classes of any size, and one or two sizes that fit in."""
    counts = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    labels = np.repeat(np.arange(len(counts)) * 3 - 1, counts)
    labels = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(labels)
    first = draw(st.integers(0, len(labels)))
    second = draw(st.integers(0, len(labels) - first))
    return labels.astype(np.int64), draw(st.sampled_from([[first], [first, second]]))


@settings(deadline=None)
@given(case=labels_and_sizes(), seed=st.integers(0, 2**63))
def test_stratified_parts_are_disjoint_cover_everything_and_keep_class_shares(case, seed):
    labels, sizes = case
    *parts, rest = data.stratified(labels, sizes, seed)
    assert len(parts) == len(sizes)
    everything = [index for part in (*parts, rest) for index in part.tolist()]
    assert sorted(everything) == list(range(len(labels)))  # each index once: disjoint, complete
    for part, size in zip(parts, sizes, strict=True):
        for label, members in Counter(labels.tolist()).items():
            share = size * members / len(labels)
            found = int((labels[part] == label).sum())
            assert abs(found - share) <= 0.5 + 1e-9 or (found == 1 and 0 < share < 0.5)
    for part in (*parts, rest):
        assert part.tolist() == sorted(part.tolist())


@settings(deadline=None)
@given(case=labels_and_sizes(), seed=st.integers(0, 2**63))
def test_stratified_gives_the_same_split_for_the_same_seed(case, seed):
    labels, sizes = case
    first, second = (data.stratified(labels, sizes, seed) for _ in range(2))
    assert [p.tolist() for p in first] == [p.tolist() for p in second]


@settings(deadline=None, max_examples=30)
@given(seeds=st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)).filter(lambda s: s[0] != s[1]))
def test_stratified_gives_another_split_for_another_seed(seeds):
    labels = np.arange(200) % 2
    one, other = (data.stratified(labels, [100], seed)[0].tolist() for seed in seeds)
    assert one != other


def test_stratified_meets_sizes_exactly_where_they_divide_by_the_class_shares():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    first, second, rest = data.stratified(labels, [20, 50], 7)
    assert np.bincount(labels[first]).tolist() == [12, 6, 2]
    assert np.bincount(labels[second]).tolist() == [30, 15, 5]
    assert np.bincount(labels[rest]).tolist() == [18, 9, 3]


# -- data sets that are unknown or absent ----------------------------------------------------------


def test_an_unknown_data_set_is_refused_with_its_near_miss(tmp_path):
    with pytest.raises(ValueError, match=r"'fashion_mnits'.*did you mean 'fashion_mnist'\?"):
        data.prepare("fashion_mnits", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_an_unknown_data_set_is_refused_with_the_list_of_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="'zzz'") as caught:
        data.prepare("zzz", tmp_path)
    assert all(name in str(caught.value) for name in ("sample", *CLASS_OF))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error downloading train-images:\nTried https://example.org, got:\nnothing"),
        URLError("no route to host"),
        OSError(28, "No space left on device"),
        RuntimeError(""),
    ],
    ids=["runtime", "url", "disk", "silent"],
)
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn"])
def test_a_set_that_cannot_be_fetched_names_the_folder_and_the_option(
    monkeypatch, tmp_path, name, error
):
    break_torchvision(monkeypatch, name, error)
    with pytest.raises(ValueError, match="--data-root") as caught:
        data.prepare(name, tmp_path)
    message = str(caught.value)
    assert repr(name) in message
    assert str(tmp_path) in message
    assert CLASS_OF[name] in message
    assert "\n" not in message
    first_line = (str(error) or "RuntimeError").splitlines()[0]
    assert first_line in message


@pytest.mark.parametrize("name", CLASS_OF)
@pytest.mark.parametrize("read", [data.load, data.load_test])
def test_reading_an_absent_set_fetches_nothing_and_names_the_folder(tmp_path, name, read):
    with pytest.raises(ValueError, match="--data-root") as caught:
        read(name, tmp_path)
    assert repr(name) in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="cannot be written to") as caught:
        data.prepare("mnist", tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.default_root() == tmp_path / "tuner" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.default_root() == tmp_path / "home" / ".cache" / "tuner" / "data"


# -- Fashion-MNIST from packed files ---------------------------------------------------------------


def write_packed(folder, *, offset=0):
    """36 train and 9 test images of 5 x 4 pixels in three classes, packed as idx files."""
    parts = {}
    for part, size in (("train", 36), ("t10k", 9)):
        first = 0 if part == "train" else 100
        images = np.arange(first, first + size).repeat(20).reshape(size, 5, 4) + offset
        images[:, 0, 0] = 255  # so that a transposed or flipped image shows
        images = images.astype(np.uint8)
        labels = (np.arange(size) % 3).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        for kind, head, body in (
            ("images-idx3", struct.pack(">4I", 0x0803, size, 5, 4), images),
            ("labels-idx1", struct.pack(">2I", 0x0801, size), labels),
        ):
            packed = gzip.compress(head + body.tobytes())
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(packed)
        parts[part] = images, labels
    return parts


@pytest.mark.parametrize("place", ["root", "debian"])
def test_fashion_mnist_is_read_from_packed_files(monkeypatch, tmp_path, place):
    root, debian = tmp_path / "root", tmp_path / "debian"
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", debian)
    parts = write_packed(root if place == "root" else debian)
    data.prepare("fashion_mnist", root)

    loaded = data.load("fashion_mnist", root)
    assert loaded.classes == 3
    assert (len(loaded.train), len(loaded.validation)) == (30, 6)
    assert np.bincount(loaded.validation.labels).tolist() == [2, 2, 2]
    found = {}
    for split in (loaded.train, loaded.validation):
        for image, label in zip(split.images, split.labels, strict=True):
            assert image.shape == (1, 5, 4)
            found[image.tobytes()] = int(label)
    images, labels = parts["train"]
    assert found == {i.tobytes(): int(x) for i, x in zip(images, labels, strict=True)}

    test = data.load_test("fashion_mnist", root)
    assert (test.images[:, 0] == parts["t10k"][0]).all()
    assert (test.labels == parts["t10k"][1]).all()
    assert not list(root.rglob("*.tmp"))


def test_packed_files_in_the_data_root_come_before_debians(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_packed(tmp_path / "debian", offset=50)
    mine = write_packed(tmp_path / "root")
    data.prepare("fashion_mnist", tmp_path / "root")
    test = data.load_test("fashion_mnist", tmp_path / "root")
    assert (test.images[:, 0] == mine["t10k"][0]).all()


def test_unpacked_files_that_are_there_already_are_kept(monkeypatch, tmp_path):
    mine = write_packed(tmp_path / "root")
    data.prepare("fashion_mnist", tmp_path / "root")
    write_packed(tmp_path / "root", offset=50)
    data.prepare("fashion_mnist", tmp_path / "root")
    test = data.load_test("fashion_mnist", tmp_path / "root")
    assert (test.images[:, 0] == mine["t10k"][0]).all()


def test_packed_fashion_mnist_is_not_taken_for_another_set(monkeypatch, tmp_path):
    write_packed(tmp_path)
    break_torchvision(monkeypatch, "mnist", RuntimeError("not there"))
    with pytest.raises(ValueError, match="'mnist' was not found"):
        data.prepare("mnist", tmp_path)
    assert not list(tmp_path.rglob("*-ubyte"))


# -- layouts ---------------------------------------------------------------------------------------


def pixel(image, channel, row, column):
    """A different number for each pixel of a small image."""
    return (97 * image + 31 * channel + 7 * row + column) % 256


def drawn(shape, order):
    """An array of `pixel`s, its axes named by `order`, filled one by one."""
    array = np.zeros(shape, dtype=np.uint8)
    for index in np.ndindex(shape):
        at = dict(zip(order, index, strict=True))
        array[index] = pixel(at["n"], at.get("c", 0), at["h"], at["w"])
    return array


LAYOUTS = {
    # name: the shape and axes that torchvision gives, how it gives labels, the shape expected
    "mnist": ((12, 5, 4), "nhw", "targets", torch.from_numpy, (12, 1, 5, 4)),
    "kmnist": ((12, 5, 4), "nhw", "targets", torch.from_numpy, (12, 1, 5, 4)),
    "fashion_mnist": ((12, 5, 4), "nhw", "targets", torch.from_numpy, (12, 1, 5, 4)),
    "cifar10": ((12, 5, 4, 3), "nhwc", "targets", np.asarray, (12, 3, 5, 4)),
    "cifar100": ((12, 5, 4, 3), "nhwc", "targets", np.asarray, (12, 3, 5, 4)),
    "svhn": ((12, 3, 5, 4), "nchw", "labels", np.asarray, (12, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_images_by_channels_by_height_by_width(monkeypatch, tmp_path, name):
    shape, order, attribute, wrap, expected_shape = LAYOUTS[name]
    labels = [3, 1, 0, 2] * 3
    as_given = labels if name.startswith("cifar") else wrap(np.array(labels))
    images = wrap(drawn(shape, order))
    fake_torchvision(monkeypatch, name, images, attribute=attribute, labels=as_given)
    split = data.load_test(name, tmp_path)
    assert split.images.shape == expected_shape
    assert split.images.dtype == np.uint8
    assert split.images.flags.c_contiguous
    for n, c, h, w in np.ndindex(expected_shape):
        assert split.images[n, c, h, w] == pixel(n, c, h, w)
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == labels


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("fashion_mnist", True),
        ("mnist", False),
        ("kmnist", False),
        ("cifar10", True),
        ("cifar100", True),
        ("svhn", False),
    ],
)
def test_loading_asks_for_the_training_part_only_and_never_downloads(
    monkeypatch, tmp_path, name, flips
):
    shape, order, attribute, wrap, expected_shape = LAYOUTS[name]
    asked = fake_torchvision(
        monkeypatch,
        name,
        wrap(drawn(shape, order)),
        attribute=attribute,
        labels=wrap(np.array([0, 1] * 6)),
    )
    loaded = data.load(name, tmp_path)
    train, test = (
        ({"split": "train"}, {"split": "test"})
        if name == "svhn"
        else ({"train": True}, {"train": False})
    )
    assert asked == [{"root": str(tmp_path), "download": False, **train}]
    assert (loaded.name, loaded.classes, loaded.flips) == (name, 2, flips)
    assert loaded.train.images.shape == (10, *expected_shape[1:])
    assert loaded.validation.images.shape == (2, *expected_shape[1:])
    asked.clear()
    data.load_test(name, tmp_path)
    assert asked == [{"root": str(tmp_path), "download": False, **test}]


@pytest.mark.parametrize(("size", "held_out"), [(54_000, 9_000), (72_000, 10_000)])
def test_validation_is_a_sixth_of_the_training_set_but_at_most_10000(
    monkeypatch, tmp_path, size, held_out
):
    images = np.arange(2 * size, dtype=np.uint16).view(np.uint8).reshape(size, 2, 2)
    labels = np.arange(size) % 10
    fake_torchvision(monkeypatch, "mnist", images, labels=labels)
    one, other = (data.load("mnist", tmp_path) for _ in range(2))
    assert len(one.validation) == held_out
    assert len(one.train) == size - held_out
    assert np.bincount(one.validation.labels).tolist() == [held_out // 10] * 10
    assert (one.validation.images == other.validation.images).all()  # the same for every run


# -- preparing -------------------------------------------------------------------------------------


def test_preparing_fetches_both_parts_into_a_folder_that_it_makes(monkeypatch, tmp_path):
    root = tmp_path / "a" / "b"
    asked = fake_torchvision(
        monkeypatch, "mnist", np.zeros((2, 4, 4), dtype=np.uint8), labels=[0, 1]
    )
    data.prepare("mnist", root)
    assert root.is_dir()
    assert asked == [
        {"root": str(root), "download": True, "train": train} for train in (True, False)
    ]


def test_two_that_prepare_at_once_never_fetch_at_once(monkeypatch, tmp_path):
    # Whoever fetches waits a while for a second to come in; with the lock none ever does.
    meeting, fetches, met = threading.Barrier(2), [], []

    class Slow:
        def __init__(self, root, **options):
            fetches.append(options)
            try:
                meeting.wait(0.3)
                met.append(options)
            except threading.BrokenBarrierError:
                pass
            self.data, self.targets = np.zeros((2, 4, 4), dtype=np.uint8), [0, 1]

    monkeypatch.setattr(torchvision.datasets, "MNIST", Slow)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(data.prepare, "mnist", tmp_path) for _ in range(2)]:
            future.result()
    assert len(fetches) == 2  # the second found what the first had kept
    assert met == []


def test_what_was_prepared_is_read_as_it_was_without_torchvision(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    labels = [i % 4 for i in range(40)]
    fake_torchvision(monkeypatch, "cifar10", images, labels=labels)
    fetched = data.load("cifar10", tmp_path), data.load_test("cifar10", tmp_path)
    data.prepare("cifar10", tmp_path)
    break_torchvision(monkeypatch, "cifar10", RuntimeError("no network"))
    data.prepare("cifar10", tmp_path)
    kept = data.load("cifar10", tmp_path), data.load_test("cifar10", tmp_path)
    assert (kept[0].classes, kept[0].flips) == (4, True)
    for one, other in (
        (fetched[0].train, kept[0].train),
        (fetched[0].validation, kept[0].validation),
        (fetched[1], kept[1]),
    ):
        assert (one.images.dtype, one.labels.dtype) == (other.images.dtype, other.labels.dtype)
        assert (one.images == other.images).all()
        assert (one.labels == other.labels).all()


def test_a_small_class_has_an_image_in_each_part():
    labels = np.array([0] * 5 + [1] * 5)
    held_out, rest = data.stratified(labels, [1], 0)
    assert np.bincount(labels[held_out]).tolist() == [1, 1]
    assert np.bincount(labels[rest]).tolist() == [4, 4]
    labels = np.array([0] * 6 + [1] * 10_000)
    held_out, _ = data.stratified(labels, [1_000], 0)
    assert np.bincount(labels[held_out]).tolist() == [1, 999]
    alone, _ = data.stratified(np.array([0, 1, 1]), [1], 0)
    assert alone.tolist() in ([1], [2])  # of one image none is spared


def test_what_could_not_be_read_again_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "MOST_BYTES", kept._HEADERS + 100)
    with pytest.raises(ValueError, match="MiB as arrays"):
        kept.write(tmp_path / "x.npz", {"train_images": np.zeros((2, 1, 8, 8), dtype=np.uint8)})
    assert not list(tmp_path.iterdir())


def test_a_kept_set_that_is_damaged_is_named(monkeypatch, tmp_path):
    fake_torchvision(monkeypatch, "mnist", np.ones((9, 4, 4), dtype=np.uint8), labels=[0, 1, 2] * 3)
    data.prepare("mnist", tmp_path)
    path = tmp_path / "arrays" / "mnist.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"\x01" * 16)] ^= 1  # a pixel
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"mnist\.npz: it is no npz file of this kind.*; delete it"
    ):
        data.load("mnist", tmp_path)


def test_preparing_waits_for_whoever_holds_the_lock(monkeypatch, tmp_path):
    asked = fake_torchvision(
        monkeypatch, "mnist", np.zeros((2, 4, 4), dtype=np.uint8), labels=[0, 1]
    )
    with ThreadPoolExecutor(1) as pool:
        with open(tmp_path / ".lock", "a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            future = pool.submit(data.prepare, "mnist", tmp_path)
            _, waiting = wait([future], timeout=0.3)
            fetched_meanwhile = list(asked)
        future.result()
    assert waiting == {future}
    assert fetched_meanwhile == []
    assert len(asked) == 2


def test_the_lock_is_let_go_where_fetching_fails(monkeypatch, tmp_path):
    break_torchvision(monkeypatch, "mnist", RuntimeError("no network"))
    with pytest.raises(ValueError, match="no network"):
        data.prepare("mnist", tmp_path)
    with open(tmp_path / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where it is held
