"""Squared-error problems by their second moments: exact minimisers at a cost independent of n."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Moments(NamedTuple):
    """``A = mean x x^T [d, d]``, ``b = mean x y [d]``, ``c = mean y^2 ()``; folds lead, if any."""

    A: Any
    b: Any
    c: Any

    @classmethod
    def from_rows(cls, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> "Moments":
        """Return the moments of a batch of :mod:`tasks.parts.losses`, in its precision."""
        if weight is None:
            n = len(y)
            return cls(X.T @ X / n, X.T @ y / n, y @ y / n)
        root = np.sqrt(weight)
        each = [
            cls.from_rows(root[:, [f]] * X[:, f], root[:, f] * y[:, f]) for f in range(y.shape[1])
        ]
        return cls(*(np.stack(parts) for parts in zip(*each, strict=True)))

    def minimiser(self, strengths: Array) -> Array:
        """Return ``argmin_w loss(w) + 1/2 sum_j s_j w_j^2``, ``[d]``; s is ``()`` or ``[d]``."""
        d = self.b.shape[-1]
        diagonal = jnp.diag(jnp.broadcast_to(strengths, (d,)))
        return jnp.linalg.solve(jnp.asarray(self.A) + diagonal, jnp.asarray(self.b))

    def loss(self, w: Array) -> Array:
        """Return ``1/2 mean (x . w - y)^2``, ``()``."""
        return (w @ self.A @ w - 2 * self.b @ w + self.c) / 2


def validation_loss(inner: Moments, outer: Moments, strengths: Array) -> Array:
    """Return the outer loss at the inner minimiser, averaged over folds where there are any."""
    if inner.A.ndim == 2:
        return outer.loss(inner.minimiser(strengths))
    each = jax.vmap(lambda i, o: o.loss(i.minimiser(strengths)))(inner, outer)
    return jnp.mean(each)


def in_float64(fn: Callable) -> Callable:
    """Wrap ``fn`` to work on float64 copies of its arrays and to return NumPy arrays."""

    @wraps(fn)
    def wrapped(*trees: Any) -> Any:
        with jax.enable_x64(True):
            exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), trees)
            return jax.tree.map(np.asarray, fn(*exact))

    return wrapped
