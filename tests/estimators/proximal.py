"""Proximal inner problems with known answers: lasso, elastic net, group lasso."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl

N, M, P, GROUPS = 31, 13, 12, 4
SOLVED = 1500  # FISTA steps after which an iterate is exact to rounding


def soft(z: Any, threshold: Any) -> Any:
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)


def squares(w: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def outer(w: Any, hyper: Any, batch: Any) -> Any:
    return squares(w, batch)


def lasso_prox(z: Any, hyper: Any, step: Any) -> Any:
    return soft(z, step * jnp.exp(hyper))


def elastic_prox(z: Any, hyper: Any, step: Any) -> Any:
    return soft(z, step * jnp.exp(hyper["l1"])) / (1 + step * jnp.exp(hyper["l2"]))


def group_prox(z: Any, hyper: Any, step: Any) -> Any:
    """One penalty per group of three: ``exp(h_g) |w_g|``."""
    blocks = z.reshape(GROUPS, -1)
    sizes = jnp.linalg.norm(blocks, axis=1)
    kept = jnp.maximum(1 - step * jnp.exp(hyper) / sizes, 0)
    return (kept[:, None] * blocks).reshape(-1)


def smooth_ridge(w: Any, hyper: Any, batch: Any) -> Any:
    """The squared penalty in the smooth part, the rest in the proximal one."""
    return squares(w, batch) + jnp.exp(hyper["l2"]) * jnp.sum(w**2) / 2


def split_prox(z: Any, hyper: Any, step: Any) -> Any:
    return soft(z, step * jnp.exp(hyper["l1"]))


plain = bl.OutputLoss(
    outputs=lambda w, hyper, batch: batch[0] @ w,
    loss=lambda z, w, hyper, batch: jnp.mean((z - batch[1]) ** 2) / 2,
)


PROBLEMS = {
    "lasso": (bl.Problem(plain, outer, prox=lasso_prox), np.float64(-1.7)),
    "lasso per feature": (bl.Problem(plain, outer, prox=lasso_prox), np.linspace(-3, -1, P)),
    "elastic net": (
        bl.Problem(plain, outer, prox=elastic_prox),
        {"l1": np.float64(-2.0), "l2": np.float64(-1.5)},
    ),
    "elastic net, split": (
        bl.Problem(smooth_ridge, outer, prox=split_prox),
        {"l1": np.float64(-2.0), "l2": np.float64(-1.5)},
    ),
    "group lasso": (
        bl.Problem(plain, outer, prox=group_prox),
        np.array([-1.3, -1.0, -1.2, -0.9]),
    ),
}


def sample(seed: int) -> tuple[bl.Data, float]:
    """Correlated features, a truth of two groups; and a step size of 1 / L."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N + M, P)) + 0.5 * rng.standard_normal((N + M, 1))
    truth = np.concatenate([rng.standard_normal(P // 2), np.zeros(P // 2)])
    y = X @ truth + 0.5 * rng.standard_normal(N + M)
    data = bl.Data(inner=(X[:N], y[:N]), outer=(X[N:], y[N:]))
    return data, 1 / (np.linalg.eigvalsh(X[:N].T @ X[:N] / N)[-1] + np.exp(-1.5))


def solved(problem: bl.Problem, hyper: Any, data: bl.Data, step_size: float) -> Any:
    solver, key = bl.FISTA(step_size), jax.random.key(0)
    return bl.solve(problem, solver, hyper, jnp.zeros(P), data, key, steps=SOLVED)


def differences(problem: bl.Problem, hyper: Any, data: bl.Data, step_size: float) -> Any:
    """Central differences of the outer loss at the solved inner problem, one entry at a time."""
    flat, unravel = ravel_pytree(hyper)
    epsilon = 1e-5

    @jax.jit
    @jax.vmap
    def value(point: Any) -> Any:
        return problem.outer(solved(problem, unravel(point), data, step_size), None, data.outer)

    shifts = epsilon * jnp.eye(flat.size)
    return unravel((value(flat + shifts) - value(flat - shifts)) / (2 * epsilon))


def implicit(case: str, seed: int, steps: int = SOLVED, solver: Any = None, **settings: Any) -> Any:
    problem, hyper = PROBLEMS[case]
    data, step_size = sample(seed)
    estimator = bl.Implicit(solver or bl.FISTA(step_size), steps, **settings)
    return bl.hypergradient(problem, estimator, hyper, np.zeros(P), data, jax.random.key(3))


def close(got: Any, expected: Any, tolerance: float) -> None:
    a, b = (np.asarray(ravel_pytree(tree)[0]) for tree in (got, expected))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.linalg.norm(b))
