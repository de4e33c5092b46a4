"""P11: the page cannot change, slow or leak a study, whoever asks and however."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from tests.torture.campaign import Campaign, Found
from tests.torture.hostile import hostile_names, outcome_of, report_of
from tests.torture.strangers import good_study
from tuner.history import History
from tuner.page.assets import STATIC
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

ROOT = Path(__file__).parents[2]
POLLERS = 50
_PAUSE_S = 0.02  # between commits, and so 30,000 of them take 10 minutes
_TELLING = 10_000  # commits, of which one in a hundred tells how long those take

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"),
    *("get", "PROPFIND", "GETX", "MOVE"),
)
HOSTS = (
    *("127.0.0.1:{port}", "localhost:{port}", "127.0.0.1", "localhost", "[::1]:{port}"),
    *("127.0.0.1:1", "0.0.0.0:{port}", "evil.example", "evil.example:{port}"),
    *("127.0.0.1:{port}.evil.example", "127.0.0.1:{port}@evil.example", "2130706433:{port}"),
    *("127.1:{port}", "localhost.:{port}", "", None, "127.0.0.1:{port}, evil.example"),
)
ORIGINS = (
    *(None, "http://127.0.0.1:{port}", "null", "http://evil.example", "https://127.0.0.1:{port}"),
    *("http://127.0.0.1:{port}.evil.example", "http://127.0.0.1", "file://", "*"),
)
SITES = (None, "none", "same-origin", "same-site", "cross-site", "odd", "same-origin, cross-site")
MODES = (None, "navigate", "cors", "no-cors", "websocket")
PATHS = (
    *("/", "/static/page.js", "/static/page.css", "/static/%70age.js", "/catalog", "/plotly.js"),
    *("/surface?x=x&y=x", "/belief?run=1&at=1&x=x&y=act", "/catalog?path=/etc/passwd"),
    *("/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py"),
    *("/static/%252e%252e/server.py", "/static/..%5cserver.py", "/static/..\\server.py"),
    *("/static/page.js%00", "/static/page.js;x", "/static/page.js/", "/static//page.js"),
    *("//etc/passwd", "/%2fetc/passwd", "/etc/passwd", "/study.sqlite", "/static/", "/static"),
    *("/../study.sqlite", "/%c0%ae%c0%ae/study.sqlite", "/CATALOG", "/catalog%20", "/catalog%0a"),
    *("/events/..", "/openapi.json", "/docs", "http://evil.example/catalog", "*", "/./catalog"),
)
_HEADERS = ("Host", "Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode")
_FILES = {f"/static/{p.name}" for p in STATIC.iterdir()} | {"/", "/plotly.js"}
_SECRETS = (b"root:x:", b"SQLite format", b"def make_app", b"import asyncio")


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of the page of a study, served by the script as users start it."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "page.py"), str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r":(\d+)/", line)
        if found is None:
            raise RuntimeError(f"the page did not start: {line!r}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(timeout=20)


def _draw(generator: np.random.Generator, options: tuple) -> object:
    """The first half of the time what a browser would send, or almost no request would pass."""
    at = 0 if generator.random() < 0.5 else int(generator.integers(len(options)))
    return options[at]


def _is_meant(
    method: str,
    host: str | None,
    origin: str | None,
    site: str | None,
    mode: str | None,
    target: str,
    port: int,
) -> bool:
    """Whether a request may be answered: by what the page's own documentation says."""
    path = unquote(target.partition("?")[0])
    is_own = host in (f"127.0.0.1:{port}", f"localhost:{port}")
    is_own &= origin in (None, f"http://127.0.0.1:{port}", f"http://localhost:{port}")
    is_link = path == "/" and mode == "navigate"
    is_own &= site in (None, "none", "same-origin") or is_link
    is_there = path in _FILES or path in ("/catalog", "/surface", "/belief")
    return method in ("GET", "HEAD") and is_own and is_there


def attacks(n: int, seed: int) -> Found:
    """Requests of every kind; none is answered that should not be, and the study stays as it is."""
    generator = np.random.default_rng([seed, 11])
    failures: list[str] = []
    counts: Counter[str] = Counter()
    pairs = list(itertools.product(METHODS, PATHS)) + list(itertools.product(HOSTS, ORIGINS))
    with tempfile.TemporaryDirectory() as text:
        path = Path(text, "run", "study.sqlite")
        good_study(path)
        before = hashlib.sha256(path.read_bytes()).digest()
        names = sorted(p.name for p in path.parent.iterdir())
        with serving(path.parent) as port:
            for i in range(max(n, len(pairs))):
                one = [_draw(generator, some) for some in (METHODS, HOSTS, ORIGINS, SITES, MODES)]
                target = str(_draw(generator, PATHS))
                if i < len(METHODS) * len(PATHS):  # every pair at least once
                    one[0], target = pairs[i]
                    one[1:4] = HOSTS[0], None, None
                elif i < len(pairs):
                    one[0] = "GET"
                    one[1:3] = pairs[i]
                method, host, origin, site, mode = (
                    s.format(port=port) if isinstance(s, str) else s for s in one
                )
                status, head, body = _ask(
                    port,
                    str(method),
                    target,
                    dict(zip(_HEADERS, (host, origin, site, mode), strict=True)),
                )
                meant = _is_meant(str(method), host, origin, site, mode, target, port)
                counts["answered" if status == 200 else "refused"] += 1
                what = f"{method} {target} {host} {origin} {site} {mode}: {status}"
                if status == 200 and not meant:
                    failures.append(f"answered {what}")
                if meant and status not in (200, 400, 404):  # 400 and 404: no such map, in words
                    failures.append(f"refused {what}")
                if not 200 <= status < 500:
                    failures.append(f"broke at {what}")
                if b"access-control-" in head or any(secret in body for secret in _SECRETS):
                    failures.append(f"told too much at {what}")
                if status == 200 and b"content-security-policy" not in head:
                    failures.append(f"no policy at {what}")
        if hashlib.sha256(path.read_bytes()).digest() != before:
            failures.append("the study was changed")
        if sorted(p.name for p in path.parent.iterdir()) != names:
            failures.append("files came or went beside the study")
    return Found(sum(counts.values()), tuple(failures), dict(counts))


def _ask(
    port: int, method: str, target: str, headers: dict[str, str | None]
) -> tuple[int, bytes, bytes]:
    """Status, head in small letters, body of a request as it is; 400 where the line is cut."""
    lines = [f"{method} {target} HTTP/1.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 16):
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 400
    return status, head.lower(), body


def polled_commits(n: int, seed: int) -> Found:
    """A driver commits while 50 pages poll, and by turns while none does.

    No commit fails, every poll is answered, the page shows the last commit, and where there are
    enough of them to tell, one in a hundred commits does not take a tenth longer.
    """
    failures: list[str] = []
    answers: Counter[str] = Counter()
    alone: list[float] = []
    polled: list[float] = []
    rounds = min(10, n // 20)
    with tempfile.TemporaryDirectory() as text:
        path = Path(text, "run", "study.sqlite")
        good_study(path)
        store = Store(path, create=False)
        (row,) = store.runs()
        history = store.history(row)
        with serving(path.parent) as port:
            for _ in range(rounds):
                alone += _commit(store, history, n // rounds // 2, failures)
                with _polling(port, answers):
                    polled += _commit(store, history, n // rounds, failures)
            store.close()
            failures += [
                f"{count} polls: {what}"
                for what, count in answers.items()
                if what not in ("200", "404")
            ]
            # Streams that nobody reads are noticed when written to, and a study that is written
            # is not read all the time.
            until = time.monotonic() + 30
            while (shown := _trials_shown(port)) != len(history) and time.monotonic() < until:
                time.sleep(0.2)
            if shown != len(history):  # not asked again: who asks holds a stream for a moment
                failures.append("the page does not show what was committed last")
    p50 = [1_000 * float(np.quantile(times, 0.5)) for times in (alone, polled)]
    p99 = [1_000 * float(np.quantile(times, 0.99)) for times in (alone, polled)]
    if n >= _TELLING and p99[1] > 1.1 * p99[0]:
        failures.append(f"one in a hundred commits took {p99[1] / p99[0] - 1:.0%} longer")
    notes = {
        "polls": sum(answers.values()),
        "median and p99 of a commit alone": f"{p50[0]:.2f} ms, {p99[0]:.2f} ms",
        "with pollers": f"{p50[1]:.2f} ms, {p99[1]:.2f} ms",
    }
    return Found(len(polled), tuple(failures), notes)


@contextmanager
def _polling(port: int, answers: Counter[str]) -> Iterator[None]:
    """Have a process of its own poll, and count what it was answered."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture.pollers", str(port), str(POLLERS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield
        out, _ = process.communicate("stop", timeout=60)
    finally:
        process.kill()
        process.wait()
    found = json.loads(out)
    if not found.get("200"):
        raise RuntimeError(f"no poll was answered: {out}")
    answers.update(found)


def _commit(store: Store, history: History, n: int, failures: list[str]) -> list[float]:
    """Commit `n` trials at a driver's pace; how long each commit took, in seconds."""
    times = []
    for _ in range(n):
        number = len(history)
        try:
            history.start(Trial(number, {"x": 0.5, "act": "relu"}, 0, 1))
            history.observe(number, Observation(1, 0.5, 10, 10 * (number + 1)))
            history.close(number, TrialState.COMPLETED)
            began = time.perf_counter()
            store.commit(force=True)
            times.append(time.perf_counter() - began)
        except Exception as error:  # any failure is what is looked for
            failures.append(f"commit {number}: {type(error).__name__}: {error}")
            return times or [0.0]
        time.sleep(_PAUSE_S)
    return times


def _trials_shown(port: int) -> int:
    """How many trials the first event of a stream has; -1 where no more streams are served."""
    is_film = False
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/events")
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: "):
                return len(json.loads(line[6:]).get("trials", [None])) if is_film else -1
            is_film = line.startswith(b"event: film")
    finally:
        connection.close()
    return -1


def names_in_a_browser(n: int, seed: int) -> Found:
    """Hostile names in a real browser: no script runs, and nothing is asked of anyone."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return Found(n, (), {"not run": "there is no chromium"})
    from playwright.sync_api import sync_playwright

    names, failures = hostile_names(n, seed), []
    with tempfile.TemporaryDirectory() as text, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for start in range(0, n, 50):
            some = list(dict.fromkeys(names[start : start + 50] + names[:6]))[:50]
            path = Path(text, f"{start}.html")
            path.write_text(report_of(outcome_of(some)[0], "".join(some[:9])))
            page, asked, note = browser.new_page(), [], failures.append
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, note=note: note(f"an error: {error}"[:300]))
            page.on("dialog", lambda dialog, note=note: note("a dialog"))
            page.goto(path.as_uri())
            for _ in range(200):
                if page.evaluate("!!(window.tunerPage && tunerPage.film)"):
                    break
                time.sleep(0.05)
            else:
                failures.append("the page never showed the race")
            page.evaluate(
                "(() => { const s = document.querySelector('#scrub'); s.value = s.max;"
                " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
            )
            time.sleep(0.2)
            if page.evaluate("window.hacked") is not None:
                failures.append("a script ran")
            made = page.evaluate("document.querySelectorAll('img, a[href], iframe, object').length")
            failures += [f"{made} elements were made"] * bool(made)
            strange = {url for url in asked if not url.startswith(("file:", "data:", "blob:"))}
            failures += [f"asked for {url}" for url in sorted(strange)]
            page.close()
        browser.close()
    return Found(n, tuple(failures))


CAMPAIGNS = (
    Campaign(
        "P11",
        "methods × Host × Origin × Sec-Fetch × paths: none is answered that should not be",
        attacks,
        nightly=20_000,
        short=2_000,
    ),
    Campaign(
        "P11",
        "commits while 50 pages poll: none fails, p99 + 10 % at most, the page shows the last",
        polled_commits,
        nightly=30_000,
        short=40,
    ),
    Campaign(
        "P11",
        "hostile names in a browser: no script runs, nothing is asked of another host",
        names_in_a_browser,
        nightly=1_000,
        short=49,
    ),
)
