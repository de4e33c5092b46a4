"""JSON objects over a connection between a driver and a worker, from any thread."""

from __future__ import annotations

import json
import threading
from multiprocessing.connection import Connection
from typing import Any

from tuner.failpoints import Place, reach

MAX_MESSAGE = 1 << 20
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
