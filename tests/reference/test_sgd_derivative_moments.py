"""Moments of the derivative of SGD on one row at a time (arXiv 2405.15894, Figure 1).

The expected squared errors come from exact second-moment recursions, computed independently.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

pytestmark = pytest.mark.extended

RUNS, CHUNK = 1000, 100
MU, L_MAX = 0.242943, 22.822504
CHECKPOINTS = (100, 1000, 10_000)
EXPECTED = {
    "constant": (0.9409347, 0.07825044, 0.008649864),
    "decreasing": (0.1230221, 0.04025557, 0.004518999),
}
STEP_SIZES = {
    "constant": 0.05 / L_MAX,
    "decreasing": lambda k: 2 / (MU * (k + 2 * L_MAX / MU)),
}


def inner(x: Any, penalty: Any, batch: Any) -> Any:
    rows, targets = batch
    return jnp.mean((rows @ x - targets) ** 2) / 2 + penalty * jnp.sum(x**2) / 2


PROBLEM = bl.Problem(inner, lambda x, penalty, batch: inner(x, 0.0, batch))


def regression() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(A, b, D*)``; the derivative of the minimiser in the penalty, at 0.1."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((50, 5)) * np.linspace(0.5, 1.5, 5)
    b = A @ rng.standard_normal(5) + 0.5 * rng.standard_normal(50)
    H = A.T @ A / 50 + 0.1 * np.eye(5)
    return A, b, -np.linalg.solve(H, np.linalg.solve(H, A.T @ b / 50))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("schedule", STEP_SIZES)
def test_mean_squared_error_of_the_derivative(schedule: str, seed: int) -> None:
    A, b, D = regression()
    assert np.sum(D**2) == pytest.approx(1.01405745, rel=1e-8)
    data = bl.Data(inner=(A, b), outer=(A, b))
    estimator = bl.Forward(bl.SGD(STEP_SIZES[schedule], batch_size=1), steps=CHUNK)
    hyper, x = jnp.array(0.1), jnp.zeros(5)
    _, like = jax.eval_shape(
        lambda key: bl.hypergradient(PROBLEM, estimator, hyper, x, data, key), jax.random.key(0)
    )

    def one_run(key: Any) -> Any:
        """Squared error after every 100 steps; each call goes on from both x and D."""

        def chunk(lower: Any, key: Any) -> Any:
            _, lower = bl.hypergradient(PROBLEM, estimator, hyper, x, data, key, state=lower)
            return lower, jnp.sum((lower.memory.tangents[0][0] - D) ** 2)

        keys = jax.random.split(key, CHECKPOINTS[-1] // CHUNK)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        return jax.lax.scan(chunk, zeros, keys)[1]

    keys = jax.random.split(jax.random.key(seed), RUNS)
    squared = np.asarray(jax.jit(jax.vmap(one_run))(keys))
    squared = squared[:, np.array(CHECKPOINTS) // CHUNK - 1]
    mean, error = squared.mean(axis=0), squared.std(axis=0, ddof=1) / np.sqrt(RUNS)
    # Four standard errors of the mean over RUNS independent runs.
    # false alarm: 6e-5 each
    assert np.all(np.abs(mean - EXPECTED[schedule]) < 4 * error), (mean, error)
    # The bound says something: the standard error is below a twelfth of the mean.
    assert np.all(error < mean / 12)
