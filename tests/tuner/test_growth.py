"""What a trial costs does not grow with the history: rows are counted, not seconds."""

import pytest

from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts
from tuner.budget import Budget
from tuner.entry import make_entry
from tuner.fidelity import POLICIES, Done, Sample
from tuner.history import History
from tuner.scheduler import Recorder, Scheduler


class Counted(list):
    """The rows of a history; counts how many of them are looked at."""

    seen = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        self.seen += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self):
        for row in super().__iter__():
            self.seen += 1
            yield row


class UpTo:
    """Another policy until so many trials have begun; notes the rows seen by then."""

    def __init__(self, inner, rows, most):
        self._inner, self._rows, self._most, self.marks = inner, rows, most, []

    def next_action(self, history):
        action = self._inner.next_action(history)
        if isinstance(action, Sample):
            self.marks.append(self._rows.seen)
            if len(history) >= self._most:
                return Done()
        return action


class Falling(RandomCosts):
    """Every trial is at its best after its first epoch, so that the incumbent always falls."""

    def curve(self, config, replicate, repeat=0):
        scores, costs = super().curve(config, replicate, repeat)
        return -scores[::-1].cumsum(), costs


@pytest.mark.parametrize("make", [RandomCosts, Falling])
@pytest.mark.parametrize("budget_ns", [None, 10**12])
@pytest.mark.parametrize("name", POLICIES)
def test_the_rows_that_a_trial_takes_a_look_at_are_as_few_late_as_early(name, budget_ns, make):
    landscape = make(9, 50)
    history = History(landscape.epochs, budget_ns)
    history._trials = Counted()
    searcher, policy = make_entry(f"random+{name}", landscape.space, 0, epochs=landscape.epochs)
    policy = UpTo(policy, history._trials, 1_000)
    Scheduler(
        searcher,
        policy,
        ReplayRunner(landscape, 0),
        history,
        Recorder(Budget(budget_ns)),
        seed=0,
    ).run()
    assert len(history) == 1_000
    early = policy.marks[500] - policy.marks[250]
    late = policy.marks[1_000] - policy.marks[750]
    assert late < 1.3 * early  # four times as much where all of the history is looked at
