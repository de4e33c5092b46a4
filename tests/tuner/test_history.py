import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.trial import History, HistoryView, Observation, Trial, TrialState


def start(history, n=1, target=3):
    for _ in range(n):
        history.start(Trial(len(history), {"x": 0.5}, seed=0, target=target))


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "observe", "observe", "observe", "close", "pause"]),
        st.integers(0, 6),
        st.integers(0, 5),
        st.sampled_from([s for s in TrialState if s.is_final]),
    ),
    max_size=60,
)


@given(steps)
def test_what_is_kept_up_to_date_equals_what_a_full_look_finds(script):
    history = History(max_epochs=None, budget_ns=None)
    view = history.view()
    for what, number, score, state in script:
        is_open = number < len(history) and not history[number].state.is_final
        if what == "start":
            start(history)
        elif not is_open:
            continue
        elif what == "observe":
            history.observe(number, Observation(history[number].epoch + 1, score, device_ns=10))
        elif what == "pause":
            history.update(number, state=TrialState.PAUSED)
        else:
            history.close(number, state)
        scored = [t for t in history if t.score is not None]
        best = min(scored, key=lambda t: (-t.score, t.number), default=None)
        assert view.best == best
        assert [t.number for t in view.running] == [
            t.number for t in history if not t.state.is_final
        ]
        assert len(view.running) + len(view.finished) == len(view)
        epochs = [o for t in history for o in t.curve]
        assert view.mean_epoch_ns == (10 if epochs else None)


def test_an_infeasible_or_failed_trial_has_no_score():
    history = History()
    start(history, 3)
    for number in range(3):
        history.observe(number, Observation(1, 0.9 - number / 10, 5))
    assert history.best.number == 0
    history.close(0, TrialState.INFEASIBLE, "diverged")
    assert history.best.number == 1
    history.close(1, TrialState.FAILED)
    assert history.best.number == 2
    history.close(2, TrialState.INFEASIBLE)
    assert history.best is None


def test_scores_at_an_epoch_are_those_of_trials_that_reached_it():
    history = History()
    start(history, 3)
    for number, scores in enumerate([(0.1, 0.2, 0.3), (0.4,), (0.5, 0.6)]):
        for epoch, score in enumerate(scores, 1):
            history.observe(number, Observation(epoch, score, 1))
    assert history.scores_at(1) == {0: 0.1, 1: 0.4, 2: 0.5}
    assert history.scores_at(2) == {0: 0.2, 2: 0.6}
    assert history.scores_at(4) == {}


def test_a_view_follows_its_history_and_cannot_change_it():
    history = History()
    view = history.view()
    start(history)
    assert len(view) == 1
    assert type(view) is HistoryView
    for name in ("start", "observe", "update", "close"):
        assert not hasattr(view, name)


def test_the_history_is_append_only():
    history = History()
    start(history)
    with pytest.raises(ValueError, match="expected trial 1"):
        history.start(Trial(0, {}, 0, 3))
    with pytest.raises(ValueError, match="epoch 2 is not next"):
        history.observe(0, Observation(2, 0.5, 1))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            history.observe(0, Observation(1, bad, 1))
    with pytest.raises(ValueError, match="no trial 7"):
        history.close(7, TrialState.COMPLETED)
    with pytest.raises(ValueError, match="not as PAUSED"):
        history.close(0, TrialState.PAUSED)
    history.close(0, TrialState.COMPLETED)
    with pytest.raises(ValueError, match="has ended: COMPLETED"):
        history.observe(0, Observation(1, 0.5, 1))
