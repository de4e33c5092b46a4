"""Pages that poll, in a process of their own, until they are told to stop.

As `python -m tests.torture.pollers PORT COUNT`; prints what was answered, and how often, as JSON
when its standard input ends.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections import Counter
from contextlib import suppress

_TARGETS = ("/catalog", "/static/page.js", "/surface?x=x&y=act", "/belief?run=1&at=1&x=x&y=act")
_PATIENCE_S = 20.0  # longer than a stream is silent
_PAUSE_S = 0.2


def main() -> None:
    """Poll from as many threads."""
    port, count = map(int, sys.argv[1:])
    stop, answers = threading.Event(), Counter[str]()
    threads = [
        threading.Thread(target=_poll, args=(port, i, stop, answers), daemon=True)
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join(timeout=_PATIENCE_S)
    print(json.dumps(answers), flush=True)


def _poll(port: int, place: int, stop: threading.Event, answers: Counter[str]) -> None:
    """Ask again and again, as a page does; every tenth holds a stream open instead."""
    target = "/events" if place % 10 == 0 else _TARGETS[place % len(_TARGETS)]
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            if target == "/events":
                while answer.readline():
                    if stop.is_set():
                        break  # news came for as long as it was wanted
            else:
                answer.read()
            status = str(answer.status)
            # A searcher without a model has no belief, and says so with 400.
            answers["200" if status == "400" and target.startswith("/belief") else status] += 1
        except (OSError, http.client.HTTPException) as error:
            answers[type(error).__name__] += 1
        finally:
            connection.close()
        stop.wait(_PAUSE_S)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
