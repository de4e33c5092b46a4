"""P12: opening a file never runs code; and what strangers call things is only ever text."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tests.torture.campaign import Campaign, Found
from tests.torture.strangers import KINDS
from tuner.budget import Kind, to_ns
from tuner.history import History
from tuner.page.film import Scene
from tuner.page.report_page import write_report
from tuner.reader import RunRow
from tuner.report import Outcome, write_files
from tuner.space import Choice, Float, SearchSpace
from tuner.terminal import closing_table, describe, luck_lines, say
from tuner.trial import Observation, Trial, TrialState

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_BYTES = 1.0, 200 << 20
_BATCH = 500  # files on disk at once

CORPUS = [(kind, trick) for kind, (_, tricks, _) in KINDS.items() for trick in tricks]


def _read(folder: Path, files: list[tuple[str, Path]]) -> list[dict[str, Any]]:
    """What reading each of the files did; the last is that of the one which ended the process."""
    (folder / "files.json").write_text(json.dumps([(kind, str(path)) for kind, path in files]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.reading", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    # Libraries of protocol buffers and the like have words of their own in between.
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"refusal"')]
    found = [json.loads(line) for line in lines]
    if done.returncode:
        words = " ".join(done.stderr.split())[-300:]
        found.append({"trouble": f"the reader ended with {done.returncode}: {words}"})
    return found


def refused_files(n: int, seed: int) -> Found:
    """Every trick of the corpus at least once: refused, with its name, and nothing else happens."""
    failures: list[str] = []
    slowest = largest = 0.0
    chosen = [CORPUS[i % len(CORPUS)] for i in range(max(n, len(CORPUS)))]
    for start in range(0, len(chosen), _BATCH):
        with tempfile.TemporaryDirectory() as text:
            folder, files = Path(text), []
            for i, (kind, trick) in enumerate(chosen[start : start + _BATCH]):
                name, tricks, _ = KINDS[kind]
                path = folder / f"{i}" / name
                tricks[trick](path)
                files.append((kind, path))
            results = _read(folder, files)
            for (kind, path), (_, trick), one in zip(files, chosen[start:], results, strict=False):
                failures += [f"{kind}, {trick}: {why}" for why in _judge(path, one)]
                slowest = max(slowest, one.get("seconds", 0.0))
                largest = max(largest, one.get("bytes", 0.0))
            if len(results) != len(files):
                failures.append(f"{len(files) - len(results)} files were never come to")
            failures += [f"{path} was made" for path in folder.rglob("pwned*")]
            victims = list(folder.rglob("victim"))
            batch = [trick for _, trick in chosen[start : start + _BATCH]]
            lost = batch.count("a journal that names a file")
            failures += ["a victim was deleted"] * (lost - len(victims))
    notes = {
        "tricks": len(CORPUS),
        "slowest": f"{slowest:.2f} s",
        "most memory": f"{largest / 2**20:.0f} MiB",
    }
    return Found(len(chosen), tuple(failures), notes)


def _judge(path: Path, one: dict[str, Any]) -> Iterator[str]:
    if one.get("trouble"):
        yield one["trouble"]
        return
    if one["refusal"] is None:
        yield "was read"
    elif path.stem not in one["refusal"]:
        yield f"was refused without its name: {one['refusal'][:200]}"
    elif len(one["refusal"].replace(str(path), "").split()) < 3:
        yield f"was refused without a reason: {one['refusal'][:200]}"
    yield from one["events"]
    if one["seconds"] > MOST_SECONDS:
        yield f"took {one['seconds']:.2f} s"
    if one["bytes"] > MOST_BYTES:
        yield f"took {one['bytes'] >> 20} MiB"


def mutated_files(n: int, seed: int) -> Found:
    """Good files with wrong bytes: refused in words or read, and nothing else happens."""
    generator = np.random.default_rng([seed, 12])
    failures: list[str] = []
    counts: Counter[str] = Counter()
    kinds = [kind for kind in KINDS if kind != "sample"]
    for start in range(0, n, _BATCH):
        with tempfile.TemporaryDirectory() as text:
            folder, files = Path(text), []
            good = {}
            for kind in kinds:
                name, _, make = KINDS[kind]
                make(folder / "seeds" / kind / name)
                good[kind] = (folder / "seeds" / kind / name).read_bytes()
            for i in range(start, min(n, start + _BATCH)):
                kind = kinds[i % len(kinds)]
                path = folder / f"{i}" / KINDS[kind][0]
                path.parent.mkdir()
                path.write_bytes(_mutated(good[kind], generator))
                files.append((kind, path))
            results = _read(folder, files)
            for (kind, path), one in zip(files, results, strict=False):
                is_read = not one.get("trouble") and one["refusal"] is None
                counts["read" if is_read else "refused"] += 1
                wrong = [why for why in _judge(path, one) if why != "was read"]
                failures += [f"{kind} {path.parent.name}: {why}" for why in wrong]
            if len(results) != len(files):
                failures.append(f"{len(files) - len(results)} files were never come to")
    return Found(n, tuple(failures), dict(counts))


def _mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes flipped, most of them near the start or the end, or a part cut or doubled."""
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        near = int(generator.integers(0, min(len(changed), 400)))
        at = (near, len(changed) - 1 - near, int(generator.integers(len(changed))))
        changed[at[int(generator.integers(3))]] = int(generator.integers(256))
    where, how = int(generator.integers(len(changed))), int(generator.integers(8))
    if how == 0:
        del changed[where:]
    elif how == 1:
        changed[where:where] = changed[: where // 2]
    return bytes(changed)


# -- names ----------------------------------------------------------------------------------------

_PIECES = (
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!--",
    "]]>",
    "\"' onmouseover='window.hacked=1",
    "javascript:window.hacked=1",
    "{{7*7}}",
    "${window.hacked=1}",
    "%{customdata}",
    "__proto__",
    "constructor",
    "&lt;b&gt;",
    "<a href='https://evil.example/'>",
    "<style>*{background:url(//evil.example)}</style>",
    "\x1b[31m",
    "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\x08\x08\x08",
    "\r",
    "\n",
    "\t",
    "\0",
    "\u202eevil\u202c",
    "\u2066\u2069",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\U000e0041",
    "\ud800",
    "=cmd|'/C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "＝1+1",
    "[red]",
    "[/]",
    "[link=https://evil.example]",
    "[bold",
    "\\[",
    ":bomb:",
    "$\\frac{",
    "$$",
    "_",
    "a,b;c|d",
    '"',
    "''",
    "é漢字🎲",
    "x" * 150,
)


def hostile_names(n: int, seed: int, *, longest: int = 200) -> list[str]:
    """Names, no two alike, each of one to four tricks one after the other."""
    generator = np.random.default_rng([seed, 13])
    found = dict.fromkeys(_PIECES)
    while len(found) < n:
        parts = generator.choice(len(_PIECES), int(generator.integers(1, 5)))
        found["".join(_PIECES[p] for p in parts)[: longest - 5] + str(len(found))] = None
    return list(found)[:n]


def outcome_of(names: list[str]) -> tuple[Outcome, dict[str, Any]]:
    """A race in which everything is called by these names, a trial each, and its settings."""
    knobs = names[:6]
    domains = [Choice(tuple(names)), *(Float(0.0, 1.0) for _ in knobs[1:])]
    space = SearchSpace(dict(zip(knobs, domains, strict=True)))
    history = History(1, to_ns(9))  # of equal scores: what mattered is not the question here
    for number, name in enumerate(names):
        config = {knobs[0]: name, **dict.fromkeys(knobs[1:], 0.5)}
        history.start(Trial(number, config, 0, 1, note=name, started_ns=number))
        history.observe(number, Observation(1, 0.5, 10, number + 10))
        history.close(number, TrialState.COMPLETED, name)
    row = RunRow(1, names[0], 0, space, 1, to_ns(9), 0, None, None)
    ledger = {**dict.fromkeys(Kind, 0), Kind.TRAIN: 10}
    settings = {"landscape": names[1], "measure": names[2], "budget_minutes": 9.0}
    settings |= {"device": names[3], "unit": names[4], "data": names[5]}
    return Outcome(row, history, ledger, None, 0.5), settings


def shown_names(n: int, seed: int) -> Found:
    """Hostile names through CSV, JSON, the terminal and HTML: nothing is run, moved or hidden."""
    names, failures = hostile_names(n, seed), []
    for start in range(0, len(names), 50):
        some = names[start : start + 50]
        if len(some) < 6:
            some = names[-6:]
        outcome, settings = outcome_of(some)
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), settings, [outcome])
            texts = {path.name: path.read_bytes().decode() for path in Path(folder).iterdir()}
        failures += _csv_faults(texts["trials.csv"], len(some))
        summary = json.loads(texts["summary.json"])
        best = texts["best_config.json"]
        if json.loads(best)["config"] != dict(outcome.history.best.config):  # type: ignore[union-attr]
            failures.append("the best configuration is not what it was")
        output = io.StringIO()
        console = Console(file=output, width=4_000, force_terminal=False)
        console.print(closing_table(summary))
        for line in [summary["verdict"]["text"], *luck_lines(summary), *some]:
            say(console, line)
        for trial in outcome.history:
            say(console, describe(trial.config))
        texts["terminal"] = output.getvalue()
        for where, text in texts.items():
            hidden = {repr(c) for c in text if c != "\n" and _is_hidden(c)}
            failures += [f"{where}: {', '.join(sorted(hidden))}"] if hidden else []
        for name in some:
            plain = "".join(c for c in name if not _is_hidden(c) and c != "\\")
            if name == plain and len(name) < 60 and name not in texts["terminal"]:
                failures.append(f"the terminal does not show {name!r}")
        failures += _html_faults(outcome)
    return Found(len(names), tuple(failures))


def _is_hidden(character: str) -> bool:
    """Of Unicode's own categories: controls, formats, surrogates, line and paragraph ends."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _csv_faults(text: str, trials: int) -> list[str]:
    rows = list(csv.reader(io.StringIO(text)))
    faults = [] if len(rows) == trials + 1 else [f"{len(rows)} rows of {trials} trials"]
    for row in rows:
        if len(row) != len(rows[0]):
            faults.append(f"a row of {len(row)} cells")
        for cell in row:
            try:
                float(cell)
            except ValueError:
                if cell.strip()[:1] in tuple("=+-@＝＋－＠") and cell.strip():
                    faults.append(f"a formula: {cell[:60]!r}")
    return faults


class _Elements(HTMLParser):
    """Counts elements and what they are told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found.update(f"{tag} {name}" for name, _ in attrs)


def report_of(outcome: Outcome, title: str) -> str:
    """The report of a race, all of it called so."""
    scene = Scene(outcome.row, outcome.history, outcome.ledger, True, None, 0.5)
    words = {"text": title, "headline": title, "pairs": [], "standings": []}
    first, second, *_ = outcome.row.space
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        write_report(
            path,
            title,
            [scene],
            device=title,
            unit=title,
            terrain=None,
            verdict=words,
            pair=(first, second),
        )
        return path.read_text()


def _html_faults(outcome: Outcome) -> list[str]:
    """The elements are those of a page with other names: no more, no others."""
    counts = []
    for some in ([t.note for t in outcome.history], [f"name {i}" for i in range(6)]):
        parser = _Elements()
        # Plotly's script is most of the page, and the same in both.
        page = report_of(outcome_of(some)[0], some[0])
        head, _, tail = page.partition('id="film-data">')
        parser.feed(f'{head}id="film-data">{tail[: tail.index("</script>") + 40]}')
        counts.append(parser.found)
    return [] if counts[0] == counts[1] else [f"elements: {counts[0] - counts[1]}"]


CAMPAIGNS = (
    Campaign(
        "P12",
        "files of strangers are refused with name and reason: nothing runs, 1 s, 200 MiB",
        refused_files,
        nightly=10 * len(CORPUS),
        short=len(CORPUS),
    ),
    Campaign(
        "P12",
        "good files with wrong bytes are refused in words or read, and nothing runs",
        mutated_files,
        nightly=50_000,
        short=100,
    ),
    Campaign(
        "P12",
        "hostile names in CSV, JSON, the terminal and HTML are text, and all of it is seen",
        shown_names,
        nightly=10_000,
        short=1_000,
    ),
)
