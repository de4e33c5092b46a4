"""JSON objects over a connection between a driver and a worker, from any thread."""

from __future__ import annotations

import json
import threading
from multiprocessing.connection import Connection
from typing import Any

from tuner.failpoints import Place, reach

MAX_MESSAGE = 1 << 20
_FIELDS = {
    "epoch": ("job", "spent", "score", "metrics", "ends", "checkpoint"),
    "paused": ("job", "spent", "checkpoint"),
    "cut": ("job", "spent"),
    "exhausted": ("job", "spent"),
    "failed": ("job", "spent", "reason"),
    "repeated": ("job", "spent"),
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
    kind = message.get("is")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(f"a worker says nothing such as {str(kind)[:40]!r}")
    missing = [name for name in ("at", *_FIELDS[kind]) if name not in message]
    if missing:
        raise ValueError(f"a message that says {kind!r} lacks {', '.join(missing)}")
    if not isinstance(message["at"], int):
        raise ValueError(f"a message comes at a reading of a clock, got {message['at']!r}")
