"""What Implicit says about its own error, to first order right; damping and averaging."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.testing import logistic, mlp, ridge
from tests.estimators.converged import (
    RIDGE,
    TIGHT,
    estimate,
    estimate_and_state,
    flat,
    matrices,
)
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")

CASES = {"ridge": (RIDGE, (8, 16)), "logistic": (logistic(seed=0), (10, 20))}
CASES["mlp"] = (mlp(seed=1), (100, 200))


@quick_cases(1, "name", CASES)
def test_the_bias_of_an_unfinished_inner_solve_is_right_to_first_order(name: str) -> None:
    """What it misses falls with the square of the inner residual."""
    case, few = CASES[name]
    exact = flat(estimate(case, linear=TIGHT).grad)
    missed, residuals = [], []
    for steps in few:
        found = estimate(case, steps, linear=TIGHT, bias=True)
        error = flat(found.grad) - exact
        missed.append(np.linalg.norm(error - flat(found.evidence.bias)))
        residuals.append(float(found.evidence.inner_residual))
        assert missed[-1] < 0.2 * np.linalg.norm(error)
    order = np.log(missed[0] / missed[1]) / np.log(residuals[0] / residuals[1])
    assert 1.9 < order < 2.3


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_damping_is_that_of_the_formula_and_its_bias_is_estimated(damping: float) -> None:
    H, C, b = matrices(RIDGE)
    found = estimate(RIDGE, linear=TIGHT, damping=damping, bias=True)
    expected = -C.T @ np.linalg.solve(H + damping * np.eye(4), b)
    np.testing.assert_allclose(found.grad, expected, rtol=1e-9)
    assert found.evidence.linear_residual < 1e-11  # of the damped system
    error = expected + C.T @ np.linalg.solve(H, b)
    size = np.linalg.norm(error)
    assert np.linalg.norm(found.evidence.bias - error) < 10 * damping * size + 1e-12


def test_what_the_linear_solver_leaves_is_part_of_the_bias() -> None:
    """A series of five terms leaves (I - s H)^5; estimating with five more leaves its square."""
    H, C, b = matrices(RIDGE)
    found = estimate(RIDGE, linear=bl.Neumann(5, step_size=0.4), bias=True)
    power = np.linalg.matrix_power(np.eye(4) - 0.4 * H, 5)
    error = C.T @ power @ np.linalg.solve(H, b)
    left = C.T @ power @ power @ np.linalg.solve(H, b)
    np.testing.assert_allclose(error - found.evidence.bias, left, rtol=0, atol=1e-12)


@quick_cases(1, "name", CASES)
def test_correcting_is_a_newton_step_on_both_levels(name: str) -> None:
    """Params and adjoint, stepped with dense matrices, and what the losses say there."""
    case, (_, steps) = CASES[name]
    _, lower = estimate_and_state(case, steps, linear=TIGHT, bias=True)
    found, moved = estimate_and_state(case, steps, linear=TIGHT, correct=True)
    w, unravel = ravel_pytree(jax.tree.map(jnp.asarray, lower.params))
    h, unravel_hyper = ravel_pytree(jax.tree.map(jnp.asarray, case.hyper))

    def inner(w: Any, h: Any = h) -> Any:
        return case.problem.inner(unravel(w), unravel_hyper(h), case.data.inner)

    def outer(w: Any, h: Any = h) -> Any:
        return case.problem.outer(unravel(w), unravel_hyper(h), case.data.outer)

    def adjoint(w: Any) -> Any:
        return jnp.linalg.solve(jax.hessian(inner)(w), jax.grad(outer)(w))

    d = jnp.linalg.solve(jax.hessian(inner)(w), jax.grad(inner)(w))
    x, change = jax.jvp(adjoint, (w,), (-d,))
    mixed = jax.jacobian(jax.grad(inner, argnums=1))(w - d, h)
    grad = jax.grad(outer, argnums=1)(w - d, h) - mixed @ (x + change)
    np.testing.assert_allclose(flat(moved.params), w - d, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(flat(found.grad), grad, rtol=1e-7)
    np.testing.assert_allclose(found.value, outer(w - d), rtol=1e-9)
    left, begin = (float(jnp.linalg.norm(jax.grad(inner)(w))) for w in (w - d, flat(case.params)))
    assert found.evidence.bias is None
    assert found.evidence.inner_residual == pytest.approx(left / begin, rel=1e-4, abs=1e-13)


@quick_cases(0, "seed", range(8))
@quick_cases(1, "make", [ridge, logistic, mlp])
def test_the_error_after_correcting_is_at_most_what_the_evidence_says(make: Any, seed: int) -> None:
    """Both levels solved to r; the exact hypergradient by Newton's method to rounding."""
    case = make(seed=seed)
    newton = bl.Newton(bl.CG(tol=1e-13))
    exact = flat(estimate_and_state(case, 50, newton, linear=TIGHT)[0].grad)
    for r in (0.2, 0.07, 0.02, 5e-3, 1e-3):
        solver = bl.Newton(bl.CG(tol=0.1), tol=r)
        found, _ = estimate_and_state(case, 50, solver, linear=bl.CG(tol=r), correct=True)
        error = np.linalg.norm(flat(found.grad) - exact) / np.linalg.norm(exact)
        assert error <= float(found.evidence.residual_error) + 1e-11


def test_the_error_of_small_problems_is_not_less_than_the_true_one_in_raw_units() -> None:
    """Columns of size 1e-3 to 1e4: residuals fall long before the params of the small ones move.

    Cold, and going on from other penalties, at loose tolerances; against dense solves.
    """

    def loss(w: Any, h: Any, batch: Any) -> Any:
        z = batch[0] @ w
        return jnp.mean(jax.nn.softplus(z) - batch[1] * z)

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return loss(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2

    def minimise(w: Any, h: Any, rows: Any) -> Any:
        slope = jax.grad(inner)
        for _ in range(30):
            step = jnp.linalg.solve(jax.hessian(inner)(w, h, rows), slope(w, h, rows))
            shorter = w - 0.5 ** jnp.arange(12.0)[:, None] * step
            norms = jax.vmap(lambda u: jnp.linalg.norm(slope(u, h, rows)))(shorter)
            w = shorter[jnp.nanargmin(norms)]
        return w

    @jax.jit
    def solve_densely(h: Any, w: Any, data: bl.Data) -> Any:
        w = minimise(w, h, data.inner)
        v = jnp.linalg.solve(jax.hessian(inner)(w, h, data.inner), jax.grad(loss)(w, h, data.outer))
        return -jax.grad(lambda h: jnp.vdot(jax.grad(inner)(w, h, data.inner), v))(h)

    problem, key = bl.Problem(inner, loss), jax.random.key(0)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(48, 8))
        y = (X @ rng.normal(size=8) + rng.normal(size=48) > 0) * 1.0
        X = X * 10.0 ** rng.uniform(-3, 4, 8)
        data = bl.Data(inner=(X[:24], y[:24]), outer=(X[24:], y[24:]))
        state = None
        for tolerance in (0.3, 0.1, 0.1):
            h = rng.uniform(-16, -6) + rng.normal(size=8) / 2
            args = problem, bl.Auto(tolerance), h, np.zeros(8), data, key
            found, state = bl.hypergradient(*args, state=state, max_error=np.inf)
            exact = solve_densely(h, state.params, data)
            error = np.linalg.norm(found.grad - exact) / np.linalg.norm(exact)
            assert error <= 1.05 * float(found.evidence.residual_error) + 1e-9


def test_nothing_is_taken_off_where_the_systems_are_not_solved() -> None:
    """One term of a series with a tiny step solves nothing, and the error says so."""
    weak = bl.Neumann(1, step_size=1e-3)
    plain, found = (estimate(RIDGE, 5, linear=weak, correct=c) for c in (False, True))
    np.testing.assert_allclose(found.grad, plain.grad, rtol=1e-12)
    assert found.evidence.residual_error > 1


def test_a_step_out_of_the_domain_is_not_taken() -> None:
    """The gradient sqrt(w) - 1; Newton's step from 9 leads to -3, where there is none."""
    problem = bl.Problem(
        lambda w, h, _: jnp.sum(jnp.exp(h) * w**1.5 / 1.5 - w), lambda w, h, _: jnp.sum(w**2)
    )
    far, data = jnp.array([9.0]), bl.Data(jnp.ones(1), jnp.ones(1))
    still = bl.Implicit(bl.GradientDescent(1e-12), 1, correct=True)
    args = problem, still, jnp.asarray(0.0), far, data, jax.random.key(0)
    found, after = bl.hypergradient(*args, max_error=np.inf)
    np.testing.assert_allclose(after.params, far, rtol=1e-9)
    assert np.isfinite(found.grad)
    assert found.relative_error == np.inf


def test_what_correcting_is_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="Set one of bias and correct"):
        bl.Implicit(bl.Newton(), 3, bias=True, correct=True)
    with pytest.raises(ValueError, match="no damping with correct"):
        bl.Implicit(bl.Newton(), 3, damping=0.1, correct=True)
    sparse = replace(RIDGE, problem=replace(RIDGE.problem, prox=lambda z, h, s: z))
    with pytest.raises(ValueError, match="smooth inner losses"):
        estimate(sparse, 3, correct=True)


@pytest.mark.extended
def test_average_is_the_mean_of_the_last_iterates() -> None:
    case, key = RIDGE, jax.random.key(4)
    solver = bl.SGD(0.05, batch_size=4, momentum=0.5)
    estimator = bl.Implicit(solver, 9, linear=TIGHT, average=3)
    found, lower = bl.hypergradient(
        case.problem, estimator, case.hyper, case.params, case.data, key
    )
    tail = [
        bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=k)
        for k in (7, 8, 9)
    ]
    np.testing.assert_allclose(lower.params, np.mean(tail, axis=0), rtol=1e-12)
    H, _, _ = matrices(case)
    V, c = case.data.outer
    w = np.asarray(lower.params)
    adjoint = np.linalg.solve(H, V.T @ (V @ w - c) / len(c))
    np.testing.assert_allclose(found.grad, -adjoint * np.exp(case.hyper) * w, rtol=1e-9)
    whole = bl.Implicit(solver, 9, linear=TIGHT, average=9)
    _, lower = bl.hypergradient(case.problem, whole, case.hyper, case.params, case.data, key)
    every = [
        bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=k)
        for k in range(1, 10)
    ]
    np.testing.assert_allclose(lower.params, np.mean(every, axis=0), rtol=1e-12)


def test_without_asking_there_is_no_bias_and_no_cost() -> None:
    with_bias, plain = (estimate(RIDGE, 12, linear=TIGHT, bias=ask) for ask in (True, False))
    assert plain.evidence.bias is None
    np.testing.assert_allclose(plain.grad, with_bias.grad, rtol=1e-12)
    # Two more systems of four unknowns, each with its residual.
    assert with_bias.evidence.counts.hvps - plain.evidence.counts.hvps == 2 * 5
