"""Linear models for the moment tests: random instances, the dense oracle, and real SGD runs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.estimators.base import init_filled
from bilevel.noise import Affine, JointMoments, Ridge
from bilevel.noise.moments import run


class Model(NamedTuple):
    """``A [m, n]``, ``b [m]``, ``penalty [n]``, its jacobian ``[n, p]``, ``J [m, p]`` of ``b``."""

    A: np.ndarray
    b: np.ndarray
    penalty: np.ndarray
    penalty_jacobian: np.ndarray
    J: np.ndarray

    def ridge(self, batch_size: int | None, sampling: str = "iid") -> Ridge:
        return Ridge.from_data(*self, batch_size=batch_size, sampling=sampling)


def model(seed: int, m: int = 11, n: int = 3, p: int = 2) -> Model:
    """Everything random: targets and penalties both depend on the hyperparameters."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n)) * np.linspace(0.5, 1.2, n)
    return Model(
        A,
        A @ rng.standard_normal(n) + rng.standard_normal(m),
        rng.uniform(0.1, 0.4, n),
        rng.standard_normal((n, p)),
        rng.standard_normal((m, p)),
    )


def dense(model: Model, factor: float) -> Affine:
    """``C_i`` and ``q_i`` of ``z = (x, D_1 .. D_p)``, row by row, as deviations."""
    m, n = model.A.shape
    p = model.J.shape[1]
    matrices, offsets = np.zeros((m, n * (1 + p), n * (1 + p))), np.zeros((m, n * (1 + p)))
    for i, a in enumerate(model.A):
        hessian = np.outer(a, a) + np.diag(model.penalty)
        matrices[i] = np.kron(np.eye(1 + p), hessian)
        offsets[i, :n] = a * model.b[i]
        for j in range(p):
            block = slice(n * (1 + j), n * (2 + j))
            matrices[i, block, :n] = np.diag(model.penalty_jacobian[:, j])
            offsets[i, block] = a * model.J[i, j]
    solution = np.linalg.solve(matrices.mean(0), offsets.mean(0))
    return Affine(jnp.asarray(matrices), jnp.asarray(offsets - matrices @ solution), factor)


@jax.jit
def last(process: Any, start: Any, rule: Any) -> Any:
    """The moments at the end of a schedule; compiled once per kind and shape."""
    return run(process, start, rule, lambda now: 0)[0]


def joint(second: Any, p: int) -> tuple[Any, Any, Any]:
    """``xx``, ``xd``, ``dd`` of :class:`JointMoments` out of a dense ``[s, d, s, d]``."""
    s, d = second.shape[:2]
    blocks = np.asarray(second).reshape(s, 1 + p, d // (1 + p), s, 1 + p, d // (1 + p))
    xd = np.stack([blocks[:, 0, :, :, 1 + j] for j in range(p)])
    dd = np.stack([blocks[:, 1 + j, :, :, 1 + j] for j in range(p)])
    return blocks[:, 0, :, :, 0], xd, dd


def relative(ours: JointMoments, expected: tuple[Any, Any, Any]) -> float:
    """The largest relative difference of the second moments, block by block."""
    pairs = zip((ours.xx, ours.xd, ours.dd), expected, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


# Reference moments of ridge: E |D_k - D*|^2 at k = 100, 1000, 10000, one row per step.
RIDGE_MOMENTS = {
    "constant": (0.9409347, 0.07825044, 0.008649864),
    "decreasing": (0.1230221, 0.04025557, 0.004518999),
}


def reference_ridge(kind: str) -> tuple[Ridge, np.ndarray]:
    """The process of `RIDGE_MOMENTS` (theta is the penalty itself), and its step sizes."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((50, 5)) * np.linspace(0.5, 1.5, 5)
    b = A @ rng.standard_normal(5) + 0.5 * rng.standard_normal(50)
    process = Ridge.from_data(A, b, 0.1, np.ones((5, 1)), batch_size=1)
    largest = (A**2).sum(1).max() + 0.1
    mu = np.linalg.eigvalsh(process.curvature)[0]
    k = np.arange(10000)
    decreasing = 2 / (mu * (k + 2 * largest / mu))
    return process, np.full(10000, 0.05 / largest) if kind == "constant" else decreasing


def _loss(w: Any, theta: Any, batch: Any) -> Any:
    A, b, J = batch
    return jnp.mean((A @ w - b - J @ theta) ** 2) / 2


def _outer(w: Any, theta: Any, batch: Any) -> Any:
    return jnp.sum(w**2) / 2


def _ridge(w: Any, penalty: Any, batch: Any) -> Any:
    return _mean_squares(w, penalty, batch) + penalty * jnp.sum(w**2) / 2


def _log_ridge(w: Any, log_penalty: Any, batch: Any) -> Any:
    return _ridge(w, jnp.exp(log_penalty), batch)


def _mean_squares(w: Any, hyper: Any, batch: Any) -> Any:
    A, b = batch
    return jnp.mean((A @ w - b) ** 2) / 2


LEAST_SQUARES = bl.Problem(_loss, _outer)
LOG_RIDGE = bl.Problem(_log_ridge, _mean_squares)


@partial(jax.jit, static_argnames=("problem", "segments"))
def runs(problem, estimator, hyper, params, data, keys, *, segments):
    """``x [runs, segments, n]`` and ``D [runs, segments, p, n]`` at the ends of the segments.

    ``estimator`` is a Forward: the derivatives are those that the library itself computes.
    """

    def one(key):
        lower = init_filled(problem, estimator, hyper, params, data, key)

        def segment(lower, k):
            _, lower = estimator.step(problem, hyper, lower, data, jax.random.fold_in(key, k))
            return lower, (lower.params, lower.memory.tangents[0])

        return jax.lax.scan(segment, lower, jnp.arange(segments))[1]

    return jax.vmap(one)(keys)


def z_scores(samples: Any, expected: Any) -> np.ndarray:
    """Distance of the mean over axis 0 from ``expected``, in standard errors."""
    samples = np.asarray(samples)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return (samples.mean(axis=0) - np.asarray(expected)) / error
