"""Results of earlier studies: which are taken over, that they cost nothing, and that they help."""

import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from landscapes.registry import open_landscape
from landscapes.replay_runner import ReplayRunner
from tests.helpers import RandomCosts, search
from tuner import Choice, Float, Int, SearchSpace, Study, TrialState, tune
from tuner.budget import Budget, to_ns
from tuner.entry import make_entry
from tuner.history import History
from tuner.page.film import Camera, Scene, history_at
from tuner.reader import RunRow
from tuner.report import Outcome, best_so_far, run_summary
from tuner.scheduler import Recorder, Scheduler
from tuner.searchers import SpaceExhausted, make_searcher
from tuner.searchers.grid import GridSearcher
from tuner.searchers.shared_start import SharedStart
from tuner.trial import ADDED, Observation, Trial
from tuner.warm_start import EarlierStudy, in_words, read_study, take_over

SPACE = SearchSpace(lr=Float(0.01, 1.0, log=True), layers=Int(2, 6), act=Choice(("relu", "gelu")))
FITS = {"lr": 0.1, "layers": 4, "act": "gelu"}


def trial(number, config=FITS, epochs=3, state=TrialState.COMPLETED, **more):
    curve = tuple(Observation(e, e / 10 + number / 100, 50, 7 * e) for e in range(1, epochs + 1))
    return Trial(number, config, 11, epochs, state, curve, started_ns=5, **more)


def study(*runs, name="old", whole=3):
    return EarlierStudy(name, Path("runs", name), [(whole, run) for run in runs], "max", {})


# -- what is taken over --------------------------------------------------------------------------


def test_an_overlapping_space_gives_what_lies_inside_and_counts_the_rest():
    earlier = study(
        [
            trial(0),
            trial(1, {**FITS, "lr": 2.0}),
            trial(2, {**FITS, "lr": 0.001}),
            trial(3, {**FITS, "layers": 7}),
            trial(4, {**FITS, "act": "tanh"}),
            trial(5, {"lr": 0.1, "act": "gelu"}),
            trial(6, {**FITS, "width": 8}),
            trial(7, epochs=0, state=TrialState.RUNNING),
            trial(8, {**FITS, "lr": 1.0, "layers": 2}),
            trial(9, dict(reversed(FITS.items()))),
        ]
    )
    (taken,) = take_over([earlier], SPACE, 3)
    assert [t.curve[0].score for t in taken.trials] == [0.1, 0.18, 0.19]
    assert [list(t.config) for t in taken.trials] == [["lr", "layers", "act"]] * 3
    assert taken.left_out == {
        "lr outside 0.01 to 1": 2,
        "layers outside 2 to 6": 1,
        "act outside the options relu, gelu": 1,
        "no knob layers": 1,
        "the further knob width": 1,
        "no finished epoch": 1,
    }
    assert in_words(taken.left_out).startswith("2 trials have lr outside 0.01 to 1; 1 trial has ")
    assert taken.best.number == 2


def test_trials_are_numbered_on_and_are_final_free_and_without_a_past():
    old = trial(4, checkpoint="x", granted=3, reserved_ns=9, clock=3, faults=1, note="random")
    (taken,) = take_over([study([old])], SPACE, 3, first=7)
    (new,) = taken.trials
    curve = tuple(o._replace(at_ns=0) for o in old.curve)
    assert new == Trial(7, FITS, 11, 3, TrialState.COMPLETED, curve, source="old")
    assert (new.device_ns, new.paid_ns, new.remark) == (150, 0, "from old")


@pytest.mark.parametrize(
    ("epochs", "state", "whole", "now", "expected"),
    [
        (6, TrialState.COMPLETED, 6, 6, (6, TrialState.COMPLETED)),
        (6, TrialState.COMPLETED, 6, 4, (4, TrialState.COMPLETED)),
        (6, TrialState.COMPLETED, 6, 9, (6, TrialState.STOPPED)),
        (6, TrialState.COMPLETED, 6, None, (6, TrialState.STOPPED)),
        (6, TrialState.COMPLETED, None, 9, (6, TrialState.COMPLETED)),  # it said so itself
        (6, TrialState.COMPLETED, 8, 9, (6, TrialState.COMPLETED)),
        (6, TrialState.COMPLETED, None, None, (6, TrialState.COMPLETED)),
        (4, TrialState.STOPPED, 6, 4, (4, TrialState.COMPLETED)),
        (4, TrialState.STOPPED, 6, 6, (4, TrialState.STOPPED)),
        (2, TrialState.PAUSED, 6, 6, (2, TrialState.STOPPED)),
        (2, TrialState.RUNNING, 6, 6, (2, TrialState.STOPPED)),
        (2, TrialState.INTERRUPTED, 6, 6, (2, TrialState.STOPPED)),
        (2, TrialState.FAILED, 6, 6, (2, TrialState.STOPPED)),
        (2, TrialState.INFEASIBLE, 6, 6, (2, TrialState.INFEASIBLE)),
        (4, TrialState.INFEASIBLE, 6, 4, (4, TrialState.COMPLETED)),  # it broke later than that
        (4, TrialState.INFEASIBLE, 6, None, (4, TrialState.INFEASIBLE)),
        (0, TrialState.INFEASIBLE, 6, 6, (0, TrialState.INFEASIBLE)),
    ],
)
def test_the_full_length_of_now_says_what_is_complete(epochs, state, whole, now, expected):
    old = trial(0, epochs=epochs, state=state, reason="why")
    (taken,) = take_over([study([old], whole=whole)], SPACE, now)
    (new,) = taken.trials
    assert (new.epoch, new.state) == expected
    assert new.reason == ("why" if new.state is TrialState.INFEASIBLE else "")


def test_the_same_configuration_from_several_runs_is_taken_as_often():
    (taken,) = take_over([study([trial(0)], [trial(0), trial(1)])], SPACE, 3)
    assert [(t.number, t.config) for t in taken.trials] == [(0, FITS), (1, FITS), (2, FITS)]


def test_what_a_study_had_taken_over_comes_along_once_under_its_own_name():
    passed_on = [trial(0, source="oldest"), trial(1, source="oldest")]
    second = study([*passed_on, trial(2)], [*passed_on, trial(2), trial(3, source=ADDED)])
    third = study([*passed_on, trial(2)], name="other")
    (one,) = take_over([second], SPACE, 3)
    assert [t.source for t in one.trials] == ["oldest", "oldest", "old", "old", "old"]
    one, other = take_over([second, third], SPACE, 3)
    assert [t.source for t in other.trials] == ["other"]
    assert other.trials[0].number == len(one.trials)
    one, _ = take_over([second, study([trial(0)], name="oldest")], SPACE, 3)
    assert [t.source for t in one.trials] == ["old", "old", "old"]
    (one,) = take_over([second], SPACE, 3, known={"oldest"})
    assert [t.source for t in one.trials] == ["old", "old", "old"]


def test_a_study_with_nothing_usable_says_which_knob_is_off():
    with pytest.raises(ValueError, match=r"runs/old.*2 trials have lr outside 0.01 to 1"):
        take_over([study([trial(0, {**FITS, "lr": 3.0})] * 2)], SPACE, 3)
    with pytest.raises(ValueError, match="it has no trials"):
        take_over([study([])], SPACE, 3)


# -- what it does to a search --------------------------------------------------------------------


def earlier_on(landscape, minutes=60, name="random", seed=50):
    """What a random search on a landscape leaves to others."""
    scheduler = search(landscape, budget_ns=to_ns(minutes), name=name, seed=seed)
    scheduler.run()
    old = study(scheduler.history.trials, whole=landscape.epochs)
    return take_over([old], landscape.space, landscape.epochs)[0].trials


def begin_with(scheduler, trials):
    for one in trials:
        scheduler.history.adopt(one)
    return scheduler


def test_results_from_before_cost_nothing_and_are_no_work_of_the_search():
    landscape = open_landscape("bumpy")
    known = earlier_on(landscape)
    scheduler = begin_with(search(landscape, budget_ns=to_ns(20)), known)
    assert scheduler.history.mean_epoch_ns is None
    assert scheduler.history.best is None
    assert scheduler.expected_epoch_ns == search(landscape, budget_ns=1).expected_epoch_ns
    scheduler.run()
    history, budget = scheduler.history, scheduler.budget
    mine = history.trained
    assert history.trials[: len(known)] == tuple(known)
    assert len(history) == len(known) + len(mine)
    assert budget.spent_ns == sum(budget.ledger.values())
    assert budget.spent_ns == sum(t.device_ns + t.partial_ns for t in mine)
    assert to_ns(18) < budget.spent_ns <= to_ns(20)
    epochs = [o for t in mine for o in t.curve]
    assert history.epochs_seen == len(epochs)
    assert history.mean_epoch_ns == sum(o.device_ns for o in epochs) // len(epochs)
    assert history.best == max(mine, key=lambda t: (t.score or 0, -t.number))
    line = best_so_far(history)
    assert line[0] == (mine[0].curve[0].at_ns, mine[0].curve[0].score)
    assert line[-1][1] == history.best.score
    row = RunRow(1, "random", 0, landscape.space, landscape.epochs, to_ns(20), 0, None, None)
    said = run_summary(Outcome(row, history, budget.ledger, None))
    assert said["trials"] == sum(said["states"].values()) == len(mine)
    assert said["best_trial"] == history.best.number
    shot = Camera().shoot([Scene(row, history, budget.ledger, True)])
    assert [frame["number"] for _, frame in shot["trials"]] == [t.number for t in mine]
    assert history_at(history, 0).trials == tuple(known)
    assert len(history_at(history, mine[1].started_ns)) == len(known) + 1


def test_the_best_from_before_is_known_only_where_it_beats_the_search_itself():
    history = History(3)
    history.adopt(trial(0, source="old"))
    history.adopt(trial(1, state=TrialState.INFEASIBLE, source="old"))
    assert (history.best, history.best_earlier.number) == (None, 0)
    history.start(Trial(2, FITS, 0, 3))
    history.observe(2, Observation(1, 0.3, 10))
    assert history.best_earlier is None  # 0.3 as well, and found here
    history.observe(2, Observation(2, 0.2, 10))
    assert history.best_earlier.number == 0
    assert history.best.number == 2
    assert history.trainings(FITS) == 1


@pytest.mark.parametrize(("name", "minutes", "tries"), [("bumpy", 40, 4), ("cnn_sample_2d", 4, 1)])
def test_bayes_begins_better_with_what_an_earlier_study_found(name, minutes, tries):
    landscape = open_landscape(name)
    known = earlier_on(landscape, minutes)

    def best_score(seed, trials):
        """Of a few tries: where there are many hills one alone may well be meant to explore."""
        history = History(landscape.epochs)
        for one in trials:
            history.adopt(one)
        searcher, scores = make_searcher("bayes", landscape.space, seed), []
        for number in range(len(history), len(history) + tries):
            config = searcher.propose(history.view())
            curve = np.nan_to_num(landscape.curve(config, 0)[0]).tolist()
            scores.append(curve[-1])
            history.start(Trial(number, config, number, landscape.epochs))
            for epoch, score in enumerate(curve, 1):
                history.observe(number, Observation(epoch, score, 10))
            history.close(number, TrialState.COMPLETED)
        return max(scores)

    warm = statistics.fmean(best_score(seed, known) for seed in range(3))
    cold = statistics.fmean(best_score(seed, ()) for seed in range(20))
    assert warm > cold + 0.02


class Alone:
    """Proposes at random as if nothing had been taken over."""

    fallback = ""

    def __init__(self, space, seed):
        self._inner = make_searcher("random", space, seed)

    def propose(self, history):
        alone = History(history.max_epochs)
        for number, one in enumerate(history.trained):
            alone.restore(replace(one, number=number))
        return self._inner.propose(alone.view())


@pytest.mark.parametrize("policy", ["median", "sh", "asha", "asha-stop", "hyperband"])
def test_policies_decide_as_if_nothing_had_been_taken_over(policy):
    landscape = RandomCosts(epochs=9)
    known = earlier_on(landscape, minutes=3000 / 60e9)

    def run(trials):
        _, decides = make_entry(policy, landscape.space, 0, epochs=9, min_epochs=1)
        history, budget = History(9, 6_000), Budget(6_000)
        searcher, runner = Alone(landscape.space, 3), ReplayRunner(landscape, 3, slots=2)
        scheduler = Scheduler(searcher, decides, runner, history, Recorder(budget), seed=3)
        begin_with(scheduler, trials).run()
        return history.trained

    warm, cold = run(known), run(())
    assert len(known) > 10
    assert len(cold) > 20
    shifted = [replace(one, number=one.number - len(known)) for one in warm]
    assert shifted == list(cold)


def test_a_common_start_counts_what_the_search_has_proposed_itself():
    history = History(3)
    history.adopt(trial(0, source="old"))
    shared = SharedStart(GridSearcher(SPACE, 0), SPACE, 0, 1)
    assert shared.propose(history.view())["lr"] not in (0.01, 0.1, 1.0)
    history.start(Trial(1, {**FITS, "lr": 0.3}, 0, 3))
    assert shared.propose(history.view())["lr"] in (0.01, 0.1, 1.0)


def test_a_grid_is_laid_out_as_if_alone_and_passes_over_what_is_known():
    landscape = open_landscape("bumpy")

    def settings(trials):
        scheduler = begin_with(search(landscape, budget_ns=to_ns(40), name="grid"), trials)
        scheduler.run()
        return [t.config for t in scheduler.history.trained]

    alone = settings(())
    assert settings(earlier_on(landscape)) == alone
    known = earlier_on(landscape, minutes=40, name="grid", seed=0)
    full = [t.config for t in known if t.state is TrialState.COMPLETED]
    assert full == alone[: len(full)]
    more = settings(known)
    assert len(more) == len(alone)
    assert not [config for config in more if config in full]


@pytest.mark.parametrize("name", ["grid", "random", "bayes", "bohb"])
def test_in_a_finite_space_only_what_was_trained_to_the_end_is_not_proposed_again(name):
    space = SearchSpace(n=Int(1, 6))
    history = History(3)
    for number in range(6):
        state = TrialState.COMPLETED if number < 3 else TrialState.STOPPED
        history.adopt(trial(number, {"n": number + 1}, epochs=3, state=state, source="old"))
    searcher, proposed = make_searcher(name, space, 0), set()
    for number in (6, 7, 8):
        config = searcher.propose(history.view())
        proposed.add(config["n"])
        history.start(Trial(number, config, 0, 3))
        history.observe(number, Observation(1, 0.5, 1))
        history.close(number, TrialState.COMPLETED)
    assert proposed == {4, 5, 6}
    with pytest.raises(SpaceExhausted):
        searcher.propose(history.view())


# -- in the library ------------------------------------------------------------------------------


def value(config):
    return -((config["layers"] - 4) ** 2) - (config["act"] == "relu") + config["lr"] / 10


@pytest.fixture
def old(tmp_path):
    """A study with ten results, in a folder."""
    with Study(SPACE, "random", seed=1, path=tmp_path / "mine.sqlite") as made:
        for _ in range(10):
            asked = made.ask()
            made.tell(asked.number, score=value(asked.config), minutes=2.0)
        made.ask()
    (tmp_path / "old").mkdir()
    (tmp_path / "mine.sqlite").rename(tmp_path / "old" / "study.sqlite")
    return tmp_path / "old"


def test_a_study_takes_over_another_once_and_for_nothing(tmp_path, old):
    wider = SearchSpace({**SPACE, "layers": Int(3, 9)})
    for again in (False, True):
        with Study(wider, "random", path=tmp_path / "new.sqlite") as new:
            taken = new.add_from(old)
            assert bool(taken) is not again
            assert {t.source for t in new.trials} == {"old"}
            assert all(t.config["layers"] >= 3 for t in new.trials)
            assert 0 < len(new.trials) < 10
            assert new.minutes_spent == 0
            assert new.best.score == max(value(t.config) for t in new.trials)
            assert new.history.best is None
            new.to_csv(tmp_path / "trials.csv")
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert all(line.endswith(",from old") for line in lines[1:])
    assert all(line.split(",")[4] == "0.0" for line in lines[1:])


def test_a_file_by_another_name_gives_its_own_name(tmp_path, old):
    (tmp_path / "best of.sqlite").write_bytes((old / "study.sqlite").read_bytes())
    assert read_study(tmp_path / "best of.sqlite").name == "best of"
    assert read_study(old / "study.sqlite").name == read_study(old).name == "old"


def test_a_study_does_not_take_its_own_results_back_from_another(tmp_path, old):
    (tmp_path / "new").mkdir()
    with Study(SPACE, "random", path=tmp_path / "new" / "study.sqlite") as new:
        new.tell(new.ask().number, score=0.5)
        new.add_from(old)
        before = [(t.config, t.source) for t in new.trials]
    with Study(SPACE, "random", 1, path=old / "study.sqlite") as again:
        known = len(again.trials)
        assert [t.source for t in again.add_from(tmp_path / "new")] == ["new"]
        assert len(again.trials) == known + 1
    assert len(before) > 2


def test_losses_stay_losses(tmp_path):
    with Study({"x": Float(0, 1)}, "random", path=tmp_path / "loss.sqlite", mode="min") as made:
        made.tell(made.ask().number, score=0.25)
    new = Study({"x": Float(0, 1)}, "random", mode="min")
    assert [t.score for t in new.add_from(tmp_path / "loss.sqlite")] == [0.25]
    assert (new.best.score, new.history.trials[0].score) == (0.25, -0.25)
    with pytest.raises(ValueError, match="mode='min'"):
        Study({"x": Float(0, 1)}, "random").add_from(tmp_path / "loss.sqlite")


def test_what_was_added_by_hand_costs_what_it_is_said_to_and_may_be_the_best():
    new = Study(SPACE, "random", max_epochs=3, budget_minutes=5)
    new.add(FITS, score=0.9, minutes=3.0)
    assert new.history.left_ns == to_ns(2)
    asked = new.ask()
    new.tell(asked.number, score=0.5, minutes=1.0)
    assert (new.minutes_spent, new.best.source, new.best.paid_ns) == (4.0, ADDED, to_ns(3))
    assert new.history.best.number == asked.number


def test_tune_begins_with_earlier_studies_and_goes_on_with_them(tmp_path, old):
    def train(config):
        yield value(config) - 1
        yield value(config)

    arguments = {"budget_minutes": 0.001, "max_epochs": 2, "searcher": "random"}
    first = tune(train, SPACE, **arguments, warm_start=old, directory=tmp_path / "new")
    assert [t.source for t in first.trials].count("old") == 10
    assert not first.trials[10].source
    assert first.trials[0].state is TrialState.COMPLETED  # its training was told as a whole
    spent = first._recorder.budget.spent_ns
    trained = first.history.trained
    assert spent == sum(first._recorder.budget.ledger.values())
    assert spent >= sum(t.device_ns for t in trained)
    both = [old, old / "study.sqlite"]
    again = tune(train, SPACE, **arguments, warm_start=both, directory=tmp_path / "new")
    assert [t.source for t in again.trials].count("old") == 10
    # What had ended is as it was; what the budget broke off may have gone on.
    ended = [t for t in first.trials if t.state.is_final]
    assert len(ended) > 10
    assert [again.trials[t.number] for t in ended] == ended


def test_another_study_by_the_same_name_is_refused_and_the_same_one_elsewhere_is_not(tmp_path, old):
    new = Study(SPACE, "random")
    taken = new.add_from(old)
    with Study(SPACE, "random", seed=1, path=old / "study.sqlite") as gone_on:
        for waiting in gone_on.history.running:
            gone_on.tell(waiting.number, score=0.1)
    moved = tmp_path / "elsewhere" / "old"
    moved.parent.mkdir()
    old.rename(moved)
    assert new.add_from(moved) == ()
    with Study(SPACE, "random", seed=2, path=tmp_path / "2.sqlite") as other:
        other.tell(other.ask().number, score=0.5)
    old.mkdir()
    (tmp_path / "2.sqlite").rename(old / "study.sqlite")
    with pytest.raises(ValueError, match="is not the study 'old' whose results are here already"):
        new.add_from(old)
    assert new.trials == taken


def test_what_cannot_be_told_from_results_that_are_added_by_hand_is_refused(tmp_path, old):
    old.rename(tmp_path / "added")
    with pytest.raises(ValueError, match="which are known as 'added': give it another name"):
        Study(SPACE, "random").add_from(tmp_path / "added")


def test_a_search_goes_on_where_the_study_it_began_with_is_gone(tmp_path, old):
    arguments = {"budget_minutes": 1e-4, "searcher": "random", "directory": tmp_path / "new"}
    tune(value, SPACE, **arguments, warm_start=old)
    (old / "study.sqlite").unlink()
    assert len(tune(value, SPACE, **arguments, warm_start=old).trials) > 10
    shutil.rmtree(old)
    again = tune(value, SPACE, **arguments, warm_start=[old, old / "study.sqlite"])
    assert [t.source for t in again.trials].count("old") == 10
    with pytest.raises(ValueError, match="there is no study at"):
        tune(value, SPACE, **arguments, warm_start=tmp_path / "never")


def test_what_is_no_other_study_is_refused(tmp_path, old):
    with Study(SPACE, "random", path=tmp_path / "s.sqlite") as new:
        new.tell(new.ask().number, score=1.0)
        with pytest.raises(ValueError, match="is this study itself"):
            new.add_from(tmp_path / "s.sqlite")
        with pytest.raises(ValueError, match="there is no study at"):
            new.add_from(tmp_path / "nowhere")
        (tmp_path / "text.sqlite").write_text("no study at all" * 100)
        with pytest.raises(ValueError, match="is no study"):
            new.add_from(tmp_path / "text.sqlite")
        assert len(new.trials) == 1
    other = Study({"x": Float(0, 1)}, "random")
    with pytest.raises(ValueError, match=r"11 trials have no knob x and the further knob lr, lay"):
        other.add_from(old)
