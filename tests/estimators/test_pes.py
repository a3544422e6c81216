"""PES: the derivative of the whole history from short unrolls, without bias."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")

CALLS, STEPS = 4, 2
SOLVER = bl.SGD(0.08, momentum=0.5)
# w_k is affine in h and the outer loss quadratic: smoothing by +- sigma has no bias at any sigma.
PROBLEM = bl.Problem(
    lambda w, h, x: jnp.sum((w["w"] - h["a"] - x[0]) ** 2) / 2 + h["b"] * jnp.sum(w["w"]),
    lambda w, h, x: jnp.sum((w["w"] - 1) ** 2) / 2 + h["b"] ** 2,
)
DATA = bl.Data(inner=np.array([[0.5, -1.0]]), outer=np.zeros((1, 2)))
HYPER = {"a": np.array([1.0, -0.5]), "b": np.array(0.3)}
PARAMS = {"w": np.array([2.0, 0.1])}


def history(estimator: Any, key: Any, problem: bl.Problem = PROBLEM) -> bl.Estimate:
    """The estimates of a run of ``CALLS`` calls, one leading axis."""
    estimates, state = [], None
    for k in jax.random.split(key, CALLS):
        estimate, state = bl.hypergradient(problem, estimator, HYPER, PARAMS, DATA, k, state=state)
        estimates.append(estimate)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *estimates)


def flat(tree: Any) -> np.ndarray:
    """Leaves ``[..., calls, *leaf]`` as ``[..., calls, p]``; ``a`` first."""
    return np.concatenate([np.asarray(tree["a"]), np.asarray(tree["b"])[..., None]], -1)


def over_keys(estimator: Any, seeds: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(1), seeds)
    return flat(jax.vmap(lambda key: history(estimator, key).grad)(keys))


def worst(samples: np.ndarray, truth: np.ndarray) -> float:
    """Largest deviation of a mean from the truth, in standard errors."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return float((np.abs(samples.mean(0) - truth) / error).max())


@pytest.mark.extended
def test_is_unbiased_at_every_call_where_truncation_is_not() -> None:
    exact = flat(history(bl.Forward(SOLVER, STEPS), jax.random.key(0)).grad)  # carries its tangents
    # false alarm: 6e-5 each
    assert worst(over_keys(bl.PES(SOLVER, STEPS, sigma=0.1, pairs=8), 400), exact) < 4
    truncated = over_keys(bl.Evolution(SOLVER, STEPS, sigma=0.1, pairs=8), 400)
    assert worst(truncated[:, :1], exact[:1]) < 4  # false alarm: 6e-5 each
    assert worst(truncated, exact) > 30


def test_its_standard_error_is_the_spread_over_keys() -> None:
    estimator = bl.PES(SOLVER, STEPS, sigma=0.1, pairs=8)
    keys = jax.random.split(jax.random.key(2), 400)
    found = jax.vmap(lambda key: history(estimator, key))(keys)
    claimed = np.sqrt((flat(found.evidence.standard_error) ** 2).mean(0))
    spread = flat(found.grad).std(0, ddof=1)
    np.testing.assert_allclose(claimed / spread, 1, atol=4 * 1.6 / np.sqrt(2 * 400))


def test_reset_forgets_the_past() -> None:
    """With reset=1 each call is Evolution from the unperturbed chain, draw for draw."""
    ours = history(bl.PES(SOLVER, STEPS, sigma=0.1, pairs=4, reset=1), jax.random.key(0))
    theirs = history(bl.Evolution(SOLVER, STEPS, sigma=0.1, pairs=4), jax.random.key(0))
    np.testing.assert_allclose(flat(ours.grad), flat(theirs.grad), rtol=1e-9)
    twice = history(bl.PES(SOLVER, STEPS, sigma=0.1, pairs=4, reset=2), jax.random.key(0))
    same = np.isclose(flat(twice.grad), flat(theirs.grad), rtol=1e-9).all(-1)
    np.testing.assert_array_equal(same, [True, False] * (CALLS // 2))


def test_a_start_point_of_its_own_leaves_no_past() -> None:
    started = bl.Problem(
        PROBLEM.inner, PROBLEM.outer, start=lambda h, w: {"w": w["w"] * 0 + h["b"]}
    )
    ours = history(bl.PES(SOLVER, STEPS, sigma=0.1, pairs=4), jax.random.key(0), started)
    theirs = history(bl.Evolution(SOLVER, STEPS, sigma=0.1, pairs=4), jax.random.key(0), started)
    np.testing.assert_allclose(flat(ours.grad), flat(theirs.grad), rtol=1e-9)


def test_refuses_a_reset_that_never_comes() -> None:
    with pytest.raises(ValueError, match="reset must be at least 1"):
        bl.PES(SOLVER, STEPS, reset=0)
