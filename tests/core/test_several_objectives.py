"""Several objectives, and terms in the hyperparameters, are functions: no part of the library.

Ridge with a log penalty for each of two groups of inputs, solved by NumPy. The outer loss weighs
two populations, which want different penalties, and a term in the penalties alone:

    total(h) = f1(w(h)) + p(h) + weight f2(w(h)),   w(h) = (A + diag(e^h))^-1 b
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")
rng = np.random.default_rng(1)
GROUP = np.array([0, 0, 1, 1, 1])
TRUTH = rng.normal(size=5) * (np.arange(2)[:, None] == GROUP)  # population k follows group k
X, V = rng.normal(size=(20, 5)), rng.normal(size=(2, 15, 5))
Y = X @ TRUTH.sum(0) + rng.normal(size=20)
T = np.einsum("kni,ki->kn", V, TRUTH) + 0.3 * rng.normal(size=(2, 15))
WEIGHTS = np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0])


def mean_square(w: Any, X: Any, y: Any) -> Any:
    return jnp.mean((X @ w - y) ** 2) / 2


def inner(w: Any, h: Any, batch: Any) -> Any:
    return mean_square(w, *batch) + jnp.sum(jnp.exp(h)[GROUP] * w**2) / 2


def outer(w: Any, h: Any, batch: Any) -> Any:
    first, second, weight = batch
    term = 0.01 * jnp.sum((h + 1) ** 2)
    return mean_square(w, *first) + term + jnp.mean(weight) * mean_square(w, *second)


PROBLEM = bl.Problem(inner, outer, quadratic=True)


def data(weight: Any) -> bl.Data:
    """The weight is one number per row, as all data are: it can be swept without recompiling."""
    return bl.Data(inner=(X, Y), outer=((V[0], T[0]), (V[1], T[1]), jnp.full(15, weight)))


def objectives(h: np.ndarray) -> np.ndarray:
    """``(f1 + p, f2)`` by NumPy, ``[..., 2]``, for any number of ``h``, ``[..., 2]``."""
    H = X.T @ X / 20 + np.exp(h)[..., GROUP, None] * np.eye(5)
    w = np.linalg.solve(H, (X.T @ Y / 20)[:, None])[..., 0]
    errors = np.mean((np.einsum("kni,...i->...kn", V, w) - T) ** 2, -1) / 2
    errors[..., 0] += 0.01 * np.sum((h + 1) ** 2, -1)
    return errors


def slope(weight: float, h: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of ``total``."""
    ends = objectives(h + step * np.concatenate([np.eye(2), -np.eye(2)])) @ [1, weight]
    return (ends[:2] - ends[2:]) / (2 * step)


ESTIMATORS = {
    "closed form": bl.ClosedForm(),
    "implicit": bl.Implicit(bl.GradientDescent(0.3), steps=400, linear=bl.CG(tol=1e-12)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_hypergradient_of_a_weighted_sum_is_that_of_finite_differences(name: str) -> None:
    for weight, h in [(0.3, np.array([-1.0, 0.5])), (5.0, np.array([0.2, -2.0]))]:
        estimate, _ = bl.hypergradient(
            PROBLEM, ESTIMATORS[name], h, np.zeros(5), data(weight), jax.random.key(0)
        )
        np.testing.assert_allclose(estimate.value, objectives(h) @ [1, weight], rtol=1e-9)
        np.testing.assert_allclose(estimate.grad, slope(weight, h), rtol=1e-6)


def test_a_sweep_of_the_weight_traces_the_pareto_front() -> None:
    """All weights at once; every point is the lowest of a fine grid, so that none dominates it."""

    @jax.jit
    @jax.vmap
    def best(weight: Any) -> Any:
        outer = optax.adam(optax.cosine_decay_schedule(0.3, 400))
        arguments = outer, jnp.zeros(2), jnp.zeros(5), data(weight)
        run = bl.tune(PROBLEM, bl.ClosedForm(), *arguments, steps=400, key=jax.random.key(0))
        return run.hyper

    found = np.asarray(best(WEIGHTS))
    front = objectives(found)
    axis = np.linspace(-8, 8, 161)
    grid = objectives(np.stack(np.meshgrid(axis, axis), -1)).reshape(-1, 2)
    for weight, h, point in zip(WEIGHTS, found, front, strict=True):
        np.testing.assert_allclose(slope(weight, h), 0, atol=1e-5 * (1 + weight))
        assert point @ [1, weight] <= (grid @ [1, weight]).min() + 1e-9
    steps = np.diff(front, axis=0)
    assert np.all(steps[:, 0] > 1e-4), "the first objective is given up"
    assert np.all(steps[:, 1] < -1e-4), "for the second"
