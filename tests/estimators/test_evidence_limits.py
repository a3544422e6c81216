"""What the one number says of damping, of random directions, and near the stability limit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from benchmarks.coverage_cases import linear_model
from bilevel.testing import dense_hypergradient

KEY = jax.random.key(0)


def minibatch_ridge() -> tuple[bl.Problem, bl.Data]:
    """One penalty for one param, rows of different curvature: SGD is noise."""
    x = np.linspace(0.5, 1.5, 8)
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((x * w - 1) ** 2) / 2 + jnp.sum(jnp.exp(h)) * w**2 / 2,
        lambda w, h, x: (w - 0.2) ** 2 / 2,
    )
    return problem, bl.Data(inner=x, outer=np.zeros(1))


def test_the_spread_over_directions_of_one_run_is_not_its_noise(x64):
    problem, data = minibatch_ridge()
    estimator = bl.Forward(bl.SGD(0.2, batch_size=1), 30, directions=4)

    def call(h: Any) -> bl.Estimate:
        return bl.hypergradient(problem, estimator, h, jnp.array(0.0), data, KEY, max_error=9)[0]

    one, two = call(np.zeros(1)), call(np.zeros(2))
    assert one.evidence.standard_error is None
    assert one.evidence.freedom is None
    assert "noise of the inner solver" in one.unknown
    assert two.evidence.standard_error.max() > 0
    assert "noise of the inner solver" in two.unknown


@pytest.mark.parametrize("damping", [0.003, 0.03, 0.3])
def test_the_bias_of_damping_is_in_the_one_number(damping, x64):
    """Ridge, where ``H`` in the adjoint system becomes ``H + damping I``."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    V, t = rng.standard_normal((20, 4)), rng.standard_normal(20)
    A, c = X.T @ X / 30 + 0.3 * np.eye(4), X.T @ y / 30
    w = np.linalg.solve(A, c)
    b = V.T @ (V @ w - t) / 20
    exact = -w @ np.linalg.solve(A, b)
    wrong = -w @ np.linalg.solve(A + damping * np.eye(4), b)

    def loss(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    problem = bl.Problem(lambda w, h, b: loss(w, h, b) + h * jnp.sum(w**2) / 2, loss)
    estimator = bl.Implicit(bl.Newton(), 3, bl.CG(tol=1e-10), damping=damping)
    data = bl.Data(inner=(X, y), outer=(V, t))
    estimate, _ = bl.hypergradient(problem, estimator, 0.3, np.zeros(4), data, KEY)
    assert estimate.grad == pytest.approx(wrong, rel=1e-6)
    assert estimate.relative_error == pytest.approx(abs(wrong / exact - 1), rel=0.2)


@pytest.mark.parametrize(("share", "trusted"), [(0.4, True), (0.6, False), (0.9, False)])
def test_near_the_mean_square_limit_theory_says_that_it_does_not_apply(share, trusted, x64):
    """In one dimension the limit is ``2 mean(a) / mean(a^2)``, ``a`` the curvature of a row."""
    problem, data = minibatch_ridge()
    a = np.asarray(data.inner) ** 2 + 1
    solver = bl.SGD(share * 2 * a.mean() / (a**2).mean(), batch_size=1)
    estimator = bl.Predicted(bl.Implicit(solver, 50))
    evidence = bl.hypergradient(
        problem, estimator, 0.0, jnp.array(0.0), data, KEY, max_error=np.inf
    )[0].evidence
    assert np.isfinite(evidence.standard_error) == trusted
    assert np.isfinite(evidence.bias) == trusted


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6])
def test_units_of_columns_do_not_hide_an_error_in_single_precision(small):
    """Two columns that descent never gets to, their curvature far below rounding of the largest."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2, 60, 4)) * [1, 1, small, small]
    y = X @ np.array([1, -1, 1 / small, -1 / small]) + rng.standard_normal((2, 60))
    # A penalty per param, in units of its column: exact in float64, with w = u / size.
    H, penalty = X[0].T @ X[0] / 60, 0.1 * np.array([1, 1, small**2, small**2])
    w = np.linalg.solve(H + np.diag(penalty), X[0].T @ y[0] / 60)
    exact = -w * np.linalg.solve(H + np.diag(penalty), X[1].T @ (X[1] @ w - y[1]) / 60) * penalty

    def loss(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    problem = bl.Problem(lambda w, h, b: loss(w, h, b) + jnp.sum(jnp.exp(h) * w**2) / 2, loss)
    data = bl.Data(inner=(X[0], y[0]), outer=(X[1], y[1]))
    data, h = jax.tree.map(lambda x: jnp.asarray(x, "float32"), (data, np.log(penalty)))
    descent = bl.Reverse(bl.GradientDescent(0.3), 300)
    with pytest.warns(bl.EvidenceWarning, match="has not converged"):
        found, _ = bl.hypergradient(problem, descent, h, jnp.zeros(4, "float32"), data, KEY)
    true = np.linalg.norm(found.grad - exact) / np.linalg.norm(exact)
    assert true > 0.5
    assert found.relative_error == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("damping", [None, 0.1])
def test_the_displacement_of_a_large_problem_is_divided_by_its_curvature(damping, x64):
    """100 params, too many to be solved; the inner residual is 6e-3."""
    problem, data, h, w = linear_model("ridge", 300, 100, penalty=-5.0)
    estimator = bl.Implicit(bl.GradientDescent(0.3), 30, damping=damping)
    found, _ = bl.hypergradient(
        problem, estimator, h, w, data, KEY, max_error=np.inf, evidence="full"
    )
    exact = dense_hypergradient(problem, h, w, data)[1]
    true = float(jnp.linalg.norm(found.grad - exact) / jnp.linalg.norm(exact))
    assert true > 0.3
    assert found.relative_error == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(("smallest", "steps"), [(0.01, 1000), (0.1, 30_000)])
def test_a_penalty_is_as_wrong_as_its_chains_leave_the_slow_directions(smallest, steps, x64):
    """Columns of size 1 to .01: a linear residual of .05, and an error of .99."""
    made = linear_model("ridge", 60, 4, penalty=-9.0, smallest=smallest)
    problem, data, hyper, params = made
    _, exact = dense_hypergradient(problem, hyper, params, data)
    estimator = bl.Penalty(bl.GradientDescent(0.3), steps)
    found, _ = bl.hypergradient(problem, estimator, hyper, params, data, KEY, max_error=np.inf)
    true = np.linalg.norm(found.grad - exact) / np.linalg.norm(exact)
    assert bool(true > 0.5) is (steps == 1000)
    assert float(found.relative_error) == pytest.approx(true, rel=0.15)


def test_a_bias_by_a_weak_linear_solver_is_no_small_error(x64):
    """Neumann's series has not converged, for the correction neither."""
    problem, data, hyper, params = linear_model("ridge", 60, 4, penalty=-9.0, smallest=0.01)
    _, exact = dense_hypergradient(problem, hyper, params, data)
    estimator = bl.Implicit(bl.Newton(), 10, bl.Neumann(), bias=True)
    at = hyper, params, data, KEY
    found, _ = bl.hypergradient(problem, estimator, *at, max_error=np.inf)
    assert np.linalg.norm(found.grad - exact) > 0.5 * np.linalg.norm(exact)
    assert float(found.relative_error) > 0.5


def test_what_is_not_measured_has_a_name():
    """Noise of outer rows, and the distance to the minimiser where few of many rows are seen."""
    problem, data, hyper, params = linear_model("ridge", 60, 4)
    outer = "noise of the outer rows"
    one = bl.Implicit(bl.GradientDescent(0.3), 50, outer_batch_size=8)
    for estimator, named in (
        (one, True),
        (bl.ClosedForm(outer_batch_size=8), True),
        (bl.Auto(outer_batch_size=8), True),
        (bl.Reverse(bl.SGD(0.1, 8), 20, outer_batch_size=8), True),
        (bl.Forward(bl.SGD(0.1, 8), 20), False),
        (bl.Replicated(one, 2), False),
    ):
        at = hyper, params, data, KEY
        found, _ = bl.hypergradient(problem, estimator, *at, max_error=np.inf)
        assert (outer in found.unknown) is named
    many, rows, hyper, params = linear_model("ridge", 40_000, 70)
    at = hyper, params, rows, KEY
    for make in (bl.Reverse, bl.Forward):
        estimator = make(bl.SGD(0.01, 64), 300)
        found, _ = bl.hypergradient(many, estimator, *at, max_error=np.inf)
        assert "distance of the params to the minimiser" in found.unknown
