r"""Sums over the rows of a linear model: the only place where all m examples are touched.

With per-example gradient ``a_i (a_i.u - r_i)`` up to a term common to all examples, everything
that minibatches do to second moments is one weighted Gram matrix, ``mean_i w_i a_i a_i^T``, with
weights ``w_i = E (a_i.u - r_i)(a_i.v - s_i)``: O(m n^2), and no larger array than the rows.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import require_definite


class Rows(NamedTuple):
    """The rows ``a_i`` of ``A [m, n]`` with their ``gramian [n, n]``, ``H = mean a_i a_i^T``."""

    A: Array
    gramian: Array

    @classmethod
    def from_matrix(cls, A: ArrayLike) -> "Rows":
        """Return the rows with their Gram matrix."""
        A = jnp.asarray(A, jnp.result_type(A, float))
        if A.ndim != 2:
            raise ValueError(f"A has shape {A.shape}, expected [examples, features].")
        return cls(A, A.T @ A / len(A))

    def forms(self, P: Array) -> Array:
        """Return ``a_i^T P a_i``, ``[m]``."""
        return jnp.sum((self.A @ P) * self.A, 1)

    def weighted(self, weights: Array) -> Array:
        """Return ``mean_i w_i a_i a_i^T``, ``[n, n]``."""
        return (self.A.T * weights) @ self.A / len(self.A)

    def fourth(self, P: Array) -> Array:
        """Return ``K(P) = mean_i (a_i^T P a_i) a_i a_i^T``, ``[n, n]``."""
        return self.weighted(self.forms(P))

    def fluctuation(self, P: Array) -> Array:
        """Return ``K(P) - H P H``: the moment of ``(a_i a_i^T - H) u`` where ``E u u^T = P``."""
        return self.fourth(P) - self.gramian @ P @ self.gramian


def solve_normal(owner: str, rows: Rows, curvature: Array, targets: ArrayLike) -> Array:
    """Return ``curvature^{-1} mean a_i targets_i``, after the refusals; ``[n]`` or ``[n, p]``."""
    m, n = rows.A.shape
    shape = (m, *jnp.shape(targets)[1:])
    require_shape(f"{owner}: targets", targets, shape, f"A has {m} rows and {n} features")
    cure = "Add a ridge penalty, or drop dependent features."
    require_definite(owner, "the Hessian of the inner loss", curvature, cure)
    return jnp.linalg.solve(curvature, rows.A.T @ jnp.asarray(targets) / m)


def require_shape(name: str, array: ArrayLike, shape: tuple[int, ...], why: str) -> None:
    """Raise unless ``array`` has this shape."""
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(array)}, expected {shape}: {why}.")
