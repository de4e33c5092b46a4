"""Google's Vizier as a searcher: what it is shown, and that it finds what it is to find.

A proposal takes it seconds, so that the contract is tested on few of them.
"""

import importlib.util
import pickle
import sys

import numpy as np
import pytest

from tuner.history import History
from tuner.searchers import SpaceExhausted, make_searcher
from tuner.space import Choice, Float, Int, SearchSpace
from tuner.trial import Observation, Trial, TrialState

PLANE = SearchSpace(x=Float(0.0, 1.0), y=Float(1e-3, 1.0, log=True))
MIXED = SearchSpace(
    {"x[0]": Float(0.0, 1.0), "<b>": Int(1, 100, log=True), "act": Choice((True, 1, "a"))}
)
OPTIMUM = np.array([0.3, 0.6])


needs_vizier = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax", "vizier")),
    reason="needs tuner[vizier]",
)


def bowl(config):
    return -float(((PLANE.to_unit([config])[0] - OPTIMUM) ** 2).sum())


def history_of(space, *trials):
    """A history of (configuration, score, state)."""
    history = History(9)
    for number, (config, score, state) in enumerate(trials):
        curve = () if score is None else (Observation(1, score, 1),)
        history.restore(Trial(number, config, 0, 9, state, curve))
    return history


def search(n, seed=0):
    history = History(1)
    searcher = make_searcher("vizier", PLANE, seed)
    for number in range(n):
        config = searcher.propose(history.view())
        assert not searcher.fallback
        history.restore(
            Trial(number, config, 0, 1, TrialState.COMPLETED, (Observation(1, bowl(config), 1),))
        )
    return history


@needs_vizier
def test_it_finds_the_bottom_of_a_bowl_with_few_trials():
    best = PLANE.to_unit([search(9).best.config])[0]
    assert np.linalg.norm(best - OPTIMUM) < 0.05  # of nine uniform draws the best is 0.16 away


@needs_vizier
def test_a_proposal_is_a_function_of_seed_and_history_alone():
    ends = (TrialState.COMPLETED, TrialState.STOPPED, TrialState.INFEASIBLE, TrialState.RUNNING)
    scores = (0.3, 0.5, None, None)
    configs = [MIXED.sample(np.random.default_rng(i)) for i in range(4)]
    history = history_of(MIXED, *zip(configs, scores, ends, strict=True))
    searcher = make_searcher("vizier", MIXED, 5)
    first = searcher.propose(history.view())
    assert MIXED.contains(first)
    assert searcher.propose(history.view()) == first
    copied = pickle.loads(pickle.dumps(searcher))  # noqa: S301
    assert copied.propose(history.view()) == first
    assert make_searcher("vizier", MIXED, 6).propose(history.view()) != first


@needs_vizier
def test_it_is_shown_what_became_of_each_trial():
    from tuner.searchers.vizier import _shown

    config = {"x[0]": 0.25, "<b>": 7, "act": 1}

    def shown(state, *scores):
        curve = tuple(Observation(e, score, 1) for e, score in enumerate(scores, 1))
        return _shown(MIXED, Trial(3, config, 0, 9, state, curve))

    for state in (TrialState.COMPLETED, TrialState.STOPPED, TrialState.PAUSED):
        seen = shown(state, 0.1, 0.7)
        assert seen.is_completed
        assert not seen.infeasible
        assert seen.final_measurement.metrics["score"].value == 0.7
        assert list(seen.parameters.as_dict().values()) == [0.25, 7, "1"]
    assert shown(TrialState.INFEASIBLE, 0.1).infeasible
    for state in (TrialState.RUNNING, TrialState.INTERRUPTED, TrialState.PAUSED):
        assert not shown(state).is_completed
    assert not shown(TrialState.RUNNING, 0.9).is_completed
    assert shown(TrialState.FAILED) is None


@needs_vizier
@pytest.mark.parametrize(
    ("scores", "state"),
    [
        ((None, None), TrialState.INFEASIBLE),
        ((None, None), TrialState.RUNNING),
        ((0.5, 0.5), TrialState.COMPLETED),
        ((1e308, -1e308, 0.0), TrialState.COMPLETED),
    ],
)
def test_adversarial_histories_get_a_legal_answer_and_no_words(scores, state, capfd, recwarn):
    configs = [MIXED.sample(np.random.default_rng(i)) for i in range(len(scores))]
    history = history_of(MIXED, *((c, s, state) for c, s in zip(configs, scores, strict=True)))
    assert MIXED.contains(make_searcher("vizier", MIXED, 0).propose(history.view()))
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


@needs_vizier
def test_a_finite_space_is_used_up_without_repeats():
    space = SearchSpace(n=Int(1, 2), act=Choice(("a", "b")))
    history, searcher = History(1), make_searcher("vizier", space, 0)
    for number in range(4):
        config = searcher.propose(history.view())
        assert space.contains(config)
        score = (Observation(1, float(config["n"]), 1),)
        history.restore(Trial(number, config, 0, 1, TrialState.COMPLETED, score))
    assert len({str(t.config) for t in history}) == 4
    with pytest.raises(SpaceExhausted):
        searcher.propose(history.view())


@needs_vizier
def test_what_vizier_leaves_out_is_drawn_at_random_and_said(monkeypatch):
    from vizier import pyvizier as vz

    from tuner.searchers import vizier

    class Silent(vizier.VizierGPUCBPEBandit):
        def suggest(self, count=None):
            return [vz.TrialSuggestion({"knob_0": 0.5})] * count

    monkeypatch.setattr(vizier, "VizierGPUCBPEBandit", Silent)
    searcher = make_searcher("vizier", PLANE, 0)
    assert PLANE.contains(searcher.propose(History(1).view()))
    assert "nothing that is new" in searcher.fallback


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizier", None)
    monkeypatch.delitem(sys.modules, "tuner.searchers.vizier", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'tuner\[vizier\]'"):
        make_searcher("vizier", PLANE, 0)
