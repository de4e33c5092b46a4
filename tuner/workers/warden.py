"""The process that ends what workers leave behind, whoever dies, and however.

A worker dies with its driver, but processes that a training started would live on. The driver says
over a pipe which process groups there are; when the pipe ends, so does everything in them. Not even
kill -9 of the driver prevents that.

Run as a file, it loads nothing but the standard library's smallest modules.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Read `+GROUP` and `-GROUP`, a line each, to the end, and end the groups that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
