"""The loop, on a virtual clock: budgets under random epochs, slots and kills, and twins."""

import sqlite3
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscapes.replay_runner import ReplayRunner
from tests.helpers import SPACE, RandomCosts, search
from tests.tuner.entries import Few, begin
from tuner import Infeasible, tune
from tuner.budget import Budget, Kind
from tuner.entry import make_entry
from tuner.fidelity import FullFidelity, Repeat, Sample
from tuner.history import History
from tuner.race import Result, enter
from tuner.reader import RunRow
from tuner.runner import Event, EventKind
from tuner.scheduler import MAX_FAULTS, Recorder, Scheduler, TrainingBrokenError, mark_interrupted
from tuner.searchers import make_searcher
from tuner.searchers.known_start import KnownStart
from tuner.searchers.shared_start import SharedStart
from tuner.space import Choice, SearchSpace
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

sizes = st.tuples(
    st.integers(1, 6),  # epochs
    st.integers(1, 60),  # highest cost of an epoch
    st.integers(1, 5),  # slots
    st.integers(1, 3_000),  # budget
    st.integers(0, 10**6),  # seed
)


@settings(max_examples=100, deadline=None)
@given(sizes)
def test_the_budget_is_never_overspent_and_never_left_over(size):
    epochs, highest, slots, budget_ns, seed = size
    scheduler = search(RandomCosts(epochs, highest), budget_ns=budget_ns, slots=slots, seed=seed)
    scheduler.run()
    assert scheduler.finished
    ledger = scheduler.budget.ledger
    assert sum(ledger.values()) == scheduler.budget.spent_ns <= budget_ns
    costs = [o.device_ns for t in scheduler.history for o in t.curve]
    assert ledger[Kind.TRAIN] == sum(costs)
    # What is left does not buy the dearest epoch seen (or expected, where none was seen).
    assert scheduler.budget.remaining_ns < max([*costs, highest])
    assert scheduler.budget.available_ns == scheduler.budget.remaining_ns


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 400))
def test_turns_change_nothing_until_the_budget_runs_short(size, turn_ns):
    epochs, highest, _, budget_ns, seed = size
    whole = search(RandomCosts(epochs, highest), budget_ns=budget_ns, seed=seed)
    whole.run()
    turns = search(RandomCosts(epochs, highest), budget_ns=budget_ns, seed=seed)
    for _ in range(budget_ns + 1):
        turns.run(turn_ns)
        if turns.finished:
            break
    assert turns.finished
    # Every turn looks anew at what can be afforded, so the last trials may end differently.
    both = [[(t.config, t.curve, t.state) for t in s.history][:-3] for s in (whole, turns)]
    shared = min(map(len, both))
    assert both[0][:shared] == both[1][:shared]
    assert abs(len(both[0]) - len(both[1])) <= 1
    assert sum(turns.budget.ledger.values()) <= budget_ns


@pytest.mark.parametrize(("left_ns", "wants"), [(29, False), (30, True)])
def test_what_goes_first_says_whether_the_rest_of_a_budget_is_worth_a_start(left_ns, wants):
    """An epoch costs 14 ns on average, but one of the trial that goes first 30."""
    searcher, policy = make_entry("random", SPACE, 0, epochs=4)
    budget_ns = 4 * 10 + 30 + left_ns
    row = RunRow(0, "random", 0, SPACE, 4, budget_ns, 0, None, None)
    runner = ReplayRunner(RandomCosts(4, 50), 0)
    run = enter(None, row, searcher, runner, policy=policy, is_replay=True, on_change=lambda: None)
    for number, (cost, epochs) in enumerate([(10, 4), (30, 1)]):
        curve = tuple(Observation(e, 0.5, cost) for e in range(1, epochs + 1))
        state = TrialState.COMPLETED if epochs == 4 else TrialState.PAUSED
        config = {"x": 0.1 * number, "y": 0.5}
        run.scheduler.history.adopt(Trial(number, config, 0, 4, state, curve))
        run.recorder.charge({Kind.TRAIN: cost * epochs}, number)
    assert run.scheduler.expected_epoch_ns == 14
    assert run.can_go_on == wants
    if not wants:  # and it is right: nothing is begun
        run.scheduler.run()
        assert run.scheduler.finished
        assert run.recorder.budget.remaining_ns == left_ns


class Repeats:
    """Trains once, and then the same again as long as it lasts."""

    def next_action(self, history):
        return Repeat(0, 4) if history.own and history[0].state.is_final else Sample(4)


@pytest.mark.parametrize(("left_ns", "wants"), [(39, False), (40, True)])
def test_a_repeat_is_worth_a_start_where_the_rest_pays_for_all_of_it(left_ns, wants):
    landscape = RandomCosts(4, 10, equal=True)
    budget_ns = 40 + left_ns
    scheduler = begin("random", landscape, budget_ns=budget_ns, policy=Repeats())
    config = {"x": 0.1, "y": 0.5}
    curve = tuple(Observation(e, 0.5, 10) for e in range(1, 5))
    scheduler.history.adopt(Trial(0, config, 0, 4, TrialState.COMPLETED, curve))
    scheduler._recorder.charge({Kind.TRAIN: 40}, 0)
    assert scheduler.can_go_on == wants
    scheduler.run()
    assert scheduler.finished
    assert len(scheduler.history) == 1 + wants


class Killed(Exception):
    pass


def open_run(path, landscape, slots, seed, budget_ns, name, on_change, *, create):
    store = Store(path, create=create)
    if create:
        store.add_run(name, seed, landscape.space, landscape.epochs, budget_ns)
        store.commit()
    row = store.runs()[0]
    run = enter(
        store,
        row,
        make_searcher(name, landscape.space, seed),
        ReplayRunner(landscape, seed, slots),
        is_replay=True,
        on_change=on_change,
    )
    return store, run.scheduler


def die(store):
    """What kill -9 leaves: nothing that was not committed."""
    store._db.close()
    store._lock.release()


@settings(max_examples=40, deadline=None)
@given(
    sizes, st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(["random", "grid"])
)
def test_a_replay_killed_anywhere_ends_as_its_uninterrupted_twin(
    tmp_path_factory, size, kills, name
):
    epochs, highest, slots, budget_ns, seed = size
    landscape = RandomCosts(epochs, highest)
    twin = search(landscape, budget_ns=budget_ns, slots=slots, seed=seed, name=name)
    twin.run()
    path = tmp_path_factory.mktemp("killed") / "study.sqlite"
    for attempt, after in enumerate([*kills, None]):
        left = [after]

        def on_change(left=left):
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

        store, scheduler = open_run(
            path, landscape, slots, seed, budget_ns, name, on_change, create=attempt == 0
        )
        try:
            scheduler.run()
        except Killed:
            die(store)
            continue
        assert scheduler.history.trials == twin.history.trials
        assert scheduler.budget.ledger == twin.budget.ledger
        store.close()
        break
    reread = Store(path, create=False)
    row = reread.runs()[0]
    assert reread.history(row).trials == twin.history.trials
    assert reread.budget(row).ledger == twin.budget.ledger
    reread.close()


@pytest.mark.parametrize("slots", [2, 5, 10])
def test_bayes_killed_after_every_few_events_ends_as_its_twin(tmp_path, slots):
    test_one = test_a_replay_killed_anywhere_ends_as_its_uninterrupted_twin.hypothesis.inner_test

    class Factory:
        def mktemp(self, _):
            return tmp_path

    test_one(Factory(), (3, 40, slots, 700, 5), [3, 9, 9, 14], "bayes")


class Asked:
    """A searcher that notes, when it is asked, how many slots are free and what it is shown."""

    fallback = ""

    def __init__(self, inner):
        self._inner, self.runner, self.moments = inner, None, []

    def propose(self, history):
        self.moments.append((self.runner.free_slots, len(history), history.epochs_seen))
        return self._inner.propose(history)


class Decides(Asked):
    """One that also decides how long a trial trains."""

    def next_action(self, history):
        return FullFidelity().next_action(history)


def asked(make, slots, budget_ns=2_000):
    landscape = RandomCosts(3, 40)
    searcher, runner = make(make_searcher("random", SPACE, 0)), ReplayRunner(landscape, 0, slots)
    inmost = searcher
    while hasattr(inmost, "inner"):
        inmost = inmost.inner
    inmost.runner = runner
    history = History(3, budget_ns)
    scheduler = Scheduler(
        searcher, FullFidelity(), runner, history, Recorder(Budget(budget_ns)), seed=0
    )
    scheduler.run()
    return scheduler, inmost.moments


def test_with_four_slots_every_proposal_after_the_first_four_is_made_while_all_train():
    scheduler, moments = asked(Asked, 4)
    assert [free for free, _, _ in moments[:5]] == [4, 3, 2, 1, 0]
    # While money lasts a slot is free for no moment; then what fits is looked for again.
    ahead = [m for m in moments[4:] if m[0] == 0]
    assert len(ahead) >= len(scheduler.history) - 5 > 20
    assert len({n for _, n, _ in moments}) == len(moments)  # each trial is proposed once
    # Trial n is proposed before the slot that it gets is free: from what is known n launches in.
    for _, n, seen in ahead[:-1]:
        begun = scheduler.history[n]
        before = sum(o.at_ns < begun.started_ns for t in scheduler.history for o in t.curve)
        assert seen < before + 1


def behind_a_start(inner):
    """One that decides, behind configurations that are given to begin with."""
    known = KnownStart(Decides(inner), SPACE, [{"x": 0.5, "y": 0.5}])
    return SharedStart(known, SPACE, 0, 5)


@pytest.mark.parametrize(
    ("make", "slots"), [(Asked, 1), (Asked, 3), (Decides, 8), (behind_a_start, 8)]
)
def test_with_fewer_slots_or_where_it_also_decides_a_searcher_is_asked_when_a_slot_is_free(
    make, slots
):
    _, moments = asked(make, slots)
    assert len(moments) > 10
    assert all(free > 0 for free, _, _ in moments)


class Several(Asked):
    """One that can propose many at once."""

    def propose_many(self, history, count):
        self.moments.append((self.runner.free_slots, len(history), history.epochs_seen))
        self.counts = [*getattr(self, "counts", []), count]
        return [self._inner.propose(history) for _ in range(count)]


def test_where_many_slots_are_free_at_once_as_many_are_proposed_together():
    landscape = RandomCosts(4, 50, equal=True)  # those that begin together end together
    searcher, runner = Several(make_searcher("random", SPACE, 0)), ReplayRunner(landscape, 0, 20)
    searcher.runner = runner
    history = History(4, 10_000)
    scheduler = Scheduler(
        searcher, FullFidelity(), runner, history, Recorder(Budget(10_000)), seed=0
    )
    scheduler.run()
    # 20 slots: 16 together and the last 4 one by one; then one ahead, 16 together, 3 one by one.
    assert searcher.counts[:2] == [16, 16]
    assert [n for _, n, _ in searcher.moments[:8]] == [0, 16, 17, 18, 19, 20, 21, 37]


class Scripted:
    """A runner that reports what a test says, one batch of events a wait."""

    slots, clock, first_guess_ns = 1, 0, 10

    def __init__(self, *answers):
        self._answers, self._number, self.launched, self.discarded = list(answers), None, [], []
        self.held_ns = 0

    @property
    def free_slots(self):
        return 1 if self._number is None else 0

    def hold(self, allowance_ns, clock):
        self.held_ns = 0

    def release(self):
        return []

    def launch(self, trial, until_epoch):
        self._number = trial.number
        self.launched.append((trial.number, trial.epoch, until_epoch))

    def stop(self, number):
        pass

    def interrupt(self):
        pass

    def wait(self):
        answer = (
            self._answers.pop(0) if self._answers else {"kind": EventKind.EXHAUSTED, "ends": True}
        )
        event = Event(number=self._number, held_ns=self.held_ns, **{"costs": {}, **answer})
        if event.ends:
            self._number = None
        return [event]

    def discard(self, trial):
        self.discarded.append(trial.number)

    def close(self):
        pass


def scripted(*answers, max_epochs=2, budget_ns=10**6, space=SPACE):
    runner = Scripted(*answers)
    history = History(max_epochs, budget_ns)
    scheduler = Scheduler(
        make_searcher("random", space, 0),
        FullFidelity(),
        runner,
        history,
        Recorder(Budget(budget_ns)),
        seed=0,
    )
    return scheduler, runner


ONE = SearchSpace(a=Choice(("only",)))


def epoch(score, **more):
    return {"kind": EventKind.EPOCH, "costs": {Kind.TRAIN: 10}, "score": score, **more}


def test_an_interrupted_trial_goes_on_from_its_last_epoch_at_most_three_times():
    fault = {
        "kind": EventKind.INTERRUPTED,
        "costs": {Kind.LOST: 4},
        "ends": True,
        "reason": "killed by SIGSEGV",
    }
    scheduler, runner = scripted(epoch(0.5), *[fault] * (MAX_FAULTS + 1), space=ONE)
    scheduler.run()
    (trial,) = scheduler.history
    assert trial.state is TrialState.FAILED
    assert trial.reason == "4 times: killed by SIGSEGV"
    assert runner.launched == [(0, 0, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)]
    assert scheduler.budget.ledger[Kind.LOST] == 16


def test_an_infeasible_trial_is_never_tried_again_and_counts_for_nothing():
    broken = {"kind": EventKind.INFEASIBLE, "ends": True, "reason": "the loss is not finite"}
    scheduler, runner = scripted(epoch(0.9), broken, space=ONE)
    scheduler.run()
    (trial,) = scheduler.history
    assert (trial.state, trial.score) == (TrialState.INFEASIBLE, None)
    assert scheduler.history.best is None
    assert runner.launched == [(0, 0, 2)]
    assert runner.discarded == [0]


def test_the_time_paid_before_a_pause_is_part_of_the_epoch_it_was_paid_for():
    pause = {
        "kind": EventKind.PAUSED,
        "costs": {Kind.TRAIN: 7, Kind.CHECKPOINT: 1},
        "ends": True,
        "reason": "interrupted",
    }
    scheduler, _ = scripted(pause, epoch(0.5), epoch(0.6, ends=True), space=ONE)
    scheduler.run()
    (trial,) = scheduler.history
    assert [o.device_ns for o in trial.curve] == [18, 10]
    assert trial.partial_ns == 0
    assert scheduler.budget.spent_ns == 28


def test_five_failures_in_a_row_end_the_search_with_the_reason():
    failure = {"kind": EventKind.FAILED, "ends": True, "reason": "NameError: name 'x'"}
    scheduler, _ = scripted(failure, failure, epoch(0.1, ends=True), *[failure] * 5, max_epochs=1)
    with pytest.raises(
        TrainingBrokenError, match=r"5 trials in a row failed, .*NameError: name 'x'"
    ):
        scheduler.run()
    assert len(scheduler.history) == 8


def test_trials_that_fail_because_their_workers_die_count_as_failures():
    fault = {"kind": EventKind.INTERRUPTED, "ends": True, "reason": "no space left on device"}
    scheduler, _ = scripted(*[fault] * 40)
    with pytest.raises(TrainingBrokenError, match="no space left on device"):
        scheduler.run()
    assert len(scheduler.history) == 5


def test_a_checkpoint_midway_never_takes_the_place_of_the_one_that_was_scored():
    from tuner.trial import Checkpoint

    marks = [Checkpoint(f"c{i}", "0") for i in range(3)]
    pause = {"kind": EventKind.PAUSED, "ends": True, "checkpoint": marks[1]}
    scheduler, runner = scripted(
        epoch(0.5, checkpoint=marks[0]), pause, epoch(0.6, checkpoint=marks[2]), space=ONE
    )
    seen = []
    scheduler._on_change = lambda: seen.append(
        (scheduler.history[0].checkpoint, scheduler.history[0].midway)
    )
    scheduler.run()
    assert (marks[0], marks[1]) in seen
    assert (marks[2], None) in seen
    # The scored and the midway one go together, when the next epoch has a checkpoint of its own.
    assert runner.discarded[:2] == [0, 0]


def test_checkpoints_are_discarded_once_nothing_goes_on_from_them():
    from tuner.trial import Checkpoint

    marks = [Checkpoint(f"c{i}", "0") for i in range(6)]
    answers = [
        epoch(0.5, checkpoint=marks[0]),
        epoch(0.6, checkpoint=marks[1], ends=True),  # the incumbent: kept
        epoch(0.3, checkpoint=marks[2]),
        epoch(0.4, checkpoint=marks[3], ends=True),  # worse, and over: gone
        epoch(0.7, checkpoint=marks[4]),  # the new incumbent, but it may still get worse
        epoch(0.8, checkpoint=marks[5], ends=True),  # it did not: trial 0 goes
    ]
    scheduler, runner = scripted(*answers, space=SearchSpace(a=Choice(("p", "q", "r"))))
    scheduler.run()
    assert runner.discarded == [0, 1, 1, 2, 0]
    assert scheduler.history.best.checkpoint == marks[5]


def test_an_incumbent_that_gets_worse_gives_way_to_one_whose_checkpoint_is_there():
    from tuner.trial import Checkpoint

    marks = [Checkpoint(f"c{i}", "0") for i in range(4)]
    answers = [
        epoch(0.5, checkpoint=marks[0]),
        epoch(0.6, checkpoint=marks[1], ends=True),
        epoch(0.7, checkpoint=marks[2]),
        epoch(0.55, checkpoint=marks[3], ends=True),
    ]
    scheduler, runner = scripted(*answers, space=SearchSpace(a=Choice(("p", "q"))))
    scheduler.run()
    assert scheduler.history.best.checkpoint == marks[1]
    assert runner.discarded == [0, 1, 1]  # superseded, superseded, beaten


def test_a_driver_that_died_is_charged_once_for_what_it_had_held(tmp_path):
    store = Store(tmp_path / "study.sqlite", create=True)
    row = store.add_run("random", 0, SPACE, 2, 10**9)
    recorder = Recorder(store.budget(row), store, row.id)
    recorder.charge({Kind.TRAIN: 100}, None)
    recorder.commit()
    recorder.held(175)
    die(store)
    for expected in (75, 75):  # the second time there is nothing new to charge
        store = Store(tmp_path / "study.sqlite", create=False)
        history = store.history(row)
        recorder = Recorder(store.budget(row), store, row.id)
        mark_interrupted(history, recorder, runner_keeps=False)
        assert recorder.budget.ledger[Kind.LOST] == expected
        store.close()


def test_a_second_row_for_the_same_epoch_is_refused(tmp_path):
    from tuner.trial import Observation, Trial

    store = Store(tmp_path / "study.sqlite", create=True)
    row = store.add_run("random", 0, SPACE, 2, 10**9)
    store.put_trial(row.id, Trial(0, {"x": 0.1, "y": 0.2}, 0, 2))
    store.put_observation(row.id, 0, Observation(1, 0.5, 10))
    store.put_observation(row.id, 0, Observation(1, 0.5, 10))
    with pytest.raises(sqlite3.IntegrityError):
        store.commit()


def test_time_that_the_driver_took_from_the_last_epochs_is_charged_as_search():
    """Of 100 ns two epochs cost 20; the driver then comes back when 95 have passed."""

    class Late(Scripted):
        def wait(self):
            self.held_ns += 10 if self.held_ns == 0 else 85
            return super().wait()

    runner = Late(epoch(0.5, ends=True), epoch(0.6, ends=True))
    scheduler = Scheduler(
        make_searcher("random", SPACE, 0),
        FullFidelity(),
        runner,
        History(1, 100),
        Recorder(Budget(100)),
        seed=0,
    )
    scheduler.run()
    assert scheduler.finished
    assert scheduler.budget.ledger[Kind.TRAIN] == 20
    assert scheduler.budget.ledger[Kind.SEARCH] == 75  # the devices waited for it until then
    assert scheduler.budget.remaining_ns == 5  # which buys no epoch


def test_what_a_run_in_another_process_came_to_is_taken_over_whole(tmp_path):
    landscape, ends = Few(4, 50), []
    for name in ("alone", "elsewhere"):
        store = Store(tmp_path / f"{name}.sqlite", create=True)
        row = store.add_run("random", 0, landscape.space, 4, 10**6)
        store.commit()
        searcher = make_searcher("random", landscape.space, 0)
        run = enter(
            store, row, searcher, ReplayRunner(landscape, 0), is_replay=True, on_change=lambda: None
        )
        if name == "alone":
            run.scheduler.run()
        else:
            there = enter(
                None,
                row,
                searcher,
                ReplayRunner(landscape, 0),
                is_replay=True,
                on_change=lambda: None,
            )
            there.scheduler.run()
            Result.of(there).give_to(run)
        history = run.scheduler.history
        ends.append((history.trials, history.is_exhausted, run.scheduler.budget.ledger))
        store.close()
        store = Store(tmp_path / f"{name}.sqlite", create=False)
        ends[-1] += (store.history(row).trials, store.meta("exhausted-1"), store.budget(row).ledger)
        store.close()
    assert ends[0] == ends[1]
    assert ends[0][1] is ends[0][4] is True


def test_proposals_that_were_made_ahead_in_another_process_are_taken_over(tmp_path):
    landscape, kept = RandomCosts(3, 40), []
    for name in ("alone", "elsewhere"):
        store = Store(tmp_path / f"{name}.sqlite", create=True)
        row = store.add_run("random", 0, landscape.space, 3, 2_000)
        runs = [
            enter(
                where,
                row,
                make_searcher("random", landscape.space, 0),
                ReplayRunner(landscape, 0, 4),
                is_replay=True,
                on_change=lambda: None,
            )
            for where in ((store,) if name == "alone" else (store, None))
        ]
        runs[-1].scheduler.run()
        if name == "elsewhere":
            Result.of(runs[1]).give_to(runs[0])
        kept.append((store.meta("proposals-1"), runs[0].scheduler.history.trials))
        store.close()
    assert kept[0] == kept[1]
    assert kept[0][0] is not None


def test_a_training_that_ends_without_a_score_has_failed():
    with pytest.raises(TrainingBrokenError, match="ended without a score"):
        tune(lambda config: None, SPACE, budget_minutes=0.01, searcher="random")


def test_what_a_training_does_after_its_last_score_is_its_own(tmp_path):
    def train(config):
        yield 0.5
        time.sleep(0.01)

    space, path = {"a": Choice(("x", "y", "z"))}, tmp_path / "study.sqlite"
    study = tune(train, space, budget_minutes=0.1, searcher="random", directory=tmp_path)
    assert [t.state for t in study.trials] == [TrialState.COMPLETED] * 3
    assert all(t.partial_ns >= 10**7 for t in study.trials)
    with closing(Store(path, create=False)) as store:
        ledger = store.budget(store.runs()[0]).ledger
    assert ledger[Kind.LOST] == 0
    assert ledger[Kind.TRAIN] == sum(t.device_ns + t.partial_ns for t in study.trials)


def test_what_goes_wrong_as_a_training_is_ended_ends_nothing_else(capsys):
    def train(config):
        try:
            yield 0.5
        finally:
            raise OSError("the server is gone")

    space = {"a": Choice(("x", "y", "z"))}
    study = tune(train, space, budget_minutes=0.1, max_epochs=1, searcher="random")
    assert [t.state for t in study.trials] == [TrialState.COMPLETED] * 3
    assert capsys.readouterr().err.count("OSError: the server is gone") == 3


def test_a_reason_that_is_no_text_or_very_long_is_kept_as_far_as_it_can_be(tmp_path):
    def train(config):
        if config["a"] == "x":
            raise Infeasible("no file caf\udce9.png")
        if config["a"] == "y":
            raise Infeasible(10_000 * "long ")
        yield 0.5

    space = {"a": Choice(("x", "y", "z"))}
    study = tune(train, space, budget_minutes=0.1, searcher="random", directory=tmp_path)
    reasons = {t.config["a"]: t.reason for t in study.trials}
    assert reasons["x"] == "no file caf\\udce9.png"
    assert reasons["y"] == 400 * "long "
