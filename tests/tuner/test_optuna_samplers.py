"""Optuna's samplers: what they are shown, and that they are what Optuna itself would be."""

import dataclasses
import logging
import sys
import warnings

import numpy as np
import pytest

from tuner.history import History
from tuner.searchers import make_searcher
from tuner.seeding import derive_seed
from tuner.space import Choice, Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

optuna = pytest.importorskip("optuna")
pytest.importorskip("cmaes")

PLANE = SearchSpace(x=Float(0.0, 1.0), y=Float(1e-3, 1.0, log=True))
MIXED = SearchSpace(x=Float(0.0, 1.0), n=Int(1, 100, log=True), act=Choice((True, 1, "a")))


def bowl(space, config):
    return -float(((space.to_unit([config])[0][:2] - 0.3) ** 2).sum())


def finish(history, config, score, state=TrialState.COMPLETED, epochs=1):
    number = len(history)
    history.start(Trial(number, config, 0, 9))
    for epoch in range(1, epochs + 1):
        history.observe(number, Observation(epoch, score, 1))
    if state.is_final:
        history.close(number, state)
    else:
        history.update(number, state=state)


def run(name, space, n, seed=0, history=None, **options):
    """A search of n trials in sequence, all complete, that goes on from `history`."""
    history = History(9) if history is None else history
    searcher = make_searcher(name, space, seed, **options)
    while len(history) < n:
        config = searcher.propose(history.view())
        finish(history, config, bowl(space, config))
    return history


def copied(history, n):
    """The first n trials in other objects, as another process would have them."""
    other = History(9)
    for trial in history.trials[:n]:
        other.restore(dataclasses.replace(trial, config=dict(trial.config)))
    return other


def configs(history):
    return [t.config for t in history]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tpe", {}),
        ("cmaes", {}),
        ("optuna:QMCSampler", {}),
        ("optuna:NSGAIISampler", {"population_size": 4}),
    ],
)
def test_a_search_goes_on_from_a_copied_history_as_it_would_have(name, options):
    whole = run(name, MIXED, 24, **options)
    resumed = run(name, MIXED, 24, history=copied(whole, 13), **options)
    assert configs(resumed) == configs(whole)


@pytest.mark.parametrize("name", ["tpe", "cmaes", "optuna:NSGAIISampler"])
def test_what_is_kept_for_speed_changes_no_answer_when_old_trials_change(name):
    """Trials that pause, resume, fail and turn out to be the worst, with two always in flight."""
    ends = [TrialState.COMPLETED, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.FAILED]
    kept, history = make_searcher(name, PLANE, 1), History(9)
    for number in range(24):
        config = kept.propose(history.view())
        assert make_searcher(name, PLANE, 1).propose(copied(history, number)) == config
        history.start(Trial(number, config, 0, 9))
        if number >= 2:
            history.observe(number - 2, Observation(1, bowl(PLANE, history[number - 2].config), 1))
            history.update(number - 2, state=TrialState.PAUSED)
        if number >= 5:
            history.close(number - 5, ends[number % 4])


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [("cmaes", "CmaEsSampler", {}), ("optuna:QMCSampler", "QMCSampler", {"scramble": True})],
)
def test_a_sequential_search_is_the_one_that_optuna_itself_makes(name, cls, options):
    ours = run(name, PLANE, 40)
    seed = derive_seed(0, "optuna", cls) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = getattr(optuna.samplers, cls)(seed=seed, **options)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(40):
            trial = study.ask()
            config = {
                "x": trial.suggest_float("x", 0.0, 1.0),
                "y": trial.suggest_float("y", 1e-3, 1.0, log=True),
            }
            study.tell(trial, bowl(PLANE, config))
    theirs = [t.params for t in study.trials]
    np.testing.assert_allclose(PLANE.to_unit(configs(ours)), PLANE.to_unit(theirs), atol=1e-9)


def test_cmaes_moves_its_mean_to_the_bottom_of_a_bowl():
    def late(name, seed):
        units = PLANE.to_unit(configs(run(name, PLANE, 90, seed)))[-20:]
        return np.linalg.norm(units - 0.3, axis=1).mean()

    seeds = range(3)
    random = np.mean([late("random", seed) for seed in seeds])
    assert max(late("cmaes", seed) for seed in seeds) < 0.15 * random


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("tpe", TrialState.STOPPED),
        ("tpe", TrialState.PAUSED),
        ("optuna-gp", TrialState.STOPPED),
        ("optuna-gp", TrialState.PAUSED),
    ],
)
def test_trials_that_were_broken_off_have_taught_something(name, state):
    history = History(9)
    for config in PLANE.grid(5):
        finish(history, config, bowl(PLANE, config), state)
    seeds = range(6 if name == "tpe" else 2)
    proposals = [make_searcher(name, PLANE, seed).propose(history.view()) for seed in seeds]
    distances = np.linalg.norm(PLANE.to_unit(proposals) - 0.3, axis=1)
    assert distances.mean() < 0.2  # a uniform draw is 0.47 away on average


def test_tpe_takes_a_trial_that_went_further_for_the_better_one():
    history = History(9)
    for x in np.linspace(0, 1, 30):  # those on the left score less but went on to epoch 3
        further = x < 0.15
        config = {"x": float(x), "y": 0.1}
        finish(history, config, 0.1 if further else 0.9, TrialState.STOPPED, 3 if further else 1)
    seeds = range(12)
    xs = [make_searcher("tpe", PLANE, seed).propose(history.view())["x"] for seed in seeds]
    assert np.median(xs) < 0.3


@pytest.mark.parametrize("name", ["tpe", "cmaes", "optuna-gp"])
def test_samplers_turn_away_from_where_trials_are_infeasible(name):
    space = SearchSpace(x=Float(0.0, 1.0), y=Float(0.0, 1.0))
    searcher, history = make_searcher(name, space, 0), History(9)
    for number in range(32):
        config = searcher.propose(history.view())
        if config["x"] > 0.5:  # the score rises towards the cliff's edge
            history.start(Trial(number, config, 0, 9))
            history.close(number, TrialState.INFEASIBLE)
        else:
            finish(history, config, config["x"])
    late = [t.state for t in history.trials[16:]]
    assert late.count(TrialState.INFEASIBLE) <= 8
    assert history.best.score > 0.42


def test_options_that_are_equal_to_each_other_stay_apart():
    history = run("tpe", MIXED, 30)
    assert {repr(t.config["act"]) for t in history} == {"True", "1", "'a'"}


def test_any_sampler_that_needs_no_more_than_a_seed_goes_by_its_name():
    assert PLANE.contains(make_searcher("optuna:NSGAIIISampler", PLANE, 0).propose(History()))
    with pytest.raises(ValueError, match="did you mean 'NSGAIISampler'"):
        make_searcher("optuna:NSGASampler", PLANE, 0)
    with pytest.raises(ValueError, match="no Optuna sampler 'GridSampler'"):
        make_searcher("optuna:GridSampler", PLANE, 0)  # it needs a grid
    with pytest.raises(TypeError, match="n_candidates"):
        make_searcher("tpe", PLANE, 0, n_candidates=3)


def test_optuna_says_nothing_and_is_left_as_it_was(capfd, recwarn):
    logger = logging.getLogger("optuna")
    before = (logger.level, logger.propagate, list(logger.handlers))
    for name in ("tpe", "cmaes", "optuna-gp"):
        run(name, MIXED, 12)
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


@pytest.mark.parametrize(("missing", "name"), [("optuna", "tpe"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named(monkeypatch, missing, name):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "tuner.searchers.optuna_samplers", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'tuner\[optuna\]'"):
        make_searcher(name, PLANE, 0)
