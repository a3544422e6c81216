"""Adaptive inner work against every fixed amount of it: inner gradients until the value is reached.

python -m benchmarks.adaptive
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from bilevel.adaptive import grown


class Case(NamedTuple):
    """A problem with two groups of penalties, its exact value function, and settings that suit it.

    ``rates`` : outer step sizes, the first near the largest at which the exact descent is stable.
    """

    name: str
    problem: bl.Problem
    data: bl.Data
    hyper: jax.Array
    params: jax.Array
    step_size: float
    rates: tuple[float, ...]


def _penalty(w: Any, h: Any) -> Any:
    return jnp.sum(jnp.exp(jnp.repeat(h, len(w) // 2)) * w**2) / 2


def _squares(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def _log_loss(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))


def _inner(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda w, h, batch: loss(w, h, batch) + _penalty(w, h)


RIDGE = bl.Problem(_inner(_squares), _squares, quadratic=True)
LOGISTIC = bl.Problem(_inner(_log_loss), _log_loss)


def _design(seed: int, rows: int, features: int) -> tuple[Any, Any, np.random.Generator]:
    """Rows, and weights of which the second half is weak: it wants a larger penalty."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(features) * np.repeat([1.0, 0.2], features // 2)
    return rng.standard_normal((2 * rows, features)), w, rng


def ridge(seed: int = 0, rows: int = 60, features: int = 10) -> Case:
    """Two log-penalties, as many rows in the validation as in the training set."""
    X, w, rng = _design(seed, rows, features)
    y = X @ w + 1.5 * rng.standard_normal(len(X))
    data = bl.Data((X[:rows], y[:rows]), (X[rows:], y[rows:]))
    return Case("ridge", RIDGE, data, jnp.array([1.0, -3.0]), jnp.zeros(features), 0.05, (8.0, 4.0, 2.0, 1.0))


def logistic(seed: int = 0, rows: int = 60, features: int = 10) -> Case:
    """The same with labels -1 and 1."""
    X, w, rng = _design(seed, rows, features)
    y = np.where(X @ w + rng.logistic(size=len(X)) > 0, 1.0, -1.0)
    data = bl.Data((X[:rows], y[:rows]), (X[rows:], y[rows:]))
    return Case("logistic", LOGISTIC, data, jnp.array([0.0, -4.0]), jnp.zeros(features), 0.2, (16.0, 8.0, 4.0))


def exact(case: Case) -> Callable[[Any], Any]:
    """The value function at many hyperparameters, by Newton's method in float64."""

    def value(h: Any) -> Any:
        def loss(w: Any) -> Any:
            return case.problem.inner(w, h, case.data.inner)

        def newton(_: int, w: Any) -> Any:
            return w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))

        w = jax.lax.fori_loop(0, 12, newton, case.params)
        return case.problem.outer(w, h, case.data.outer)

    return jax.jit(jax.vmap(value))
