"""A program that trains: `program.py MODE X FOLDER`, which tests have run as a command."""

import json
import os
import pathlib
import subprocess
import sys
import time

mode, x, folder = sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[3])


def train():
    """Four epochs, each saved before it is said."""
    state = folder / "state.json"
    epoch, total = json.loads(state.read_text()) if state.exists() else (0, 0.0)
    print(f"going on from epoch {epoch}", flush=True)
    while epoch < 4:
        time.sleep(0.03)
        epoch, total = epoch + 1, total + x * (epoch + 1)
        state.write_text(json.dumps((epoch, total)))
        print(f"epoch {epoch} val_acc={total:.6f} loss=0.1", flush=True)


if mode == "train":
    train()
elif mode == "arguments":
    print("val_acc=" + str(float(len(sys.argv))), sys.argv[4:])
elif mode == "fail":
    print("val_acc=0.5")
    print("no such layer", file=sys.stderr)
    sys.exit(3 if x > 0.5 else 0)
elif mode == "memory":
    print("RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB")
    sys.exit(1)
elif mode == "silent":
    print("nothing to see")
elif mode == "children":
    for _ in range(2):
        child = subprocess.Popen(["sleep", "600"])
        with open(os.environ["TRAINING_NOTES"], "a") as file:
            file.write(f"{child.pid}\n")
    print("val_acc=0.1", flush=True)
    time.sleep(600)
elif mode == "noisy":
    print(f"time {x + float(os.urandom(1)[0]) / 255:.6f} s")
