"""Implicit: its error is the one that theory says, its adjoint is carried, its cost counted."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import logistic, ridge

KEY = jax.random.key(0)


def run(case: Any, estimator: Any, state: Any = None) -> Any:
    arguments = (case.problem, estimator, case.hyper, case.params, case.data, KEY)
    return bl.hypergradient(*arguments, state=state)


@pytest.mark.usefixtures("x64")
def test_the_adjoint_is_carried_from_call_to_call() -> None:
    case = ridge(seed=0)
    estimator = bl.Implicit(bl.GradientDescent(case.step_size), 100, bl.CG(tol=1e-10))
    first, state = run(case, estimator)
    second, _ = run(case, estimator, state)
    # The products that a solved system still needs: its residual, at the start and at the end.
    assert int(second.evidence.counts.hvps) == 2 < int(first.evidence.counts.hvps)
    # After a small move of hyper the old adjoint is nearly right.
    moved = dataclasses.replace(case, hyper=case.hyper + 1e-6)
    rough = dataclasses.replace(estimator, linear=bl.CG(tol=1e-4))
    assert int(run(moved, rough, state)[0].evidence.counts.hvps) == 2
    assert int(run(moved, rough)[0].evidence.counts.hvps) > 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_it_stops_at_the_tolerance_and_says_what_it_reached(tol: float) -> None:
    case = ridge(seed=1)
    estimator = bl.Implicit(bl.GradientDescent(case.step_size), case.steps, bl.CG(tol=tol))
    estimate, lower = run(case, estimator)
    # Recomputed with matrices: H = X'X / n + diag(e^h), b = V'(V w - t) / m.
    (X, y), (V, t) = case.data.inner, case.data.outer
    H = X.T @ X / len(y) + np.diag(np.exp(case.hyper))
    w, v = np.asarray(lower.params), np.asarray(lower.memory)
    b = V.T @ (V @ w - t) / len(t)
    residual = np.linalg.norm(H @ v - b) / np.linalg.norm(b)
    assert float(estimate.evidence.linear_residual) == pytest.approx(residual, rel=1e-6, abs=1e-15)
    assert residual <= tol
    assert case.exact is not None
    _, truth = case.exact(case.hyper)
    assert np.linalg.norm(estimate.grad - truth) <= 10 * tol * np.linalg.norm(truth)


@pytest.mark.usefixtures("x64")
def test_its_error_falls_with_that_of_the_iterate() -> None:
    case = logistic(seed=0)
    _, truth = bl.testing.dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    errors, residuals = [], []
    for steps in (8, 16):
        solver = bl.GradientDescent(case.step_size)
        estimate, _ = run(case, bl.Implicit(solver, steps, bl.CG(tol=1e-13)))
        errors.append(abs(float(estimate.grad) - truth))
        residuals.append(float(estimate.evidence.inner_residual))
    # O(inner residual): their ratio settles while both fall.
    assert residuals[1] < residuals[0] / 20
    assert errors[1] / residuals[1] == pytest.approx(errors[0] / residuals[0], rel=0.2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 5])
def test_minibatches_move_the_iterate_but_not_the_system(size: int) -> None:
    case = ridge(seed=2)
    solver = bl.SGD(step_size=0.05, batch_size=size)
    estimate, lower = run(case, bl.Implicit(solver, 30, bl.CG(tol=1e-13)))
    (X, y), (V, t) = case.data.inner, case.data.outer
    w, penalty = np.asarray(lower.params), np.exp(case.hyper)
    H = X.T @ X / len(y) + np.diag(penalty)
    expected = -penalty * w * np.linalg.solve(H, V.T @ (V @ w - t) / len(t))
    np.testing.assert_allclose(estimate.grad, expected, rtol=1e-10)
