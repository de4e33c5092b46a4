"""The page's server: on this machine alone, read-only, and strict about who asks.

Any web page that a user has open can make the browser send requests to 127.0.0.1. So every request
must name this very host and port (a rebound name does not), only GET and HEAD are known, requests
that another site caused are refused, a path is one of a few exact words, and the work that a
request can cause is bounded.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.page.assets import STATIC, plotly_script
from tuner.page.source import NothingThereError, Query, Source

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_MOST_STREAMS = 4
_KEEP_ALIVE_S = 15.0
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets through what this host was asked for by its own page, and adds the headers."""

    def __init__(self, app: ASGIApp, port: int, paths: Collection[str]) -> None:
        self._app, self._paths = app, frozenset(paths)
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.getlist("host") == [] or set(headers.getlist("host")) - self._hosts:
            return _error(421, "This server answers to its own address only.")
        if scope["method"] not in ("GET", "HEAD"):
            return _error(405, "GET and HEAD only.")
        origins = set(headers.getlist("origin"))
        if origins - {f"http://{host}" for host in self._hosts}:
            return _error(403, "Another site asked for this.")
        is_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link:
            return _error(403, "Another site asked for this.")
        if scope["path"] not in self._paths:  # exactly: a router is more lenient
            return _error(404, "There is nothing here.")
        return None


def make_app(source: Source, port: int) -> ASGIApp:
    """The whole application, for the port that it will be reached at."""
    files = {
        f"/static/{path.name}": (path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(STATIC.iterdir())
        if path.suffix in _TYPES
    }
    files["/"] = (files["/static/index.html"][0], "text/html")
    files["/plotly.js"] = (plotly_script(), "text/javascript")
    # At most this many pages are served at once, and each costs a thread.
    streams = ThreadPoolExecutor(_MOST_STREAMS, thread_name_prefix="stream")
    places = threading.BoundedSemaphore(_MOST_STREAMS)
    maps = Maps()

    async def file(request: Request) -> Response:
        content, kind = files[request.url.path]
        return Response(content, media_type=kind)

    async def catalog(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(source.catalog))

    def map_of(make: Callable[[Query], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return JSONResponse(await maps.ask(make, dict(request.query_params)))
            except NothingThereError as error:
                return _error(404, str(error))
            except ValueError as error:
                return _error(400, str(error))

        return endpoint

    async def events(request: Request) -> Response:
        query = dict(request.query_params)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if not places.acquire(blocking=False):
            stream = _single("problem", {"text": "Too many pages are open; close one."})
        else:
            stream = _stream(source, query, streams, places)
        return StreamingResponse(stream, media_type="text/event-stream")

    routes = [Route(path, file, methods=["GET"]) for path in files]
    routes += [
        Route("/catalog", catalog, methods=["GET"]),
        Route("/surface", map_of(source.surface), methods=["GET"]),
        Route("/belief", map_of(source.belief), methods=["GET"]),
        Route("/events", events, methods=["GET"]),
    ]
    return Guard(Starlette(routes=routes), port, [route.path for route in routes])


class Maps:
    """Maps are work: they are made one after the other, and once for all who wait for the same."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="maps")
        self._asked: dict[object, asyncio.Future[dict[str, Any]]] = {}

    async def ask(self, make: Callable[[Query], dict[str, Any]], query: Query) -> dict[str, Any]:
        """What `make` makes of a query."""
        key = (make, frozenset(query.items()))
        if key not in self._asked:
            loop = asyncio.get_running_loop()
            self._asked[key] = asked = loop.run_in_executor(self._thread, make, query)
            asked.add_done_callback(lambda _: self._asked.pop(key))
        return await asyncio.shield(self._asked[key])  # who goes away does not take it from others


async def _stream(
    source: Source, query: Query, pool: ThreadPoolExecutor, places: threading.BoundedSemaphore
) -> AsyncIterator[str]:
    """What a source plays, as server-sent events, until it ends or the browser goes away."""
    loop, gone = asyncio.get_running_loop(), threading.Event()
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    def put(frame: str | None) -> None:
        if not gone.is_set():
            loop.call_soon_threadsafe(queue.put_nowait, frame)

    def work() -> None:
        try:
            source.play(query, lambda name, data: put(_frame(name, data)), gone.is_set)
        except (ValueError, LookupError) as error:
            put(_frame("problem", {"text": str(error)}))
        except Exception as error:  # nobody else would ever hear of it
            put(_frame("problem", {"text": f"This went wrong: {type(error).__name__}: {error}"}))
            raise
        finally:
            put(None)
            places.release()

    pool.submit(work)
    try:
        while True:
            try:
                frame = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
            except TimeoutError:
                frame = ": still here\n\n"  # a write is how one learns that nobody listens
            if frame is None:
                return
            yield frame
    finally:
        gone.set()


async def _single(name: str, data: dict[str, Any]) -> AsyncIterator[str]:
    yield _frame(name, data)


def _frame(name: str, data: Any) -> str:
    text = json.dumps(data, allow_nan=False)  # which has no line breaks of its own
    return f"event: {name}\ndata: {text}\n\n"


def _error(status: int, text: str) -> Response:
    return JSONResponse({"text": text}, status_code=status)
