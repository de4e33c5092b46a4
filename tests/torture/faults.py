"""One bad trial cannot spoil the next (P7), and nothing hangs or is left behind (P8)."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np

from models.data import prepare
from models.knobs import make_space
from models.layout import Layout
from models.pool import TrainingPool, TrainingSetup
from tests.small_data import write_small_data
from tests.torture.campaign import Campaign, Found
from tests.torture.saboteur import Kind, weight_decay
from tuner.budget import Budget, to_ns
from tuner.fidelity import Done, Sample
from tuner.history import History
from tuner.scheduler import MAX_FAULTS, Recorder, Scheduler
from tuner.trial import TrialState
from tuner.workers.runner import WorkerRunner

EPOCHS = 3
SPACE = make_space(["learning_rate", "weight_decay"])
_DEADLY = (
    *(Kind.SEGFAULT, Kind.FORK, Kind.POISON, Kind.GARBAGE),
    *(Kind.ABORT, Kind.EXIT, Kind.FLOOD),
)
_HARMLESS = (Kind.OOM, Kind.NAN)
_HANGING = (Kind.SLEEP, Kind.SPIN, Kind.STOP)
_HUNG_AFTER_S = 1.0
_SINGLY, _PACK = Layout(2), Layout(1, width=3, grouped=True)
_GRACE_S = 10.0


class Listed:
    """A searcher and a policy in one: each configuration of a list, trained to the end."""

    fallback = ""

    def __init__(self, configs):
        self._configs = configs

    def next_action(self, history):
        return Sample(EPOCHS) if len(history) < len(self._configs) else Done()

    def propose(self, history):
        return self._configs[len(history)]


@contextmanager
def small_pool(layout: Layout, hung_after_s: float = 60.0) -> Iterator[TrainingPool]:
    """Workers of saboteurs on a few images."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        write_small_data(data)
        prepare("fashion_mnist", data)
        setup = TrainingSetup(
            devices=("cpu",),
            slots=2,
            data="fashion_mnist",
            root=data,
            epochs=EPOCHS,
            directory=Path(folder, "run"),
            program="tests.torture.saboteur",
            hung_after_s=hung_after_s,
        )
        with TrainingPool(setup, layout) as pool:
            pool.start()
            yield pool


_KEYS = itertools.count()


def study(pool: TrainingPool, configs: Sequence[dict], on_change=lambda _: None) -> Scheduler:
    """Train a list of configurations to their ends."""
    budget = to_ns(60)
    searcher = Listed(configs)
    scheduler = Scheduler(
        searcher,
        searcher,
        WorkerRunner(pool, f"s{next(_KEYS)}"),
        History(EPOCHS, budget),
        Recorder(Budget(budget)),
        seed=1,
        on_change=lambda: on_change(scheduler),
    )
    scheduler.run()
    return scheduler


def innocents(count: int, generator: np.random.Generator) -> list[dict]:
    """So many different configurations that do no harm."""
    rates = 10 ** generator.uniform(-2.5, -1, count)
    return [{"learning_rate": float(r), "weight_decay": 5e-4} for r in rates]


def curves(scheduler: Scheduler) -> dict[float, list[tuple]]:
    """What was scored, by learning rate."""
    return {
        t.config["learning_rate"]: [(o.epoch, o.score, o.metrics) for o in t.curve]
        for t in scheduler.history
    }


def spoilers(n: int, seed: int) -> Found:
    """Studies in which some trials bring their workers down, beside the same without those."""
    generator, failures, restarts = np.random.default_rng(seed), [], 0
    kinds = itertools.cycle(_DEADLY + _HARMLESS)
    for layout in (_SINGLY, _PACK):
        share = n - n // 5 if layout is _SINGLY else n // 5
        with small_pool(layout) as pool:
            while share > 0:
                bad = [next(kinds) for _ in range(min(4, share))]
                share -= len(bad)
                good = innocents(4, generator)
                clean = curves(study(pool, good))
                mixed = list(good)
                for kind, rate in zip(bad, 10 ** generator.uniform(-2.5, -1, 4), strict=False):
                    config = {"learning_rate": float(rate), "weight_decay": weight_decay(kind)}
                    mixed.insert(int(generator.integers(len(mixed) + 1)), config)
                before = {w.process.pid for w in pool.workers}
                found = study(pool, mixed)
                restarts += len({w.process.pid for w in pool.workers} - before)
                failures += _spoiled(found, clean, singly=layout is _SINGLY, kinds=bad)
    return Found(n, tuple(failures), {"workers that were replaced at the ends": restarts})


def _spoiled(
    found: Scheduler, clean: dict[float, list[tuple]], *, singly: bool, kinds: Sequence[Kind]
) -> list[str]:
    """What is not as it should be, in words."""
    wrong = []
    for trial in found.history:
        rate = trial.config["learning_rate"]
        is_bad = rate not in clean
        expected = {TrialState.COMPLETED}
        if trial.config["weight_decay"] == weight_decay(Kind.NAN):
            expected = {TrialState.INFEASIBLE}
        elif trial.config["weight_decay"] == weight_decay(Kind.OOM):
            # A pack for which there is no memory is halved. But a suspect trains alone.
            expected = {TrialState.INFEASIBLE, *([] if singly else expected)}
        if trial.state not in expected:
            wrong.append(f"{kinds}: trial {trial.number} is {trial.state.name}: {trial.reason}")
        if not is_bad and trial.faults:
            wrong.append(f"{kinds}: innocent trial {trial.number} is blamed: {trial.reason}")
        if not is_bad and singly and curves(found)[rate] != clean[rate]:
            wrong.append(f"{kinds}: the curve of trial {trial.number} is another")
    if sum(found.budget.ledger.values()) != found.budget.spent_ns:
        wrong.append(f"{kinds}: the ledger does not add up")
    return wrong


def incorrigible(n: int, seed: int) -> Found:
    """A trial that brings its worker down every time fails in the end; its company does not."""
    generator, failures = np.random.default_rng(seed), []
    with small_pool(_PACK) as pool:
        for i in range(n):
            kind = _DEADLY[i % len(_DEADLY)]
            decay = weight_decay(kind, every_time=True)
            bad = {"learning_rate": 0.0123, "weight_decay": decay}
            configs = innocents(3, generator)
            configs.insert(int(generator.integers(4)), bad)
            for trial in study(pool, configs).history:
                state = TrialState.FAILED if trial.config == bad else TrialState.COMPLETED
                faults = MAX_FAULTS + 1 if trial.config == bad else 0
                if (trial.state, trial.faults) != (state, faults):
                    failures.append(
                        f"{kind}: trial {trial.number} is {trial.state.name} after {trial.faults} "
                        f"faults: {trial.reason}"
                    )
    return Found(n, tuple(failures))


def hanging(n: int, seed: int) -> Found:
    """A worker that finishes nothing is ended within its limit and ten seconds; all goes on."""
    generator, failures, longest = np.random.default_rng(seed), [], 0.0
    with small_pool(_SINGLY, _HUNG_AFTER_S) as pool:
        for i in range(n):
            kind = _HANGING[i % len(_HANGING)]
            every_time = i % 6 == 5
            bad = {
                "learning_rate": float(10 ** generator.uniform(-2.5, -1)),
                "weight_decay": weight_decay(kind, every_time=every_time),
            }
            configs = innocents(2, generator)
            configs.insert(int(generator.integers(3)), bad)
            ended: list[float] = []

            def note(scheduler, bad=bad, ended=ended):
                if any(
                    t.config == bad and "no sign of life" in t.reason for t in scheduler.history
                ):
                    ended.append(time.time())

            found = study(pool, configs, note)
            began = min(p.stat().st_mtime for p in pool.setup.directory.glob("sabotaged-*"))
            for mark in pool.setup.directory.glob("sabotaged-*"):
                mark.unlink()
            took = ended[0] - began if ended else float("inf")
            longest = max(longest, took)
            if took > _HUNG_AFTER_S + _GRACE_S:
                failures.append(f"{kind}: it was ended after {took:.1f} s")
            for trial in found.history:
                hopeless = every_time and trial.config == bad
                state = TrialState.INFEASIBLE if hopeless else TrialState.COMPLETED
                if trial.state is not state:
                    failures.append(f"{kind}: trial {trial.number} is {trial.state.name}")
    return Found(n, tuple(failures), {"longest, s": round(longest, 1)})


def endings(n: int, seed: int) -> Found:
    """However a driver ends, within ten seconds nothing that it or its trials started is alive."""
    draw, failures = random.Random(seed), []
    numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None]
    for i in range(n):
        number, token = numbers[i % len(numbers)], uuid4().hex
        environment = {**os.environ, "TUNER_TORTURE": token}
        command = [sys.executable, "-m", "tests.torture.faults"]
        with tempfile.TemporaryFile() as log:
            driver = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.PIPE
            )
            _wait_for(lambda token=token: "sleep" in _alive(token).values(), 60)
            time.sleep(draw.random())
            if number is None:
                driver.communicate()  # its own end, at the end of its input
            else:
                driver.send_signal(number)
                _wait_for(lambda driver=driver: driver.poll() is not None, _GRACE_S)
            if not _wait_for(lambda token=token: not _alive(token), _GRACE_S):
                failures.append(f"after {number!r} there are still {_alive(token)}")
                for pid in _alive(token):
                    os.kill(pid, signal.SIGKILL)
            driver.wait()
    return Found(n, tuple(failures))


def _wait_for(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (is_so := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return is_so


def _alive(token: str) -> dict[int, str]:
    """The living processes with this token in their environment, and their names."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and token.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue
    return found


def main() -> None:
    """A driver that trains what leaves processes behind, until its input ends."""
    import threading

    def end() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    decay = weight_decay(Kind.CHILD)
    rates = np.linspace(0.01, 0.1, 1000)
    with small_pool(_SINGLY) as pool:
        study(pool, [{"learning_rate": float(r), "weight_decay": decay} for r in rates])


CAMPAIGNS = (
    Campaign(
        *("P7", "trials that bring their worker down, beside a study without them"),
        *(spoilers, 400, 2),
    ),
    Campaign("P7", "trials that do so every time, in packs of three", incorrigible, 60, 0),
    Campaign("P8", "trials that sleep, spin or stop", hanging, 100, 1),
    Campaign("P8", "drivers that end, with trials that start processes", endings, 300, 1),
)

if __name__ == "__main__":
    main()
