r"""Least squares with few features: the m examples summed up once, in a table.

All that a step asks of the rows is linear in ``(P, ubar, 1)``, so the weighted Gram matrix is one
table of size ``q x (q + n p + 1)``, ``q = n (n + 1) / 2``: O(m n^4 / 4) once, then O(n^4) per step
whatever m. Worth it for n up to about 30.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from bilevel.noise.moments.affine import Moments
from bilevel.noise.moments.least_squares import LeastSquares, advance_moments
from bilevel.noise.moments.rules import Rule
from bilevel.utils import RenamedMethod, register_node


@dataclass(frozen=True)
class Compressed:
    """A :class:`LeastSquares` without its rows; made by :meth:`from_least_squares`.

    Parameters
    ----------
    curvature : ``H [n, n]``.
    quadratic : ``K`` on upper triangles, ``[q, q]``.
    linear : ``ubar -> -2 mean (a_i.ubar) r_i a_i a_i^T``, ``[q, n, p]``.
    constant : ``mean |r_i|^2 a_i a_i^T``, ``[q]``.
    solution, factor : as in :class:`LeastSquares`.
    """

    curvature: Array
    quadratic: Array
    linear: Array
    constant: Array
    solution: Array
    factor: float | Array

    @classmethod
    def from_least_squares(cls, process: LeastSquares) -> "Compressed":
        """Return the process with its rows summed up.

        Examples
        --------
        >>> import numpy as np
        >>> from bilevel.noise import Compressed, LeastSquares
        >>> A, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([1.0, 0.0, 3.0])
        >>> process = LeastSquares.from_data(A, b, batch_size=1)
        >>> Compressed.from_least_squares(process).quadratic.shape
        (3, 3)
        """
        A, residuals = process.rows.A, process.residuals
        m, n = A.shape
        rows, columns = jnp.triu_indices(n)
        squares = A[:, rows] * A[:, columns]
        twice = jnp.where(rows == columns, 1.0, 2.0)
        return cls(
            process.rows.gramian,
            squares.T @ (squares * twice) / m,
            jnp.einsum("iq,ij,ip->qjp", squares, -2 * A / m, residuals),
            squares.T @ jnp.sum(residuals**2, 1) / m,
            process.solution,
            process.factor,
        )

    of = RenamedMethod("from_least_squares")

    def start(self, x: Array, slots: int = 1) -> Moments:
        """Return the moments at a known point, as :meth:`LeastSquares.start` does."""
        u = (jnp.asarray(x) - self.solution).reshape(len(self.solution), -1)
        mean = jnp.zeros((slots, *u.shape), u.dtype).at[0].set(u)
        return Moments(mean, jnp.einsum("aip,bjp->aibj", mean, mean))

    def step(self, moments: Moments, rule: Rule) -> Moments:
        """Return the moments after one step; O(n^4 + n^3 p)."""
        H, P = self.curvature, moments.second[0, :, 0]
        still = jnp.tensordot(self.linear, moments.mean[0], 2) + self.constant
        noise = self._symmetric(self.quadratic @ self._upper(P) + still) - H @ P @ H
        return advance_moments(self, moments, rule, noise)

    def fluctuation(self, P: Array) -> Array:
        """Return ``K(P) - H P H``, ``[n, n]``, of a symmetric ``P``."""
        H = self.curvature
        return self._symmetric(self.quadratic @ self._upper(P)) - H @ P @ H

    def stationary_moments(self, rule: Rule, solve: Callable[[Array], Array]) -> Moments:
        """Return the stationary moments: see :func:`bilevel.noise.limits.stationary`."""
        still = self.start(self.solution, rule.slots)
        return still._replace(second=solve(self.step(still, rule).second))

    def _upper(self, P: Array) -> Array:
        return P[jnp.triu_indices(len(P))]

    def _symmetric(self, upper: Array) -> Array:
        n = len(self.curvature)
        rows, columns = jnp.triu_indices(n)
        full = jnp.zeros((n, n), upper.dtype).at[rows, columns].set(upper)
        return full.at[columns, rows].set(upper)


register_node(
    Compressed,
    ["curvature", "quadratic", "linear", "constant", "solution", "factor"],
    [],
)
