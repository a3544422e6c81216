"""Plans without exact moments, for inner losses that are not quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.noise import FlatProblem
from bilevel.planning import influence_route
from bilevel.planning.mean_shift import measure_mean_shift
from tests.planning.plans import LOGISTIC, RIDGE, measured, planned


def flat(case, params):
    return FlatProblem.from_problem("test", case.problem, case.hyper, params, case.data)


@pytest.mark.usefixtures("x64")
def test_the_shift_is_the_limit_of_the_dense_theory_for_small_steps():
    dense = planned(LOGISTIC, tolerance=0.3, batch_sizes=(1,))
    found = measure_mean_shift(flat(LOGISTIC, dense.params))
    gaps = []
    for step_size in (0.05, 0.005):
        run = dense.planner.problem.predict(step_size, 1, "forward")
        mean, _ = run.stationary_error(10**8)  # products are averaged away
        gaps.append(abs(mean / step_size / found.bias - 1).max())
        assert run.nonlinearity / step_size**0.5 == pytest.approx(found.nonlinearity, rel=0.05)
    assert gaps[0] < 0.05
    assert gaps[1] < gaps[0] / 5


@pytest.mark.usefixtures("x64")
def test_on_a_quadratic_loss_there_is_no_shift():
    found = measure_mean_shift(flat(RIDGE, RIDGE.params))
    np.testing.assert_allclose(found.bias, 0, atol=1e-8)
    assert found.nonlinearity < 1e-8


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_on_a_small_problem_it_is_the_dense_plan_with_more_caution():
    settings = {"tolerance": 0.1, "batch_sizes": (4, 16)}
    dense, cautious = (
        planned(LOGISTIC, **settings),
        planned(LOGISTIC, route="influence", **settings),
    )
    assert cautious.route == "influence"
    np.testing.assert_allclose(cautious.exact, dense.exact, rtol=1e-6)
    assert 0.9 * dense.cost < cautious.cost < 3 * dense.cost
    chosen = cautious.chosen
    again = dense.planner._error(chosen)[0] / np.linalg.norm(dense.exact)
    assert 0.5 * chosen.error < again < 1.1 * chosen.error
    assert "The inner loss is not quadratic" in str(cautious)


def large(features: int = 60) -> bl.testing.Case:
    """Logistic regression with more params than exact moments are formed for."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, features)) / np.sqrt(features) * 3
    y = np.sign(X @ rng.standard_normal(features) + rng.standard_normal(300))

    def loss(w, h, batch):
        return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))

    def inner(w, h, batch):
        return loss(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2

    data = bl.Data(inner=(X[:200], y[:200]), outer=(X[200:], y[200:]))
    problem = bl.Problem(inner, loss)
    return bl.testing.Case("large", problem, -2.0, np.zeros(features), data, 0.5, 1000)


@pytest.mark.extended
@pytest.mark.parametrize("tolerance", [0.3, 0.1])
def test_promises_off_quadratic_losses_are_kept(tolerance):
    case = large()
    plan = planned(case, tolerance=tolerance, batch_sizes=(1, 4, 16))
    assert plan.route == "influence"
    assert plan.error.bias > 0
    size, error = measured(case, plan, runs=200)
    assert size < 1.5 * plan.error.total + 4 * error  # false alarm: 3e-5
    assert size > 0.5 * plan.error.total - 4 * error


def test_refuses_where_a_hessian_is_too_large(monkeypatch):
    monkeypatch.setattr(influence_route, "MOST_PARAMS", 3)
    with pytest.raises(ValueError, match=r"4 params.*loss is not quadratic.*up to 3 params"):
        planned(LOGISTIC, route="influence")
