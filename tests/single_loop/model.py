"""A small problem, its derivatives written out in numpy, and the draws that the library documents.

inner: mean_i [(a_i w - y_i)^2 / 2 + (a_i w)^4 / 4 + (a_i w)(c_i lam)] + sum exp(lam) w^2 / 2
outer: mean_i (a_i w - y_i)^2 / 2 + 0.2 w lam + 0.05 |lam|^2
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl

N, M, P, B = 7, 5, 3, 3  # B divides neither N nor M
RNG = np.random.default_rng(0)
A, C, Y = RNG.normal(size=(N, P)), RNG.normal(size=(N, P)) / 4, RNG.normal(size=N)
F, Z = RNG.normal(size=(M, P)), RNG.normal(size=M)
START = RNG.normal(size=P) / 2
DATA = bl.Data(inner=(A, C, Y), outer=(F, Z))
LAMBDAS = -1 + RNG.normal(size=(5, P)) / 3  # one per call


def _inner(w: Any, lam: Any, batch: Any) -> Any:
    a, c, y = batch
    z = a @ w
    data = jnp.mean((z - y) ** 2 / 2 + z**4 / 4 + z * (c @ lam))
    return data + jnp.sum(jnp.exp(lam) * w**2) / 2


def _outer(w: Any, lam: Any, batch: Any) -> Any:
    a, y = batch
    return jnp.mean((a @ w - y) ** 2) / 2 + 0.2 * w @ lam + 0.05 * lam @ lam


PROBLEM = bl.Problem(_inner, _outer)


def g_w(w, lam, rows):
    a, c, y, z = A[rows], C[rows], Y[rows], A[rows] @ w
    return a.T @ (z - y + z**3 + c @ lam) / len(rows) + np.exp(lam) * w


def hvp(w, v, lam, rows):
    a, z = A[rows], A[rows] @ w
    return a.T @ ((1 + 3 * z**2) * (a @ v)) / len(rows) + np.exp(lam) * v


def cross(w, v, lam, rows):
    return C[rows].T @ (A[rows] @ v) / len(rows) + np.exp(lam) * w * v


def g_lam(w, lam, rows):
    return C[rows].T @ (A[rows] @ w) / len(rows) + np.exp(lam) * w**2 / 2


def f_w(w, lam, rows):
    return F[rows].T @ (F[rows] @ w - Z[rows]) / len(rows) + 0.2 * lam


def f_lam(w, lam, rows):
    return 0.2 * w + 0.1 * lam


ALL, ALL_OUTER = np.arange(N), np.arange(M)


def drawn(key, size: int, n: int) -> np.ndarray:
    """Row numbers as the library draws them: one random word each."""
    return (np.asarray(jax.random.bits(key, (size,), jnp.uint32)) % n).astype(int)


def rows_inner(key) -> np.ndarray:
    return drawn(key, B, N)


def rows_outer(key) -> np.ndarray:
    return drawn(key, B, M)


def neumann(w, lam, rhs, key, rate, randomised):
    """Ghadimi & Wang's and Ji et al.'s Algorithm 3, with ten steps."""
    p = int(jax.random.randint(jax.random.fold_in(key, 1), (), 0, 10)) if randomised else 10
    batches = np.asarray(jax.random.randint(key, (10, B), 0, N, jnp.int32))
    x, terms = rhs, [rhs]
    for i in range(p):
        x = x - rate * hvp(w, x, lam, batches[i])
        terms.append(x)
    return -10 * rate * x if randomised else -rate * sum(terms)


def run(estimator: Any, calls: int = 4) -> list[tuple]:
    """``(w, v, D_lambda)`` after each call, the t-th at ``LAMBDAS[t]`` and with key t."""
    state, out = None, []
    for t in range(calls):
        estimate, state = bl.hypergradient(
            PROBLEM, estimator, LAMBDAS[t], START, DATA, jax.random.key(t), state=state
        )
        out.append((state.params, state.memory["v"], estimate.grad))
    return out


def assert_equal(got: list[tuple], expected: list[tuple]) -> None:
    """To 1e-10, call by call."""
    for t, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        for name, a, b in zip(("w", "v", "lambda"), mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10, err_msg=f"{name} at call {t}")
