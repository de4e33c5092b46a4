"""Confirmations: who is trained again, what that may cost, and who wins."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tuner.runner
from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from landscapes.synthetic import make_landscape
from tests.helpers import RandomCosts
from tests.tuner.entries import Few
from tuner import Float, SearchSpace, tune
from tuner.budget import Budget
from tuner.confirm import (
    KEPT_FOR_MODEL,
    ScoreModel,
    chosen,
    expected_score,
    mean_score,
    with_confirmations,
    worth_keeping,
)
from tuner.entry import make_entry
from tuner.fidelity import Done, FullFidelity, Repeat
from tuner.history import History
from tuner.race import enter
from tuner.report import Outcome, run_summary, worth
from tuner.scheduler import Recorder, Scheduler
from tuner.seeding import derive_seed, trial_seed
from tuner.store import Store
from tuner.trial import Checkpoint, Observation, Trial, TrialState

ENTRIES = ["random", "grid", "random+asha", "random+median", "hyperband", "sh"]


def begin(landscape, *, budget_ns, count, slots=1, seed=0, name="random"):
    searcher, policy = make_entry(name, landscape.space, seed, epochs=landscape.epochs)
    return Scheduler(
        searcher,
        with_confirmations(policy, count),
        ReplayRunner(landscape, seed, slots),
        History(landscape.epochs, budget_ns),
        Recorder(Budget(budget_ns)),
        seed=seed,
        keep=count,
    )


def history_of(*rows):
    """Rows are (x, score, number that it confirms or None); a score of None is infeasible."""
    history = History(1, None)
    for number, (x, score, confirms) in enumerate(rows):
        config = {"x": x}
        repeat = history.trainings(config)
        history.start(Trial(number, config, 0, 1, repeat=repeat, confirms=confirms))
        if score is None:
            history.close(number, TrialState.INFEASIBLE)
        else:
            history.observe(number, Observation(1, score, 1))
            history.close(number, TrialState.COMPLETED)
    return history


# -- seeds ---------------------------------------------------------------------------------------


def test_the_first_training_keeps_its_seed_and_each_repeat_has_its_own():
    config = {"b": 2, "a": 0.5}
    assert trial_seed(3, config) == derive_seed(3, "trial", '{"a": 0.5, "b": 2}')
    seeds = [trial_seed(3, config, repeat) for repeat in range(50)]
    assert seeds[0] == trial_seed(3, dict(reversed(config.items())))
    assert len(set(seeds)) == 50


def test_a_landscape_answers_a_repeat_with_another_training():
    smooth = make_landscape("smooth")
    config, value = smooth.optimum()
    ends = [smooth.curve(config, 0, repeat)[0][-1] for repeat in range(300)]
    assert (smooth.curve(config, 0)[0] == smooth.curve(config, 0, 0)[0]).all()
    assert len(set(ends)) == 300
    assert abs(np.mean(ends) - value) < 4 * smooth.noise / math.sqrt(300) + 0.002  # the cliff's


def test_a_table_shows_its_replicates_in_turn_and_judges_by_those_that_nobody_saw():
    table = open_landscape("cnn_sample_2d")  # two replicates, of the study seeds 0 and 1
    config, ends = table.settings[100], table.scores[100, :, -1]
    for seed in (0, 1):
        shown = [table.curve(config, seed, repeat)[0][-1] for repeat in range(3)]
        assert shown == [ends[seed], ends[1 - seed], ends[seed]]
        assert table.value(config, seed) == ends[1 - seed]
        assert table.value(config, seed, 2) is None
    history = history_of((0.5, 0.9, None))
    assert worth(table, Trial(0, config, 0, 12), 0, 2) is None
    assert history.trainings({"x": 0.5}) == 1


# -- who wins ------------------------------------------------------------------------------------


def test_without_confirmations_the_best_score_wins_and_nothing_is_expected():
    history = history_of((0.1, 0.7, None), (0.2, 0.9, None), (0.3, 0.8, None))
    assert chosen(history) is history.best
    assert expected_score(history) is None
    assert mean_score(history, history.best) == 0.9
    assert chosen(history_of()) is None


def test_the_highest_mean_of_the_confirmed_wins_by_hand():
    history = history_of(
        (0.1, 0.90, None),
        (0.2, 0.88, None),
        (0.3, 0.86, None),  # above every mean, and never confirmed
        (0.1, 0.80, 0),
        (0.2, 0.83, 1),
    )
    assert chosen(history).number == 1
    assert mean_score(history, history[1]) == pytest.approx(0.855)
    expected = expected_score(history)
    # Sample variances 0.005 and 0.00125; their median is 0.003125, more than the winner's own.
    assert expected.mean == pytest.approx(0.855)
    assert expected.sd == pytest.approx(math.sqrt(0.003125 / 2))
    assert (expected.trainings, expected.by) == (2, "trainings")


def test_who_breaks_off_when_trained_again_is_out():
    history = history_of((0.1, 0.9, None), (0.2, 0.8, None), (0.1, None, 0), (0.2, 0.7, 1))
    assert chosen(history).number == 1
    alone = history_of((0.1, 0.9, None), (0.2, 0.8, None), (0.1, None, 0))
    assert chosen(alone).number == 1
    assert chosen(history_of((0.1, 0.9, None), (0.1, None, 0))).number == 0


def test_the_summary_names_the_winner_and_keeps_the_best_score_seen(tmp_path):
    history = history_of((0.1, 0.90, None), (0.2, 0.88, None), (0.1, 0.80, 0), (0.2, 0.86, 1))
    store = Store(tmp_path / "study.sqlite", create=True)
    row = store.add_run("random", 0, RandomCosts.space, 1, None)
    found = run_summary(Outcome(row, history, {}, None, None, expected_score(history)))
    store.close()
    assert (found["best_score"], found["best_trial"]) == (0.90, 1)
    assert found["best_config"] == {"x": 0.2}
    assert found["expected_score"]["mean"] == pytest.approx(0.87)
    assert found["confirmations"] == 2


def test_a_model_expects_less_than_the_luckiest_of_equals():
    landscape = make_landscape("flat")
    scheduler = begin(landscape, budget_ns=round(20 * 90e9), count=0)
    scheduler.run()
    history = scheduler.history
    found = ScoreModel.of(history, landscape.space).expected(chosen(history))
    assert landscape.noise / 2 < found.sd < 2 * landscape.noise
    assert 0.85 - 4 * found.sd < found.mean < scheduler.history.best.score
    assert (found.by, found.trainings) == ("model", 1)


def worth_on_hill(x):
    return 0.9 - 0.3 * (x - 0.5) ** 2


def on_hill(seed, count=21):
    """Trainings along a hill, with noise that is as large as what lies between its neighbours."""
    noise = 0.02 * np.random.default_rng(seed).standard_normal(count)
    xs = np.linspace(0, 1, count)
    return history_of(*((x, worth_on_hill(x) + e, None) for x, e in zip(xs, noise, strict=True)))


def test_a_model_prefers_the_top_of_a_hill_to_a_lucky_score():
    found = []
    for seed in range(20):
        history = on_hill(seed)
        preferred = ScoreModel.of(history, SearchSpace(x=Float(0.0, 1.0))).preferred()
        # One of the few whose networks are kept.
        best = sorted(history, key=lambda t: -t.score)[:KEPT_FOR_MODEL]
        assert preferred in best
        found.append((preferred, chosen(history)))
    assert sum(one is not other for one, other in found) > 5
    ours, luckiest = zip(*found, strict=True)
    lost = [
        0.9 - np.mean([worth_on_hill(t.config["x"]) for t in trials]) for trials in (ours, luckiest)
    ]
    assert lost[0] < 0.9 * lost[1]


def test_a_model_says_nothing_of_a_winner_that_it_does_not_know():
    space = SearchSpace(x=Float(0.0, 1.0))
    assert ScoreModel.of(on_hill(0, count=4), space) is None  # too few to learn from
    few = ScoreModel.of(on_hill(0, count=14), space)  # enough for that, and not to choose by
    assert few.preferred() is None
    assert few.expected(chosen(on_hill(0, count=14))).by == "model"
    assert ScoreModel.of(on_hill(0, count=15), space).preferred() is not None
    history = on_hill(0)
    ahead = Trial(21, {"x": 0.3}, 0, 2, TrialState.PAUSED, (Observation(1, 0.99, 1),))
    history.restore(ahead)
    assert ScoreModel.of(history, space).preferred() is None


def test_a_model_chooses_no_network_that_is_not_there():
    """As in a race that an older version began, which kept the best alone."""
    models = [ScoreModel.of(on_hill(seed), SearchSpace(x=Float(0.0, 1.0))) for seed in range(20)]
    model = next(m for m in models if m.preferred() is not m._history.best)
    preferred, best = model.preferred(), model._history.best
    assert model.preferred(lambda trial: trial is not preferred) not in (None, preferred)
    assert model.preferred(lambda trial: trial is best) is best
    assert model.preferred(lambda trial: trial is not best) is None


# -- who is trained again, and the budget --------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5),  # epochs
    st.integers(1, 3),  # slots
    st.integers(1, 4),  # to confirm
    st.integers(100, 4_000),  # budget
    st.integers(0, 10**6),  # seed
    st.sampled_from(ENTRIES),
)
def test_the_best_are_confirmed_within_the_budget(epochs, slots, count, budget_ns, seed, name):
    landscape = RandomCosts(epochs, 50)
    scheduler = begin(
        landscape, budget_ns=budget_ns, count=count, slots=slots, seed=seed, name=name
    )
    scheduler.run()
    assert scheduler.finished
    history, budget = scheduler.history, scheduler.budget
    assert budget.spent_ns == sum(budget.ledger.values()) <= budget_ns
    paid = sum(t.device_ns + t.partial_ns for t in history)
    assert paid + budget.ledger[next(k for k in budget.ledger if k.value == "lost")] == (
        budget.spent_ns
    )
    for trial in history:
        if trial.confirms is not None:
            first = history[trial.confirms]
            assert (first.state, first.config) == (TrialState.COMPLETED, trial.config)
            assert trial.seed != first.seed
            before = [t for t in history.trials[: trial.number] if t.config == trial.config]
            assert trial.repeat == len(before) > 0
            # Of those that had been completed when it began, it is one of the K best.
            rivals = [
                t.curve[-1].score
                for t in history
                if t.confirms is None
                and t.epoch == epochs
                and t.curve[-1].at_ns <= trial.started_ns
            ]
            assert sum(score > first.score for score in rivals) < count
    winner = chosen(history)
    ended = [t for t in history.finished if t.score is not None]
    kept = worth_keeping(history, ended, count)
    assert winner is None or not winner.state.is_final or winner in kept


@pytest.mark.parametrize(("slots", "at_most"), [(1, 4), (2, 5), (5, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_with_equal_costs_exactly_the_three_best_are_confirmed(slots, at_most, seed):
    landscape = RandomCosts(4, 50, equal=True)
    scheduler = begin(landscape, budget_ns=20 * 200, count=3, slots=slots, seed=seed)
    scheduler.run()
    trials = scheduler.history.trials
    searched = [t for t in trials if t.confirms is None]
    best = sorted(searched, key=lambda t: -t.score)[:3]
    again = [t.confirms for t in trials if t.confirms is not None]
    assert sorted(again[:3]) == sorted(t.number for t in best)
    assert len(searched) + len(again) >= 19
    assert len(again) <= at_most
    assert trials[-1].curve[-1].score != scheduler.history[trials[-1].confirms].score


class Uneven(RandomCosts):
    """What is good costs a tenth of what is not."""

    def curve(self, config, replicate, repeat=0):
        is_good = config["x"] < 0.34
        noise = super().curve(config, replicate, repeat)[0] / 100
        return (1.0 if is_good else 0.5) + noise, np.full(self.epochs, 4 if is_good else 40) / 1e9


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_winner_that_is_cheaper_than_others_is_confirmed_at_its_own_price(epochs, seed):
    landscape = Uneven(epochs)
    scheduler = begin(landscape, budget_ns=600 * epochs, count=2, seed=seed)
    scheduler.run()
    history = scheduler.history
    again = [t for t in history if t.confirms is not None]
    assert all(t.state is TrialState.COMPLETED for t in again)
    unpaid = 2 - len({t.confirms for t in again})
    assert unpaid <= 0 or scheduler.budget.remaining_ns < 4 * epochs


def test_a_confirmation_that_says_itself_when_it_ends_needs_an_epoch_of_its_own_in_hand():
    history = History(None, 100)
    for number, (score, cost_ns) in enumerate([(0.9, 4), (0.5, 40), (0.4, 40)]):
        curve = (Observation(1, score, cost_ns, cost_ns),)
        history.restore(Trial(number, {"x": number}, 0, 1, TrialState.COMPLETED, curve))
    # 16 are left: 4 for it and 4 in hand, though an epoch costs 28 on average.
    assert isinstance(with_confirmations(FullFidelity(), 1).next_action(history.view()), Repeat)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_space_that_is_exhausted_leaves_minutes_to_confirm_its_best_with(name, slots):
    landscape = Few(4, 50)
    scheduler = begin(landscape, budget_ns=10**9, count=2, slots=slots, name=name)
    scheduler.run()
    history = scheduler.history
    assert scheduler.finished
    assert history.is_exhausted
    searched = [t for t in history if t.confirms is None]
    assert sorted(t.config["a"] for t in searched) == sorted("abcdefg")
    best = sorted(searched, key=lambda t: -t.score)[:2]
    assert {t.confirms for t in history} - {None} == {t.number for t in best}
    assert len(history) == 7 + 2  # it ended by itself


def test_what_breaks_when_it_is_confirmed_gives_its_place_to_the_next():
    policy = with_confirmations(FullFidelity(), 2)
    rows = [(0.1, 0.9, None), (0.2, 0.8, None), (0.3, 0.7, None), (0.4, 0.6, None)]

    def action(*more):
        history = history_of(*rows, *more)
        history.budget_ns, history.is_exhausted = 10**6, True
        return policy.next_action(history.view())

    assert action() == Repeat(0, 1)
    assert action((0.1, None, 0)) == Repeat(1, 1)
    assert action((0.1, None, 0), (0.2, 0.75, 1)) == Repeat(2, 1)
    assert action((0.1, None, 0), (0.2, 0.75, 1), (0.3, 0.7, 2)) == Done()
    assert action(*((x, None, i) for i, (x, *_) in enumerate(rows))) == Done()


@pytest.mark.parametrize("name", ["random", "random+asha", "hyperband"])
def test_no_confirmations_is_the_policy_itself(name):
    landscape = RandomCosts(4, 50)
    plain = begin(landscape, budget_ns=2_000, count=0, name=name)
    policy = FullFidelity()
    assert with_confirmations(policy, 0) is policy
    plain.run()
    assert all(t.confirms is None for t in plain.history)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        with_confirmations(policy, -1)


class Killed(Exception):
    pass


@example(kills=[17, 60], slots=3, seed=0, name="random")  # killed when all is done
@settings(max_examples=4, deadline=None)
@given(
    kills=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    slots=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    name=st.sampled_from(["random", "random+asha", "hyperband"]),
)
def test_a_search_killed_anywhere_confirms_as_its_uninterrupted_twin(
    tmp_path_factory, kills, slots, seed, name
):
    landscape = RandomCosts(4, 50)
    twin = begin(landscape, budget_ns=1_500, count=3, slots=slots, seed=seed, name=name)
    twin.run()
    path = tmp_path_factory.mktemp("killed") / "study.sqlite"
    for attempt, after in enumerate([*kills, None]):
        left = [after]

        def on_change(left=left):
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

        store = Store(path, create=attempt == 0)
        if attempt == 0:
            store.add_run(name, seed, landscape.space, landscape.epochs, 1_500)
            store.commit()
        row = store.runs()[0]
        searcher, policy = make_entry(name, landscape.space, seed, epochs=4)
        run = enter(
            store,
            row,
            searcher,
            ReplayRunner(landscape, seed, slots),
            policy=with_confirmations(policy, 3),
            keep=3,
            is_replay=True,
            on_change=on_change,
        )
        try:
            run.scheduler.run()
        except Killed:
            pass
        finally:
            store._db.close()
            store._lock.release()
    assert run.scheduler.history.trials == twin.history.trials
    assert run.scheduler.budget.ledger == twin.budget.ledger


# -- checkpoints, and the library ----------------------------------------------------------------


def test_the_checkpoints_of_all_who_may_be_chosen_are_kept():
    mark = Checkpoint("a", "b")

    def ended(number, score, state=TrialState.COMPLETED, confirms=None):
        curve = (Observation(1, score, 1),)
        return Trial(number, {}, 0, 1, state, curve, confirms=confirms, checkpoint=mark)

    trials = [
        ended(0, 0.5),
        ended(1, 0.9, TrialState.STOPPED),
        ended(2, 0.6),
        ended(3, 0.7),
        ended(4, 0.95, confirms=3),
        ended(5, 0.4),
    ]
    history = History()
    for trial in trials:
        history.restore(trial)
    assert [t.number for t in worth_keeping(history, trials, 0)] == [1]
    # The best of all, the best two that were completed, and who is confirmed.
    assert {t.number for t in worth_keeping(history, trials, 1)} == {1, 3}
    assert {t.number for t in worth_keeping(history, trials, 2)} == {1, 2, 3}
    history.restore(ended(6, 0.1, confirms=0))
    assert {t.number for t in worth_keeping(history, trials, 2)} == {0, 1, 2, 3}
    one_by_one = []
    for trial in trials:
        one_by_one = worth_keeping(history, [*one_by_one, trial], 2)
    assert {t.number for t in one_by_one} == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_tune_confirms_and_chooses_by_the_mean(mode, monkeypatch):
    noise = np.random.default_rng(0)
    sign = 1 if mode == "max" else -1
    now = [0]

    def monotonic_ns():
        now[0] += 20_000  # whoever looks at the clock takes time
        return now[0]

    monkeypatch.setattr(tuner.runner.time, "monotonic_ns", monotonic_ns)

    def train(config):
        now[0] += 5_000_000
        yield sign * noise.normal()

    study = tune(
        train, {"x": Float(0, 1)}, budget_minutes=0.01, searcher="random", mode=mode, confirm=3
    )
    again = [t for t in study.trials if t.confirms is not None]
    assert len(again) in (3, 4)
    assert sum(t.state is TrialState.COMPLETED for t in again) >= 3
    found = {}
    for trial in study.trials:
        if trial.state is TrialState.COMPLETED:
            found.setdefault(trial.config["x"], []).append(trial.score)
    means = {x: np.mean(s) for x, s in found.items() if len(s) > 1}
    best = max(means, key=lambda x: sign * means[x])
    assert study.best.config["x"] == best
    assert study.expected_score.mean == pytest.approx(means[best])
    assert study.minutes_spent < 0.011
    with pytest.raises(ValueError, match="at least 0"):
        tune(train, {"x": Float(0, 1)}, budget_minutes=0.002, confirm=-1)
