"""Callbacks of `tune`: called with the study after each change, and kept from ending it."""

import pytest

from tuner import Float, TrialState, tune

SPACE = {"x": Float(0, 1)}


def train(config):
    for epoch in range(1, 4):
        yield config["x"] * epoch


def search(callbacks, **more):
    return tune(train, SPACE, budget_minutes=0.001, searcher="random", callbacks=callbacks, **more)


class Recorder:
    def __init__(self):
        self.seen, self.closed = [], 0

    def __call__(self, study):
        self.seen.append(sum(t.epoch for t in study.trials))

    def close(self):
        self.closed += 1


def test_they_see_every_epoch_as_it_comes_and_the_end():
    recorder = Recorder()
    study = search([recorder])
    epochs = sum(t.epoch for t in study.trials)
    assert set(recorder.seen) == set(range(epochs + 1))
    assert recorder.seen == sorted(recorder.seen)
    assert recorder.closed == 1


def test_scores_are_as_they_were_told():
    found = []
    study = search([lambda study: found.append(study.trial(0).score)], mode="min")
    assert found[-1] == study.trials[0].score >= 0


def test_one_that_raises_is_named_once_and_the_search_goes_on():
    recorder, calls = Recorder(), []

    def broken(study):
        calls.append(1)
        raise OSError("no route to host")

    with pytest.warns(RuntimeWarning, match="broken.*OSError: no route to host") as caught:
        study = search([broken, recorder])
    assert (len(calls), len(caught)) == (1, 1)
    assert any(t.state is TrialState.COMPLETED for t in study.trials)
    assert recorder.seen[-1] == sum(t.epoch for t in study.trials)


def test_a_close_that_raises_ends_nothing_either():
    class Stuck(Recorder):
        def close(self):
            raise RuntimeError("stuck")

    other = Recorder()
    with pytest.warns(RuntimeWarning, match="stuck"):
        search([Stuck(), other])
    assert other.closed == 1


def test_they_are_closed_where_the_search_raises():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        tune(stopped, SPACE, budget_minutes=1, searcher="random", callbacks=[recorder])
    assert recorder.closed == 1


def stopped(config):
    raise KeyboardInterrupt


def test_on_change_may_still_end_a_search():
    def on_change():
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        search([], on_change=on_change)


@pytest.mark.parametrize("callbacks", [Recorder(), "log", [Recorder(), "log"], None])
def test_what_is_no_list_of_functions_is_refused_before_a_file_is_made(callbacks, tmp_path):
    with pytest.raises(ValueError, match="callbacks is a list of functions"):
        search(callbacks, directory=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
