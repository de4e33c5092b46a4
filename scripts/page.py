"""Serve the page: races on landscapes for whoever presses Run, or one study of a tune.py run."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscapes.landscape import Landscape
from landscapes.registry import open_landscape, recorded_names
from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import FORMULAS
from scripts.errors import plain_errors
from tuner.escape import visible
from tuner.page.source import Source
from tuner.reader import Snapshot, study_file

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A run's folder, or an .sqlite file. Without it, races on landscapes."),
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8080,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", hidden=True, help="End when the parent process does.")
    ] = False,
) -> None:
    """Serve the page on 127.0.0.1 and print its address; Ctrl-C ends it."""
    with plain_errors("page"):
        if not 0 <= port < 1 << 16:
            raise ValueError(f"--port is 0 to 65535, got {port}")
        try:
            import plotly  # noqa: F401, its script is what is needed
            import starlette  # noqa: F401
            import uvicorn
        except ImportError as error:
            raise ValueError(
                f"the page needs {error.name}, which is not installed; pip install 'tuner[page]'"
            ) from error
        from tuner.page.server import make_app

        source = _demo() if folder is None else _study(folder)
        if folder is not None:
            os.nice(10)  # the study may be training
        listener = _listen(port)
    port = listener.getsockname()[1]
    if with_parent:
        _end_with_parent()
    config = uvicorn.Config(
        make_app(source, port),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        limit_concurrency=64,
    )
    print(f"The page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _demo() -> Source:
    from tuner.page.demo import Demo

    def load_model() -> None:
        import tuner.searchers.bayes  # noqa: F401, seconds that nobody should wait for

    threading.Thread(target=load_model, daemon=True).start()
    names = [*FORMULAS, *recorded_names()]
    return Demo({name: _opener(name) for name in names}, ReplayRunner)  # type: ignore[arg-type]


def _opener(name: str):  # type: ignore[no-untyped-def]
    return lambda: open_landscape(name)


def _study(folder: Path) -> Source:
    from tuner.page.follow import Follow

    snapshot = Snapshot(study_file(folder))  # ValueError where there is none
    request = snapshot.request()
    snapshot.close()
    return Follow(folder, _landscape_of(request.get("landscape")))


def _landscape_of(text: object) -> Landscape | None:
    try:
        return open_landscape(text) if isinstance(text, str) and text else None
    except ValueError as error:  # the race can be shown without it
        print(f"page: the landscape is not shown: {visible(str(error), None)}", file=sys.stderr)
        return None


def _listen(port: int) -> socket.socket:
    """A socket on this machine alone; ValueError where the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # from now on who comes waits, and is not turned away
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port {port} cannot be used ({error.strerror}); choose another --port, or 0 for a "
            "free one"
        ) from error
    return listener


def _end_with_parent() -> None:
    """End with the process that started this one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    app()
