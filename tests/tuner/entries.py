"""What the tests of fidelity policies share: the entries, and a search by the name of one."""

from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts
from tuner.budget import Budget
from tuner.entry import DECIDES_ITSELF, make_entry
from tuner.fidelity import POLICIES
from tuner.history import History
from tuner.scheduler import Recorder, Scheduler
from tuner.searchers import SEARCHERS
from tuner.space import Choice, SearchSpace

ETA, FIRST = 3, 1
OWN_MINDS = sorted(DECIDES_ITSELF & SEARCHERS.keys())
POLICED = [f"random+{policy}" for policy in POLICIES]
ENTRIES = POLICED + OWN_MINDS


class Few(RandomCosts):
    """A finite space of seven configurations."""

    space = SearchSpace(a=Choice(tuple("abcdefg")))


def entry_for(name, landscape, seed, budget_ns=None):
    return make_entry(name, landscape.space, seed, epochs=landscape.epochs, min_epochs=FIRST)


def begin(name, landscape, *, budget_ns, slots=1, seed=0, runner=ReplayRunner, policy=None):
    """A search in memory, ready to run."""
    searcher, own = entry_for(name, landscape, seed)
    return Scheduler(
        searcher,
        policy or own,
        runner(landscape, seed, slots),
        History(landscape.epochs, budget_ns),
        Recorder(Budget(budget_ns)),
        seed=seed,
    )


def check_curves(scheduler, landscape, seed):
    """Paused or not, each trial's curve is its configuration's, without a gap."""
    for trial in scheduler.history:
        scores, costs = landscape.curve(trial.config, seed)
        n = len(trial.curve)
        assert [o.epoch for o in trial.curve] == list(range(1, n + 1))
        assert [o.score for o in trial.curve] == scores[:n].tolist()
        assert [o.device_ns for o in trial.curve] == [round(s * 1e9) for s in costs[:n]]
