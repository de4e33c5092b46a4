"""The training that a user would write without a tuner, and three ways of running many of it.

`plain_loops.py WHICH FOLDER DEVICE SECONDS OPTION TURN` prints a line of JSON. The option is how
many workers a DataLoader has; of the two ways that have none, whether to compute in bfloat16.
Written as PyTorch's, Optuna's and Ray's own tutorials do it; nothing is tuned for or against them.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from models.cnn import CNN
from models.knobs import Recipe
from scripts.training_benchmark import AGREEING, EPOCHS
from tuner.workers.devices import count_cores


def train(folder: str, device: str, workers: int, seed: int) -> Iterator[float]:
    """One training of the standard recipe: its validation accuracy after each epoch."""
    torch.manual_seed(seed)
    recipe = Recipe()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    training = datasets.FashionMNIST(folder, train=True, transform=transform)
    validation = datasets.FashionMNIST(folder, train=False, transform=transform)
    options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": device != "cpu",
        "persistent_workers": workers > 0,
    }
    batches = DataLoader(training, recipe.batch_size, shuffle=True, drop_last=True, **options)
    checks = DataLoader(validation, 500, **options)
    network = CNN((1, 28, 28), 10, width=recipe.width, layers=recipe.layers).to(device)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        recipe.learning_rate,
        total_steps=EPOCHS * len(batches),
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    for _ in range(EPOCHS):
        network.train()
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device)
            loss = F.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        network.eval()
        right = 0
        with torch.inference_mode():
            for images, labels in checks:
                right += (network(images.to(device)).argmax(1).cpu() == labels).sum().item()
        yield right / len(validation)


class Counter:
    """Epochs that were finished between a first one, which warms up, and the end of the time."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._times: list[float] = []
        self.scores: list[float] = []

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return bool(self._times) and time.monotonic() - self._times[0] > self._seconds

    def note(self, epoch: int, score: float) -> None:
        """An epoch, from 1 on, was finished."""
        with self._lock:
            self._times.append(time.monotonic())
            if epoch == EPOCHS:
                self.scores.append(score)

    @property
    def result(self) -> dict[str, Any]:
        """The pace between the first epoch and the last."""
        span = self._times[-1] - self._times[0]
        return {"epochs_per_s": (len(self._times) - 1) / span, "scores": self.scores}


def plain(folder: str, device: str, seconds: float, workers: int, turn: int) -> dict[str, Any]:
    """One trial after the other, with the whole device."""
    counter, seed = Counter(seconds), 1000 * turn
    while not counter.is_over:
        for epoch, score in enumerate(train(folder, device, workers, seed), 1):
            counter.note(epoch, score)
            if counter.is_over:
                break
        seed += 1
    return counter.result


def plain_1(folder: str, device: str, seconds: float, workers: int, turn: int) -> dict[str, Any]:
    """The same, with one thread."""
    torch.set_num_threads(1)
    return plain(folder, device, seconds, workers, turn)


def optuna(folder: str, device: str, seconds: float, workers: int, turn: int) -> dict[str, Any]:
    """Optuna with as many jobs as there are cores, at most eight."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    counter = Counter(seconds)

    def objective(trial: optuna.Trial) -> float:
        score = 0.0
        for epoch, score in enumerate(
            train(folder, device, workers, 1000 * turn + trial.number), 1
        ):
            counter.note(epoch, score)
            trial.report(score, epoch)
            if counter.is_over:
                trial.study.stop()
                raise optuna.TrialPruned
        return score

    jobs = min(8, count_cores())
    torch.set_num_threads(max(1, count_cores() // jobs))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(turn))
    study.optimize(objective, n_jobs=jobs)
    return counter.result


def ray(folder: str, device: str, seconds: float, workers: int, turn: int) -> dict[str, Any]:
    """Ray Tune: a core for each trial, and of a GPU as large a share as all of them leave it."""
    from ray import init, tune

    first, jobs = 1000 * turn, min(16, count_cores())
    init(log_to_driver=False, include_dashboard=False, configure_logging=False)

    def objective(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        for epoch, score in enumerate(train(folder, device, 0, config["seed"]), 1):
            tune.report({"score": score, "epoch": epoch, "at": time.monotonic()})

    share = {"cpu": 1} if device == "cpu" else {"cpu": 1, "gpu": 1 / jobs}
    tuner = tune.Tuner(
        tune.with_resources(objective, share),
        param_space={"seed": tune.randint(first, first + 1000)},
        tune_config=tune.TuneConfig(num_samples=-1, time_budget_s=seconds + 20),
        run_config=tune.RunConfig(verbose=0),
    )
    frames = [r.metrics_dataframe for r in tuner.fit() if r.metrics_dataframe is not None]
    rows = sorted((row.at, row.epoch, row.score) for f in frames for row in f.itertuples())
    # Processes take their time to start: what counts is from when all of them are training.
    starts = sorted(at for at, epoch, _ in rows if epoch == 1)[:jobs]
    counted = [at for at, _, _ in rows if at >= starts[-1]]
    scores = [score for _, epoch, score in rows if epoch == EPOCHS]
    return {
        "epochs_per_s": (len(counted) - 1) / (counted[-1] - counted[0]),
        "scores": scores,
        "trials_at_once": len(starts),
    }


def limit(folder: str, device: str, seconds: float, bf16: int, turn: int) -> dict[str, Any]:
    """What the device reaches on large matrix products, and what an epoch needs at least."""
    from torch.utils.flop_counter import FlopCounterMode

    recipe = Recipe()
    n = len(datasets.FashionMNIST(folder, train=True))
    network = CNN((1, 28, 28), 10, width=recipe.width, layers=recipe.layers)
    with FlopCounterMode(display=False) as step:
        network(torch.zeros(recipe.batch_size, 1, 28, 28)).sum().backward()
    side, dtype = 2048 if device == "cpu" else 8192, torch.bfloat16 if bf16 else torch.float32
    a = torch.rand(side, side, device=device).to(dtype)
    rate, ends = 0.0, time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        rate = max(rate, 2 * side**3 / (time.perf_counter() - began))
    flops = step.get_total_flops() * (n // recipe.batch_size)
    return {
        "flops_per_epoch": flops,
        "matrix_flops_per_s": rate,
        "dtype": str(dtype).removeprefix("torch."),
    }


def agreement(folder: str, device: str, seconds: float, bf16: int, turn: int) -> dict[str, Any]:
    """Final scores of the same trainings, each alone in float32 and all of them as one pack."""
    from models.data import load
    from models.packed import Pack, Shape
    from models.train import DeviceData, Halt, Precision, Trainer

    torch.set_num_threads(1)
    data = DeviceData(load("sample", Path(folder)), torch.device(device))
    recipe, seeds = Recipe(dropout=0.2), range(AGREEING)
    alone = []
    for seed in seeds:
        trainer = Trainer(data, recipe, seed=seed, epochs=EPOCHS)
        while trainer.epoch < EPOCHS:
            trainer.run_epoch(lambda: Halt.NO)
        alone.append(trainer.accuracy(data.validation))
    precision = Precision(bf16=bool(bf16))
    pack = Pack(data, Shape.of(recipe), len(seeds), epochs=EPOCHS, precision=precision)
    for seed in seeds:
        pack.enter(recipe, seed, None)
    while pack.progress(0)[0] < EPOCHS:
        pack.run(lambda: Halt.NO)
        pack.ended()
    packed = pack.accuracy(seeds, data.validation)
    return {"alone": alone, "packed": packed, "dtype": "bfloat16" if bf16 else "float32"}


if __name__ == "__main__":
    which, folder, device, seconds, option, turn = sys.argv[1:]
    ways = {
        "plain": plain,
        "plain-1": plain_1,
        "optuna": optuna,
        "ray": ray,
        "limit": limit,
        "agreement": agreement,
    }
    print(json.dumps(ways[which](folder, device, float(seconds), int(option), int(turn))))
