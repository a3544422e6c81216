"""Implicit with a proximal inner part: its system on the support, against solved problems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from tests.estimators.proximal import (
    PROBLEMS,
    SOLVED,
    M,
    N,
    P,
    close,
    differences,
    implicit,
    sample,
)
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")


@quick_cases(1, "seed", [0, 1])
@pytest.mark.parametrize("case", PROBLEMS)
def test_equals_differences_of_the_solved_problem(case: str, seed: int) -> None:
    estimate, lower = implicit(case, seed, linear=bl.CG(tol=1e-12))
    off = int(np.sum(np.asarray(lower.params) == 0))
    assert 0 < off < P, "the case must have zeros and others"
    problem, hyper = PROBLEMS[case]
    close(estimate.grad, differences(problem, hyper, *sample(seed)), 1e-7)
    assert estimate.evidence.inner_residual < 1e-12
    assert estimate.evidence.linear_residual < 1e-11


@pytest.mark.parametrize("seed", [0, 1])
def test_lasso_is_the_closed_form_on_its_support(seed: int) -> None:
    _, hyper = PROBLEMS["lasso"]
    estimate, lower = implicit("lasso", seed, linear=bl.CG(tol=1e-12))
    data, _ = sample(seed)
    (X, y), (V, c) = data.inner, data.outer
    S = np.asarray(lower.params) != 0
    H = X[:, S].T @ X[:, S] / N
    signs, alpha = np.sign(lower.params)[S], np.exp(hyper)
    w = np.linalg.solve(H, X[:, S].T @ y / N - alpha * signs)
    np.testing.assert_allclose(np.asarray(lower.params)[S], w, rtol=1e-9)
    slope = -alpha * np.linalg.solve(H, signs)  # d w_S / d log alpha
    error = V[:, S] @ w - c
    np.testing.assert_allclose(estimate.grad, error @ V[:, S] @ slope / M, rtol=1e-9)


SOLVERS = {
    "MINRES": bl.MINRES(tol=1e-11),
    "GMRES": bl.GMRES(tol=1e-11),
    "BiCGSTAB": bl.BiCGSTAB(tol=1e-11),
    "Dense": bl.Dense(),
    "Neumann": bl.Neumann(terms=3000),
    "FixedPoint": bl.FixedPoint(tol=1e-11, max_steps=5000),
    "GaussNewton": bl.GaussNewton(bl.CG(tol=1e-12)),
}


@quick_cases(3, "name", SOLVERS)
def test_every_linear_solver_agrees(name: str) -> None:
    expected, _ = implicit("group lasso", 0, linear=bl.CG(tol=1e-12))
    estimate, _ = implicit("group lasso", 0, linear=SOLVERS[name])
    close(estimate.grad, expected.grad, 1e-8)
    assert estimate.evidence.linear_residual < 1e-10


def test_nystrom_of_full_rank_is_the_damped_system() -> None:
    damping = 1e-3
    expected, _ = implicit("lasso", 0, linear=bl.CG(tol=1e-12), damping=damping)
    estimate, _ = implicit("lasso", 0, linear=bl.Nystrom(rank=P), damping=damping)
    close(estimate.grad, expected.grad, 1e-7)
    undamped, _ = implicit("lasso", 0, linear=bl.CG(tol=1e-12))
    error = np.abs(estimate.grad - undamped.grad) / np.abs(undamped.grad)
    assert 0.1 * damping < error < 100 * damping


@pytest.mark.extended
def test_minibatch_products_are_unbiased() -> None:
    expected, _ = implicit("group lasso", 0, linear=bl.CG(tol=1e-12))
    problem, hyper = PROBLEMS["group lasso"]
    data, step_size = sample(0)
    linear = bl.SGDLinear(step_size=0.05, steps=3000, batch_size=4, average=2500)
    estimator = bl.Implicit(bl.FISTA(step_size), SOLVED, linear=linear)

    def one(key: Any) -> Any:
        return bl.hypergradient(problem, estimator, hyper, np.zeros(P), data, key)[0].grad

    grads = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(5), 24)))
    standard_error = grads.std(axis=0, ddof=1) / np.sqrt(len(grads))
    assert np.all(standard_error < 0.1 * np.linalg.norm(expected.grad))
    # 4 s.e. and what is left of the transient.
    np.testing.assert_array_less(
        np.abs(grads.mean(axis=0) - expected.grad),
        4 * standard_error + 1e-3 * np.linalg.norm(expected.grad),
    )


@quick_cases(1, "case", ["lasso", "elastic net", "group lasso"])
def test_the_bias_is_right_to_first_order(case: str) -> None:
    _, step_size = sample(0)
    exact, _ = implicit(case, 0, linear=bl.CG(tol=1e-12))
    scale = np.linalg.norm(ravel_pytree(exact.grad)[0])
    for steps in (60, 90):
        solver = bl.ProximalGradient(step_size)
        estimate, _ = implicit(case, 0, steps, solver, linear=bl.CG(tol=1e-12), bias=True)
        error = ravel_pytree(estimate.grad)[0] - ravel_pytree(exact.grad)[0]
        left = error - ravel_pytree(estimate.evidence.bias)[0]
        size = np.linalg.norm(error) / scale
        assert 1e-8 < size < 1e-3
        assert np.linalg.norm(left) / scale < 20 * size**2 + 1e-13


class Undeclared:
    """FISTA, by a solver that does not tell its step size."""

    def __init__(self, step_size: float) -> None:
        self._inner = bl.FISTA(step_size)
        self.check, self.init, self.step = self._inner.check, self._inner.init, self._inner.step


jax.tree_util.register_static(Undeclared)


@pytest.mark.parametrize("case", ["lasso", "group lasso"])
def test_the_step_that_looks_at_the_prox_does_not_matter(case: str) -> None:
    expected, _ = implicit(case, 1, linear=bl.CG(tol=1e-12))
    _, step_size = sample(1)
    estimate, _ = implicit(case, 1, SOLVED, Undeclared(step_size), linear=bl.CG(tol=1e-12))
    close(estimate.grad, expected.grad, 1e-9)
    if case == "lasso":  # its matrix does not depend on that step; measuring one took 21 products
        assert estimate.evidence.counts.hvps == expected.evidence.counts.hvps + 21


def test_an_empty_support_has_a_zero_hypergradient() -> None:
    problem, _ = PROBLEMS["lasso"]
    data, step_size = sample(0)
    for linear in (bl.CG(), bl.Dense(), bl.Neumann(terms=3)):
        estimator = bl.Implicit(bl.FISTA(step_size), 3, linear=linear)
        estimate, lower = bl.hypergradient(
            problem, estimator, 5.0, np.zeros(P), data, jax.random.key(0)
        )
        assert not np.any(lower.params)
        assert estimate.grad == 0
        assert estimate.evidence.linear_residual == 0


def test_a_warm_adjoint_forgets_what_left_the_support() -> None:
    problem, hyper = PROBLEMS["lasso"]
    data, step_size = sample(0)
    estimator = bl.Implicit(bl.FISTA(step_size), SOLVED, linear=bl.CG(tol=1e-12))
    key = jax.random.key(0)
    _, wide = bl.hypergradient(problem, estimator, hyper - 2, np.zeros(P), data, key)
    estimate, lower = bl.hypergradient(
        problem, estimator, hyper, np.zeros(P), data, key, state=wide
    )
    expected, _ = implicit("lasso", 0, linear=bl.CG(tol=1e-12))
    assert np.sum(np.asarray(lower.params) != 0) < np.sum(np.asarray(wide.params) != 0)
    assert not np.any(np.asarray(lower.memory)[np.asarray(lower.params) == 0])
    close(estimate.grad, expected.grad, 1e-9)


def test_a_box_is_a_prox_too() -> None:
    """Bounds that are hyperparameters: ``d w / d bound`` is 1 where it binds."""
    centre = np.array([0.3, 2.0, -0.5, 4.0])
    problem = bl.Problem(
        lambda w, h, batch: jnp.mean(jnp.sum((w - batch) ** 2, axis=-1)) / 2 + 0.1 * w[0] * w[1],
        lambda w, h, batch: jnp.mean(jnp.sum((w - batch) ** 2, axis=-1)) / 2,
        prox=lambda z, h, step: jnp.clip(z, -h, h),
    )
    data = bl.Data(inner=centre[None], outer=np.zeros((1, 4)))
    estimator = bl.Implicit(bl.ProximalGradient(0.5), 200, linear=bl.CG(tol=1e-12))
    bound = np.array([1.0, 1.5, 2.0, 1.0])
    estimate, lower = bl.hypergradient(
        problem, estimator, bound, np.zeros(4), data, jax.random.key(0)
    )
    # Free: w0 = .3 - .1 w1 and w2; at their bounds: w1 = 1.5 (pulls w0) and w3 = 1.
    np.testing.assert_allclose(lower.params, [0.15, 1.5, -0.5, 1.0], atol=1e-12)
    np.testing.assert_allclose(estimate.grad, [0, 1.5 - 0.1 * 0.15, 0, 1.0], atol=1e-12)


def test_refuses_what_neither_loss_nor_prox_reads() -> None:
    problem, _ = PROBLEMS["elastic net, split"]
    data, step_size = sample(0)
    estimator = bl.Implicit(bl.FISTA(step_size), 5)
    hyper = {"l1": -2.0, "l2": -1.5, "unread": np.ones(2)}
    with pytest.raises(
        ValueError, match=r"Implicit's hypergradient does not depend on hyper\['unread'\]"
    ):
        bl.hypergradient(problem, estimator, hyper, np.zeros(P), data, jax.random.key(0))
