"""P1: kill -9 at any instant loses no finished epoch and charges no device time twice.

Searches are killed again and again at random instants and at failpoints, taken up each time, and
held against a twin that nobody killed. What a search was told to be on record it writes to a file
of its own, so what must be there after a kill does not rest on the study's word.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.campaign import Campaign, Found
from tests.torture.victim import EPOCHS, Job, Zygote, scratch_folder
from tuner.budget import Kind
from tuner.failpoints import Place
from tuner.scheduler import MAX_FAULTS

KILLED = -9
SEARCHES = 20  # of different seeds, each with its twin; after so many they come again
DEVICE_KINDS = ("train", "evaluate", "checkpoint")  # what an observation's device time is made of


@dataclass(frozen=True)
class Record:
    """All that a study has on record.

    Attributes:
        trials: each trial's row, by number; times of the clock are in its other parts.
        epochs: (score, device_ns, at_ns) by trial and epoch.
        paid: device nanoseconds by trial (None for what no trial used) and kind.
    """

    trials: dict[int, dict[str, Any]]
    epochs: dict[tuple[int, int], tuple[float, int, int]]
    paid: dict[tuple[int | None, str], int]

    @property
    def spent_ns(self) -> int:
        return sum(self.paid.values())

    def sum_of(self, *kinds: str) -> int:
        return sum(ns for (_, kind), ns in self.paid.items() if kind in kinds)


def read(folder: Path) -> Record:
    """What is on record after a kill: of copies, so that the next driver finds what was left."""
    path = folder / "study.sqlite"
    if not path.exists():
        return Record({}, {}, {})
    with scratch_folder() as scratch:
        for name in ("study.sqlite", "study.sqlite-journal"):
            if (folder / name).exists():
                Path(scratch, name).write_bytes((folder / name).read_bytes())
        with closing(sqlite3.connect(Path(scratch, "study.sqlite"))) as db:
            db.row_factory = sqlite3.Row
            trials = {row["number"]: dict(row) for row in db.execute("SELECT * FROM trial")}
            epochs = {
                (row["number"], row["epoch"]): (row["score"], row["device_ns"], row["at_ns"])
                for row in db.execute("SELECT * FROM observation")
            }
            paid: Counter[tuple[int | None, str]] = Counter()
            for row in db.execute("SELECT * FROM charge"):
                paid.update({(row["number"], kind.value): row[kind.value] for kind in Kind})
    return Record(trials, epochs, {key: ns for key, ns in paid.items() if ns})


def held_ns(folder: Path) -> int:
    """The device time that the only run had noted to hold."""
    path = folder / "study.sqlite.held"
    data = path.read_bytes() if path.exists() else b""
    return int(struct.unpack_from("q", data, 8)[0]) if len(data) >= 16 else 0


def ran(folder: Path) -> tuple[int, ...]:
    """What was really used, in ns."""
    path = folder / "ran"
    return tuple(map(int, path.read_text().split())) if path.exists() else ()


def missing(folder: Path, record: Record) -> list[str]:
    """What the search was told to be on record and is not, in words."""
    path, lost = folder / "acks", []
    by_config = {row["config"]: number for number, row in record.trials.items()}
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    for what, *row in map(json.loads, lines):
        if what == "trial":
            number, config = row
            there = number in record.trials and record.trials[number]["config"] == config
        elif what == "epoch":
            number, epoch, *values = row
            there = record.epochs.get((number, epoch)) == tuple(values)
        else:
            config, epoch, *values = row
            number = by_config.get(config, -1)
            there = record.epochs.get((number, epoch), ())[:2] == tuple(values)
        if not there:
            lost.append(f"lost: {what} {row}")
    return lost


def unbalanced(record: Record) -> list[str]:
    """Trials for which more or less was paid than their epochs and what is begun took."""
    wrong = []
    for number, row in record.trials.items():
        took = row["partial_ns"]
        took += sum(ns for (n, _), (_, ns, _) in record.epochs.items() if n == number)
        paid = sum(record.paid.get((number, kind), 0) for kind in DEVICE_KINDS)
        if paid != took:
            wrong.append(f"trial {number} took {took} ns and {paid} were charged")
    return wrong


def is_in_write(folder: Path) -> bool:
    """Whether the kill landed inside a write: of a transaction, or of a file."""
    journal = folder / "study.sqlite-journal"
    has_journal = journal.exists() and journal.stat().st_size > 0
    return has_journal or any(folder.glob(".*.tmp")) or any(folder.glob("*/.*.tmp"))


@dataclass
class Tally:
    """What was found so far."""

    kills: int = 0
    in_write: int = 0
    studies: int = 0
    at: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def found(self) -> Found:
        notes = {
            "studies": self.studies,
            "in a write": self.in_write,
            **dict(sorted(self.at.items())),
        }
        return Found(self.kills, tuple(self.failures), notes)


@dataclass(frozen=True)
class Session:
    """One driver's life.

    Attributes:
        noted_ns: device time that the study knew of when it ended, charged or only noted.
        ran: the file of that name: what really was used, by epochs or by holds.
        wall_ns: how long it took, the start of the process included.
    """

    noted_ns: int
    ran: tuple[int, ...]
    wall_ns: int


@dataclass(frozen=True)
class End:
    """What a search came to that was killed now and then, and its twin."""

    record: Record
    twin: Record
    sessions: list[Session]


Compare = Callable[[End], list[str]]
"""What is wrong, in words."""

Strikes = Callable[[np.random.Generator, Job, "Twin"], tuple[str, Job]]
"""How the next driver is struck: in a word, and the job."""


@dataclass(frozen=True)
class Twin:
    """A search that nobody killed.

    Attributes:
        visits: how often it reached each place.
        seconds: how long it took.
    """

    record: Record
    visits: dict[str, int]
    seconds: float


def campaign(
    n: int, seed: int, what: str, strikes: Strikes, compare: Compare, per_study: int
) -> Found:
    """Kill searches n times in all, each about `per_study` times, and hold them against twins."""
    tally, twins = Tally(), {}
    with Zygote() as zygote, scratch_folder() as scratch:
        while tally.kills < n:
            which = seed * SEARCHES + tally.studies % SEARCHES
            study = Job(what, str(Path(scratch, f"{tally.studies}")), which)
            if which not in twins:
                twins[which] = _twin(zygote, replace(study, folder=f"{scratch}/twin-{which}"))
            twin = twins[which]
            generator = np.random.default_rng([seed, tally.studies])
            for line in _one_study(
                zygote, study, twin, strikes, compare, generator, tally, min(per_study, n)
            ):
                tally.failures.append(f"{what}, seed {study.seed}: {line}")
            shutil.rmtree(study.folder)
            tally.studies += 1
    return tally.found()


def _twin(zygote: Zygote, job: Job) -> Twin:
    folder = Path(job.folder)
    folder.mkdir()
    began = time.monotonic()
    code = zygote.run(replace(job, counting=True))
    seconds = time.monotonic() - began
    if code != 0:
        raise RuntimeError(f"a search that nobody struck ended with exit code {code}")
    return Twin(read(folder), json.loads((folder / "visits").read_text()), seconds)


def _one_study(
    zygote: Zygote,
    job: Job,
    twin: Twin,
    strikes: Strikes,
    compare: Compare,
    generator: np.random.Generator,
    tally: Tally,
    most: int,
) -> Iterator[str]:
    """Kill one search until it is at its end, or enough; what is wrong, in words."""
    folder = Path(job.folder)
    folder.mkdir()
    kills, history = 0, []
    sessions: list[Session] = []
    while True:
        how, struck = ("to its end", job) if kills >= most else strikes(generator, job, twin)
        history.append(how)
        before, began = deaths(folder), time.monotonic_ns()
        code = zygote.run(struck)
        wall_ns = time.monotonic_ns() - began
        record = read(folder)
        noted_ns = max(held_ns(folder), record.spent_ns)
        sessions.append(Session(noted_ns, ran(folder), wall_ns))
        wrong = [*missing(folder, record), *unbalanced(record)]
        yield from (f"{line}, after {history}" for line in wrong)
        killed = [is_in_write(folder)] if code == KILLED else []
        killed += deaths(folder)[len(before) :]
        kills += len(killed)
        tally.kills += len(killed)
        tally.in_write += sum(killed)
        if killed:
            tally.at[how.split(":")[0]] += len(killed)
        if code != KILLED:
            break
    if code != 0:
        yield f"could not go on after {history}: exit code {code}"
        return
    for line in compare(End(record, twin.record, sessions)):
        yield f"{line}, after {history}"


def at_failpoint(generator: np.random.Generator, job: Job, twin: Twin) -> str:
    """A place that the driver will come by, and a visit in the first third of a whole search."""
    exists = Path(job.folder, "study.sqlite").exists()
    places = [p for p in twin.visits if not (exists and p.startswith("file"))]
    place = places[generator.integers(len(places))]
    if generator.random() < 0.5:
        place = Place.COMMIT_WRITTEN.value  # inside a write
    return f"{place}:{generator.integers(1, max(2, twin.visits[place] // 3 + 1))}:kill"


def of_driver(generator: np.random.Generator, job: Job, twin: Twin) -> tuple[str, Job]:
    """At an instant or at a failpoint, by turns of chance."""
    if generator.random() < 0.6:
        failpoint = at_failpoint(generator, job, twin)
        return failpoint, replace(job, failpoint=failpoint)
    first, last = (0.3, 1.0) if job.what in EPOCH_S else (0.0, 0.5)  # workers take a while
    after_s = twin.seconds * float(generator.uniform(first, last))
    return f"an instant: {after_s:.4f} s", replace(job, after_s=after_s)


# -- a replay: the twin to the nanosecond ----------------------------------------------------------


def _as_the_twin(end: End) -> list[str]:
    record, twin = end.record, end.twin
    pairs = (
        ("trials", record.trials, twin.trials),
        ("epochs", record.epochs, twin.epochs),
        ("charges", record.paid, twin.paid),
    )
    return [f"other {what} than the twin" for what, mine, its in pairs if mine != its]


def of_replays(n: int, seed: int) -> Found:
    """Kill replays: every row and every charge is the twin's."""
    return campaign(n, seed, "replay", of_driver, _as_the_twin, per_study=12)


# -- a user's function, by a clock that only it moves ----------------------------------------------


def _charged_as_held(end: End) -> list[str]:
    """Every driver was charged what it had, to the ns; one that was killed less its last epoch.

    That had run when the kill came, and nobody had noted it yet.
    """
    wrong, noted_ns, length = [], 0, 0
    for i, session in enumerate(end.sessions):
        mine, grown = session.ran[length:], session.noted_ns - noted_ns
        possible = {sum(mine)} if i == len(end.sessions) - 1 else {sum(mine), sum(mine[:-1])}
        if grown not in possible:
            wrong.append(f"driver {i} used {mine} ns, of which {grown} were charged")
        noted_ns, length = session.noted_ns, len(session.ran)
    if end.record.spent_ns != noted_ns:
        wrong.append(f"{end.record.spent_ns} ns charged and {noted_ns} held")
    return wrong


def _scored_as_the_twin(end: End) -> list[str]:
    same = scores(end.record) == scores(end.twin)
    return [] if same else ["other trials or scores than the twin"]


def _as_what_ran(end: End) -> list[str]:
    wrong = [*_scored_as_the_twin(end), *_charged_as_held(end)]
    if end.record.sum_of(*DEVICE_KINDS) != end.twin.sum_of(*DEVICE_KINDS):
        wrong.append("other charges for epochs than the twin")
    return wrong


def scores(record: Record) -> list[Any]:
    curves: dict[int, list[float]] = {number: [] for number in record.trials}
    for (number, _), (score, _, _) in sorted(record.epochs.items()):
        curves[number].append(score)
    return [
        (number, row["config"], row["seed"], row["state"], curves[number])
        for number, row in sorted(record.trials.items())
    ]


def of_functions(n: int, seed: int) -> Found:
    """Kill `tune`: the twin's trials and scores, and nothing charged that did not run."""
    return campaign(n, seed, "function", of_driver, _as_what_ran, per_study=8)


# -- worker processes ------------------------------------------------------------------------------

EPOCH_S = {"training": 0.005, "real": 0.1}  # about
WRITING = (Place.FILE_OPENED, Place.FILE_WRITTEN, Place.FILE_SYNCED)
WORKER_PLACES = (
    *(Place.SEND_BEFORE, Place.SEND_AFTER, Place.RECEIVE_BEFORE, Place.RECEIVE_AFTER),
    *(*WRITING, Place.FILE_RENAMED, Place.FILE_DURABLE, Place.CHECKPOINT_WRITTEN),
)


def of_processes(generator: np.random.Generator, job: Job, twin: Twin) -> tuple[str, Job]:
    """The driver, workers, or both. A trial survives three deaths of its workers."""
    who = ("driver", "workers", "both")[generator.integers(3)]
    struck, how = job, []
    if who != "workers":
        at, struck = of_driver(generator, job, twin)
        how.append(f"driver at {at}")
    room = MAX_FAULTS - len(deaths(Path(job.folder)))
    if who != "driver" and room:
        if generator.random() < 0.3:
            after_s = EPOCHS * EPOCH_S[job.what] * float(generator.random())
            struck = replace(struck, worker_after_s=after_s)
            how.append(f"worker after {struck.worker_after_s:.4f} s")
            room -= 1
        among = WRITING if generator.random() < 0.5 else WORKER_PLACES
        chosen = [among[i] for i in generator.integers(len(among), size=room)]
        # Its first messages are of the start, in which a worker that dies ends the driver in words.
        failpoints = tuple(f"{p.value}:{generator.integers(4, 7)}:kill" for p in chosen)
        struck = replace(struck, worker_failpoints=failpoints)
        how.append(f"workers at {', '.join(failpoints)}")
    return f"{who}: {'; '.join(how)}", struck


def deaths(folder: Path) -> list[bool]:
    """For each worker that was killed, whether inside a write."""
    path = folder / "deaths"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)[1] for line in lines]


def _within_the_wall(end: End) -> list[str]:
    """No driver was charged more than it lived; the last, to the ns, what it held its device."""
    wrong, noted_ns = _scored_as_the_twin(end), 0
    for i, session in enumerate(end.sessions):
        grown, noted_ns = session.noted_ns - noted_ns, session.noted_ns
        if not 0 <= grown <= session.wall_ns:
            wrong.append(f"driver {i} was charged {grown} ns")
    # Only who ends a hold in peace writes down how long it was.
    used = end.sessions[-1].ran[len(end.sessions[-2].ran if end.sessions[1:] else ()) :]
    if grown != sum(used) or end.record.spent_ns != noted_ns:
        wrong.append(f"the last driver held {sum(used)} ns and was charged {grown}")
    return wrong


def of_trainings(n: int, seed: int) -> Found:
    """Kill drivers and worker processes: the twin's trials and scores, and all held is charged."""
    return campaign(n, seed, "training", of_processes, _within_the_wall, per_study=9)


def of_real_workers(n: int, seed: int) -> Found:
    """The same with workers that train CNNs: the twin's scores to the bit."""
    return campaign(n, seed, "real", of_processes, _within_the_wall, per_study=6)


CAMPAIGNS = (
    Campaign(
        "P1",
        "replays killed at instants and failpoints: rows and charges are the twin's to the ns",
        of_replays,
        nightly=4_000,
        short=24,
    ),
    Campaign(
        "P1",
        "tune() with a function killed likewise: nothing lost, nothing charged that did not run",
        of_functions,
        nightly=5_000,
        short=24,
    ),
    Campaign(
        "P1",
        "drivers, worker processes and both killed: nothing lost, and charged what was held",
        of_trainings,
        nightly=1_000,
        short=8,
    ),
    Campaign(
        "P1",
        "the same with workers that train CNNs on the CPU",
        of_real_workers,
        nightly=100,
        short=0,  # tests/models and tests/scripts kill such workers now and then
    ),
)
