"""Every place of the code at which a process can be killed, and what the campaign would notice."""

import json

import pytest

from tests.torture.kills import (
    KILLED,
    End,
    Record,
    Session,
    _charged_as_held,
    deaths,
    missing,
    read,
    scores,
    unbalanced,
)
from tests.torture.victim import Job, Zygote
from tuner.failpoints import Place

MESSAGES = (Place.SEND_BEFORE, Place.SEND_AFTER, Place.RECEIVE_BEFORE, Place.RECEIVE_AFTER)


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def twins(zygote, tmp_path_factory):
    """What the searches come to that nobody kills, and how often they come by each place."""
    found = {}
    for what in ("function", "training"):
        folder = tmp_path_factory.mktemp(what)
        assert zygote.run(Job(what, str(folder), 7, counting=True)) == 0
        found[what] = scores(read(folder)), json.loads((folder / "visits").read_text())
    return found


@pytest.mark.parametrize(
    "place", [p for p in Place if p is not Place.CHECKPOINT_WRITTEN], ids=lambda place: place.value
)
def test_a_process_killed_at_any_place_loses_nothing(place, zygote, twins, tmp_path):
    """That it dies of SIGKILL shows that the code comes by the place; nobody else sends one."""
    what = "training" if place in MESSAGES else "function"
    expected, visits = twins[what]
    visit = (visits[place.value] + 1) // 2
    assert zygote.run(Job(what, str(tmp_path), 7, failpoint=f"{place.value}:{visit}:kill")) == (
        KILLED
    )
    record = read(tmp_path)
    assert missing(tmp_path, record) == unbalanced(record) == []
    assert zygote.run(Job(what, str(tmp_path), 7)) == 0
    record = read(tmp_path)
    assert missing(tmp_path, record) == unbalanced(record) == []
    assert scores(record) == expected
    assert len(record.epochs) == 24


@pytest.mark.parametrize(
    "place", [*MESSAGES, Place.CHECKPOINT_WRITTEN], ids=lambda place: place.value
)
def test_a_worker_killed_at_any_place_loses_nothing(place, zygote, twins, tmp_path):
    visit = 4 if place in MESSAGES else 2
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        failpoints = (f"{place.value}:{visit}:kill",)
        assert zygote.run(Job("training", str(folder), 7, worker_failpoints=failpoints)) == 0
        record = read(folder)
        assert missing(folder, record) == unbalanced(record) == []
        assert scores(record) == twins["training"][0]
        assert len(record.epochs) == 24
        died = len(deaths(folder))
        assert died <= 1  # one worker of the two was to be struck
        if died:
            return  # else the other worker was quicker, or nobody was waiting any more
    pytest.fail("no worker was killed in five searches")


# -- what the campaign would notice ----------------------------------------------------------------

TRIAL = {"number": 0, "config": '{"x": 1}', "partial_ns": 5, "seed": 1, "state": "RUNNING"}


def test_a_row_that_was_told_and_is_not_there_is_missed(tmp_path):
    record = Record({0: TRIAL}, {(0, 1): (0.5, 10, 20)}, {})
    told = [
        ["trial", 0, '{"x": 1}'],
        ["epoch", 0, 1, 0.5, 10, 20],
        ["config", '{"x": 1}', 1, 0.5, 10],
    ]
    lies = [
        ["trial", 1, '{"x": 1}'],
        ["trial", 0, '{"x": 2}'],
        ["epoch", 0, 2, 0.5, 10, 20],
        ["epoch", 0, 1, 0.5, 11, 20],
        ["config", '{"x": 2}', 1, 0.5, 10],
    ]
    (tmp_path / "acks").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert missing(tmp_path, record) == []
    (tmp_path / "acks").write_text("".join(json.dumps(row) + "\n" for row in [*told, *lies]))
    assert len(missing(tmp_path, record)) == len(lies)


def test_an_epoch_that_is_charged_twice_or_not_at_all_is_noticed():
    epochs = {(0, 1): (0.5, 10, 20)}
    assert unbalanced(Record({0: TRIAL}, epochs, {(0, "train"): 12, (0, "evaluate"): 3})) == []
    assert unbalanced(Record({0: TRIAL}, epochs, {(0, "train"): 24, (0, "evaluate"): 6}))
    assert unbalanced(Record({0: TRIAL}, epochs, {(0, "lost"): 15}))


@pytest.mark.parametrize(
    ("noted", "paid_ns", "is_right"),
    [
        ((30, 100), 100, True),  # all that ran
        ((20, 90), 90, True),  # without the epoch during which the first was killed
        ((10, 80), 80, False),  # two epochs unnoted
        ((30, 90), 90, False),  # an epoch of one that nobody killed
        ((30, 101), 101, False),
        ((30, 130), 130, False),  # the first driver's charged again
        ((30, 100), 99, False),
    ],
)
def test_time_that_ran_is_charged_once(noted, paid_ns, is_right):
    record = Record({}, {}, {(None, "lost"): paid_ns})
    sessions = [Session(noted[0], (20, 10), 0), Session(noted[1], (20, 10, 40, 30), 0)]
    assert (_charged_as_held(End(record, record, sessions)) == []) == is_right
