"""The same training on a GPU. These need one; without it they are skipped, and say so."""

from pathlib import Path

import pytest
import torch

from models.data import load
from models.devices import find_devices
from models.knobs import Recipe
from models.pool import Setup, WorkerPool
from models.train import DeviceData, Halt, Precision, Trainer

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


def test_workers_serve_every_gpu(tmp_path):
    devices = tuple(find_devices("cuda"))
    with WorkerPool(Setup(devices, 1, "sample", Path(), 2, False, tmp_path)) as pool:
        assert pool.start() > 0
        assert len(pool.workers) == torch.cuda.device_count()
        assert pool.epoch_ns > 0
        assert pool.setup.unit == "GPU minutes"
