"""Reverse differentiates solvers whose steps take Jacobian-vector products of the loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import dense_hypergradient, logistic, ridge
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Damped:
    """`w <- w - (H + 1)^{-1} g`, with a Hessian by forward over reverse."""

    product: str

    def init(self, params: Any, data: Any) -> tuple[()]:
        return ()

    def step(self, loss: Any, params: Any, hyper: Any, data: Any, key: Any, state: Any) -> Any:
        def grad(w: Any) -> Any:
            return jax.grad(loss)(w, hyper, data)

        if self.product == "hessian":
            hessian = jax.hessian(lambda w: loss(w, hyper, data))(params)
        elif self.product == "linearize":
            hessian = jax.vmap(jax.linearize(grad, params)[1])(jnp.eye(params.size))
        else:
            hessian = jax.vmap(lambda v: jax.jvp(grad, (params,), (v,))[1])(jnp.eye(params.size))
        return params - jnp.linalg.solve(hessian + jnp.eye(params.size), grad(params)), state


@quick_cases(1, "product", ["hessian", "linearize", "jvp"])
def test_reverse_falls_back_to_the_plain_loss(product: str) -> None:
    case, solver = ridge(0), Damped(product)
    run = (case.hyper, case.params, case.data, jax.random.key(0))
    forward, _ = bl.hypergradient(case.problem, bl.Forward(solver, 60), *run)
    reverse, _ = bl.hypergradient(case.problem, bl.Reverse(solver, 60), *run)
    np.testing.assert_allclose(reverse.grad, forward.grad, rtol=1e-12)
    np.testing.assert_allclose(reverse.grad, case.exact(case.hyper)[1], rtol=1e-8)


def test_one_step_of_newton_is_enough() -> None:
    """At the minimum its derivative forgets the iterate before: one step back gives it all."""
    case, solver = logistic(0), bl.Newton(linear=bl.CG(tol=1e-13))
    _, exact = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    estimate, _ = bl.hypergradient(
        case.problem,
        bl.Reverse(solver, 8, truncate=1),
        case.hyper,
        case.params,
        case.data,
        jax.random.key(0),
    )
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-10)


def test_direct_step_on_a_tree() -> None:
    def inner(params: Any, h: Any, batch: Any) -> Any:
        fit = batch[0] @ params["W"] + params["b"] - batch[1]
        return jnp.mean(fit**2) + h * (jnp.sum(params["W"] ** 2) + params["b"] ** 2)

    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    problem = bl.Problem(inner, inner, quadratic=True)
    data = bl.Data(inner=(X, Y), outer=(X, Y))
    start = {"W": rng.standard_normal((3, 2)), "b": np.array(5.0)}
    found = bl.solve(problem, bl.Direct(), 0.1, start, data, jax.random.key(0), steps=1)
    gradient = jax.grad(inner)(found, 0.1, (X, Y))
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, 0, atol=1e-14), gradient)


@pytest.mark.parametrize("estimator", [bl.Forward, bl.Reverse])
def test_derivative_of_the_direct_step_is_exact(estimator: Any) -> None:
    case = ridge(1)
    problem = bl.Problem(case.problem.inner, case.problem.outer, quadratic=True)
    estimate, _ = bl.hypergradient(
        problem, estimator(bl.Direct(), 1), case.hyper, case.params, case.data, jax.random.key(0)
    )
    value, grad = case.exact(case.hyper)
    np.testing.assert_allclose(estimate.value, value, rtol=1e-12)
    np.testing.assert_allclose(estimate.grad, grad, rtol=1e-12)
