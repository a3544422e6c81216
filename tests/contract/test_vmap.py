"""`vmap` over folds, seeds and start points gives what the loop gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import logistic
from tests.marks import quick_cases

CASE = logistic(seed=4)
ESTIMATORS = {
    "Forward": lambda solver: bl.Forward(solver, steps=6),
    "Reverse": lambda solver: bl.Reverse(solver, steps=6),
    "Implicit": lambda solver: bl.Implicit(solver, steps=6, linear=bl.CG(tol=1e-12)),
}
OTHERS = {
    "Evolution": lambda solver: bl.Evolution(solver, steps=6, sigma=0.1),
    "OneStep": lambda solver: bl.OneStep(solver, steps=6, last=2),
    "PES": lambda solver: bl.PES(solver, steps=6, sigma=0.1),
    "Penalty": lambda solver: bl.Penalty(solver, steps=6),
    "Replicated": lambda solver: bl.Replicated(bl.Forward(solver, steps=6), n=2),
    "Richardson": lambda solver: bl.Richardson(bl.Forward(solver, steps=6)),
    "UORO": lambda solver: bl.UORO(solver, steps=6),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
SOLVER = bl.SGD(step_size=0.3, batch_size=4, momentum=0.5, sampling="epoch")


def folds_starts_and_seeds(n: int) -> tuple[Any, bl.Data, Any]:
    """``(params, data, keys)``, each with a leading axis of n different ones."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal((n, *leaf.shape)), CASE.params)
    folds = [logistic(seed).data for seed in range(n)]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *folds)
    return params, data, jax.random.split(jax.random.key(5), n)


def assert_loop(fn: Any, arguments: Any) -> None:
    mapped = jax.jit(jax.vmap(fn))(*arguments)
    alone = jax.jit(fn)
    for i in range(3):
        expected = alone(*jax.tree.map(lambda leaf, i=i: leaf[i], arguments))
        for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@quick_cases(1, "name", [*ESTIMATORS, *SLOW])
def test_hypergradient(name: str) -> None:
    def one(params: Any, data: bl.Data, key: Any) -> Any:
        estimator = (ESTIMATORS | OTHERS)[name](SOLVER)
        estimate, _ = bl.hypergradient(CASE.problem, estimator, CASE.hyper, params, data, key)
        return estimate.value, estimate.grad, estimate.evidence.inner_residual

    assert_loop(one, folds_starts_and_seeds(3))


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_tune() -> None:
    def one(params: Any, data: bl.Data, key: Any) -> Any:
        result = bl.tune(
            CASE.problem,
            ESTIMATORS["Reverse"](SOLVER),
            optax.adam(0.1),
            CASE.hyper,
            params,
            data,
            steps=5,
            key=key,
        )
        return result.hyper, result.params, result.history, result.diverged

    assert_loop(one, folds_starts_and_seeds(3))


@pytest.mark.usefixtures("x64")
def test_over_a_step_size_and_over_hyper() -> None:
    def one(hyper: Any, step_size: Any) -> Any:
        estimator = bl.Reverse(bl.GradientDescent(step_size), steps=4)
        arguments = (CASE.params, CASE.data, jax.random.key(0))
        return bl.hypergradient(CASE.problem, estimator, hyper, *arguments)[0].grad

    hypers, sizes = jnp.array([-2.0, -1.0, 0.0]), jnp.array([0.1, 0.2, 0.3])
    together = jax.vmap(one)(hypers, sizes)
    alone = [one(h, s) for h, s in zip(hypers, sizes, strict=True)]
    np.testing.assert_allclose(together, np.array(alone), rtol=1e-12)
