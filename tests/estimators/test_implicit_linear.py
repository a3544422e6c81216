"""Implicit with each linear solver: the closed form, the stated rates, and refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case
from tests.estimators.converged import RIDGE, TIGHT, estimate, matrices
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")

SOLVERS = {
    "CG": TIGHT,
    "MINRES": bl.MINRES(tol=1e-12),
    "GMRES": bl.GMRES(tol=1e-12),
    "BiCGSTAB": bl.BiCGSTAB(tol=1e-12),
    "Dense": bl.Dense(),
    "Neumann": bl.Neumann(terms=400),
    "FixedPoint": bl.FixedPoint(tol=1e-12),
    "FixedPoint given": bl.FixedPoint(tol=1e-12, step_size=0.4),
}


@quick_cases(3, "linear", SOLVERS.values(), ids=SOLVERS)
def test_ridge_is_the_closed_form(linear: Any) -> None:
    value, grad = RIDGE.exact(RIDGE.hyper)
    found = estimate(RIDGE, linear=linear)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.grad, grad, rtol=0, atol=1e-10 * np.linalg.norm(grad))
    assert found.evidence.inner_residual < 1e-12
    assert found.evidence.linear_residual < 1e-11


@quick_cases(2, "linear", SOLVERS.values(), ids=SOLVERS)
def test_ridge_in_float32(linear: Any) -> None:
    _, grad = RIDGE.exact(RIDGE.hyper)
    loose = dataclasses.replace(linear, tol=1e-6) if hasattr(linear, "tol") else linear
    with jax.enable_x64(False):
        found = estimate(RIDGE, linear=loose)
    assert found.grad.dtype == jnp.float32
    np.testing.assert_allclose(found.grad, grad, rtol=0, atol=2e-6 * np.linalg.norm(grad))


@pytest.mark.parametrize("terms", [1, 4, 16])
def test_a_series_is_wrong_by_exactly_what_it_drops(terms: int) -> None:
    """``C' (I - s H)^terms H^-1 b``; the same for the fixed-point iteration."""
    H, C, b = matrices(RIDGE)
    _, grad = RIDGE.exact(RIDGE.hyper)
    dropped = C.T @ np.linalg.matrix_power(np.eye(4) - 0.3 * H, terms) @ np.linalg.solve(H, b)
    for linear in (bl.Neumann(terms, 0.3), bl.FixedPoint(1e-15, max_steps=terms, step_size=0.3)):
        found = estimate(RIDGE, linear=linear)
        np.testing.assert_allclose(found.grad - grad, dropped, rtol=0, atol=1e-12)
        assert found.evidence.counts.hvps == terms + (1 if isinstance(linear, bl.FixedPoint) else 0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_cg_is_within_its_rate(steps: int) -> None:
    H, C, b = matrices(RIDGE)
    _, grad = RIDGE.exact(RIDGE.hyper)
    found = estimate(RIDGE, linear=bl.CG(tol=1e-15, max_steps=steps))
    low, high = np.linalg.eigvalsh(H)[[0, -1]]
    rho = (np.sqrt(high / low) - 1) / (np.sqrt(high / low) + 1)
    energy = np.sqrt(b @ np.linalg.solve(H, b))
    bound = np.linalg.norm(C, 2) * 2 * rho**steps * energy / np.sqrt(low)
    error = np.linalg.norm(found.grad - grad)
    assert 1e-9 < error <= bound
    assert found.evidence.linear_residual > 1e-4


def stiff(condition: float, n: int) -> Case:
    """Ridge with one penalty, on a design of the given condition number."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    X = np.sqrt(n) * np.sqrt(np.geomspace(1 / condition, 1, n))[:, None] * Q.T
    y, V, c = X @ rng.standard_normal(n), rng.standard_normal((7, n)), rng.standard_normal(7)

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return outer(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    def exact(h: Any) -> Any:
        H = X.T @ X / n + np.exp(h) * np.eye(n)
        w = np.linalg.solve(H, X.T @ y / n)
        error = V @ w - c
        adjoint = np.linalg.solve(H, V.T @ error / 7)
        return float(error @ error / 14), -np.exp(h) * adjoint @ w

    data = bl.Data(inner=(X, y), outer=(V, c))
    hyper = np.log(1 / condition)
    return Case("stiff", bl.Problem(inner, outer), hyper, np.zeros(n), data, 1.0, 1, exact)


def test_an_inner_loop_that_has_not_converged_is_flagged() -> None:
    """Condition 1.3e4: after K steps the answer is wrong, and the residual is not small."""
    case = stiff(1.3e4, 10)
    _, grad = case.exact(case.hyper)
    errors, residuals = [], []
    for steps in (100, 1000, 10_000, 200_000):
        found = estimate(case, steps, linear=bl.CG(tol=1e-12, max_steps=2000))
        errors.append(float(abs(found.grad - grad) / abs(grad)))
        residuals.append(float(found.evidence.inner_residual))
        assert found.evidence.linear_residual < 1e-10
    assert errors[0] > 0.1
    assert errors[2] > 1e-3
    assert residuals[2] > 1e-6
    assert errors[3] < 1e-6
    assert residuals[3] < 1e-9
    assert residuals == sorted(residuals, reverse=True)


def test_nystrom_needs_damping_and_has_the_damped_answer() -> None:
    with pytest.raises(ValueError, match=r"there is no damping\. Give Implicit one"):
        estimate(RIDGE, linear=bl.Nystrom(rank=4))
    expected = estimate(RIDGE, linear=TIGHT, damping=1e-3).grad
    for sketch in ("columns", "gaussian"):
        found = estimate(RIDGE, linear=bl.Nystrom(rank=9, sketch=sketch), damping=1e-3)
        np.testing.assert_allclose(found.grad, expected, rtol=1e-9)
        assert found.evidence.linear_residual < 1e-10
        assert found.evidence.counts.hvps == 5


def test_sgd_on_the_system_is_unbiased_and_draws_from_the_inner_data() -> None:
    _, grad = RIDGE.exact(RIDGE.hyper)
    linear = bl.SGDLinear(step_size=0.1, steps=300, batch_size=5)
    estimator = bl.Implicit(bl.GradientDescent(RIDGE.step_size), RIDGE.steps, linear=linear)

    def one(key: Any) -> Any:
        case = RIDGE
        return bl.hypergradient(case.problem, estimator, case.hyper, case.params, case.data, key)[0]

    runs = jax.vmap(one)(jax.random.split(jax.random.key(1), 400))
    error = np.std(runs.grad, axis=0, ddof=1) / np.sqrt(400)
    assert np.all(np.abs(np.mean(runs.grad, axis=0) - grad) < 4 * error)  # false alarm: 6e-5 each
    assert np.all(error < 0.05 * np.linalg.norm(grad))
    assert np.all(runs.evidence.linear_residual > 1e-3)
    with pytest.raises(ValueError, match="batch_size=24 is larger than the number of inner"):
        estimate(RIDGE, linear=bl.SGDLinear(0.1, batch_size=24))


def test_gauss_newton_is_the_hessian_of_a_linear_model_only() -> None:
    problem = RIDGE.problem
    inner = bl.OutputLoss(
        lambda w, h, batch: batch[0] @ w,
        lambda z, w, h, batch: jnp.mean((z - batch[1]) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2,
    )
    case = dataclasses.replace(RIDGE, problem=bl.Problem(inner, problem.outer))
    _, grad = RIDGE.exact(RIDGE.hyper)
    found = estimate(case, linear=bl.GaussNewton(TIGHT))
    np.testing.assert_allclose(found.grad, grad, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"Problem\.inner a bl\.OutputLoss"):
        estimate(RIDGE, linear=bl.GaussNewton())


def test_refuses_the_solvers_own_step_size() -> None:
    case = RIDGE
    problem = bl.Problem(
        lambda w, h, batch: case.problem.inner(w, h["penalty"], batch),
        lambda w, h, batch: case.problem.outer(w, h["penalty"], batch),
    )
    solver = bl.GradientDescent(step_size=lambda count, hyper: jnp.exp(hyper["rate"]))
    hyper = {"penalty": case.hyper, "rate": -1.0}
    with pytest.raises(
        ValueError, match=r"Implicit's hypergradient does not depend on hyper\['rate'\].*silent 0"
    ):
        bl.hypergradient(
            problem, bl.Implicit(solver, 3), hyper, case.params, case.data, jax.random.key(0)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Implicit: steps must be at least 1"),
        ({"damping": 0.0}, "Implicit: damping must be a positive finite number, got 0.0"),
        ({"damping": -1e-3}, "Implicit: damping must be"),
        ({"average": 6}, "Implicit: average must lie between 0 and steps=5, got 6"),
        ({"average": -1}, "Implicit: average must lie between 0 and steps=5"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bl.Implicit(**{"solver": bl.GradientDescent(0.1), "steps": 5, **settings})
