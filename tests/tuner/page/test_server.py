"""The page's server: who it answers, what it refuses, what it sends."""

import asyncio
import json
import threading

import pytest
from starlette.testclient import TestClient

from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from tuner.page.demo import Demo
from tuner.page.server import Maps, make_app
from tuner.page.source import NothingThereError

PORT = 8123
HOME = f"http://127.0.0.1:{PORT}"


def demo():
    names = ("bumpy", "ridge")
    return Demo({n: lambda n=n: make_landscape(n) for n in names}, ReplayRunner)


@pytest.fixture(scope="module")
def client():
    with TestClient(make_app(demo(), PORT), base_url=HOME) as client:
        yield client


def events_of(response):
    """The (name, data) pairs of a stream of server-sent events."""
    blocks = [b.splitlines() for b in response.text.split("\n\n") if b.startswith("event:")]
    return [
        (first.removeprefix("event: "), json.loads(second.removeprefix("data: ")))
        for first, second in blocks
    ]


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/plotly.js"])
def test_every_file_of_the_page_is_served_under_a_strict_policy(client, path):
    response = client.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    script = next(part for part in policy.split(";") if "script-src" in part)
    assert script.split() == ["script-src", "'self'"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host(client):
    page = client.get("/").text
    assert "//" not in page.replace("http://www.w3.org/", "")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", f"127.0.0.1:{PORT}.evil.example", f"127.0.0.1:{PORT + 1}"]
)
def test_a_request_to_another_host_is_refused_on_every_path(client, host):
    for path in ("/", "/catalog", "/plotly.js", "/events?landscape=bumpy", "/nothing"):
        assert client.get(path, headers={"host": host}).status_code == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(client, method):
    for path in ("/", "/catalog", "/events"):
        assert client.request(method, path).status_code == 405


def test_head_is_answered_without_a_body_and_without_starting_a_race(client):
    for path in ("/", "/catalog", "/events?landscape=bumpy"):
        response = client.head(path)
        assert response.status_code == 200
        assert response.content == b""


def test_what_another_site_caused_is_refused(client):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        assert client.get("/catalog", headers={"sec-fetch-site": site}).status_code == status


def test_a_link_from_another_site_opens_the_page_and_nothing_else(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    for path in ("/catalog", "/events?landscape=bumpy", "/plotly.js"):
        assert client.get(path, headers=link).status_code == 403
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/", headers=embedded).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "//etc/passwd",
        "/surface.py",
    ],
)
def test_no_other_file_can_be_reached(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert response.json() == {"text": "There is nothing here."}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("landscape=/etc/passwd&x=learning_rate&y=weight_decay", "there is no landscape"),
        ("landscape=../x.npz&x=learning_rate&y=weight_decay", "there is no landscape"),
        ("x=learning_rate&y=weight_decay", "landscape is missing"),
        ("landscape=bumpy&x=learning_rate&y=nothing", "there is no knob 'nothing'"),
    ],
)
def test_a_map_of_nothing_is_refused_in_words(client, query, words):
    response = client.get(f"/surface?{query}")
    assert response.status_code == 400
    assert words in response.json()["text"]


def test_a_map_is_the_landscape_itself(client):
    found = client.get("/surface?landscape=bumpy&x=learning_rate&y=weight_decay").json()
    landscape = make_landscape("bumpy")
    for i, j in ((0, 0), (3, 40), (47, 47)):
        config = {"learning_rate": found["xs"][i], "weight_decay": found["ys"][j]}
        assert found["z"][j][i] == pytest.approx(landscape.value(config), abs=1e-4)


def test_a_race_is_streamed_from_its_first_frame_to_its_verdict(client):
    response = client.get("/events?landscape=bumpy&searchers=grid,random&seed=3&budget=12")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    names = [name for name, _ in events]
    assert names[0] == "film"
    assert names[-2:] == ["verdict", "end"]
    film = events[0][1]
    trials = {}
    for name, data in events:
        if name in ("film", "more"):
            trials |= {(run, t["number"]): t for run, t in data["trials"]}
    # Compared with the same search without a page.
    from tests.helpers import search
    from tuner.budget import to_ns

    scheduler = search(make_landscape("bumpy"), budget_ns=to_ns(12), seed=3, name="random")
    scheduler.run()
    run = next(r["id"] for r in film["runs"] if r["searcher"] == "random")
    shown = [trials[key] for key in sorted(trials) if key[0] == run]
    assert [t["config"] for t in shown] == [list(t.config.values()) for t in scheduler.history]
    assert [[o[1] for o in t["curve"]] for t in shown] == [
        [o.score for o in t.curve] for t in scheduler.history
    ]
    assert "from one seed" in dict(events)["verdict"]["text"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("landscape=nowhere", "there is no landscape"),
        ("landscape=bumpy&searchers=magic", "there is no searcher"),
        ("landscape=bumpy&searchers=grid,grid", "none twice"),
        ("landscape=bumpy&seed=-1", "whole number"),
        ("landscape=bumpy&seed=nan", "finite"),
        ("landscape=bumpy&budget=1e9", "at most"),
        ("landscape=bumpy&budget=0", "more than 0"),
        ("landscape=bumpy&budget=lots", "is a number"),
    ],
)
def test_a_race_that_makes_no_sense_is_a_problem_in_words(client, query, words):
    ((name, data),) = events_of(client.get(f"/events?{query}"))
    assert name == "problem"
    assert words in data["text"]


class Endless:
    """A source whose play ends when its browser is gone."""

    def __init__(self):
        self.playing, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def catalog(self):
        return {}

    def play(self, query, send, is_gone):
        self.playing.release()
        send("film", {})
        raise NothingThereError("it went away")

    def surface(self, query):
        raise NothingThereError("no landscape here")

    def belief(self, query):
        raise ValueError("no model here")


def test_errors_of_a_source_are_words_with_a_status():
    with TestClient(make_app(Endless(), PORT), base_url=HOME) as client:
        assert client.get("/surface").status_code == 404
        assert client.get("/belief").json() == {"text": "no model here"}
        assert [name for name, _ in events_of(client.get("/events"))] == ["film", "problem"]
        # Each stream gives its place back: more of them than there are places.
        for _ in range(12):
            assert events_of(client.get("/events"))[-1][1] == {"text": "it went away"}


def test_a_belief_is_of_what_had_been_seen_by_then(client):
    events = events_of(client.get("/events?landscape=bumpy&searchers=bayes&seed=0&budget=24"))
    film = events[0][1]
    ask = f"/belief?race={film['race']}&run=0&x=learning_rate&y=weight_decay"
    early = client.get(f"{ask}&at=3").json()
    assert "No model yet" in early["text"]
    late = client.get(f"{ask}&at=22").json()
    assert late["text"] == ""
    assert 10 < late["trials"] < 18
    assert len(late["mean"]) == len(late["ys"])
    assert all(sd >= 0 for row in late["sd"] for sd in row)
    assert set(late["next"]) == {"learning_rate", "weight_decay"}


def test_a_belief_of_a_race_that_is_not_kept_is_not_there(client):
    response = client.get("/belief?race=00&run=0&at=1&x=learning_rate&y=weight_decay")
    assert response.status_code == 404


# -- many who ask at once ------------------------------------------------------------------------


def test_a_map_is_made_once_for_all_who_wait_for_it():
    made = []

    def make(query):
        made.append(dict(query))
        return {"made": len(made)}

    async def ask():
        maps = Maps()
        asked = [asyncio.ensure_future(maps.ask(make, {"x": x})) for x in "aaab"]
        await asyncio.sleep(0)
        asked[0].cancel()  # who goes away does not take it from others
        found = await asyncio.gather(*asked, return_exceptions=True)
        return found, await maps.ask(make, {"x": "a"})

    found, later = asyncio.run(ask())
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [{"made": 1}, {"made": 1}, {"made": 2}]
    assert made == [{"x": "a"}, {"x": "b"}, {"x": "a"}]  # one after the other; none is kept
    assert later == {"made": 3}


def test_nobody_waits_for_a_map_but_who_asked_for_one():
    class Slow(Demo):
        begun, may_end = threading.Event(), threading.Event()

        def surface(self, query):
            self.begun.set()
            assert self.may_end.wait(20)
            return {"z": []}

    slow = Slow({"bumpy": lambda: make_landscape("bumpy")}, ReplayRunner)
    with TestClient(make_app(slow, PORT), base_url=HOME) as client:
        found = []
        thread = threading.Thread(target=lambda: found.append(client.get("/surface?x=a")))
        thread.start()
        assert slow.begun.wait(20)
        assert client.get("/catalog").status_code == client.get("/").status_code == 200
        assert not found
        slow.may_end.set()
        thread.join(20)
    assert found[0].json() == {"z": []}
