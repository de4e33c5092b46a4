"""The contract that every searcher keeps, and what each of them promises on its own."""

import copy
import itertools
import math
import pickle
import random
import statistics

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, qmc
from threadpoolctl import threadpool_info, threadpool_limits

from tuner.history import History
from tuner.searchers import SEARCHERS, SpaceExhausted, make_searcher
from tuner.searchers.grid import lattice_size
from tuner.searchers.known_start import KnownStart
from tuner.searchers.shared_start import SharedStart
from tuner.space import Choice, Conditional, Float, Int, SearchSpace
from tuner.study import Study
from tuner.trial import Observation, Trial, TrialState

MIXED = SearchSpace(
    lr=Float(1e-4, 1.0, log=True),
    p=Float(0.0, 0.5),
    n=Int(1, 4),
    act=Choice(("relu", "gelu", None)),
)
REAL = SearchSpace(x=Float(0.0, 1.0), y=Float(1.0, 10.0, log=True))
TREE = SearchSpace(
    kind=Choice(("sgd", "adam")),
    momentum=Conditional(Float(0.0, 0.99), "kind", ("sgd",)),
    layers=Int(1, 3),
    growth=Conditional(Float(1.0, 2.0), "layers", (2, 3)),
    skip=Conditional(Choice(("no", "add")), "layers", (3,)),
)
FINITE_TREE = SearchSpace(  # 2 + 3 configurations
    kind=Choice(("a", "b")),
    few=Conditional(Int(1, 2), "kind", ("a",)),
    more=Conditional(Choice(("x", "y", "z")), "kind", ("b",)),
)
FINITE = SearchSpace(n=Int(1, 3), act=Choice(("a", "b", "c", "d")), flag=Choice((True, False)))


def score_of(space, config):
    return 1.0 - float(((space.to_unit([config])[0] - 0.3) ** 2).sum())


def grow(history, space, searcher, n, ends=(TrialState.COMPLETED,) * 10_000):
    """Let a searcher propose n trials; each ends as `ends` says, None leaves it running."""
    for _, end in zip(range(n), ends, strict=False):
        number = len(history)
        config = searcher.propose(history.view())
        history.start(Trial(number, config, number, history.max_epochs or 1))
        if end in (TrialState.COMPLETED, TrialState.STOPPED, TrialState.PAUSED):
            history.observe(number, Observation(1, score_of(space, config), 1_000))
        if end is not None and end.is_final:
            history.close(number, end)
        elif end is not None:
            history.update(number, state=end)
    return history


# A proposal takes Vizier seconds: it has tests of its own.
QUICK = sorted(SEARCHERS.keys() - {"vizier"})


@pytest.fixture(params=QUICK)
def name(request):
    return request.param


@pytest.mark.parametrize(
    "space", [MIXED, REAL, FINITE, TREE], ids=["mixed", "real", "finite", "tree"]
)
def test_proposals_lie_in_the_space_and_leave_the_history_alone(name, space):
    searcher = make_searcher(name, space, seed=3)
    history = History(1, 10**6)
    for _ in range(14):
        before = copy.deepcopy(history.trials)
        config = searcher.propose(history.view())
        assert space.contains(config), config
        assert history.trials == before
        assert isinstance(searcher.fallback, str)
        history.start(Trial(len(history), config, 0, 1))
        history.observe(len(history) - 1, Observation(1, score_of(space, config), 1_000))
        history.close(len(history) - 1, TrialState.COMPLETED)


def test_a_proposal_is_a_function_of_seed_and_history_alone(name):
    history = grow(History(1, 10**6), MIXED, make_searcher(name, MIXED, 5), 9)
    first = make_searcher(name, MIXED, 5).propose(history.view())
    used = make_searcher(name, MIXED, 5)
    for n in range(9):  # a searcher that has been asked before, about other histories
        used.propose(grow(History(1, 10**6), MIXED, make_searcher(name, MIXED, 5), n).view())
    assert used.propose(history.view()) == first
    assert used.propose(history.view()) == first  # and asking changes nothing
    copied = pickle.loads(pickle.dumps(used))  # noqa: S301
    assert copied.propose(history.view()) == first


def test_another_seed_gives_other_proposals(name):
    runs = [
        [t.config for t in grow(History(1, 10**6), MIXED, make_searcher(name, MIXED, seed), 8)]
        for seed in (0, 1)
    ]
    assert runs[0] != runs[1]
    again = grow(History(1, 10**6), MIXED, make_searcher(name, MIXED, 0), 8)
    assert [t.config for t in again] == runs[0]


@pytest.fixture
def two_threads():
    """More than a model takes for itself, and so more than what it might leave behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_the_global_generators_and_torch_threads_are_untouched(name, two_threads):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
    grow(History(1, 10**6), MIXED, make_searcher(name, MIXED, 0), 10)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == two_threads


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def test_a_proposal_computes_with_one_thread_and_puts_back_what_it_found(monkeypatch):
    from tuner.searchers import surrogate

    searcher = make_searcher("bayes", REAL, 0)
    history = grow(History(), REAL, searcher, 8)
    seen = []

    def look(*_):
        seen.append(blas_threads())
        raise ZeroDivisionError

    with threadpool_limits(2):
        before = blas_threads()
        searcher.propose(history.view())
        assert blas_threads() == before
        monkeypatch.setattr(surrogate, "fit", look)
        with pytest.raises(ZeroDivisionError):
            make_searcher("bayes", REAL, 0).propose(history.view())
        assert blas_threads() == before
    assert seen
    assert set(seen[0]) == {1}


@pytest.mark.parametrize(
    "ends",
    [
        [None] * 9,
        [TrialState.INFEASIBLE] * 9,
        [TrialState.FAILED] * 9,
        [TrialState.COMPLETED, TrialState.INFEASIBLE, None] * 3,
        [TrialState.PAUSED, TrialState.STOPPED, TrialState.INTERRUPTED] * 3,
    ],
    ids=["all running", "all infeasible", "all failed", "mixed", "broken off"],
)
def test_every_state_of_earlier_trials_is_taken(name, ends):
    searcher = make_searcher(name, MIXED, 2)
    history = grow(History(1, 10**6), MIXED, searcher, 9, ends)
    assert MIXED.contains(searcher.propose(history.view()))


def test_a_finite_space_is_proposed_once_and_then_exhausted(name):
    searcher = make_searcher(name, FINITE, 0)
    history = grow(History(1, 10**6), FINITE, searcher, 24)
    configs = [tuple(t.config.values()) for t in history]
    assert set(configs) == set(itertools.product((1, 2, 3), "abcd", (True, False)))
    with pytest.raises(SpaceExhausted):
        searcher.propose(history.view())


def test_of_a_finite_space_with_conditions_each_configuration_is_proposed_once(name):
    searcher = make_searcher(name, FINITE_TREE, 0)
    history = grow(History(1, 10**6), FINITE_TREE, searcher, 5)
    configs = [tuple(t.config.values()) for t in history]
    few, more = itertools.product("a", (1, 2), [None]), itertools.product("b", [None], "xyz")
    assert set(configs) == {*few, *more}
    with pytest.raises(SpaceExhausted):
        searcher.propose(history.view())


def test_pending_trials_are_not_proposed_again(name):
    searcher = make_searcher(name, REAL, 0)
    history = grow(History(1, 10**6), REAL, searcher, 10)
    grow(history, REAL, searcher, 6, [None] * 6)
    units = REAL.to_unit([t.config for t in history.trials[10:]])
    distances = np.linalg.norm(units[:, None] - units[None], axis=-1)
    assert (distances[~np.eye(6, dtype=bool)] > 1e-3).all()


def test_scores_that_the_model_does_not_look_at_yet_end_in_a_draw_that_says_so():
    """In flight, all of them before the first rung: a slot that is free then gets an answer."""
    searcher = make_searcher("freeze-thaw", REAL, 0)
    history = History(9, 10**6)
    for number in range(6):
        history.start(Trial(number, REAL.sample(np.random.default_rng(number)), 0, 2))
        history.observe(number, Observation(1, 0.1 * number, 1_000))
    assert REAL.contains(searcher.propose(history.view()))
    assert searcher.fallback == "the model could not be fitted (FitError): random"


adversarial = st.lists(
    st.tuples(
        st.integers(0, 3),  # which of few configurations: duplicates are the rule
        st.sampled_from([0.0, 0.5, 0.5, 1.0, 1e300, -1e300, 1e-300]),
        st.sampled_from(list(TrialState)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(adversarial, st.sampled_from(QUICK), st.sampled_from([MIXED, REAL, TREE]))
def test_adversarial_histories_get_a_legal_answer(script, name, space):
    history = History(1, 10**6)
    for number, (which, score, state) in enumerate(script):
        config = space.sample(np.random.default_rng(which))
        history.start(Trial(number, config, 0, 1))
        if state is not TrialState.INFEASIBLE:
            history.observe(number, Observation(1, score, 1_000))
        if state.is_final:
            history.close(number, state)
        else:
            history.update(number, state=state)
    assert space.contains(make_searcher(name, space, 0).propose(history.view()))


def test_an_unknown_searcher_names_the_near_miss():
    with pytest.raises(ValueError, match="did you mean 'bayes'"):
        make_searcher("bayse", REAL, 0)


def test_a_known_start_comes_first_each_of_it_once_and_then_the_searcher():
    configs = [{"x": 0.25, "y": 2.0}, {"x": 0.75, "y": 3.0}]
    searcher = KnownStart(make_searcher("random", REAL, 0), REAL, configs)
    history = grow(History(1, 10**6), REAL, searcher, 4)
    assert [t.config for t in history.trials[:2]] == configs
    assert history[2].config not in configs
    assert searcher.propose_many(History(1, 10**6).view(), 5) == configs
    with pytest.raises(ValueError, match="x = 2"):
        KnownStart(make_searcher("random", REAL, 0), REAL, [{"x": 2, "y": 2.0}])


# -- random --------------------------------------------------------------------------------------


def test_random_draws_are_uniform():
    history = History()
    searcher = make_searcher("random", REAL, 11)
    grow(history, REAL, searcher, 2000)
    units = REAL.to_unit([t.config for t in history])
    counts, _, _ = np.histogram2d(units[:, 0], units[:, 1], bins=4, range=[[0, 1], [0, 1]])
    chi2 = ((counts - 125) ** 2 / 125).sum()
    assert chi2 < 37.7  # the 99.9 % point with 15 degrees of freedom


# -- grid ----------------------------------------------------------------------------------------


def visited_lattice(searcher, budget_ns, cost_ns, n, space=REAL, max_epochs=1):
    history = History(max_epochs, budget_ns)
    for number in range(n):
        history.start(Trial(number, searcher.propose(history.view()), 0, max_epochs))
        for epoch in range(1, max_epochs + 1):
            history.observe(number, Observation(epoch, 0.5, cost_ns))
        history.close(number, TrialState.COMPLETED)
    return [tuple(t.config.values()) for t in history]


def test_the_lattice_is_the_largest_odd_one_that_the_budget_buys():
    # 40 trainings of 4 epochs at 25 ns: 5 x 5 fits into 40, 7 x 7 does not.
    seen = visited_lattice(make_searcher("grid", REAL, 0), 4000, 25, 25, max_epochs=4)
    assert set(seen) == {tuple(c.values()) for c in REAL.grid(5)}


def test_a_complete_lattice_is_refined_and_nothing_is_visited_twice():
    seen = visited_lattice(make_searcher("grid", REAL, 0), 2600, 100, 81)
    assert len(set(seen)) == 81
    assert set(seen[:25]) == {tuple(c.values()) for c in REAL.grid(5)}
    assert set(seen) == {tuple(c.values()) for c in REAL.grid(9)}


@pytest.mark.parametrize("start", [SharedStart, KnownStart])
def test_a_start_that_is_on_no_lattice_does_not_move_it(start):
    known = [{name: domain.from_unit(0.377) for name, domain in REAL.items()}]
    inner = make_searcher("grid", REAL, 0)
    searcher = start(inner, REAL, *([0, 5] if start is SharedStart else [known]))
    sides, history = [], History(1, 60 * 100)
    for number in range(40):
        history.start(Trial(number, searcher.propose(history.view()), 0, 1))
        history.observe(number, Observation(1, 0.5, 100 if number % 2 else 140))
        history.close(number, TrialState.COMPLETED)
        sides.append(inner._side(history.view()))
    own = [tuple(t.config.values()) for t in history][5:]
    assert sides[8:] == sorted(sides[8:])  # it is refined, and never another one
    assert set(own) <= {tuple(c.values()) for c in REAL.grid(sides[-1])}
    assert len(set(own)) == len(own)


def test_grid_points_fix_the_first_lattice():
    searcher = make_searcher("grid", REAL, 0, points_per_axis=4)
    seen = visited_lattice(searcher, 10**9, 1, 49)
    assert set(seen[:16]) == {tuple(c.values()) for c in REAL.grid(4)}
    assert set(seen) == {tuple(c.values()) for c in REAL.grid(7)}
    with pytest.raises(ValueError, match="at least 2"):
        make_searcher("grid", REAL, 0, points_per_axis=1)


def test_the_space_is_covered_early():
    """After a quarter of a 9 x 9 lattice every quadrant has had its share."""
    seen = visited_lattice(make_searcher("grid", REAL, 4), 8100, 100, 20)
    units = REAL.to_unit([dict(zip(REAL, values, strict=True)) for values in seen])
    quadrants = np.bincount((units > 0.5) @ [1, 2], minlength=4)
    assert (quadrants >= 2).all()


def test_lattice_sizes_count_integers_and_options_once():
    assert lattice_size(MIXED, 3) == 3 * 3 * 3 * 3
    assert lattice_size(MIXED, 9) == 9 * 9 * 4 * 3


# -- bayes ---------------------------------------------------------------------------------------


def test_the_start_is_the_scrambled_sobol_sequence():
    from tuner.seeding import derive_seed

    history = grow(History(), REAL, make_searcher("bayes", REAL, 9), 5)
    expected = qmc.Sobol(2, rng=derive_seed(9, "sobol")).random_base2(3)[:5]
    np.testing.assert_allclose(REAL.to_unit([t.config for t in history]), expected, atol=1e-12)


def test_scores_are_clamped_just_under_the_median_of_the_first():
    from tuner.searchers.surrogate import shown_scores

    # The first: 0.1, 0.6, 0.8, 0.9 -> median 0.7, best 0.9, floor 0.7 - 0.15 * 0.2 = 0.67.
    scores = np.array([0.8, 0.1, 0.9, 0.6])
    np.testing.assert_allclose(shown_scores(scores, scores), [0.8, 0.67, 0.9, 0.67])
    # What a search finds where scores are high does not lift the floor: best 0.91, median 0.7.
    late = np.concatenate([scores, np.full(50, 0.91)])
    np.testing.assert_allclose(shown_scores(late, scores)[:4], [0.8, 0.6685, 0.9, 0.6685])
    # Where all are alike they are shown as they are.
    np.testing.assert_array_equal(shown_scores(np.full(3, 0.5), np.full(3, 0.5)), np.full(3, 0.5))


def test_what_blew_up_among_the_first_does_not_hide_the_rest():
    from tuner.searchers.surrogate import Data, not_blown

    losses = -np.array([1e6, 0.9, 3e5, 8e7, 0.5, 0.4, 2e3, 0.45, 0.6, 0.7, 0.8])
    np.testing.assert_array_equal(not_blown(losses)[:5], -np.array([0.9, 0.5, 0.4, 0.45, 0.6]))
    shown = Data(np.zeros((11, 3)), losses, np.arange(11)).shown(11)
    # Best -0.4, median -0.5 of those five: the floor is -0.5 - 0.15 * 0.1.
    np.testing.assert_allclose(shown.min(), -0.515)
    np.testing.assert_allclose(shown[[5, 7, 4]], [-0.4, -0.45, -0.5])
    # While most have blown up nobody can say so, nor where there is no spread but by rounding.
    np.testing.assert_array_equal(not_blown(losses[:4]), losses[:4])
    ties = np.array([0.5, 0.5, 0.1, np.nextafter(0.5, 0)])
    np.testing.assert_array_equal(not_blown(ties), ties)


def test_bayes_finds_a_basin_where_most_of_the_space_blows_up():
    space = SearchSpace(lr=Float(1e-4, 10.0, log=True), decay=Float(0.0, 1.0))

    def gap(config):
        return 4 * (math.log10(config["lr"] / 1e-4) / 5 - 0.22) ** 2 + (config["decay"] - 0.4) ** 2

    def best_of(searcher, seed):
        noise = np.random.default_rng(seed)
        study = Study(space, searcher, seed=seed, mode="min")
        for _ in range(30):
            trial = study.ask()
            exponent = math.log10(trial.config["lr"] / 1e-4) - 1.75
            blown = 10 ** (3 + 1.2 * exponent + noise.random())
            fine = 0.3 + gap(trial.config) + 0.002 * noise.standard_normal()
            study.tell(trial.number, score=blown if exponent > 0 else fine)
        return gap(study.best.config)

    found = [best_of("bayes", seed) for seed in range(3)]
    assert max(found) < 0.01
    assert statistics.fmean(found) < 0.2 * statistics.fmean(best_of("random", s) for s in range(3))


def fitted_posterior():
    """A process on 12 points in two knobs and an epoch, and all that it was made from."""
    from tuner.searchers.fit import fit
    from tuner.searchers.kernels import Kernel
    from tuner.searchers.posterior import Posterior

    generator = np.random.default_rng(0)
    x = np.column_stack([generator.random((12, 2)), generator.choice([0.3, 1.0], 12)])
    y = np.sin(4 * x[:, 0]) + x[:, 1] + 0.5 * x[:, 2]
    prior = fit(Kernel(2, []), x, y)
    return x, y, prior, Posterior.of(prior, x, y)


def textbook(x, y, prior, star):
    """Posterior mean and covariance, K(x*, X) (K + s^2 I)^-1 y and so on, step by step."""
    noise, size, epoch_scale, *knob_scale = np.exp(prior.covariance.theta[:5])
    slope_size, late_scale, *slope_scale = np.exp(prior.covariance.theta[5:])

    def kernel(a, b):
        r = np.sqrt(5 * (((a[:, None, :2] - b[None, :, :2]) / knob_scale) ** 2).sum(-1))
        matern = (1 + r + r**2 / 3) * np.exp(-r)
        apart = (a[:, None, 2] - b[None, :, 2]) ** 2
        late, late_slope = (np.exp(-0.5 * apart / s**2) for s in (epoch_scale, late_scale))
        slope = 4 * (a[:, :2] / np.square(slope_scale)) @ b[:, :2].T
        return size * matern * late + slope_size * slope * late_slope

    z = (y - y.mean()) / y.std(ddof=1)
    gram = kernel(x, x) + noise * np.eye(len(x))
    mu = prior.mean
    mean = mu + kernel(star, x) @ np.linalg.solve(gram, z - mu)
    covariance = kernel(star, star) - kernel(star, x) @ np.linalg.solve(gram, kernel(x, star))
    return mean * y.std(ddof=1) + y.mean(), covariance * y.var(ddof=1)


def test_the_gaussian_process_predicts_as_the_textbook_formula_does():
    x, y, prior, posterior = fitted_posterior()
    star = np.random.default_rng(1).random((300, 3))  # in more than one batch
    expected, covariance = textbook(x, y, prior, star)
    mean, sd = posterior.mean_sd(star)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_allclose(posterior.mean(star), expected, atol=1e-6)
    np.testing.assert_allclose(sd**2, np.diag(covariance), atol=1e-6)
    gap, gap_sd = posterior.gap(star[1:], star[0])
    np.testing.assert_allclose(gap, expected[1:] - expected[0], atol=1e-6)
    variance = np.diag(covariance)[1:] + covariance[0, 0] - 2 * covariance[0, 1:]
    np.testing.assert_allclose(gap_sd**2, variance, atol=1e-6)
    for found, known in zip(posterior.joint(star), (expected, covariance), strict=True):
        np.testing.assert_allclose(found, known, atol=1e-6)


def test_what_a_score_is_off_is_what_a_process_that_never_saw_it_says():
    x, y, prior, posterior = fitted_posterior()
    z, kernel = (y - y.mean()) / y.std(ddof=1), prior.covariance
    found = posterior.left_out()
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        gram = kernel(x[others], x[others]) + kernel.noise * np.eye(len(y) - 1)
        weights = np.linalg.solve(gram, z[others] - prior.mean)
        expected = prior.mean + (kernel(x[i : i + 1], x[others]) @ weights)[0]
        assert found[i] == pytest.approx((z[i] - expected) * y.std(ddof=1), abs=1e-6)


def test_believing_point_after_point_is_believing_them_all():
    from tuner.searchers.posterior import Gaps

    *_, posterior = fitted_posterior()
    points = np.random.default_rng(2).random((40, 3))
    rival, some = points[7], [3, 30, 30, 11]
    gaps = Gaps(posterior, points, rival, len(some))
    for believed in range(len(some) + 1):
        mean, sd = posterior.believing(points[some[:believed]]).gap(points, rival)
        np.testing.assert_allclose(gaps.mean, mean, atol=1e-9)
        np.testing.assert_allclose(gaps.sd, sd, atol=1e-6)
        if believed < len(some):
            gaps.believe(some[believed])


def mixed_data(n, choices):
    """Three knobs, of which some are options, and an epoch; `n x 4` points and n scores."""
    generator = np.random.default_rng(n)
    x = np.column_stack([generator.random((n, 3)) - 0.5, generator.choice([0.0, -0.5, -1.0], n)])
    x[:, choices] = generator.integers(0, 3, (n, len(choices)))
    y = np.sin(4 * x[:, 0]) + x[:, 1] ** 2 + 0.5 * x[:, 3] + 0.05 * generator.standard_normal(n)
    return x, y


ALL_KINDS = pytest.mark.parametrize("choices", [[], [0, 2], [0, 1, 2]])


@ALL_KINDS
def test_the_likelihood_and_its_gradient_are_those_of_gpytorch(choices):
    from gpytorch.mlls import ExactMarginalLogLikelihood

    from tests.tuner.gp_definition import define, hyperparameters, set_hyperparameters
    from tuner.searchers.fit import log_posterior, standardised
    from tuner.searchers.kernels import Kernel

    x, y = mixed_data(40, choices)
    kernel = Kernel(3, choices)
    theta = kernel.start + 0.3 * np.random.default_rng(0).random(len(kernel.start))
    value, gradient = log_posterior(kernel, theta, 0.2, x, standardised(y)[0])
    model = define(torch.from_numpy(x), torch.from_numpy(y), choices)
    set_hyperparameters(model, theta, 0.2)
    theirs = ExactMarginalLogLikelihood(model.likelihood, model)(
        model(*model.train_inputs), model.train_targets
    )
    assert value == pytest.approx(theirs.item(), abs=1e-7)
    theirs.backward()
    # By GPyTorch's raw parameters; ours are logarithms: d/dlog v = v d/dv = v (d/draw) / (dv/draw).
    noise = model.likelihood.noise_covar
    expected = [(noise.raw_noise.grad * noise.noise).detach()]
    for module, name in hyperparameters(model)[1:]:
        raw = getattr(module, f"raw_{name}")
        at = raw.detach().requires_grad_()
        of = getattr(module, f"raw_{name}_constraint").transform(at)
        of.sum().backward()
        expected.append((raw.grad * of / at.grad).detach())
    expected.append(model.mean_module.raw_constant.grad)
    expected = torch.cat([e.flatten() for e in expected]).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@ALL_KINDS
def test_a_fit_ends_where_botorchs_does_and_predicts_as_it_does(choices):
    from botorch.fit import fit_gpytorch_mll
    from gpytorch.mlls import ExactMarginalLogLikelihood

    from tests.tuner.gp_definition import define, hyperparameters
    from tuner.searchers.fit import _OPTIONS, fit
    from tuner.searchers.kernels import Kernel
    from tuner.searchers.posterior import Posterior

    x, y = mixed_data(40, choices)
    prior = fit(Kernel(3, choices), x, y)
    model = define(torch.from_numpy(x), torch.from_numpy(y), choices)
    fit_gpytorch_mll(
        ExactMarginalLogLikelihood(model.likelihood, model),
        optimizer_kwargs={"options": _OPTIONS},
    )
    parts = [getattr(m, name).detach().flatten() for m, name in hyperparameters(model)]
    np.testing.assert_allclose(prior.covariance.theta, torch.cat(parts).log(), atol=1e-3)
    star = mixed_data(20, choices)[0]
    theirs = model.eval().posterior(torch.from_numpy(star))
    mean, sd = Posterior.of(prior, x, y).mean_sd(star)
    np.testing.assert_allclose(mean, theirs.mean.detach().squeeze(-1), atol=1e-3)
    np.testing.assert_allclose(sd, theirs.variance.detach().sqrt().squeeze(-1), atol=1e-3)


def test_hyperparameters_are_fitted_to_whole_curves_of_evenly_spaced_trials():
    from tuner.searchers.surrogate import thinned

    assert (thinned(np.arange(200)) == np.arange(200)).all()
    some = thinned(np.arange(1000))
    assert (len(some), some[0], some[-1]) == (200, 0, 999)
    trials = np.tile(np.arange(100), 4)  # four rungs
    some = thinned(trials)
    assert len(some) == 200
    assert (np.bincount(trials[some]) % 4 == 0).all()


def test_measuring_the_incumbent_again_is_no_improvement():
    from tuner.searchers.posterior import log_expected_improvement

    x, y, _, posterior = fitted_posterior()
    best = x[int(np.argmax(y))]
    value = log_expected_improvement(*posterior.gap(best[None], best))
    assert np.exp(value[0]) < 1e-5


def test_what_is_believed_moves_no_mean_and_narrows_what_is_near():
    x, y, prior, posterior = fitted_posterior()
    waiting = np.array([[0.4, 0.6, 1.0], [0.9, 0.1, 0.3]])
    star = np.concatenate([waiting, np.random.default_rng(3).random((6, 3))])
    before, after = posterior.mean_sd(star), posterior.believing(waiting).mean_sd(star)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert (after[1] <= before[1] + 1e-9).all()
    assert (after[1][:2] < 0.4 * before[1][:2]).all()
    # The same as a process that is given them, to the rounding of another factor.
    theirs = type(posterior).of(
        prior,
        np.concatenate([x, waiting]),
        np.concatenate([y, before[0][:2]]),
    )
    np.testing.assert_allclose(
        after[1] / posterior.scale, theirs.mean_sd(star)[1] / theirs.scale, atol=1e-9
    )


@pytest.mark.parametrize("z", [-1e8, -1.1e4, -9e3, -1e3, -30.0, -5.0, -1.0, 0.0, 2.0])
def test_the_expected_improvement_is_botorchs(z):
    from botorch.acquisition.analytic import _log_ei_helper

    from tuner.searchers.posterior import log_expected_improvement

    expected = _log_ei_helper(torch.tensor([z], dtype=torch.float64)).item()
    value = log_expected_improvement(np.array([z]), np.array([1.0]))[0]
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("z", [-30.0, -5.0, -0.5, 0.0, 2.0])
def test_the_expected_improvement_has_its_known_value(z):
    from tuner.searchers.posterior import log_expected_improvement

    sd = 0.3
    value = log_expected_improvement(np.array([z * sd]), np.array([sd]))[0]
    if z > -10:
        expected = np.log(sd * (norm.pdf(z) + z * norm.cdf(z)))
    else:  # phi(z) / z^2 to first order, far in the tail
        expected = np.log(sd) + norm.logpdf(z) - 2 * np.log(-z) + np.log1p(-3 / z**2)
    assert value == pytest.approx(expected, rel=1e-4)


def test_bayes_finds_the_top_of_a_hill_that_random_only_nears():
    regrets = {
        name: [
            1.0 - grow(History(), REAL, make_searcher(name, REAL, seed), 18).best.score
            for seed in range(4)
        ]
        for name in ("random", "bayes")
    }
    assert np.mean(regrets["bayes"]) < 0.1 * np.mean(regrets["random"])
    assert max(regrets["bayes"]) < 1e-3


@pytest.mark.parametrize("name", ["bayes", "freeze-thaw"])
def test_infeasible_trials_are_avoided_and_not_taken_for_bad_ones(name):
    """The scores rise towards x = 0.4; from 0.5 on trials break."""
    searcher, history = make_searcher(name, REAL, 0), History(1)
    for number in range(24):
        config = searcher.propose(history.view())
        history.start(Trial(number, config, 0, 1))
        if config["x"] > 0.5:
            history.close(number, TrialState.INFEASIBLE)
        else:
            history.observe(number, Observation(1, 1 - (config["x"] - 0.4) ** 2, 1))
            history.close(number, TrialState.COMPLETED)
    late = [t.state for t in history.trials[8:]]
    assert late.count(TrialState.INFEASIBLE) <= 4  # half of the space breaks
    assert history.best.score > 0.9999
    at_edge = {"x": 0.499, "y": 5.0}
    # What broke just beyond says nothing of the score here.
    assert searcher.belief(history.view(), [at_edge]).mean[0] > 0.95


def test_a_fit_that_fails_falls_back_and_says_so(monkeypatch):
    from tuner.searchers import surrogate
    from tuner.searchers.fit import FitError

    def refuse(*_, **__):
        raise FitError("no fit")

    searcher = make_searcher("bayes", REAL, 0)
    history = grow(History(), REAL, searcher, 11)
    assert searcher.fallback == ""
    monkeypatch.setattr(surrogate, "fit", refuse)
    config = searcher.propose(history.view())
    assert REAL.contains(config)
    assert "could not be fitted (FitError)" in searcher.fallback
    assert searcher.propose(history.view()) == config
    monkeypatch.undo()
    searcher.propose(history.view())
    assert searcher.fallback == ""


def test_a_bug_in_the_searcher_is_not_taken_for_a_failed_fit(monkeypatch):
    from tuner.searchers import surrogate

    searcher = make_searcher("bayes", REAL, 0)
    history = grow(History(), REAL, searcher, 11)
    monkeypatch.setattr(surrogate, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        searcher.propose(history.view())


# -- several proposals at once ---------------------------------------------------------------------

COUNTABLE = SearchSpace(
    {"depth": Int(1, 12), "width": Int(4, 40, log=True), "kind": Choice(("a", "b", "c"))}
)


def test_several_proposals_are_those_of_one_after_the_other():
    # Of a countable space every configuration is a candidate, so nothing but the order of the
    # arithmetic differs from asking again with each trial in flight.
    searcher = make_searcher("bayes", COUNTABLE, 1)
    history = grow(History(1, 10**6), COUNTABLE, searcher, 20)
    several = searcher.propose_many(history.view(), 12)
    assert len(several) == 12
    for config in several:
        assert searcher.propose(history.view()) == config
        history.start(Trial(len(history), config, 0, 1))


def test_several_proposals_are_legal_apart_and_begin_with_the_one():
    searcher = make_searcher("bayes", MIXED, 3)
    history = grow(History(1, 10**6), MIXED, searcher, 12)
    several = searcher.propose_many(history.view(), 16)
    assert len(several) == 16
    assert several[0] == searcher.propose(history.view())
    assert all(map(MIXED.contains, several))
    assert len({tuple(c.values()) for c in several}) == 16


def test_several_proposals_of_a_large_finite_space_are_different_ones():
    space = SearchSpace({"layers": Int(1, 4), "width": Int(4, 32), "batch_size": Int(32, 256)})
    searcher = make_searcher("bayes", space, 2)
    history = grow(History(1, 10**6), space, searcher, 12)
    several = searcher.propose_many(history.view(), 16)
    assert len({tuple(c.values()) for c in several}) == 16


def test_no_more_are_proposed_than_are_left():
    space = SearchSpace({"kind": Choice(tuple("abcdefgh"))})
    searcher = make_searcher("bayes", space, 0)
    history = grow(History(1, 10**6), space, searcher, 6)
    several = searcher.propose_many(history.view(), 16)
    assert len(several) == 2
    assert {c["kind"] for c in several} == set("abcdefgh") - {t.config["kind"] for t in history}


def test_a_search_that_starts_or_cannot_be_fitted_proposes_one_at_a_time(monkeypatch):
    searcher = make_searcher("bayes", REAL, 0)
    history = grow(History(1, 10**6), REAL, searcher, 2)
    assert searcher.propose_many(history.view(), 16) == [searcher.propose(history.view())]
    grow(history, REAL, searcher, 6)
    monkeypatch.setattr("tuner.searchers.fit.minimize", unfit)
    assert len(make_searcher("bayes", REAL, 0).propose_many(history.view(), 16)) == 1


def unfit(*_, **__):
    from tuner.searchers.fit import FitError

    raise FitError("no")


@pytest.mark.parametrize("name", ["random", "bayes"])
def test_a_logarithmic_range_of_whole_numbers_is_searched_whole(name):
    space = SearchSpace(n=Int(1, 32, log=True))
    searcher, history = make_searcher(name, space, 1), History(1)
    for number in range(32):
        config = searcher.propose(history.view())
        curve = (Observation(1, -abs(config["n"] - 27) / 30, 1, number),)
        history.restore(Trial(number, config, 0, 1, TrialState.COMPLETED, curve))
    assert {trial.config["n"] for trial in history.view()} == set(range(1, 33))
    with pytest.raises(SpaceExhausted):
        searcher.propose(history.view())


def test_of_very_many_data_the_first_the_best_the_latest_and_some_of_the_rest_are_shown():
    from tuner.searchers.surrogate import START, bounded

    generator = np.random.default_rng(0)
    few = np.arange(2_000)
    assert (bounded(few, generator.random(2_000)) == few).all()
    trials = np.sort(generator.integers(0, 3_000, 10_100))  # some three data each
    values = generator.random(3_000)[trials]
    kept = bounded(trials, values)
    assert len(kept) <= 2_000 + 50
    chosen = set(trials[kept].tolist())
    assert all((trials == number).sum() == (trials[kept] == number).sum() for number in chosen)
    order = np.argsort(-values[np.unique(trials, return_index=True)[1]])
    assert set(np.unique(trials)[order[:200]].tolist()) <= chosen
    assert set(np.unique(trials)[:START].tolist()) <= chosen
    assert set(range(10_000, 10_100)) <= set(kept.tolist())
    # A hundred more, and of those before the same are shown: what was fitted to them serves on.
    more = np.concatenate([trials, trials.max() + 1 + np.arange(100)])
    again = bounded(more, np.concatenate([values, generator.random(100)]))
    assert set(kept.tolist()) == {i for i in again.tolist() if i < 10_100}


@pytest.mark.parametrize("name", ["bayes", "freeze-thaw"])
def test_a_history_of_very_many_trials_is_no_larger_to_the_model(name):
    history = History(1)
    for number, x in enumerate(np.random.default_rng(1).random(5_000).tolist()):
        curve = (Observation(1, 0.9 - (x - 0.3) ** 2, 1, number),)
        state = TrialState.INFEASIBLE if x > 0.9 else TrialState.COMPLETED
        history.restore(Trial(number, {"x": x}, 0, 1, state, curve, started_ns=number))
    space = SearchSpace(x=Float(0.0, 1.0))
    searcher = make_searcher(name, space, 0)
    proposed = searcher.propose(history.view())
    assert searcher.fallback == ""
    assert abs(proposed["x"] - 0.3) < 0.1
