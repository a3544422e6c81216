"""The planner: plans are run and their errors measured, or computed from exact moments."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.noise import batch_factor
from bilevel.noise.hypergradients import bias
from bilevel.noise.moments import linearised, rules
from bilevel.noise.quadratic import minibatch
from tests.compiling import compilations
from tests.planning.plans import LOGISTIC, RIDGE, exact_error, measured, only, planned


@pytest.fixture(scope="module")
def ridge():
    return planned(RIDGE, tolerance=0.3)


@pytest.fixture(scope="module")
def logistic():
    return planned(LOGISTIC, tolerance=0.3)


@pytest.fixture(scope="module")
def cautious():
    """The influence route; hyper and params are trees, float32."""
    inner, outer = RIDGE.problem.inner, RIDGE.problem.outer
    problem = bl.Problem(
        lambda w, h, batch: inner(w["w"], h["log"], batch),
        lambda w, h, batch: outer(w["w"], h["log"], batch),
    )
    hyper, params = {"log": np.float32(RIDGE.hyper)}, {"w": np.float32(RIDGE.params)}
    data = jax.tree.map(np.float32, RIDGE.data)
    return bl.plan(problem, hyper, params, data, 0.1, batch_sizes=(1, 4), route="influence")


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_moments_and_bias_are_those_of_the_dense_theory(logistic):
    """Against the lifted process of `linearised`, `bias` and `minibatch`, which know no blocks."""
    eta, factor = 0.4, batch_factor(26, 4)

    @jax.jit
    def theory(hyper, params, data):
        parts = LOGISTIC.problem, hyper, params, data
        around = linearised.linearise(*parts, batch_size=4)
        second = around.process.stationary(rules.sgd(eta)).second[0, :, 0]
        found = bias.hypergradient_error(*parts, around, second)
        return around.process.matrices[:, :4, :4], found

    hyper, params, data = LOGISTIC.hyper, logistic.params, LOGISTIC.data
    hessians, expected = theory(jnp.asarray(hyper), params, data)
    run = logistic.planner.problem.predict(eta, 4, "forward")
    mean, variance = run.stationary_error(1)
    np.testing.assert_allclose(logistic.exact, expected.exact[0], rtol=1e-9)
    np.testing.assert_allclose(mean, expected.bias, rtol=1e-6)
    # Beside the terms of first order, those of second order: the noise of products.
    assert np.all(variance > expected.standard_deviation**2)
    flat = 0 * run.local.hessian
    run.local = run.local._replace(hessian=flat, slope_derivative=flat[None])
    variance = run.stationary_error(1)[1]
    np.testing.assert_allclose(np.sqrt(variance), expected.standard_deviation, rtol=1e-6)
    limit = minibatch.step_limit(hessians, factor)
    np.testing.assert_allclose(logistic.planner.problem.limits[4], limit, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_predictions_on_a_quadratic_are_exact_once_stationary(ridge):
    """Every length after the start is forgotten; the window may be short or long."""
    for window in (1, 7, 300):
        best = replace(ridge.chosen, batch_size=4, step_size=0.2, start=90, wait=80, window=window)
        total = ridge.planner._error(best)[0]
        np.testing.assert_allclose(
            total / np.linalg.norm(ridge.exact), exact_error(best), rtol=1e-6
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("tolerance", "missed"), [(0.3, 0.95), (0.1, 1.2), (0.03, 1.2)])
def test_plans_for_ridge_regression_keep_their_promise_and_waste_little(ridge, tolerance, missed):
    plan = only(ridge, 4, 16).plan(tolerance)
    assert plan.error.total <= tolerance
    promised, best = exact_error(plan.chosen), plan.chosen
    assert promised == pytest.approx(plan.error.total, rel=0.15)
    # Half the window does not do (where the window is a few steps: it does by a hair).
    assert exact_error(replace(best, window=best.window // 2)) > missed * tolerance


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_no_run_on_a_grid_is_much_cheaper(ridge):
    """Step size, late start, waiting and window of the plan, each times several factors."""
    tolerance = 0.1
    best = only(ridge, 4).plan(tolerance).chosen
    lowest = math.inf
    for eta in (0.35, 0.7, 1.0, 1.4):
        for window in (0.4, 0.55, 0.75, 1.0):
            for start, wait in ((0, 0.5), (0.5, 0), (0.5, 0.5), (1, 0), (0, 1)):
                other = replace(
                    best,
                    step_size=eta * best.step_size,
                    start=round(start * best.start),
                    wait=round(wait * best.wait),
                    window=round(window * best.window),
                )
                price = best.batch_size * (other.start + 9 * (other.wait + other.window))
                if price < lowest and exact_error(other) <= tolerance:
                    lowest = price
    assert best.cost <= 1.3 * lowest


SLOW = [("ridge", 0.3, 0.25), ("ridge", 0.02, 0.25)]
SLOW += [("logistic", 0.5, 0.5), ("logistic", 0.3, 0.5), ("logistic", 0.02, 0.5)]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "tolerance", "margin"),
    [("ridge", 0.1, 0.25), ("logistic", 0.1, 0.5)]
    + [pytest.param(*row, marks=pytest.mark.slow) for row in SLOW],
)
def test_measured_errors_are_as_promised(name, tolerance, margin, request):
    plan = only(request.getfixturevalue(name), 1, 4, 16).plan(tolerance)
    assert plan.error.total <= tolerance
    case = {"ridge": RIDGE, "logistic": LOGISTIC}[name]
    size, error = measured(case, plan, runs=400)
    assert abs(size - plan.error.total) < margin * plan.error.total + 4 * error  # false alarm: 6e-5


@pytest.mark.slow
def test_far_start_is_waited_for(logistic):
    """From where the logistic loss is flat, linear theory alone would wait too little."""
    far = replace(LOGISTIC, params=jax.tree.map(lambda x: x + 8.0, LOGISTIC.params))
    plan = planned(far, tolerance=0.2, batch_sizes=(4,))
    assert plan.chosen.start > 2 * only(logistic, 4).plan(0.2).chosen.start
    size, error = measured(far, plan, runs=400)
    assert size < 1.5 * plan.error.total + 4 * error  # false alarm: 6e-5


def test_full_batches_win_where_data_is_small_and_the_tolerance_tight(ridge):
    plan = ridge.at(1e-3)
    assert plan.chosen.batch_size is None
    size, _ = measured(RIDGE, plan, runs=2)
    assert size == pytest.approx(plan.error.total, rel=0.05)


def test_another_tolerance_compiles_nothing(ridge):
    with compilations() as count:
        tight = ridge.at(0.05)
    assert int(count) == 0
    assert tight.cost > ridge.cost


def test_replicas(ridge):
    several = only(ridge, 4, replicas=8).plan(0.1)
    assert isinstance(several.estimator, bl.Replicated)
    assert several.estimator.n == 8
    assert several.cost > only(ridge, 4).plan(0.1).cost
    short = only(ridge, 1, max_steps=200).plan(0.03).chosen
    assert short.replicas > 1
    assert short.steps <= 200


@pytest.mark.slow
def test_measured_errors_of_replicas_are_as_promised(ridge):
    plan = only(ridge, 4, replicas=8).plan(0.1)
    size, error = measured(RIDGE, plan, runs=60)
    assert abs(size - plan.error.total) < 0.25 * plan.error.total + 4 * error  # false alarm: 6e-5


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_influence_route_is_cautious(ridge, cautious):
    """Trees and float32; what it promises is kept, at up to twice the price."""
    assert cautious.route == "influence"
    assert set(cautious.exact) == {"log"}
    np.testing.assert_allclose(cautious.exact["log"], ridge.exact, rtol=1e-4)
    for size in (1, 4):
        assert 0.4 < cautious.planner.problem.limits[size] / ridge.planner.problem.limits[size] < 1
    for tolerance in (0.2, 0.1):
        plan = cautious.at(tolerance)
        assert 0.6 * tolerance < exact_error(plan.chosen) < 1.05 * tolerance
        assert plan.cost < 2 * only(ridge, 1, 4).plan(tolerance).cost
    assert "Without exact moments" in str(cautious)


def test_report_says_what_and_why(ridge):
    plan = only(ridge, 1, 4, 16).plan(0.1)
    text = str(plan)
    solver = plan.estimator.solver
    assert f"Forward(SGD(step_size={solver.step_size:.4g}, batch_size={solver.batch_size})" in text
    assert text.count("<- chosen") == 1
    assert text.count("\n* ") == len(plan.reasons) == 6
    assert f"{plan.error.noise:.2g}" in text
    sizes = np.linalg.norm(plan.standard_error) / np.linalg.norm(plan.exact)
    np.testing.assert_allclose(sizes, plan.error.noise)
    assert RIDGE.exact is not None
    np.testing.assert_allclose(plan.exact, RIDGE.exact(RIDGE.hyper)[1], rtol=1e-8)


def test_refusals_without_a_measurement():
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1, got 1"):
        planned(RIDGE, tolerance=1)
    started = bl.Problem(RIDGE.problem.inner, RIDGE.problem.outer, start=lambda h, w: w)
    with pytest.raises(ValueError, match=r"bl.plan solves the inner problem completely"):
        planned(replace(RIDGE, problem=started))
    proximal = bl.Problem(RIDGE.problem.inner, RIDGE.problem.outer, prox=lambda w, h, step: w)
    with pytest.raises(ValueError, match="twice differentiable"):
        planned(replace(RIDGE, problem=proximal))
    with pytest.raises(ValueError, match="batch_size=99 is larger"):
        planned(RIDGE, batch_sizes=(99,))
    with pytest.raises(ValueError, match="route must be"):
        planned(RIDGE, route="fast")


def test_refusals_of_what_cannot_be_met(ridge, logistic):
    with pytest.raises(
        ValueError, match=r"costs .* more than budget=1e\+03.* About 0\.\d+ is what"
    ):
        only(ridge, 1, budget=1e3).plan(0.01)
    with pytest.raises(ValueError, match=r"no run meets tolerance=0.01 .*batch 1: needs more than"):
        only(ridge, 1, max_steps=20).plan(0.01)
    with pytest.raises(ValueError, match=r"step_size=0.4 is above 0.2386, the largest that the th"):
        only(ridge, 1, step_size=0.4).plan(0.1)
    with pytest.raises(ValueError, match="the stationary mean is off by more than the tolerance"):
        only(logistic, 1, step_size=0.3).plan(0.01)


def test_refusals_of_problems_without_a_theory():
    flat = bl.Problem(lambda w, h, x: jnp.mean((w[0] - x - h) ** 2), lambda w, h, x: w[0])
    parts = 0.0, jnp.zeros(2), bl.Data(inner=jnp.ones(3), outer=jnp.ones(1))
    with pytest.raises(ValueError, match=r"inner Hessian at the solution is singular .* add a pen"):
        bl.plan(flat, *parts)
    idle = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) + h * w**2, lambda w, h, x: jnp.mean((w - x) ** 2)
    )
    with pytest.raises(ValueError, match="the hypergradient at the solution is 0 to rounding"):
        bl.plan(idle, 1.0, 0.0, bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.ones(1)))
