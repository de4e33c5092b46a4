"""JSON objects over a connection between a driver and a worker, from any thread."""

from __future__ import annotations

import json
import threading
from multiprocessing.connection import Connection
from typing import Any

from tuner.failpoints import Place, reach

MAX_MESSAGE = 1 << 20
_ALWAYS = ("is", "at")
_OF_A_JOB = {
    "epoch": ("job", "spent", "score", "loss", "ends", "checkpoint"),
    "paused": ("job", "spent", "checkpoint"),
    "cut": ("job", "spent"),
    "infeasible": ("job", "spent", "reason"),
    "unusable": ("job", "spent", "reason"),
    "unwritable": ("path", "number", "reason"),
    "ready": ("device", "image"),
    "measured": ("step_ns", "batches"),
    "tested": ("score",),
    "untestable": ("reason",),
    "crash": ("reason",),
}
_sending = threading.Lock()


def send(connection: Connection, message: dict[str, Any]) -> None:
    """Send one JSON object."""
    with _sending:
        reach(Place.SEND_BEFORE)
        connection.send_bytes(json.dumps(message).encode())
        reach(Place.SEND_AFTER)


def receive(connection: Connection) -> dict[str, Any]:
    """Receive one JSON object; raises EOFError or OSError where the other side is gone."""
    reach(Place.RECEIVE_BEFORE)
    message: dict[str, Any] = json.loads(connection.recv_bytes(MAX_MESSAGE))
    reach(Place.RECEIVE_AFTER)
    return message


def check(message: object) -> None:
    """Raise ValueError where a message is none that a worker sends."""
    if not isinstance(message, dict):
        raise ValueError(f"expected a JSON object, got {type(message).__name__}")
    missing = [name for name in _ALWAYS if name not in message]
    missing += [name for name in _OF_A_JOB.get(message.get("is"), ()) if name not in message]
    if message.get("is") not in _OF_A_JOB:
        raise ValueError(f"nothing is said by a message that says {message.get('is')!r}")
    if missing or not isinstance(message["at"], int):
        raise ValueError(f"a message that says {message.get('is')!r} lacks {', '.join(missing)}")
