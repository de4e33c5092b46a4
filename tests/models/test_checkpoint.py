"""Checkpoints: what comes back is what was put in, or it is said that it is not."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from models import checkpoint
from models.checkpoint import DamagedCheckpointError

ARRAYS = {
    "network.head.weight": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6),
    "network.features.1.num_batches_tracked": np.array(7, dtype=np.int64),
    "random.cpu": np.arange(50, dtype=np.uint8),
    "progress": np.array([3, 11], dtype=np.int64),
    "odd": np.array([np.nan, -0.0, np.inf, 1e-310]),
    "empty": np.zeros((0, 3), dtype=np.float32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of this module's own, and the bytes and hash of a small checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    name, sha256 = checkpoint.save(folder, "whole", {"a": np.arange(6, dtype=np.float32)})
    return folder, (folder / name).read_bytes(), sha256


def assert_same(loaded, arrays):
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


# -- round trip ------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path):
    name, sha256 = checkpoint.save(tmp_path, "run-00001", ARRAYS)
    assert_same(checkpoint.load(tmp_path / name, sha256), ARRAYS)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abcxyz.0123456789_", min_size=1).filter(lambda name: name not in ("..", ".")),
        npst.arrays(
            st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
            npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_any_arrays_of_numbers_come_back(saved, arrays):
    name, sha256 = checkpoint.save(saved[0], "any", arrays)
    assert_same(checkpoint.load(saved[0] / name, sha256), arrays)


def test_the_file_is_named_by_its_sha256_and_nothing_is_left_beside_it(tmp_path):
    name, sha256 = checkpoint.save(tmp_path, "run-00001", ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert name == f"run-00001-{sha256[:12]}.safetensors"


def test_other_content_under_the_same_stem_overwrites_nothing(tmp_path):
    other = {**ARRAYS, "progress": np.array([3, 12])}
    saved = [checkpoint.save(tmp_path, "run-00001", arrays) for arrays in (ARRAYS, other)]
    assert len(list(tmp_path.iterdir())) == 2
    for (name, sha256), arrays in zip(saved, (ARRAYS, other), strict=True):
        assert_same(checkpoint.load(tmp_path / name, sha256), arrays)


def test_saving_the_same_again_gives_the_same_file(tmp_path):
    first, second = (checkpoint.save(tmp_path, "run-00001", ARRAYS) for _ in range(2))
    assert first == second
    assert_same(checkpoint.load(tmp_path / first[0], first[1]), ARRAYS)
    assert len(list(tmp_path.iterdir())) == 1


# -- damage ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_noticed(saved, share, flip):
    folder, whole, sha256 = saved
    damaged = bytearray(whole)
    damaged[int(share * len(whole))] ^= flip
    path = folder / "flipped.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(DamagedCheckpointError, match=r"flipped\.safetensors is damaged"):
        checkpoint.load(path, sha256)


@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_noticed(saved, share):
    folder, whole, sha256 = saved
    path = folder / "short.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DamagedCheckpointError, match=r"short\.safetensors is damaged"):
        checkpoint.load(path, sha256)


def test_a_file_with_more_at_its_end_is_noticed(tmp_path, saved):
    _, whole, sha256 = saved
    (tmp_path / "long.safetensors").write_bytes(whole + b"\0")
    with pytest.raises(DamagedCheckpointError, match=r"long\.safetensors is damaged"):
        checkpoint.load(tmp_path / "long.safetensors", sha256)


def test_a_whole_file_that_is_another_checkpoint_is_noticed(tmp_path, saved):
    name, _ = checkpoint.save(tmp_path, "other", ARRAYS)
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        checkpoint.load(tmp_path / name, saved[2])


def test_a_missing_file_is_said_to_be_unreadable(tmp_path, saved):
    with pytest.raises(DamagedCheckpointError, match=r"gone\.safetensors cannot be read"):
        checkpoint.load(tmp_path / "gone.safetensors", saved[2])


def test_a_folder_in_its_place_is_said_to_be_unreadable(tmp_path, saved):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(DamagedCheckpointError, match=r"folder\.safetensors cannot be read"):
        checkpoint.load(tmp_path / "folder.safetensors", saved[2])


# -- a disk that refuses ---------------------------------------------------------------------------


def refuse(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("again", [True, False], ids=["the same again", "something else"])
def test_a_failing_write_leaves_what_was_there_and_nothing_else(monkeypatch, tmp_path, call, again):
    name, sha256 = checkpoint.save(tmp_path, "run-00001", ARRAYS)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path, "run-00001", ARRAYS if again else {"a": np.arange(1000)})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert_same(checkpoint.load(tmp_path / name, sha256), ARRAYS)


def test_a_write_that_fails_half_way_leaves_what_was_there_and_nothing_else(tmp_path):
    name, sha256 = checkpoint.save(tmp_path, "run-00001", ARRAYS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # no file may grow over 64 KiB
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path, "run-00001", {"a": np.zeros(1 << 20, dtype=np.uint8)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert_same(checkpoint.load(tmp_path / name, sha256), ARRAYS)


# -- no pickles ------------------------------------------------------------------------------------


class TouchesAFile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_array_of_objects_is_not_saved(tmp_path):
    objects = np.array([TouchesAFile(tmp_path / "touched"), None])
    with pytest.raises(ValueError, match="objects holds objects"):
        checkpoint.save(tmp_path, "run", {"fine": np.arange(3), "objects": objects})
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_a_file_whose_hash_fits_is_refused_and_not_run(tmp_path):
    path, touched = tmp_path / "trap.safetensors", tmp_path / "touched"
    with open(path, "wb") as file:
        np.savez(file, objects=np.array([TouchesAFile(touched), None]))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DamagedCheckpointError, match=r"trap\.safetensors is no such file"):
        checkpoint.load(path, sha256)
    assert not touched.exists()
    with np.load(path, allow_pickle=True) as file:
        _ = file["objects"]
    assert touched.exists()  # so the trap was a live one
