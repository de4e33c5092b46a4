"""The page in a real browser: what a user does, sees, and must never be exposed to."""

import contextlib
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import alter
from tuner.history import History
from tuner.report import best_so_far
from tuner.space import Float
from tuner.study import Study
from tuner.trial import Observation, Trial, TrialState

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Watched:
    """A page, and everything that went wrong on it."""

    def __init__(self, page):
        self.page, self.troubles, self.requests = page, [], []
        page.on("console", lambda m: m.type in ("error", "warning") and self._note(m.text))
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, text):
        self.troubles.append(text)

    def until(self, script, seconds=30.0):
        """Wait until a script is true; the page's policy forbids Playwright's own way."""
        end = time.monotonic() + seconds
        while not (value := self.page.evaluate(script)):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {script}; troubles: {self.troubles}")
            time.sleep(0.05)
        return value


@pytest.fixture
def watched(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watched = Watched(page)
    yield watched
    page.close()
    assert watched.troubles == []


@contextlib.contextmanager
def serving(*arguments):
    """The address of a page served by the script."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "page.py"), *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def demo():
    with serving() as address:
        yield address


def trials(watched):
    return watched.page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.panel')]"
        ".map(p => [p.dataset.searcher, +p.dataset.trials]))"
    )


def run_race(watched, landscape="bumpy", budget=None):
    """Run, and go to the end of the race once all of it is known."""
    page = watched.page
    page.wait_for_selector("#run")
    watched.until("document.querySelectorAll('#landscape option').length > 5")
    page.select_option("#landscape", landscape)
    if budget is not None:
        page.fill("#budget", str(budget))
    page.click("#run")
    watched.until("tunerPage.film && tunerPage.film.verdict", 60)
    page.evaluate(
        "(() => { const s = document.querySelector('#scrub'); s.value = s.max;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_lines_of_very_many_trials_are_those_of_the_report(watched, demo):
    """Scores that fall take the lead away; so does a trial that turns out to be infeasible."""
    page, generator = watched.page, np.random.default_rng(0)
    page.goto(demo)
    watched.until("typeof Film === 'object'")
    history, trials = History(3), []
    for number in range(400):
        curve = [[e, float(s), 10.0 * number + e] for e, s in enumerate(generator.random(3), 1)]
        state = TrialState.INFEASIBLE if number % 7 == 0 else TrialState.COMPLETED
        seen = tuple(Observation(e, s, 1, round(at * 60e9)) for e, s, at in curve)
        history.restore(Trial(number, {}, 0, 3, state, seen))
        times = {"started": 10.0 * number, "ended": 10.0 * number + 3}
        trials.append([1, {"number": number, "state": state.name, "curve": curve, **times}])
    scored = [t for t in trials if t[1]["state"] == "COMPLETED"]
    film = {"mode": "finished", "runs": [{"id": 1, "finished": True, "spent": 4e3}]}
    (entry,) = page.evaluate("film => Film.open(film)", {**film, "trials": scored})
    expected = [[ns / 60e9, score] for ns, score in best_so_far(history.view())]
    assert entry["line"] == [pytest.approx(pair) for pair in expected]
    (entry,) = page.evaluate("film => Film.open(film)", {**film, "trials": trials})
    lines = entry["line"]
    assert any(
        one is not None and (two is None or two < one) for (_, one), (_, two) in pairwise(lines)
    )
    # By the definition: of what was known at each minute, the best.
    for minute, best in lines[::17]:
        known = [
            [s for _, s, at in t["curve"] if at <= minute][-1]
            for _, t in trials
            if t["curve"][0][2] <= minute
            and not (t["state"] == "INFEASIBLE" and t["ended"] <= minute)
        ]
        assert best == pytest.approx(max(known, default=None))
    many = [
        [1, {**trials[0][1], "number": i, "started": float(i), "ended": i + 0.5}]
        for i in range(90_000)
    ]
    ask = "([film, minute]) => Film.nextEvent(Film.open(film), minute, 1e6)"
    assert page.evaluate(ask, [{**film, "trials": many}, 77_000.2]) == 77_000.5


def test_a_race_on_bumpy(watched, demo):
    page = watched.page
    page.goto(demo)
    run_race(watched, budget=24)
    watched.until("document.querySelector('#verdict').textContent.includes('seed')")
    shown = trials(watched)
    assert set(shown) == {"grid", "random", "bayes"}
    assert all(count >= 14 for count in shown.values())
    bars = page.evaluate("[...document.querySelectorAll('.bar')].map(b => +b.ariaValueNow)")
    assert len(bars) == 3
    assert all(value >= 95 for value in bars)
    # Three maps with their probes, and three lines; they are drawn a moment later.
    watched.until(
        "(() => { const plots = [...document.querySelectorAll('.panel .js-plotly-plot')];"
        " return plots.length == 3 && plots.every(p => p.data.some(t => t.type == 'heatmap')"
        " && p.data.filter(t => t.type != 'heatmap').flatMap(t => [...t.x]).length >= 14); })()"
    )
    watched.until(
        "document.querySelector('#best-chart').data"
        ".filter(t => (t.mode || '').includes('lines') && t.y.length > 3).length >= 3"
    )
    facts = page.inner_text("#facts")
    assert all(name in facts for name in shown)
    host = demo.rstrip("/")
    assert {
        url for url in watched.requests if not url.startswith((host, "data:", "blob:"))
    } == set()


def test_a_trial_that_waits_is_shown_as_paused(watched, demo):
    page = watched.page
    page.goto(demo)
    page.wait_for_selector("#run")
    # It trains to minute 2, waits to minute 7, and waits again from minute 9 on.
    states = page.evaluate(
        """() => {
          const curve = [[1, 0.5, 1], [2, 0.6, 2], [3, 0.7, 8], [4, 0.8, 9]];
          const trial = { number: 0, started: 0, ended: null, state: "PAUSED", curve };
          const ledger = { train: 9, evaluate: 0, warm_up: 0, checkpoint: 0, search: 0, lost: 0 };
          const entry = { run: { spent: 10, ledger }, trials: [trial], isClosed: false };
          return [0.5, 1.5, 5, 7.5, 9.5].map((at) => Film.lookAt(entry, at).probes[0].state);
        }"""
    )
    assert states == ["RUNNING", "RUNNING", "PAUSED", "RUNNING", "PAUSED"]


def test_what_bayes_thinks(watched, demo):
    page = watched.page
    page.goto(demo)
    run_race(watched, budget=30)
    seen = set()
    for belief in ("mean", "sd", "ei"):
        page.check(f'.panel[data-searcher="bayes"] [name="belief"][value="{belief}"]', force=True)
        script = (
            '(() => { const p = document.querySelector(\'.panel[data-searcher="bayes"] '
            ".js-plotly-plot'); const h = p && p.data.find(t => t.type == 'heatmap');"
            " return h ? JSON.stringify(h.z[3].slice(0, 8)) : ''; })()"
        )
        watched.until(f"{script} && !{sorted(seen)!r}.includes({script})")
        seen.add(page.evaluate(script))
    assert len(seen) == 3
    before = page.evaluate(script)
    page.evaluate(
        "(() => { const s = document.querySelector('#exploration'); s.value = s.max;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    watched.until(f"{script} != {before!r}")  # more exploration is another map of improvement


def test_the_keyboard_reaches_a_probe_and_escape_closes_it(watched, demo):
    page = watched.page
    page.goto(demo)
    run_race(watched, budget=12)
    focus = (
        '(document.querySelector(\'.panel[data-searcher="random"] [tabindex="0"]\')'
        " || document.querySelector('.panel[data-searcher=\"random\"]')).focus()"
    )
    for _ in range(20):  # where the page has just drawn itself anew, the focus is gone with it
        page.evaluate(focus)
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(200)
        if page.is_visible("#probe-card"):
            break
    text = page.inner_text("#probe-card")
    assert "learning_rate" in text
    assert "minutes" in text
    page.keyboard.press("Escape")
    page.wait_for_selector("#probe-card", state="hidden")


def test_a_phone_in_the_dark_has_no_sideways_scrolling(browser, demo):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    watched = Watched(page)
    page.goto(demo)
    run_race(watched, budget=12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert watched.troubles == []
    page.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished race, whose landscape, searcher and reasons have hostile names."""
    folder = tmp_path_factory.mktemp("finished") / "run <b>bold<"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "tune.py"), "--landscape", "cliff"),
            *("--searchers", "random", "--seeds", "2", "--budget-minutes", "15"),
            *("--out", str(folder), "--quiet"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    # The closed trials are changed behind the store's back, as a hostile file would be.
    study = folder / "study.sqlite"
    alter(study, "UPDATE trial SET reason = ?, note = ?", HOSTILE, HOSTILE)
    alter(study, "UPDATE run SET searcher = ?", HOSTILE)
    return folder


def test_a_finished_run_is_shown_and_hostile_names_are_text(watched, finished):
    page = watched.page
    with serving(finished) as address:
        page.goto(address)
        watched.until("tunerPage.film && document.querySelectorAll('.panel').length == 1")
        watched.until("+document.querySelector('.panel')?.dataset.trials > 0")
        assert HOSTILE in page.evaluate("document.body.textContent")
        page.evaluate("document.querySelector('.panel [tabindex=\"0\"]').focus()")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#probe-card", state="visible")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0


def test_a_report_is_the_page_without_a_server(watched, finished):
    page = watched.page
    page.goto((finished / "report.html").as_uri())
    watched.until("tunerPage.film && document.querySelectorAll('.panel').length == 1")
    watched.until("+document.querySelector('.panel')?.dataset.trials > 5")
    assert "cliff" in page.inner_text("body").lower()
    assert page.inner_text("#effects-text") == "The race is still running."
    page.evaluate(
        "(() => { const s = document.querySelector('#scrub'); s.value = s.max;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    watched.until("document.querySelectorAll('#effects .js-plotly-plot').length == 2")
    assert "mattered" in page.inner_text("#effects-text")
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file") for url in watched.requests) == 1


@pytest.mark.nightly
def test_a_real_run_is_shown_while_it_trains(watched, small_data, tmp_path):
    page = watched.page
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "scripts" / "tune.py"), "--page", "--quiet"),
            *("--data", "fashion_mnist", "--data-root", str(small_data), "--device", "cpu"),
            *("--searchers", "random", "--epochs", "2", "--budget-minutes", "0.2"),
            *("--slots", "1"),
            *("--out", str(tmp_path / "live")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stderr.readline()
        page.goto(next(word for word in line.split() if word.startswith("http")))
        watched.until("tunerPage.film && tunerPage.film.mode == 'live'")
        watched.until("+document.querySelector('.panel')?.dataset.trials >= 2", 60)
        seen = trials(watched)["random"]
        watched.until(f"+document.querySelector('.panel')?.dataset.trials > {seen}", 60)
        assert "real training" in page.inner_text("body").lower()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
    # The page's server went with the race; what it showed is in the report.
    watched.troubles = [t for t in watched.troubles if "ERR_CONNECTION_REFUSED" not in t]
    page.goto((tmp_path / "live" / "report.html").as_uri())
    watched.until("+document.querySelector('.panel')?.dataset.trials >= 3")


def test_a_study_by_hand_is_shown_as_it_is_told(watched, tmp_path):
    page, path = watched.page, tmp_path / "lab.sqlite"
    space = {HOSTILE: Float(0, 1), "x": Float(0, 1)}
    with Study(space, "random", path=path, mode="min") as study:
        for _ in range(4):
            study.ask()
        study.tell(0, 81.25)
        study.tell(1, state="infeasible", reason=HOSTILE)
    with serving(path) as address:
        page.goto(address)
        watched.until("tunerPage.film && +document.querySelector('.panel')?.dataset.trials == 4")
        body = page.inner_text("body")
        assert "experiment 4 of 4" in body
        assert "Waiting for the results of 2 experiments" in body
        assert "best 81.250" in body
        assert "score (lower is better)" in body
        with Study(space, "random", path=path, mode="min") as study:
            study.tell(3, 80.5)
            study.ask()
        watched.until("document.body.innerText.includes('best 80.500')")
        assert "experiment 5 of 5" in page.inner_text("body")
        watched.until("document.querySelectorAll('#best-chart .js-line').length >= 1")
        labels = page.evaluate(
            "[...document.querySelectorAll('#best-chart .ytick')].map(t => +t.textContent)"
        )
        assert all(80 < label < 82 for label in labels)
        assert page.evaluate("window.hacked") is None
        page.goto("about:blank")  # before its server goes
