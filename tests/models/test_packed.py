"""Packs: each lane trains as its trial would alone, whoever else is in the pack."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import ImageData, Split, load
from models.knobs import Recipe
from models.noise import keep_factors, random_bits
from models.packed import CHUNKS, Pack, Shape
from models.stacked import StackedCNN
from models.train import DeviceData, Halt, Precision, Trainer, make_network
from tuner.seeding import derive_seed

EPOCHS = 3
RECIPES = [
    Recipe(width=4, growth=1.5, batch_size=20, dropout=0.3, learning_rate=0.1),
    Recipe(width=4, growth=1.5, batch_size=20, dropout=0.1, learning_rate=0.03, momentum=0.0),
    Recipe(width=4, growth=1.5, batch_size=20, dropout=0.5, weight_decay=0.02, label_smoothing=0.0),
]
SHAPE = Shape.of(RECIPES[0])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    """400 real images to train on, 100 to validate with, in float64."""
    sample = load("sample", Path("/no/such/folder"))
    part = ImageData(
        "part",
        Split(sample.train.images[:400], sample.train.labels[:400]),
        Split(sample.validation.images[:100], sample.validation.labels[:100]),
        classes=10,
        flips=True,
    )
    return DeviceData(part, torch.device("cpu"), torch.float64)


def go_on():
    return Halt.NO


def halt_after(batches):
    asked = itertools.count()
    return lambda: Halt.INTERRUPT if next(asked) == batches else Halt.NO


def run_until_one_ends(pack):
    """Chunks up to the first in which an epoch ended; what `ended` says."""
    for _ in range(CHUNKS + 1):
        assert pack.run(go_on) is Halt.NO
        if found := pack.ended():
            return found
    pytest.fail("no epoch ended")


def alone(data, recipe, seed, epochs=EPOCHS, **more):
    """The curve of a trial that trains alone, and its trainer."""
    trainer = Trainer(data, recipe, seed=seed, epochs=EPOCHS, **more)
    return [(trainer.run_epoch(go_on), trainer.accuracy(data.validation)) for _ in range(epochs)]


def curves(pack, data, lanes, epochs):
    found = {lane: [] for lane in lanes}
    while any(len(curve) < epochs for curve in found.values()):
        losses = run_until_one_ends(pack)
        scores = pack.accuracy(list(losses), data.validation)
        for (lane, loss), score in zip(losses.items(), scores, strict=True):
            found[lane].append((loss, score))
    return found


def assert_same_curve(one, other):
    assert [score for _, score in one] == [score for _, score in other]
    assert [loss for loss, _ in one] == pytest.approx([loss for loss, _ in other], rel=1e-9)


def assert_same_state(one, other, rel=1e-7):
    for name, array in one.items():
        assert other[name].shape == array.shape, name
        assert other[name] == pytest.approx(array, rel=rel, abs=1e-9), name


@pytest.mark.parametrize("augment", [False, True])
def test_each_trial_of_a_pack_trains_as_it_would_alone(data, augment):
    pack = Pack(data, SHAPE, 4, epochs=EPOCHS, augment=augment)
    for seed, recipe in enumerate(RECIPES):
        assert pack.enter(recipe, seed, None) == seed
    found = curves(pack, data, range(3), EPOCHS)
    for seed, recipe in enumerate(RECIPES):
        assert_same_curve(found[seed], alone(data, recipe, seed, augment=augment))


@pytest.mark.parametrize("layers", [1, 3, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_depth_trains_the_same_without_dropout(data, layers, grouped):
    recipes = [replace(r, layers=layers, dropout=0.0) for r in RECIPES]
    precision = Precision(grouped=grouped)
    pack = Pack(data, Shape.of(recipes[0]), 3, epochs=EPOCHS, precision=precision)
    for seed, recipe in enumerate(recipes):
        pack.enter(recipe, seed, None)
    found = curves(pack, data, range(3), 1)
    for seed, recipe in enumerate(recipes):
        assert_same_curve(found[seed], alone(data, recipe, seed, epochs=1))


def test_images_of_several_channels_that_are_not_square_train_the_same():
    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (64, 3, 11, 8), dtype=np.uint8), np.arange(64) % 4)
    data = DeviceData(
        ImageData("x", split, split, 4, flips=True), torch.device("cpu"), torch.float64
    )
    pack = Pack(data, SHAPE, 2, epochs=EPOCHS, augment=True)
    pack.enter(RECIPES[0], 5, None)
    found = curves(pack, data, [0], EPOCHS)
    assert_same_curve(found[0], alone(data, RECIPES[0], 5, augment=True))


def test_neighbours_that_enter_leave_and_diverge_change_nothing(data):
    pack = Pack(data, SHAPE, 3, epochs=EPOCHS)
    pack.enter(RECIPES[0], 0, None)
    assert pack.run(go_on) is Halt.NO
    wild = pack.enter(replace(RECIPES[1], learning_rate=1e200), 1, None)
    late = pack.enter(RECIPES[2], 2, None)
    assert pack.free == []
    found = {0: [], late: []}
    diverged = False
    while len(found[late]) < EPOCHS:
        losses = run_until_one_ends(pack)
        if wild in losses:
            assert losses.pop(wild) is None
            pack.leave(wild)
            assert pack.free == [wild]
            diverged = True
        for lane, loss in losses.items():
            found[lane].append((loss, pack.accuracy([lane], data.validation)[0]))
            if lane == 0 and len(found[0]) == EPOCHS:
                pack.leave(0)
    assert diverged
    assert_same_curve(found[0], alone(data, RECIPES[0], 0))
    assert_same_curve(found[late], alone(data, RECIPES[2], 2))


@pytest.mark.parametrize("batches", [0, 7, 20, 27])
def test_a_trial_goes_on_alone_or_in_a_pack_of_another_width(data, batches):
    """20 batches are an epoch: broken off before, within, between and after."""
    pack = Pack(data, SHAPE, 2, epochs=EPOCHS)
    lane = pack.enter(RECIPES[0], 3, None)
    pack.enter(RECIPES[2], 4, None)
    halt, before = halt_after(batches), []
    while pack.run(halt) is Halt.NO:
        for loss in [v for i, v in pack.ended().items() if i == lane]:
            before.append((loss, pack.accuracy([lane], data.validation)[0]))
    assert pack.progress(lane) == divmod(batches, 20)
    (state,) = pack.states([lane])
    whole = alone(data, RECIPES[0], 3)

    trainer = Trainer(data, RECIPES[0], seed=3, epochs=EPOCHS)
    trainer.load_state(state)
    rest = []
    while trainer.epoch < EPOCHS:
        rest.append((trainer.run_epoch(go_on), trainer.accuracy(data.validation)))
    assert_same_curve([*before, *rest], whole)

    other = Pack(data, SHAPE, 5, epochs=EPOCHS)
    assert other.enter(RECIPES[0], 3, state) == 0
    assert_same_state(state, other.states([0])[0], rel=0)
    found = curves(other, data, [0], EPOCHS - len(before))
    assert_same_curve([*before, *found[0]], whole)


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=["momentum", "none"])
def test_a_trial_that_trained_alone_goes_on_in_a_pack(data, recipe):
    trainer = Trainer(data, recipe, seed=1, epochs=EPOCHS)
    first = [(trainer.run_epoch(go_on), trainer.accuracy(data.validation))]
    assert trainer.run_epoch(halt_after(5)) is Halt.INTERRUPT
    pack = Pack(data, SHAPE, 2, epochs=EPOCHS)
    pack.enter(recipe, 1, trainer.state())
    assert pack.progress(0) == (1, 5)
    found = curves(pack, data, [0], EPOCHS - 1)
    assert_same_curve([*first, *found[0]], alone(data, recipe, 1))


def test_a_lane_at_its_epochs_end_keeps_numbers_with_which_going_on_would_overflow(data):
    recipe = replace(RECIPES[0], learning_rate=1e160)
    trainer = Trainer(data, recipe, seed=0, epochs=EPOCHS)
    assert trainer.run_epoch(halt_after(19)) in (None, Halt.INTERRUPT)
    calm = Trainer(data, RECIPES[0], seed=0, epochs=EPOCHS)
    assert calm.run_epoch(halt_after(19)) is Halt.INTERRUPT  # one batch is left
    state = calm.state()
    trainer.load_state(state)
    assert math.isfinite(trainer.run_epoch(go_on))  # the loss before the step, which is huge
    pack = Pack(data, SHAPE, 2, epochs=EPOCHS)
    pack.enter(recipe, 0, state)
    pack.enter(RECIPES[1], 1, None)  # for which two more batches follow
    assert pack.run(go_on) is Halt.NO
    assert pack.progress(1) == (0, 3)
    assert list(pack.ended()) == [0]
    (mine,), theirs = pack.states([0]), trainer.state()
    for name in theirs.keys() - {"loss"}:
        assert np.isfinite(mine[name]).all(), name
        assert np.allclose(mine[name], theirs[name], rtol=1e-6), name


def test_a_trial_for_which_memory_ends_on_its_way_in_leaves_its_lane_free(data, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("no room")

    pack = Pack(data, SHAPE, 2, epochs=EPOCHS)
    with monkeypatch.context() as patch:
        patch.setattr("models.packed.plan_epoch", none)
        with pytest.raises(torch.OutOfMemoryError):
            pack.enter(RECIPES[0], 0, None)
    assert pack.free == [0, 1]
    assert pack.ended() == {}
    pack.enter(RECIPES[0], 0, None)
    assert_same_curve(curves(pack, data, [0], 1)[0], alone(data, RECIPES[0], 0, epochs=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_pack_starts_a_network_as_pytorch_does(layers, dtype):
    typed = DeviceData(load("sample", Path()), torch.device("cpu"), dtype)
    recipe = Recipe(layers=layers, width=5)
    net = StackedCNN(make_network(typed, recipe, 0))
    for seed in (0, 7):
        expected = net.read(make_network(typed, recipe, seed))
        for mine, theirs in zip(net.start(derive_seed(seed, "init")), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_a_pack_says_what_does_not_fit(data):
    pack = Pack(data, SHAPE, 1, epochs=EPOCHS)
    with pytest.raises(ValueError, match="width=5"):
        pack.enter(replace(RECIPES[0], width=5), 0, None)
    pack.enter(RECIPES[0], 0, None)
    with pytest.raises(ValueError, match="free lane"):
        pack.enter(RECIPES[0], 0, None)
    (state,) = pack.states([0])
    pack.leave(0)
    with pytest.raises(ValueError, match="empty"):
        pack.states([0])
    name = next(iter(state))
    with pytest.raises(RuntimeError, match=name):
        pack.enter(RECIPES[0], 0, {**state, name: np.zeros(3)})
    with pytest.raises(KeyError, match=name):
        pack.enter(RECIPES[0], 0, {n: a for n, a in state.items() if n != name})
    assert pack.free == [0]


def test_a_deadline_ends_scoring_and_an_interruption_does_not(data):
    pack = Pack(data, SHAPE, 1, epochs=EPOCHS)
    pack.enter(RECIPES[0], 0, None)
    assert pack.accuracy([0], data.validation, lambda: Halt.DEADLINE) is None
    assert pack.accuracy([0], data.validation, lambda: Halt.INTERRUPT) is not None


def test_bf16_packs_learn_too(data):
    """On a CPU this shows only that the types fit; how good it is is measured on a GPU."""
    single = DeviceData(load("sample", Path("/no/such/folder")), torch.device("cpu"), torch.float32)
    pack = Pack(single, Shape.of(Recipe(width=4)), 1, epochs=1, precision=Precision(bf16=True))
    pack.enter(Recipe(width=4), 0, None)
    ((loss, score),) = curves(pack, single, [0], 1)[0]
    assert math.isfinite(loss)
    assert score > 0.6


# -- the noise of dropout --------------------------------------------------------------------------


def mix(x):
    """Wellons' lowbias32 in whole numbers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % (1 << 32)
    x ^= x >> 15
    x = x * 0x846CA68B % (1 << 32)
    return x ^ x >> 16


def signed(x, bits):
    return x - (1 << bits) if x >> (bits - 1) else x


@settings(deadline=None)
@given(
    key=st.integers(-(1 << 31), (1 << 31) - 1),
    batch=st.integers(0, 1 << 40),
    count=st.integers(1, 9),
)
def test_the_bits_are_those_of_the_published_function(key, batch, count):
    found = random_bits(torch.tensor([key], dtype=torch.int32), torch.tensor([batch]), count)
    pairs = -(-count // 2)
    mixed = [mix((i + batch * pairs) % (1 << 32) ^ key % (1 << 32)) for i in range(pairs)]
    halves = [signed(half, 16) for x in mixed for half in (x % (1 << 16), x >> 16)]
    assert found.tolist() == [halves[:count]]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97])
def test_a_mask_drops_its_share_and_keeps_the_mean(p):
    keys = torch.tensor([1, 2], dtype=torch.int32)
    factors = keep_factors(keys, torch.tensor([0, 0]), torch.tensor([p, p]).double(), 300, 401)
    assert factors.shape == (2, 300, 401)
    kept = factors > 0
    share = kept.double().mean().item()
    assert share == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / kept.numel()) + 1e-5)
    assert factors[kept].unique().numel() == 1
    assert factors.mean().item() == pytest.approx(1, abs=0.05)
    if 0 < p < 1:
        # Independent of the neighbour below, beside, and of the other key's.
        for one, other in (
            (kept[0, 1:], kept[0, :-1]),
            (kept[0, :, 1:], kept[0, :, :-1]),
            (kept[0], kept[1]),
        ):
            both = (one & other).double().mean().item()
            assert both == pytest.approx(share**2, abs=5 / math.sqrt(one.numel()))


def test_a_row_depends_on_its_own_key_and_batch_alone():
    keys = torch.tensor([5, 6, 5], dtype=torch.int32)
    bits = random_bits(keys, torch.tensor([3, 3, 4]), 50)
    assert torch.equal(bits[:1], random_bits(keys[:1], torch.tensor([3]), 50))
    assert not torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


def test_dropout_next_to_1_stays_finite():
    keys = torch.tensor([1], dtype=torch.int32)
    p = torch.tensor([0.9999999])
    assert keep_factors(keys, torch.tensor([0]), p, 10, 10).isfinite().all()
