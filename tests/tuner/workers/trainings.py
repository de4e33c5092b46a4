"""Trainings that tests have worker processes run; each is found there by its name."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time

from tuner import Infeasible

EPOCHS = 4


def score_after(config, epoch):
    """What every well-behaved training here yields."""
    return round(1 - (config["x"] - 0.3) ** 2 + 0.01 * epoch, 6)


def steps(config):
    """No checkpoint: it begins anew whenever it is interrupted."""
    for epoch in range(1, EPOCHS + 1):
        time.sleep(0.002)
        yield
        yield score_after(config, epoch)


def saving(config, checkpoint):
    """Its score is what it has added up, so that it tells where it went on from."""
    total = 0.0
    if checkpoint.folder:
        total = json.loads((checkpoint.folder / "deep" / "total.json").read_text())
    for epoch in range(checkpoint.epoch + 1, EPOCHS + 1):
        for _ in range(3):
            time.sleep(0.002)
            yield
        total += config["x"] * epoch
        with checkpoint.save() as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "total.json").write_text(json.dumps(total))
        yield total


def saving_now_and_then(config, checkpoint):
    """Saves every other epoch: after an interruption one epoch is done again."""
    done = 0
    if checkpoint.folder:
        done = int((checkpoint.folder / "done").read_text())
    _note(config, f"from {done}")
    for epoch in range(done + 1, 8):
        time.sleep(0.002)
        if epoch % 2 == 0:
            with checkpoint.save() as folder:
                (folder / "done").write_text(str(epoch))
        if epoch == 5 and done == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield float(epoch)


def number(config):
    """No generator: one epoch."""
    return config["x"]


def seeded(config, checkpoint):
    """What it gives depends on the trial's seed."""
    yield checkpoint.seed % 1000 / 1000


def diverging(config):
    """Has no finite score."""
    yield float("nan") if config["x"] > 0.5 else 0.5


def infeasible(config):
    """Says that some configurations are none."""
    if config["x"] > 0.5:
        raise Infeasible("x is too large")
    yield config["x"]


def without_memory(config):
    """Takes half a GiB where x is large."""
    yield 0.1
    hoard = b"1" * (512 << 20 if config["x"] > 0.5 else 0)
    time.sleep(1.0 if hoard else 0.0)
    yield 0.2


def broken(config):
    """A bug."""
    yield 0.1
    raise KeyError("no such layer")


def killing(config):
    """Kills its worker where x is large, every time."""
    yield 0.1
    if config["x"] > 0.7:
        os.kill(os.getpid(), signal.SIGKILL)
    yield 0.2


def sleeping(config):
    """Hangs in a call that does not come back, after a sign of life."""
    yield 0.1
    if config["x"] > 0.5:
        time.sleep(3600)
    yield 0.2


def slow_to_score(config):
    """Signs of life at once, and then none for long."""
    yield None
    yield None
    time.sleep(1)
    yield 0.1
    time.sleep(0.2)
    yield 0.2


def ending_children(config):
    """Starts a process, and has it end."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(0.5)  # it has begun
    child.terminate()
    child.join(20)
    yield float(child.is_alive())
    child.kill()


def printing(config):
    """Says what it does."""
    print("hello from a training")
    yield config["x"]


def wandering(config, checkpoint):
    """Goes into another folder, and saves."""
    os.chdir(tempfile.mkdtemp())
    with checkpoint.save() as folder:
        (folder / "x").write_text(str(config["x"]))
    yield config["x"]


def leaving(config):
    """Ends the process, as a script would."""
    yield 0.1
    if config["x"] > 0.5:
        sys.exit("no such model")
    yield 0.2


def tidying(config):
    """Has a score in time, and is long about its end."""
    try:
        yield config["x"]
    finally:
        time.sleep(60)


def endless(config):
    """Yields nothing more, in Python."""
    _note(config, "begun")
    try:
        while True:
            sum(range(1000))
    finally:
        _note(config, "cleaned up")
    yield 0.0


def deaf(config):
    """Catches whatever is raised in it, and goes on."""
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:  # noqa: S110
            pass
    yield 0.0


def environment(config):
    """What a worker may see of the devices."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    yield float(os.environ["OMP_NUM_THREADS"])


def _note(config, text):
    """Tell a test what has happened, by a file that the environment names."""
    with open(os.environ["TRAINING_NOTES"], "a") as file:
        file.write(f"{text}\n")
