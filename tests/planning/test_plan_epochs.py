"""Plans over shuffled epochs: against lists of all orders, the leading order, and real runs."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.noise import FlatProblem, batch_factor, linearised, rules
from bilevel.planning import dense_route
from bilevel.planning.local import Examples
from bilevel.planning.measure import measure_problem
from bilevel.planning.orders import Gradients, choose_orders, follow_orders
from bilevel.planning.plan import choose_sizes
from bilevel.planning.predict import Run
from bilevel.planning.scheme import Scheme
from bilevel.planning.shuffled_run import ShuffledRun
from bilevel.planning.stationary import Noise, StepResponse
from tests.estimators.test_predicted_epochs import exact_mean, ridge
from tests.noise.test_shuffled import maps_of_orders, stationary
from tests.planning.plans import LOGISTIC, RIDGE, measured, planned


def analysed(case, batch, scheme):
    """The problem, its solution and the rotation to the eigenbasis; and a step size of 0.4."""
    flat = FlatProblem.from_problem("test", case.problem, case.hyper, case.params, case.data)
    factors = {batch: batch_factor(flat.count, batch, "without_replacement")}
    found = dense_route.analyse_densely(flat, factors, scheme)
    return found, measure_problem(flat), 0.8 * found.trusted[batch]


def lifted(A, B, second):
    """The mean over orders of ``A second B^T``."""
    return np.einsum("oab,bc,odc->ad", A, second, B) / len(A)


def covariance_of_average(maps, epochs):
    """Mean and covariance of the average over so many epochs, lag by lag; of 0, at their ends."""
    F, G, begin = maps[:, -1], maps.mean(1), stationary(maps)
    total = begin
    if epochs:
        total, later = epochs * lifted(G, G, begin), lifted(F, G, begin)
        for lag in range(1, epochs):
            both = G.mean(0) @ np.linalg.matrix_power(F.mean(0), lag - 1) @ later
            total = total + (epochs - lag) * (both + both.T)
        total = total / epochs**2
    mean = total[:, -1]
    return mean, total - np.outer(mean, mean)


CASES = [(4, 1, None, False), (6, 2, 0.5, False), (5, 1, 0.6, True), (6, 3, None, False)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "setting", [CASES[0]] + [pytest.param(case, marks=pytest.mark.extended) for case in CASES[1:]]
)
def test_moments_are_those_of_all_orders(setting):
    n, batch, momentum, nesterov = setting
    case, scheme = ridge(n, seed=n, heavy=n == 6), Scheme(momentum, nesterov, "epoch")
    found, (local, _), rate = analysed(case, batch, scheme)
    run, rule = found.predict(rate, batch, "forward"), rules.sgd(rate, momentum, nesterov)
    linearise = jax.jit(partial(linearised.linearise, case.problem, batch_size=batch))
    process = linearise(case.hyper, case.params, case.data).process
    maps, U = maps_of_orders(process, rule, batch), local.vectors
    assert run.period == n // batch
    assert not np.any(run.doubt)  # nothing is estimated
    assert not run.noise_doubt
    for epochs in (0, 1, 2, 9):
        mean, cov = covariance_of_average(maps, epochs)
        V = run.average(epochs * run.period or 1)
        u, E = run._split(run.means[min(epochs, 1)])
        near = {"rtol": 1e-9, "atol": 1e-11 * np.abs(cov).max()}
        np.testing.assert_allclose(u[0] @ U.T, mean[:2], rtol=1e-9)
        np.testing.assert_allclose(E @ U.T, mean[2:6].reshape(2, 2), rtol=1e-9)
        np.testing.assert_allclose(U @ V.xx @ U.T, cov[:2, :2], **near)
        for j, at in enumerate((slice(2, 4), slice(4, 6))):
            np.testing.assert_allclose(U @ V.xd[j] @ U.T, cov[:2, at], **near)
            np.testing.assert_allclose(U @ V.dd[j] @ U.T, cov[at, at], **near)
    exact = exact_mean(case, rule, batch, implicit=False)
    np.testing.assert_allclose(run.stationary_error(run.period)[0], exact, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_some_orders_estimate_all_of_them_as_well_as_they_say():
    case, scheme = ridge(6, seed=6, heavy=False), Scheme(sampling="epoch")
    found, (local, examples), rate = analysed(case, 1, scheme)
    rate = rate / 4
    exact, scores = found.predict(rate, 1, "forward"), []
    response = StepResponse(scheme, local.h, rate)
    plain = Run(local, Noise.from_examples(examples, local.h), response, 1.0)
    (bias, variance), gradients = exact.stationary_error(60), Gradients(examples)
    for seed in range(20):
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(6), (100, 1)), axis=1)
        epoch = follow_orders(gradients, scheme.step_matrices(rate), 1, orders)
        run = ShuffledRun(plain, epoch._replace(sampled=True))
        near, spread = run.stationary_error(60)
        noise = np.sqrt(spread.sum() / variance.sum()) - 1
        scores.append([*(near - bias) / run.doubt, noise / run.noise_doubt])
        # Without the known parts it would be that of an average of as many epochs.
        assert np.all(run.doubt < 0.3 * np.sqrt(exact.stationary_error(6)[1] / 100))
    # Root mean squares of 20 scores; outside 0.6 .. 1.5 in 0.2 % of such tests.
    sizes = np.sqrt(np.mean(np.square(scores), 0))
    assert np.all(np.abs(np.log(sizes)) < 0.5), sizes


def test_plans_end_with_whole_epochs_and_keep_their_promise():
    plan = planned(RIDGE, tolerance=0.1, batch_sizes=(1,), sampling="epoch")
    best, solver = plan.chosen, plan.estimator.solver
    assert (solver.sampling, solver.batch_size) == ("epoch", 1)
    assert best.steps % 23 == best.window % 23 == 0
    size, error = measured(RIDGE, plan, runs=400)
    assert abs(size - plan.error.total) < 0.25 * plan.error.total + 4 * error  # false alarm: 6e-5
    assert "epoch of 23 steps" in str(plan)
    assert "only some orders" in str(plan)


@pytest.mark.usefixtures("x64")
def test_the_bias_at_small_steps_is_that_of_the_leading_order():
    plan = planned(RIDGE, tolerance=0.1, batch_sizes=(1,), sampling="epoch", step_size=0.002)
    best, predict = plan.chosen, jax.jit(bl.Predicted(plan.estimator).theory, static_argnums=0)
    theory = predict(RIDGE.problem, RIDGE.hyper, plan.params, RIDGE.data)
    near = ravel_pytree(theory.bias)[0]
    exact, _ = plan.planner.problem.predict(0.002, 1, "forward").stationary_error(best.window)
    assert np.linalg.norm(near - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.extended
@pytest.mark.parametrize("momentum", [None, 0.6])
def test_measured_errors_off_quadratic_losses_are_as_promised(momentum):
    plan = planned(LOGISTIC, tolerance=0.2, batch_sizes=(1, 2), sampling="epoch", momentum=momentum)
    size, error = measured(LOGISTIC, plan, runs=400)
    assert abs(size - plan.error.total) < 0.5 * plan.error.total + 4 * error  # false alarm: 6e-5


def test_beyond_the_limit_there_are_no_moments():
    case = ridge(4, seed=4, heavy=False)
    found, _, _ = analysed(case, 1, Scheme(sampling="epoch"))
    assert np.all(np.isinf(found.predict(4 * found.limits[1], 1, "forward").doubt))


def test_default_sizes_divide_the_number_of_examples():
    assert choose_sizes(300, whole=False) == (1, 4, 16, 64, 256)
    assert choose_sizes(300, whole=True) == (1, 4, 15, 60, 150)
    assert choose_sizes(23, whole=True) == (1,)


def test_refusals():
    with pytest.raises(ValueError, match=r"an epoch must be two or more whole batches, got 23 ex"):
        planned(RIDGE, sampling="epoch", batch_sizes=(4,))
    with pytest.raises(ValueError, match=r"sampling='epoch' needs exact moments.*too many"):
        planned(RIDGE, sampling="epoch", batch_sizes=(1,), route="influence")
    m, n = 2000, 30
    zeros = np.zeros((1, m, n)), np.zeros((1, m, 1, 1))
    large = Gradients(Examples(np.zeros((m, 1, 1)), np.zeros((m, n)), *zeros))
    with pytest.raises(
        ValueError, match=r"follows 64 or more orders .* epochs of 2000 steps takes"
    ):
        choose_orders(large, 1, 1)
