"""The same training on a GPU. These need one; without it they are skipped, and say so."""

from pathlib import Path

import pytest
import torch

from models.data import load
from models.knobs import Recipe
from models.layout import Layout
from models.packed import Pack, Shape
from models.pool import TrainingPool, TrainingSetup
from models.train import DeviceData, Halt, Precision, Trainer
from tuner.workers.devices import find_devices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


def go_on():
    return Halt.NO


@pytest.fixture(scope="module")
def data():
    return DeviceData(load("sample", Path()), torch.device("cuda:0"))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_reaches_what_a_cpu_reaches(data, bf16):
    trainer = Trainer(
        data, Recipe(learning_rate=0.06), seed=0, epochs=4, precision=Precision(bf16, True)
    )
    for _ in range(4):
        assert isinstance(trainer.run_epoch(go_on), float)
    assert trainer.accuracy(data.validation) > 0.86


def test_a_training_broken_off_and_gone_on_with_ends_nearly_the_same(data):
    def make():
        return Trainer(data, Recipe(learning_rate=0.06, dropout=0.2), seed=3, epochs=2)

    whole = make()
    losses = [whole.run_epoch(go_on) for _ in range(2)]
    first = make()
    left = iter([Halt.NO] * 40 + [Halt.INTERRUPT])
    assert first.run_epoch(lambda: next(left)) is Halt.INTERRUPT
    second = make()
    second.load_state(first.state())
    assert (second.epoch, second.batch) == (0, 40)
    assert [second.run_epoch(go_on) for _ in range(2)] == pytest.approx(losses, rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_epoch(data):
    trainer = Trainer(data, Recipe(learning_rate=1e30), seed=0, epochs=1)
    assert trainer.run_epoch(go_on) is None


@pytest.mark.parametrize("bf16", [False, True])
def test_a_pack_reaches_what_its_trials_reach_alone(data, bf16):
    recipe, seeds = Recipe(learning_rate=0.06, dropout=0.2), range(4)
    pack = Pack(data, Shape.of(recipe), 6, epochs=3, precision=Precision(bf16))
    for seed in seeds:
        pack.enter(recipe, seed, None)
    while pack.progress(0)[0] < 3:
        assert pack.run(go_on) is Halt.NO
        assert all(loss is not None for loss in pack.ended().values())
    packed = pack.accuracy(seeds, data.validation)
    alone = []
    for seed in seeds:
        trainer = Trainer(data, recipe, seed=seed, epochs=3)
        for _ in range(3):
            trainer.run_epoch(go_on)
        alone.append(trainer.accuracy(data.validation))
    assert packed == pytest.approx(alone, abs=0.03)
    assert sum(packed) / 4 == pytest.approx(sum(alone) / 4, abs=0.015)


def test_a_graph_serves_whoever_enters_and_leaves_no_trace_of_its_capture(data):
    recipe = Recipe(dropout=0.2)

    def first_loss(pack, lane):
        while lane not in (losses := pack.ended()):
            pack.run(go_on)
        return losses[lane]

    pack = Pack(data, Shape.of(recipe), 2, epochs=2)
    pack.enter(recipe, 0, None)
    before = first_loss(pack, 0)  # of the pack's first step, which was also captured
    pack.leave(0)
    pack.enter(recipe, 0, None)
    assert first_loss(pack, 0) == pytest.approx(before, rel=1e-3)
    state = pack.states([0])[0]
    other = Pack(data, Shape.of(recipe), 3, epochs=2)
    other.enter(recipe, 0, state)
    assert other.progress(0) == (1, 0)


def test_a_pool_finds_a_layout_and_remembers_it(tmp_path):
    (device,) = find_devices("cuda:0")
    cache = tmp_path / "layouts.json"
    setup = TrainingSetup(
        devices=(device,), slots=None, data="sample", root=Path(), epochs=2, directory=tmp_path
    )
    with TrainingPool(setup, cache=cache) as pool:
        pool.start()
        layout = pool.pace.layout
        assert layout.width > 1
        assert pool.pace.alone_epoch_ns > pool.epoch_ns
    assert cache.exists()
    with TrainingPool(setup, cache=cache) as pool:
        pool.start()
        assert pool.pace.layout == layout
    with TrainingPool(setup, Layout(1, width=4)) as pool:
        pool.start()
        assert pool.pace.layout == Layout(1, width=4)


def test_workers_serve_every_gpu(tmp_path):
    devices = tuple(find_devices("cuda"))
    setup = TrainingSetup(
        devices=devices, slots=1, data="sample", root=Path(), epochs=2, directory=tmp_path
    )
    with TrainingPool(setup) as pool:
        assert pool.start() > 0
        assert len(pool.workers) == torch.cuda.device_count()
        assert pool.epoch_ns > 0
        assert pool.setup.unit == "GPU minutes"
