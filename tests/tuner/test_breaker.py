"""When failures stop a search, and what it takes to go on."""

import pytest

from tests.helpers import RandomCosts
from tuner.breaker import Breaker
from tuner.budget import Kind
from tuner.fidelity import FullFidelity
from tuner.runner import Event, EventKind
from tuner.scheduler import Recorder, Scheduler, TrainingBrokenError
from tuner.searchers import make_searcher
from tuner.store import Store

SPACE = RandomCosts.space


def outcomes(breaker, text):
    """Notes trials by letters: `.` for one that passed, a letter for a reason to fail."""
    tripped = ""
    for letter in text:
        if letter == ".":
            breaker.passed()
            tripped = breaker.ended(None)
        else:
            tripped = breaker.ended(letter)
        if tripped:
            break
    return tripped


@pytest.mark.parametrize(
    ("text", "trips"),
    [
        ("aaaa", False),
        ("aaaaa", True),
        ("aaaa.aaaa", False),
        ("aaaabaaaa", False),  # four for one reason, and four
        ("ab" * 5, False),  # ten of ten, for two reasons
        ("ab" * 5 + "a", True),  # eleven of the last twenty
        ("a." * 20, False),  # ten of the last twenty
        ("." * 20 + "ab." * 5, False),  # ten failures, spread over the last fifteen
        ("." * 9 + "ab" * 5 + "a", True),
    ],
)
def test_five_in_a_row_for_one_reason_or_more_than_half_of_twenty(text, trips):
    assert bool(outcomes(Breaker(), text)) is trips


def test_reasons_that_differ_in_their_numbers_are_one():
    breaker = Breaker()
    hashes = ("0123456789ab", "beefbeefbeef", "aaaaaaaaaaaa", "f00ba4f00ba4", "999999999999")
    reasons = [f"{i} times: r-{i:05}-{h}.safetensors is no file" for i, h in enumerate(hashes)]
    assert [bool(breaker.ended(reason)) for reason in reasons] == [False] * 4 + [True]


def test_after_it_tripped_one_trial_has_to_pass():
    breaker = Breaker(tripped=True)
    assert breaker.is_probing
    assert "failed too: x" in breaker.ended("x")
    breaker.passed()
    assert not breaker.is_probing
    assert not breaker.ended("x")


class Broken:
    """A runner of eight slots in which every epoch fails, until it is mended."""

    slots, clock, first_guess_ns = 8, 0, 10

    def __init__(self):
        self.is_mended, self.held_ns, self._numbers, self.most = False, 0, [], 0

    @property
    def free_slots(self):
        return self.slots - len(self._numbers)

    def hold(self, allowance_ns, clock):
        self.held_ns, self._numbers = 0, []

    def release(self):
        return []

    def launch(self, trial, until_epoch):
        self._numbers.append(trial.number)
        self.most = max(self.most, len(self._numbers))

    def wait(self):
        number = self._numbers.pop(0)
        self.held_ns += 10
        kind = EventKind.EPOCH if self.is_mended else EventKind.FAILED
        costs = {Kind.TRAIN: 10}
        return [Event(number, kind, costs, self.held_ns, ends=True, score=0.5, reason="no driver")]

    def stop(self, number):
        pass

    def discard(self, trial):
        pass


def test_a_study_stops_spending_and_goes_on_with_one_trial_once_it_is_mended(tmp_path):
    store = Store(tmp_path / "study.sqlite", create=True)
    row = store.add_run("random", 0, SPACE, 1, 10_000)
    runner = Broken()

    def scheduler():
        recorder = Recorder(store.budget(row), store, row.id, 0)
        searcher = make_searcher("random", SPACE, 0)
        return Scheduler(searcher, FullFidelity(), runner, store.history(row), recorder, seed=0)

    with pytest.raises(TrainingBrokenError, match="5 trials in a row failed, the last with: no d"):
        scheduler().run()
    assert runner.most == 8
    spent = store.budget(row).spent_ns
    runner.most = 0
    again = scheduler()
    with pytest.raises(
        TrainingBrokenError, match=r"the first trial since .* failed too: no driver"
    ):
        again.run()
    assert runner.most == 1
    assert store.budget(row).spent_ns == spent + 10  # one probe
    runner.is_mended = True
    last = scheduler()
    last.run()
    assert runner.most == 8
    assert last.finished
    assert store.budget(row).spent_ns == 10_000
    store.close()
