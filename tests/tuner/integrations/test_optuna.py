"""Our searchers as Optuna's samplers, and Optuna's studies as results from before."""

import copy
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

# ruff: noqa: E402  # the rest needs it
optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState as Shown
from optuna.trial import create_trial

from tuner import Choice, Float, Int, SearchSpace, Study, TrialState, tune
from tuner.integrations.optuna import TunerSampler, read_study, take_over
from tuner.integrations.optuna_trials import as_trial, domain_of, from_domain, to_domain

SPACE = SearchSpace(act=Choice(("relu", "gelu")), layers=Int(2, 6), lr=Float(1e-4, 1.0, log=True))
SHOWN = {
    "act": CategoricalDistribution(("relu", "gelu")),
    "layers": IntDistribution(2, 6),
    "lr": FloatDistribution(1e-4, 1.0, log=True),
}


@pytest.fixture(autouse=True)
def _quietly():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def value(config):
    far = abs(math.log10(config["lr"]) + 2) + abs(config["layers"] - 4) / 4
    return 1.0 - far / 4 - 0.1 * (config["act"] == "relu")


def objective(trial):
    config = {
        "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        "layers": trial.suggest_int("layers", 2, 6),
        "act": trial.suggest_categorical("act", ["relu", "gelu"]),
    }
    return value(config)


def an_optuna_study(direction="maximize", **more):
    return optuna.create_study(direction=direction, **more)


# -- proposals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bayes", "random", "grid", "bohb"])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_proposals_are_those_of_our_own_study(name, mode):
    sign = 1 if mode == "max" else -1
    ours = Study(SPACE, f"{name}+full", seed=3, mode=mode)
    sampler = TunerSampler(name, seed=3, search_space=SHOWN)
    theirs = an_optuna_study(f"{mode}imize", sampler=sampler)
    for number in range(14):
        mine = [ours.ask(), ours.ask()]  # the second knows that the first is under way
        asked = [theirs.ask(SHOWN), theirs.ask(SHOWN)]
        assert [a.params for a in asked] == [dict(t.config) for t in mine]
        score = sign * value(mine[0].config)
        ours.tell(mine[0].number, score)
        theirs.tell(asked[0], score)
        if number % 3 == 0:
            ours.tell(mine[1].number, state="infeasible")
            theirs.tell(asked[1], state=Shown.PRUNED)
        else:
            ours.tell(mine[1].number, state="failed")
            theirs.tell(asked[1], state=Shown.FAIL)
    assert not any("tuner:fallback" in t.system_attrs for t in theirs.trials)


def test_the_space_is_what_complete_trials_have_in_common():
    def conditional(trial):
        x = trial.suggest_float("x", 0, 1)
        trial.suggest_float("same", 2.0, 2.0)
        if trial.number % 2:
            trial.suggest_float("y", 0, 1)
        return x

    sampler = TunerSampler("bayes", seed=0)
    study = an_optuna_study(sampler=sampler)
    study.optimize(conditional, n_trials=8)
    last = study.trials[-1]
    assert set(sampler.infer_relative_search_space(study, last)) == {"x"}
    assert [set(t.params) - {"x", "same"} for t in study.trials] == [set(), {"y"}] * 4


def test_the_same_seed_gives_the_same_study_and_another_one_another():
    def run(seed):
        study = an_optuna_study(sampler=TunerSampler("bayes", seed=seed))
        study.optimize(objective, n_trials=9)
        return [t.params for t in study.trials]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_a_copy_of_a_sampler_goes_on_as_the_first_would_have():
    study = an_optuna_study(sampler=TunerSampler("bayes", seed=1, search_space=SHOWN))
    study.optimize(objective, n_trials=8)
    again = an_optuna_study(sampler=copy.deepcopy(study.sampler))
    again.add_trials(study.trials)
    assert again.ask(SHOWN).params == study.ask(SHOWN).params


def test_bayes_in_optuna_is_better_than_random():
    def best(sampler):
        study = an_optuna_study(sampler=sampler)
        study.optimize(objective, n_trials=25)
        return study.best_value

    bayes = [best(TunerSampler("bayes", seed=seed)) for seed in range(6)]
    random = [best(RandomSampler(seed=seed)) for seed in range(6)]
    assert statistics.fmean(bayes) > statistics.fmean(random) + 0.02
    assert sum(b > r for b, r in zip(bayes, random, strict=True)) >= 5


def test_threads_get_different_proposals():
    study = an_optuna_study(sampler=TunerSampler("bayes", seed=0, search_space=SHOWN))
    study.optimize(objective, n_trials=16, n_jobs=4)
    assert len(study.trials) == 16
    assert len({tuple(t.params.values()) for t in study.trials}) == 16


def test_a_trial_that_has_not_asked_for_its_parameters_yet_is_under_way_with_them():
    study = an_optuna_study(sampler=TunerSampler("bayes", seed=0))
    study.optimize(objective, n_trials=6)
    first, second = study.ask(), study.ask()
    assert first.suggest_float("lr", 1e-4, 1.0, log=True) != second.suggest_float(
        "lr", 1e-4, 1.0, log=True
    )


def test_pruned_trials_are_learnt_from():
    def staged(trial):
        final = objective(trial)
        for step in range(0, 30, 10):
            trial.report(final * (step + 10) / 30, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return final

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = an_optuna_study(sampler=TunerSampler("bayes", seed=0), pruner=pruner)
    study.optimize(staged, n_trials=25)
    states = {t.state for t in study.trials}
    assert states == {Shown.PRUNED, Shown.COMPLETE}
    assert study.best_value > 0.9
    assert not any("tuner:fallback" in t.system_attrs for t in study.trials)


def test_a_space_that_is_exhausted_goes_on_at_random_and_says_so():
    study = an_optuna_study(sampler=TunerSampler("grid", seed=0))
    options = {"x": CategoricalDistribution((1, "one", None))}
    for _ in range(3):
        study.tell(study.ask(options), 0.5)
    assert {t.params["x"] for t in study.trials} == {1, "one", None}
    with pytest.warns(UserWarning, match="drawn at random from now on"):
        study.ask(options)


def test_an_enqueued_trial_is_what_was_enqueued():
    study = an_optuna_study(sampler=TunerSampler("bayes", seed=0))
    study.enqueue_trial({"lr": 0.5, "layers": 3, "act": "gelu"})
    study.optimize(objective, n_trials=8)
    assert study.trials[0].params == {"lr": 0.5, "layers": 3, "act": "gelu"}
    assert len({t.params["lr"] for t in study.trials}) == 8


def test_a_study_on_disk_goes_on_as_one_in_memory(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    whole = an_optuna_study(sampler=TunerSampler("bayes", seed=5))
    whole.optimize(objective, n_trials=10)
    for _ in range(2):
        part = an_optuna_study(
            storage=storage,
            study_name="a",
            load_if_exists=True,
            sampler=TunerSampler("bayes", seed=5),
        )
        part.optimize(objective, n_trials=5)
    assert [t.params for t in part.trials] == [t.params for t in whole.trials]


@pytest.mark.parametrize("name", ["freeze-thaw", "bays", "random+asha"])
def test_searchers_that_make_no_sampler_are_refused(name):
    with pytest.raises(ValueError, match=r"pruner|there is no searcher"):
        TunerSampler(name)


def test_several_objectives_are_refused():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=TunerSampler())
    with pytest.raises(ValueError, match="one objective"):
        study.ask({"x": FloatDistribution(0, 1)})
    with pytest.raises(ValueError, match="one objective"):
        read_study(study)


# -- conversions ---------------------------------------------------------------------------------

STEPS = st.sampled_from([0.1, 0.25, 1.0, 2.5])
DISTRIBUTIONS = st.one_of(
    st.builds(
        lambda low, width, log: FloatDistribution(low, low + width, log=log),
        st.floats(1e-6, 10),
        st.floats(1e-3, 100),
        st.booleans(),
    ),
    st.builds(
        lambda low, step, n: FloatDistribution(low, low + step * n, step=step),
        st.integers(-9, 9).map(float),
        STEPS,
        st.integers(1, 40),
    ),
    st.builds(
        lambda low, step, n: IntDistribution(low, low + step * n, step=step),
        st.integers(-50, 50),
        st.integers(1, 9),
        st.integers(1, 100),
    ),
    st.builds(
        lambda low, width: IntDistribution(low, low + width, log=True),
        st.integers(1, 50),
        st.integers(1, 100),
    ),
    st.just(CategoricalDistribution((True, 1.5, "1", None, "a"))),
)


@given(DISTRIBUTIONS, st.integers(0, 2**31), st.floats(0, 1))
def test_every_value_has_a_place_in_the_domain_and_every_place_a_value(distribution, seed, unit):
    domain = domain_of(distribution)
    study = optuna.create_study()
    drawn = RandomSampler(seed=seed).sample_independent(
        study, create_trial(value=0.0), "x", distribution
    )
    inside = to_domain(distribution, drawn)
    assert domain.contains(inside)
    back = from_domain(distribution, inside)
    assert back == (pytest.approx(drawn) if isinstance(drawn, float) else drawn)
    assert isinstance(back, type(drawn))
    proposed = from_domain(distribution, domain.from_unit(unit))
    assert distribution._contains(distribution.to_internal_repr(proposed))
    assert to_domain(distribution, proposed) == domain.from_unit(unit)


def test_a_step_is_a_step():
    distribution = IntDistribution(16, 128, step=16)
    units = np.linspace(0, 1, 50)
    values = {from_domain(distribution, domain_of(distribution).from_unit(u)) for u in units}
    assert values == set(range(16, 129, 16))


@pytest.mark.parametrize(
    ("shown", "state", "scores"),
    [
        (create_trial(value=0.5), TrialState.COMPLETED, (0.5,)),
        (
            create_trial(value=0.7, intermediate_values={10: 0.2, 0: 0.1, 20: 0.6}),
            TrialState.COMPLETED,
            (0.1, 0.2, 0.7),
        ),
        (create_trial(value=math.inf), TrialState.INFEASIBLE, ()),
        (
            create_trial(state=Shown.PRUNED, intermediate_values={0: 0.1, 1: math.nan, 2: 0.3}),
            TrialState.STOPPED,
            (0.1,),
        ),
        (create_trial(state=Shown.PRUNED), TrialState.INFEASIBLE, ()),
        (create_trial(state=Shown.FAIL), TrialState.FAILED, ()),
        (create_trial(value=0.5, constraints={"memory": 1.0}), TrialState.INFEASIBLE, (0.5,)),
        (create_trial(value=0.5, constraints={"memory": -1.0}), TrialState.COMPLETED, (0.5,)),
    ],
)
def test_what_becomes_of_a_trial(shown, state, scores):
    trial = as_trial(shown, 7, {}, 1.0)
    assert (trial.number, trial.state) == (7, state)
    assert tuple(o.score for o in trial.curve) == scores
    assert tuple(o.epoch for o in trial.curve) == tuple(range(1, len(scores) + 1))
    assert tuple(o.score for o in as_trial(shown, 7, {}, -1.0).curve) == tuple(-s for s in scores)


# -- results from before -------------------------------------------------------------------------


def a_finished_study(n=12, direction="maximize", **more):
    study = an_optuna_study(direction, sampler=RandomSampler(seed=0), **more)
    study.optimize(objective, n_trials=n)
    return study


def test_what_fits_is_taken_over_once_and_costs_nothing():
    earlier = a_finished_study(study_name="mine")
    inside = [t for t in earlier.trials if t.params["layers"] >= 4]
    space = SearchSpace({**SPACE, "layers": Int(4, 6)})
    study = Study(space, "bayes", seed=0)
    taken = take_over(study, earlier)
    assert [dict(t.config) for t in study.trials] == [
        {name: t.params[name] for name in space} for t in inside
    ]
    assert [t.score for t in study.trials] == [t.value for t in inside]
    assert {t.source for t in study.trials} == {"optuna:mine"}
    assert {t.state for t in study.trials} == {TrialState.COMPLETED}
    assert study.minutes_spent == 0.0
    assert study.best.score == max(t.value for t in inside)
    assert len(inside) == 11  # with this seed
    assert str(taken) == (
        "11 results from optuna:mine; left out: 1 trial has layers outside 4 to 6"
    )
    assert str(take_over(study, earlier)) == "0 results from optuna:mine"
    assert len(study.trials) == len(inside)


def test_a_study_that_goes_on_is_still_the_one_that_was_taken_over():
    theirs, study = optuna.create_study(direction="maximize"), Study(SPACE, max_epochs=3)
    running = theirs.ask(SHOWN)
    running.report(0.3, 1)
    running.report(0.35, 2)
    assert len(take_over(study, theirs).trials) == 1
    theirs.tell(running, 0.9)  # a score that it has not reported, in the place of the last
    theirs.tell(theirs.ask(SHOWN), 0.5)
    assert len(take_over(study, theirs).trials) == 0
    other = optuna.create_study(direction="maximize", study_name=theirs.study_name)
    other.tell(other.ask(SHOWN), 0.5)
    with pytest.raises(ValueError, match="is not the study"):
        take_over(study, other)


def test_losses_come_over_as_losses_and_never_as_scores():
    earlier = a_finished_study(direction="minimize")
    study = Study(SPACE, "random", mode="min")
    take_over(study, earlier)
    assert study.best.score == earlier.best_value
    with pytest.raises(ValueError, match="mode='min'"):
        take_over(Study(SPACE, "random"), earlier)


def test_pruned_and_failed_trials():
    earlier = an_optuna_study(study_name="p")
    params = {"lr": 0.1, "layers": 3, "act": "gelu"}
    for more in (
        {"state": Shown.PRUNED, "intermediate_values": {0: 0.3, 1: 0.4}},
        {"state": Shown.FAIL},
        {"value": 0.9, "intermediate_values": {0: 0.3, 1: 0.4, 2: 0.5}},
    ):
        earlier.add_trial(create_trial(params=params, distributions=SHOWN, **more))
    study = Study(SPACE, "random", max_epochs=3)
    taken = take_over(study, earlier)
    assert [(t.state, t.epoch, t.score) for t in study.trials] == [
        (TrialState.STOPPED, 2, 0.4),
        (TrialState.COMPLETED, 3, 0.9),
    ]
    assert taken.left_out == {"no finished epoch": 1}


def test_other_knobs_are_refused_in_words():
    with pytest.raises(ValueError, match=r"optuna:other .*further knob layers"):
        take_over(
            Study({"act": SPACE["act"], "lr": SPACE["lr"]}, "random"),
            a_finished_study(study_name="other"),
        )


@pytest.mark.parametrize("name", ["optuna studies.db", "a#b.db", "ü&mode=rwc.db"])
def test_a_storage_is_named_by_its_url_and_only_read(tmp_path, name):
    path = tmp_path / name
    url = f"sqlite:///{path}"
    earlier = a_finished_study(study_name="one", storage=url)
    before = path.read_bytes()
    study = Study(SPACE, "random", path=tmp_path / "ours.sqlite")
    take_over(study, url)
    assert [t.score for t in study.trials] == [t.value for t in earlier.trials]
    study.close()
    again = Study(SPACE, "random", path=tmp_path / "ours.sqlite")
    assert len(again.trials) == 12
    assert path.read_bytes() == before

    a_finished_study(study_name="two", storage=url, n=1)
    with pytest.raises(ValueError, match="no study_name was given"):
        take_over(again, url)
    with pytest.raises(ValueError, match=r"\['one', 'two'\], and not 'three'"):
        take_over(again, url, "three")
    assert str(take_over(again, url, "two")) == "1 result from optuna:two"
    assert {p.name for p in tmp_path.iterdir() if "ours" not in p.name} == {name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b"no database at all" * 99), "cannot be read"),
        (lambda path: path.symlink_to("elsewhere"), "symbolic link"),
        (lambda path: sqlite_of_another(path), "cannot be read"),
    ],
)
def test_no_such_storage_is_one_line(tmp_path, make, message):
    path = tmp_path / "s.db"
    make(path)
    before = path.exists()
    with pytest.raises(ValueError, match=message) as caught:
        read_study(f"sqlite:///{path}")
    assert "s.db" in str(caught.value)
    assert path.exists() == before


def test_a_password_is_not_shown():
    with pytest.raises(ValueError, match=r"mysql://me:\*\*\*@nowhere/x cannot be read") as caught:
        read_study("mysql://me:secret@nowhere/x")
    assert "secret" not in str(caught.value)


def sqlite_of_another(path):
    import sqlite3

    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()


def test_tune_begins_with_an_optuna_study():
    earlier = a_finished_study(study_name="mine")
    study = tune(
        value, SPACE, budget_minutes=0.001, searcher="random", warm_start=read_study(earlier)
    )
    assert [t.source for t in study.trials[:12]] == ["optuna:mine"] * 12
    assert not study.trials[12].source


def test_without_optuna_it_is_one_line():
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "try:\n    import tuner.integrations.optuna\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Optuna is not installed: pip install 'tuner[optuna]'\n"
