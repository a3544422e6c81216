"""The problems of the speed benchmark, at real sizes, and their hand-written losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes, load_digits

import bilevel as bl


@dataclass(frozen=True)
class Case:
    """A problem, its data and start, and the solver settings that suit it."""

    name: str
    problem: bl.Problem
    data: bl.Data
    hyper: Any
    params: Any
    step_size: float
    batch: int
    steps: int


def diabetes() -> Case:
    """Ridge on the diabetes table, one log-penalty per column: 10 penalties, tiny steps."""
    X, y = load_diabetes(return_X_y=True, scaled=True)
    X, y = jnp.asarray(X / X.std(0)), jnp.asarray((y - y.mean()) / y.std())
    data = bl.Data((X[:300], y[:300]), (X[300:], y[300:]))
    problem = bl.Problem(*ridge_losses(), quadratic=True)
    return Case("diabetes", problem, data, jnp.full(10, -3.0), jnp.zeros(10), 0.02, 32, 1000)


def ridge_losses() -> tuple[Any, Any]:
    """The two losses of least squares with one log-penalty per column."""

    def inner(w: Any, h: Any, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2

    def outer(w: Any, h: Any, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2

    return inner, outer


def ridge(n: int = 10_000, d: int = 200, seed: int = 0) -> Case:
    """One log-penalty per feature: 200 penalties, 1 000 steps of batch 32."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + 2000, d))
    w = rng.normal(size=d) * (rng.random(d) < 0.3)
    y = X @ w + rng.normal(size=len(X))
    data = bl.Data((jnp.asarray(X[:n]), jnp.asarray(y[:n])), (X[n:], y[n:]))
    data = jax.tree.map(jnp.asarray, data)
    hyper, params = jnp.full(d, -3.0), jnp.zeros(d)
    problem = bl.Problem(*ridge_losses(), quadratic=True)
    return Case("ridge", problem, data, hyper, params, 0.002, 32, 1000)


def softmax_loss(w: Any, X: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy per example, ``[batch]``."""
    logits = jax.nn.log_softmax(X @ w["W"] + w["b"])
    return -jnp.take_along_axis(logits, y[:, None], 1)[:, 0]


def digits() -> Case:
    """Digits softmax, one log-penalty per weight: 650 penalties."""
    X, y = load_digits(return_X_y=True)
    X, y = jnp.asarray(X / 16), jnp.asarray(y)

    def inner(w, h, batch):
        X, y = batch
        decay = jax.tree.map(lambda a, b: jnp.sum(jnp.exp(a) * b**2), h, w)
        return jnp.mean(softmax_loss(w, X, y)) + sum(jax.tree.leaves(decay)) / 2

    def outer(w, h, batch):
        return jnp.mean(softmax_loss(w, *batch))

    params = {"W": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    hyper = jax.tree.map(lambda x: jnp.full(x.shape, -6.0), params)
    data = bl.Data((X[:1000], y[:1000]), (X[1000:], y[1000:]))
    return Case("digits", bl.Problem(inner, outer), data, hyper, params, 0.5, 32, 1000)


def weights(n: int = 1000) -> Case:
    """Digits softmax with one weight per training example, half of the labels wrong."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    X, y = X / 16, np.asarray(y)
    rows = np.arange(1000) if n <= 1000 else rng.integers(0, 1000, n)
    seen = X[rows][:n] + (0.1 * rng.standard_normal((n, 64)) if n > 1000 else 0)
    noisy = np.where(rng.random(n) < 0.5, rng.integers(0, 10, n), y[rows][:n])
    seen, noisy, X, y = map(jnp.asarray, (seen, noisy, X[1000:], y[1000:]))

    def inner(w, h, batch):
        X, y, index = batch
        ridge = sum(jnp.sum(x**2) for x in jax.tree.leaves(w))
        return jnp.mean(jax.nn.sigmoid(h[index]) * softmax_loss(w, X, y)) + 5e-3 * ridge

    def outer(w, h, batch):
        return jnp.mean(softmax_loss(w, *batch))

    params = {"W": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    data = bl.Data((seen, noisy, jnp.arange(n)), (X, y))
    name = "weights" if n == 1000 else "many_weights"
    return Case(name, bl.Problem(inner, outer), data, jnp.zeros(n), params, 0.5, 32, 1000)


def many_weights() -> Case:
    """5 000 example weights: the digits drawn again with noise on every pixel."""
    return weights(5000)


CASES: dict[str, Callable[[], Case]] = {
    "diabetes": diabetes,
    "ridge": ridge,
    "digits": digits,
    "weights": weights,
    "many_weights": many_weights,
}
