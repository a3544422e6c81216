"""Penalty: first derivatives only, wrong by O(1 / gamma), and it says by how much."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, dense_hypergradient, logistic, ridge

pytestmark = pytest.mark.usefixtures("x64")


def run(case: Case, estimator: Any, state: Any = None) -> tuple[bl.Estimate, bl.InnerState]:
    problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
    key = jax.random.key(3)
    return bl.hypergradient(problem, estimator, hyper, params, data, key, state=state)


@pytest.mark.parametrize("make", [pytest.param(ridge, marks=pytest.mark.slow), logistic])
def test_the_error_falls_as_one_over_gamma_and_is_reported(make: Any) -> None:
    case = make(seed=1)
    _, exact = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    errors, left = [], []
    for gamma in (1e2, 1e3):
        solver = bl.GradientDescent(case.step_size)
        found, _ = run(case, bl.Penalty(solver, case.steps, gamma=gamma))
        errors.append(np.linalg.norm(found.grad - exact))
        left.append(np.linalg.norm(found.grad - found.evidence.bias - exact))
    # One order in gamma for the estimate, two once the reported bias is taken off.
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)
    np.testing.assert_allclose(left[0] / left[1], 100, rtol=0.2)
    assert left[0] < 0.2 * errors[0]


def no_second_derivative(case: Case) -> bl.Problem:
    """The same losses; differentiating one of their gradients raises."""

    @jax.custom_jvp
    def opaque(x: Any) -> Any:
        return x

    @opaque.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise AssertionError("a second derivative was taken")

    def hide(loss: Any) -> Any:
        @jax.custom_vjp
        def hidden(w: Any, h: Any, batch: Any) -> Any:
            return loss(w, h, batch)

        def forward(w: Any, h: Any, batch: Any) -> Any:
            return loss(w, h, batch), (w, h, batch)

        def backward(saved: Any, cotangent: Any) -> Any:
            w, h, batch = saved
            grads = jax.grad(loss, argnums=(0, 1))(w, h, batch)
            return *jax.tree.map(lambda g: cotangent * opaque(g), grads), None

        hidden.defvjp(forward, backward)
        return hidden

    return bl.Problem(hide(case.problem.inner), hide(case.problem.outer))


def test_takes_no_second_derivative() -> None:
    case = logistic(seed=0)
    solver = bl.GradientDescent(case.step_size)
    blocked = Case("", no_second_derivative(case), case.hyper, case.params, case.data, 0.5, 0)
    with pytest.raises(AssertionError, match="a second derivative was taken"):
        run(blocked, bl.Implicit(solver, 3))
    found, _ = run(blocked, bl.Penalty(solver, 3))
    same, _ = run(case, bl.Penalty(solver, 3))
    np.testing.assert_allclose(found.grad, same.grad, rtol=1e-12)
    counts = found.evidence.counts
    assert (counts.hvps, counts.jvps, counts.vjps) == (0, 0, 0)
    assert counts.gradients == 3 * 3 + 1


def test_all_three_chains_go_on_from_call_to_call() -> None:
    case = ridge(seed=0)
    whole, _ = run(case, bl.Penalty(bl.GradientDescent(0.1), 14))
    half = bl.Penalty(bl.GradientDescent(0.1), 7)
    _, state = run(case, half)
    again, _ = run(case, half, state)
    np.testing.assert_allclose(again.grad, whole.grad, rtol=1e-12)
    np.testing.assert_allclose(again.evidence.bias, whole.evidence.bias, rtol=1e-10)


def test_the_chains_share_their_minibatches() -> None:
    """Otherwise gamma would multiply the noise: here it would be more than 1000 times larger."""
    case = ridge(seed=0)
    solver, gamma = bl.SGD(0.05, batch_size=4), 1e5

    def grad(key: Any) -> Any:
        estimator = bl.Penalty(solver, 200, gamma=gamma)
        args = (case.hyper, case.params, case.data, key)
        return bl.hypergradient(case.problem, estimator, *args)[0].grad

    def end(key: Any) -> Any:
        args = (case.hyper, case.params, case.data, key)
        params = bl.solve(case.problem, solver, *args, steps=200)
        return jax.grad(case.problem.inner, argnums=1)(params, *args[:1], case.data.inner)

    keys = jax.random.split(jax.random.key(0), 40)
    noise, independent = (np.asarray(jax.vmap(f)(keys)).std(0, ddof=1) for f in (grad, end))
    assert np.linalg.norm(noise) < 1e-3 * gamma * np.linalg.norm(independent)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf")])
def test_refuses_gamma_that_is_not_positive(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be a positive finite number"):
        bl.Penalty(bl.GradientDescent(0.1), 5, gamma=gamma)


def test_refuses_what_it_cannot_see() -> None:
    case = ridge(seed=0)
    estimator = bl.Penalty(bl.SGD(lambda count, h: jnp.exp(h["step"])), 5)

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return case.problem.inner(w, h["penalty"], batch)

    hyper = {"penalty": case.hyper, "step": np.array(-2.0)}
    problem = bl.Problem(inner, lambda w, h, batch: case.problem.outer(w, h["penalty"], batch))
    with pytest.raises(
        ValueError, match=r"Penalty's hypergradient does not depend on hyper\['step'\]"
    ):
        run(Case("", problem, hyper, case.params, case.data, 0.1, 5), estimator)
    proximal = bl.Problem(case.problem.inner, case.problem.outer, prox=lambda w, h, step: w)
    with pytest.raises(ValueError, match=r"problem\.prox"):
        run(Case("", proximal, case.hyper, case.params, case.data, 0.1, 5), estimator)
