"""Many runs of SGD and its derivative at once, and their means against exact values."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.extend import init_filled
from bilevel.noise import LeastSquares
from experiments.studies.theory.sgd_regimes import Regime

GRID = 44  # steps at which means are compared
ROUNDING = 1e-24  # squared errors of SGD stop falling near eps^2


def _inner(w: Any, theta: Any, batch: Any) -> Any:
    A, b, J = batch  # b(theta) = b + J theta at theta = 0: affine, so it may start anywhere
    return jnp.mean((A @ w - b - J @ theta) ** 2) / 2


def _ridge(w: Any, penalty: Any, batch: Any) -> Any:
    A, b = batch
    return jnp.mean((A @ w - b) ** 2) / 2 + penalty * jnp.sum(w**2) / 2


def _outer(w: Any, theta: Any, batch: Any) -> Any:
    return jnp.sum(w**2) / 2


LEAST_SQUARES, RIDGE = bl.Problem(_inner, _outer), bl.Problem(_ridge, _outer)


@partial(jax.jit, static_argnames=("problem", "stride"))
def simulate(problem, steps, hyper, data, x, D, H, keys, *, stride):
    """Squared errors `[runs, len(steps) / stride, 2]` of SGD from 0, every `stride` steps."""
    estimator = bl.Forward(bl.SGD(lambda count: steps[count], batch_size=1), steps=stride)

    def one(key):
        lower = init_filled(problem, estimator, hyper, jnp.zeros_like(x), data, key)

        def segment(lower, k):
            _, lower = estimator.step(problem, hyper, lower, data, jax.random.fold_in(key, k))
            u, E = lower.params - x, lower.memory.tangents[0] - D
            return lower, jnp.stack([u @ H @ u / 2, jnp.sum(E**2)])

        return jax.lax.scan(segment, lower, jnp.arange(len(steps) // stride))[1]

    return jax.vmap(one)(keys)


def sample_runs(
    regime: Regime, runs: int, chunks: int, stride: int, key: Any, track: Any
) -> np.ndarray:
    """`[runs, K, 2]` of one column."""
    A, b, J = regime.A, regime.b, regime.J
    x, D = (LeastSquares.from_data(A, targets, batch_size=1).solution for targets in (b, J))
    data, hyper = bl.Data(inner=(A, b, J), outer=A), jnp.zeros(J.shape[1])
    call = partial(simulate, LEAST_SQUARES, jnp.asarray(regime.steps), hyper, data, x, D.T)
    parts = jnp.split(jax.random.split(key, runs), chunks)
    return np.concatenate(
        [np.asarray(call(A.T @ A / len(A), keys, stride=stride)) for keys in track(parts)]
    )


class Means(NamedTuple):
    """Mean, median, z score against the exact value, and whether it says anything; `[K]` each."""

    mean: np.ndarray
    median: np.ndarray
    z: np.ndarray
    reliable: np.ndarray


def compare_means(samples: np.ndarray, exact: np.ndarray) -> Means:
    """Compare the mean over axis 0 with `exact`.

    Where a few rare runs carry the mean it says nothing: the runs then count as fewer than a
    quarter of their number, (sum s)^2 / sum s^2 < R/4.
    """
    mean, runs = samples.mean(0), len(samples)
    z = (mean - exact) * np.sqrt(runs) / samples.std(0, ddof=1)
    count = samples.sum(0) ** 2 / (samples**2).sum(0)
    return Means(mean, np.median(samples, 0), z, (count >= runs / 4) & (exact > ROUNDING))


def make_grid(records: int) -> np.ndarray:
    """Which records are compared: about GRID of them, evenly in log k."""
    return np.unique(np.geomspace(1, records, GRID).round().astype(int)) - 1
