r"""Cholesky factors of a Hessian, also of one whose null space nothing asks about.

A parameter that the inner loss does not use, or two equal columns, make the Hessian singular, and
yet ``H x = b`` has solutions where b has no part in the null space. With V an orthonormal basis of
that of ``S = D H D``, D bringing the diagonal to 1, ``S + V V^T`` is regular and ``D (S + V V^T)^-1
D b`` is the solution that is smallest in these coordinates. What b has in the null space is left
over, and shows in the residual.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.utils import cond_without_select

_PIVOT = 4  # a pivot of so many units of rounding of the largest entry is rounding
_TOUCHED = 100  # as many units of rounding of a right side may lie in the null space


class Factor(NamedTuple):
    """``lower`` of ``D H D``, NaN where nothing helps; ``scale``, D; ``singular``, ``()``."""

    lower: Array
    scale: Array
    singular: Array

    def solve(self, b: Array) -> Array:
        """Return ``x`` with ``H x = b``, but for what b has in the null space of H."""
        return self.scale * cho_solve((self.lower, True), self.scale * b)

    def misses(self, left: Array, size: Array) -> Array:
        """Return whether ``left`` of a right side of ``size``, both scaled, is no rounding."""
        eps, d = jnp.finfo(left.dtype).eps, len(self.scale)
        bound = _TOUCHED * d**0.5 * eps * size
        return self.singular & ~(jnp.linalg.norm(self.scale * left) <= bound)


def factorise(matrix: Array) -> Factor:
    """Return the factor; a regular matrix costs its Cholesky factorisation and keeps its bits.

    The last pivots of a singular matrix that was summed in rounded arithmetic are a few units of
    rounding, of either sign: where they are positive the factorisation alone would not notice. NaN
    for a matrix that is indefinite, or whose columns differ in size by more than rounding.
    """
    lower = jnp.linalg.cholesky(matrix)
    still = jax.lax.stop_gradient(matrix)
    regular = _has_pivots(jax.lax.stop_gradient(lower), still)
    d, dtype = len(matrix), matrix.dtype
    nothing = jnp.zeros((d, d), dtype), jnp.ones(d, dtype)
    added, scale = cond_without_select(~regular, lambda: _null_space(still), nothing)

    def mended() -> Array:
        scaled = scale[:, None] * matrix * scale + added
        other = jnp.linalg.cholesky(scaled)
        return jnp.where(_has_pivots(other, scaled), other, jnp.nan)

    return Factor(jax.lax.cond(regular, lambda: lower, mended), scale, ~regular)


def _has_pivots(lower: Array, matrix: Array) -> Array:
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    return smallest > _PIVOT * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diagonal(matrix))


def _null_space(matrix: Array) -> tuple[Array, Array]:
    """Return ``(V V^T, D)``; NaN where a diagonal entry is rounding, and its row is not 0."""
    eps, diagonal = jnp.finfo(matrix.dtype).eps, jnp.diagonal(matrix)
    unused = ~jnp.any(matrix != 0, axis=1)
    tiny = diagonal <= _PIVOT * eps * jnp.max(diagonal)
    scale = jnp.where(unused | tiny, 1, jax.lax.rsqrt(jnp.where(tiny, 1, diagonal)))
    values, vectors = jnp.linalg.eigh(scale[:, None] * matrix * scale)
    rounding = max(len(matrix), _PIVOT) * eps * jnp.max(jnp.abs(values))
    null = jnp.where(jnp.abs(values) <= rounding, vectors, 0)
    return jnp.where(jnp.any(tiny & ~unused), jnp.nan, null @ null.T), scale
