"""Random quadratics at both levels, after the simulated data set of the field's benchmark.

    loss_i = (a_i w)^2 / 2 + (b_i lam)^2 / 2 + (c_i lam)(d_i w) + l_i w + m_i lam

The a_i and b_i have covariances with spectra in [.1, 1] (one direction of lam is flat), c_i and d_i
a cross-correlation with singular values .1. Of several draws the first is taken for which the outer
problem is convex.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import bilevel as bl


class Quadratics(NamedTuple):
    """The data, and the squared norm of the exact hypergradient as a function of ``lam``."""

    data: bl.Data
    start: Any
    error: Any
    curvature: float


def loss(w: Any, lam: Any, batch: Any) -> Any:
    a, b, c, d, slope, direct = batch
    squares = jnp.mean((a @ w) ** 2 + (b @ lam) ** 2) / 2
    return squares + jnp.mean((c @ lam) * (d @ w)) + jnp.mean(slope @ w + direct @ lam)


PROBLEM = bl.Problem(loss, loss, quadratic=True)


def level(rng: np.random.Generator, n: int, dim: int) -> tuple[np.ndarray, ...]:
    def factor(roots: np.ndarray) -> np.ndarray:
        basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        return rng.normal(size=(n, dim)) @ (basis * roots) @ basis.T

    a = factor(np.logspace(-1, 0, dim) ** 0.5)
    b = factor(np.concatenate([[0], np.logspace(-1, 0, dim - 1) ** 0.5]))
    x = rng.normal(size=(n, dim))
    left, right = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    c, d = x @ (left * 0.1).T, x @ right.T
    return a, b, c, d, rng.normal(size=(n, dim)), rng.normal(size=(n, dim))


def matrices(part: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """``(d^2 / dw^2, d^2 / dlam^2, d^2 / dlam dw, l, m)`` of the mean loss."""
    a, b, c, d, slope, direct = part
    n = len(a)
    return a.T @ a / n, b.T @ b / n, c.T @ d / n, slope.mean(0), direct.mean(0)


def make(n: int, dim: int) -> Quadratics:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inner, outer = level(rng, n, dim), level(rng, n, dim)
        H, _, cross, slope, _ = matrices(inner)
        F, G, mixed, right, direct = matrices(outer)
        jacobian = -np.linalg.solve(H, cross.T)
        turn = mixed @ jacobian
        hessian = jacobian.T @ F @ jacobian + G + turn + turn.T
        if np.linalg.eigvalsh(hessian)[0] > 1e-3:
            break
    else:
        raise AssertionError("no draw with a convex outer problem")
    offset = -np.linalg.solve(H, slope)

    def error(lam: Any) -> float:
        w = offset + jacobian @ np.asarray(lam)
        grad_w = F @ w + mixed.T @ lam + right
        return float(np.sum((G @ lam + mixed @ w + direct + jacobian.T @ grad_w) ** 2))

    start = (rng.normal(size=dim), np.zeros(dim))
    return Quadratics(bl.Data(inner, outer), start, error, np.linalg.eigvalsh(hessian)[-1])
