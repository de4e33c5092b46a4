"""A study followed while it is written: never locked, never read half."""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tuner.page.follow import Follow
from tuner.reader import BusyError, Snapshot
from tuner.space import Float, SearchSpace
from tuner.store import Store
from tuner.study import Study
from tuner.trial import Observation, Trial, TrialState

SPACE = SearchSpace(x=Float(0.0, 1.0))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "study.sqlite", create=True)
    store.set_meta("request", {"device": "cpu", "devices": ["cpu"]})
    store.add_run("random", 0, SPACE, 3, 10**12)
    store.commit(force=True)
    yield store
    store.close()


def add_trial(store, history, score):
    number = len(history)
    history.start(Trial(number, {"x": score}, 0, 1, TrialState.RUNNING))
    history.observe(number, Observation(1, score, 10, 10 * (number + 1)))
    history.close(number, TrialState.COMPLETED)


def name_a_dead_driver(folder):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()  # a process that there is no more
    holder = {"pid": child.pid, "host": socket.gethostname()}
    (folder / "study.sqlite.lock").write_text(json.dumps(holder))


def test_a_snapshot_holds_what_was_committed_and_no_more(store, tmp_path):
    history = store.history(store.runs()[0])
    add_trial(store, history, 0.25)
    store.commit(force=True)
    add_trial(store, history, 0.75)  # in an open transaction
    snapshot = Snapshot(tmp_path / "study.sqlite")
    (row,) = snapshot.runs()
    assert [t.score for t in snapshot.trials(row)] == [0.25]
    snapshot.close()


def test_a_large_open_transaction_is_rolled_back_in_the_copy(store, tmp_path):
    history = store.history(store.runs()[0])
    for _ in range(50):
        add_trial(store, history, 0.5)
    store.commit(force=True)
    size = (tmp_path / "study.sqlite").stat().st_size
    store._db.execute("PRAGMA cache_size = 10")  # so that it soon spills into the file
    for _ in range(3_000):
        add_trial(store, history, 0.25)
    store._write()  # rows are gathered until then; a commit is yet to come
    assert (tmp_path / "study.sqlite").stat().st_size > size
    snapshot = Snapshot(tmp_path / "study.sqlite")
    assert len(snapshot.trials(snapshot.runs()[0])) == 50
    snapshot.close()


def test_a_study_that_is_written_without_a_pause_can_be_read_all_the_time(store, tmp_path):
    history, found, is_over = store.history(store.runs()[0]), [], threading.Event()

    def read():
        try:
            for _ in range(10):
                before = committed
                snapshot = Snapshot(tmp_path / "study.sqlite")
                trials = snapshot.trials(snapshot.runs()[0])
                snapshot.close()
                found.append((before, len(trials), committed, {t.epoch for t in trials} <= {1}))
        finally:
            is_over.set()

    committed = 0
    thread = threading.Thread(target=read)
    thread.start()
    while not is_over.is_set():
        add_trial(store, history, 0.5)
        store.commit(force=True)
        committed += 1
    thread.join()
    assert len(found) == 10
    for before, read_then, after, is_whole in found:
        assert before <= read_then <= after + 1
        assert is_whole
    assert found[-1][1] > found[0][1]


def test_while_nobody_can_read_it_a_study_is_shown_as_it_was(store, tmp_path, monkeypatch):
    def refuse(path):
        raise BusyError(f"{path} is being written all the time")

    follow = Follow(tmp_path)
    film = follow.film()
    add_trial(store, store.history(store.runs()[0]), 0.5)
    store.commit(force=True)
    with monkeypatch.context() as patch:
        patch.setattr("tuner.page.follow._RESTS", 0)
        patch.setattr("tuner.page.follow.Snapshot", refuse)
        assert follow.film() == film
        with pytest.raises(BusyError):
            Follow(tmp_path).film()
    name_a_dead_driver(tmp_path)
    assert len(follow.film()["trials"]) == 1


def test_a_study_is_read_less_often_while_it_is_written_than_once_it_is_not(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr("tuner.page.follow._RESTS", 1e9)
    follow, history = Follow(tmp_path), store.history(store.runs()[0])
    assert follow.film()["trials"] == []
    add_trial(store, history, 0.5)
    store.commit(force=True)
    assert follow.film()["trials"] == []  # it was read just now
    name_a_dead_driver(tmp_path)
    assert len(follow.film()["trials"]) == 1


def test_who_comes_while_a_study_is_read_for_another_has_what_there_was(store, tmp_path):
    follow = Follow(tmp_path)
    film = follow.film()
    add_trial(store, store.history(store.runs()[0]), 0.5)
    store.commit(force=True)
    with follow._reading:
        assert follow.film() == film
        name_a_dead_driver(tmp_path)  # nothing will follow: the last word is waited for
        with ThreadPoolExecutor() as pool:
            late = pool.submit(follow.film)
            with pytest.raises(TimeoutError):
                late.result(0.2)
            follow._reading.release()
            assert len(late.result(10)["trials"]) == 1
            follow._reading.acquire()


def test_a_study_whose_driver_is_gone_is_not_called_live(store, tmp_path):
    add_trial(store, store.history(store.runs()[0]), 0.5)
    store.commit(force=True)
    assert Follow(tmp_path).film()["mode"] == "live"  # this very process holds it
    name_a_dead_driver(tmp_path)
    sent = []
    Follow(tmp_path).play({}, lambda name, data: sent.append((name, data)), lambda: False)
    assert [name for name, _ in sent] == ["film", "verdict", "end"]
    assert sent[0][1]["mode"] == "finished"
    assert "not finished" in sent[1][1]["text"]


def test_a_driver_that_dies_while_it_is_followed_ends_the_film(store, tmp_path):
    lock = tmp_path / "study.sqlite.lock"
    sent, at_least = [], threading.Condition()

    def send(name, data):
        with at_least:
            sent.append((name, data))
            at_least.notify_all()

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lock.write_text(json.dumps({"pid": child.pid, "host": socket.gethostname()}))
    gone = threading.Event()
    thread = threading.Thread(target=Follow(tmp_path).play, args=({}, send, gone.is_set))
    thread.start()
    with at_least:
        assert at_least.wait_for(lambda: sent, timeout=20)
    assert sent[0][1]["mode"] == "live"
    child.kill()  # without a word, and without another change to the study
    child.communicate()
    thread.join(timeout=20)
    gone.set()
    assert [name for name, _ in sent] == ["film", "verdict", "end"]
    assert "not finished" in sent[1][1]["text"]


def test_reading_takes_no_lock_while_another_holds_the_strictest(store, tmp_path):
    store.commit(force=True)
    other = sqlite3.connect(tmp_path / "study.sqlite", isolation_level=None)
    store._db.execute("COMMIT")
    other.execute("BEGIN EXCLUSIVE")  # an ordinary reader would wait for this one
    snapshot = Snapshot(tmp_path / "study.sqlite")
    assert len(snapshot.runs()) == 1
    snapshot.close()
    other.execute("ROLLBACK")
    other.close()
    store._db.execute("BEGIN")


def test_a_study_that_grows_is_played_as_it_grows(store, tmp_path):
    sent, at_least = [], threading.Condition()

    def send(name, data):
        with at_least:
            sent.append((name, data))
            at_least.notify_all()

    def wait_for(count):
        with at_least:
            assert at_least.wait_for(lambda: len(sent) >= count, timeout=20)

    gone = threading.Event()
    thread = threading.Thread(target=Follow(tmp_path).play, args=({}, send, gone.is_set))
    thread.start()
    wait_for(1)
    history = store.history(store.runs()[0])
    add_trial(store, history, 0.5)
    store.commit(force=True)
    wait_for(2)
    gone.set()
    thread.join(timeout=20)
    assert [name for name, _ in sent[:2]] == ["film", "more"]
    assert sent[0][1]["mode"] == "live"
    assert sent[0][1]["unit"] == "device minutes (cpu)"
    assert [t["config"] for _, t in sent[1][1]["trials"]] == [[0.5]]


# -- studies whose trials people do --------------------------------------------------------------


def by_hand(folder, mode="max", minutes=0.0):
    """One result from before, one told, one infeasible, one waiting."""
    with Study(SPACE, "random", path=folder / "lab.sqlite", mode=mode) as study:
        study.add({"x": 0.25}, 2.0)
        asked = [study.ask() for _ in range(3)]
        study.tell(asked[0].number, 3.0, minutes)
        study.tell(asked[1].number, minutes=minutes, state="infeasible", reason="it boils")
    return folder / "lab.sqlite"


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_where_nobody_told_minutes_experiments_stand_for_them(tmp_path, mode, sign):
    film = Follow(by_hand(tmp_path, mode)).film()
    assert (film["mode"], film["title"], film["unit"]) == ("live", "lab", "experiments")
    assert (film["is_by_hand"], film["is_counted"], film["sign"]) == (True, True, sign)
    assert (film["budget"], film["epochs"]) == (0, None)
    assert [(run["spent"], run["finished"]) for run in film["runs"]] == [(4.0, False)]
    times = [(t["started"], t["ended"], t["state"]) for _, t in film["trials"]]
    assert times == [
        (0.0, 1.0, "COMPLETED"),
        (1.0, 2.0, "COMPLETED"),
        (2.0, 3.0, "INFEASIBLE"),
        (3.0, None, "RUNNING"),
    ]
    scores = [[sign * score for _, score, _ in t["curve"]] for _, t in film["trials"]]
    assert scores == [[2.0], [3.0], [], []]
    assert film["trials"][0][1]["note"] == "added"


def test_minutes_that_were_told_are_the_film_s(tmp_path):
    film = Follow(by_hand(tmp_path, minutes=5.0)).film()
    assert (film["unit"], film["is_counted"]) == ("minutes", False)
    assert film["runs"][0]["spent"] == 10.0
    assert [t["minutes"] for _, t in film["trials"]] == [0.0, 5.0, 5.0, 0.0]


def test_a_study_by_hand_is_followed_without_a_driver_and_anew_with_its_first_minutes(tmp_path):
    path = by_hand(tmp_path)
    sent, at_least = [], threading.Condition()

    def send(name, data):
        with at_least:
            sent.append((name, data))
            at_least.notify_all()

    def tell_and_wait(number, minutes, count):
        with Study(SPACE, "random", path=path) as study:
            study.tell(number, 1.0, minutes)
            study.ask()
        with at_least:
            assert at_least.wait_for(lambda: len(sent) >= count, timeout=20)

    gone = threading.Event()
    thread = threading.Thread(target=Follow(path).play, args=({}, send, gone.is_set))
    thread.start()
    with at_least:
        assert at_least.wait_for(lambda: sent, timeout=20)
    tell_and_wait(3, 0.0, 2)
    tell_and_wait(4, 2.0, 3)
    gone.set()
    thread.join(timeout=20)
    assert [name for name, _ in sent] == ["film", "more", "film"]
    assert [t["number"] for _, t in sent[1][1]["trials"]] == [3, 4]
    assert [film["is_counted"] for _, film in sent[::2]] == [True, False]


def test_another_study_in_the_place_of_one_is_shown_anew(tmp_path):
    path, new = tmp_path / "lab.sqlite", tmp_path / "new.sqlite"

    def make(space, score, path):
        with Study(space, "random", path=path) as study:
            study.tell(study.ask().number, score)
            return study.trials[0].config

    first = make(SPACE, 0.25, path)
    sent, at_least = [], threading.Condition()

    def send(name, data):
        with at_least:
            sent.append((name, data))
            at_least.notify_all()

    gone = threading.Event()
    thread = threading.Thread(target=Follow(path).play, args=({}, send, gone.is_set))
    thread.start()
    with at_least:
        assert at_least.wait_for(lambda: sent, timeout=20)
    second = make(SearchSpace(y=Float(5.0, 9.0)), 0.75, new)
    new.replace(path)
    with at_least:
        assert at_least.wait_for(lambda: len(sent) >= 2, timeout=20)
    gone.set()
    thread.join(timeout=20)
    assert [name for name, _ in sent] == ["film", "film"]
    shown = [film["trials"][0][1]["config"] for _, film in sent]
    assert shown == [list(first.values()), list(second.values())]


def test_what_a_model_believes_of_a_study_by_hand(tmp_path):
    with Study(SPACE, "bayes", path=tmp_path / "study.sqlite", mode="min") as study:
        for _ in range(6):
            trial = study.ask()
            study.tell(trial.number, (trial.config["x"] - 0.25) ** 2)
        proposed = study.ask()
    query = {"run": "1", "at": "6", "x": "x", "y": "x"}
    found = Follow(tmp_path).belief(query)
    assert found["trials"] == 6
    assert found["next"] == proposed.config
    assert found["mean"][0].index(max(found["mean"][0])) < 16  # of losses, negated


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no study"):
        Snapshot(tmp_path / "study.sqlite")


def test_a_file_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "study.sqlite").write_bytes(b"not a database" * 99)
    with pytest.raises(ValueError, match="damaged or is no study"):
        Snapshot(tmp_path / "study.sqlite")
