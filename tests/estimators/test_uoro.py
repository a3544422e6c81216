"""UORO: the expectation of its rank-one derivative is forward mode's, in the memory of two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import logistic, mlp, ridge
from bilevel.utils import size

pytestmark = pytest.mark.usefixtures("x64")

MOMENTUM = bl.SGD(0.1, batch_size=5, momentum=0.6, sampling="epoch")
PLAIN = bl.SGD(0.1, batch_size=5)


def grads(problem: bl.Problem, estimator: Any, case: Any, calls: int, seeds: int) -> np.ndarray:
    """Gradients ``[seeds, p]`` of the last of some calls, the same keys for every estimator."""

    def one(key: Any) -> Any:
        estimate, state = None, None
        for k in jax.random.split(key, calls):
            estimate, state = bl.hypergradient(
                problem, estimator, case.hyper, case.params, case.data, k, state=state
            )
        return estimate.grad

    found = jax.vmap(one)(jax.random.split(jax.random.key(0), seeds))
    return np.concatenate([np.reshape(leaf, (seeds, -1)) for leaf in jax.tree.leaves(found)], 1)


def start_from_hyper(hyper: Any, params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + jnp.sin(jax.tree.leaves(hyper)[0]), params)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("make", "solver", "steps", "calls", "start"),
    [
        (ridge, MOMENTUM, 4, 2, None),
        (logistic, PLAIN, 5, 1, start_from_hyper),
        pytest.param(mlp, PLAIN, 6, 1, None, marks=pytest.mark.slow),
    ],
    ids=["two calls", "a start of its own", "trees"],
)
def test_is_unbiased(make: Any, solver: Any, steps: int, calls: int, start: Any) -> None:
    """Both estimators see the same minibatches under one key: only UORO's signs differ."""
    case = make(seed=0)
    problem = bl.Problem(case.problem.inner, case.problem.outer, start=start)
    ours = grads(problem, bl.UORO(solver, steps), case, calls, 20000)
    error = ours - grads(problem, bl.Forward(solver, steps), case, calls, 20000)
    standard_error = error.std(0, ddof=1) / np.sqrt(len(error))
    assert (np.abs(error.mean(0)) <= 4 * standard_error).all()  # false alarm: 6e-5 each
    # The test has power: four standard errors are a small part of the gradient.
    assert 4 * np.linalg.norm(standard_error) < np.linalg.norm(ours.mean(0)) / 2


def test_its_memory_is_two_vectors() -> None:
    case = ridge(seed=0)
    args = (case.hyper, case.params, case.data, jax.random.key(0))
    _, state = bl.hypergradient(case.problem, bl.UORO(MOMENTUM, 3), *args)
    assert size(state.memory) == 2 * size(case.params) + size(case.hyper)  # params and velocity


def test_one_step_of_one_parameter_is_exact() -> None:
    """The derivative is a row, hence of rank one, and no earlier signs disturb it."""
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.sum(jnp.exp(h)) * w**2 / 2,
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    )
    data = bl.Data(inner=np.array([2.0, 3.0]), outer=np.array([1.5]))
    args = (np.array([0.1, -0.4, 0.7]), 0.5, data, jax.random.key(0))
    ours, _ = bl.hypergradient(problem, bl.UORO(bl.GradientDescent(0.1), 1), *args)
    exact, _ = bl.hypergradient(problem, bl.Forward(bl.GradientDescent(0.1), 1), *args)
    np.testing.assert_allclose(ours.grad, exact.grad, rtol=1e-10)
