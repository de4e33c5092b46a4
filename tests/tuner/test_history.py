import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.history import History, HistoryView
from tuner.trial import Observation, Trial, TrialState


def start(history, n=1, target=3):
    for _ in range(n):
        history.start(Trial(len(history), {"x": 0.5}, seed=0, target=target))


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "observe", "observe", "observe", "close", "pause", "target"]),
        st.integers(0, 6),
        st.integers(0, 5),
        st.sampled_from([s for s in TrialState if s.is_final]),
        st.sampled_from([{}, {}, {"source": "earlier"}, {"confirms": 0}]),
    ),
    max_size=60,
)
BROKEN = (TrialState.INFEASIBLE, TrialState.FAILED)


@given(steps, st.integers(0, 30))
def test_what_is_kept_up_to_date_equals_what_a_full_look_finds(script, asked_from):
    history = History(max_epochs=None, budget_ns=None)
    view = history.view()
    for step, (what, number, score, state, origin) in enumerate(script):
        is_open = number < len(history) and not history[number].state.is_final
        if what == "start":
            history.start(Trial(len(history), {"x": 0.5}, seed=0, target=3, **origin))
        elif not is_open:
            continue
        elif what == "observe":
            cost = 10 + score
            history.observe(number, Observation(history[number].epoch + 1, score, device_ns=cost))
        elif what == "pause":
            history.update(number, state=TrialState.PAUSED)
        elif what == "target":
            history.update(number, target=score)
        else:
            history.close(number, state)
        check_totals(view)
        if step >= asked_from:  # what is not asked for is not kept
            check_standings(view)


def check_totals(view):
    mine = [t for t in view if not t.source]
    scored = [t for t in mine if t.score is not None]
    assert view.best == min(scored, key=lambda t: (-t.score, t.number), default=None)
    unfinished = [t for t in view if not t.state.is_final]
    assert list(view.running) == unfinished
    assert list(view.under_way) == [t for t in unfinished if t.epoch < t.target]
    assert len(view.running) + len(view.finished) == len(view)
    costs = [o.device_ns for t in mine for o in t.curve]
    assert view.mean_epoch_ns == (sum(costs) // len(costs) if costs else None)
    own = [t for t in mine if t.confirms is None]
    assert list(view.own) == own
    assert list(view.own_numbers) == [t.number for t in own]
    assert view.cheapest_epoch_ns == min((o.device_ns for t in own for o in t.curve), default=None)


def check_standings(view):
    for epoch in (1, 2, 4):
        waiting = [t for t in view if t.state is TrialState.PAUSED and t.epoch == epoch]
        waiting = [t for t in waiting if t.epoch >= t.target]
        waiting.sort(key=lambda t: (-t.curve[-1].score, t.number))
        assert list(view.waiting.get(epoch, ())) == [t.number for t in waiting]
        at = {t.number: t.curve[epoch - 1].score for t in view.own if len(t.curve) >= epoch}
        # Li et al. (2020) compare who was promoted into a rung: who broke in a lower one was not.
        sent = [t for t in view.own if t.target >= epoch and t.state in BROKEN]
        broken = [t.number for t in sent if t.number not in at]
        finished = view.finished_at(epoch)
        assert list(finished) == sorted(at, key=lambda n: (-at[n], n)) + broken
        assert [finished.place(n, at[n]) for n in finished if n in at] == list(range(len(at)))
        assert [finished.above(s) for s in range(6)] == [
            sum(score > s for score in at.values()) for s in range(6)
        ]
        done = [t for t in view.own if t.state is TrialState.COMPLETED and t.curve]
        means = [statistics.fmean(o.score for o in t.curve[:epoch]) for t in done]
        assert list(view.means_until(epoch)) == sorted(means)


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
