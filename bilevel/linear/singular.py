r"""Cholesky factors of a Hessian, also of one whose null space nothing asks about.

A parameter that the inner loss does not use, or two equal columns, make the Hessian singular, and
yet ``H x = b`` has solutions where b has no part in the null space. With V an orthonormal basis of
that of ``S = D H D``, D bringing the diagonal to about 1, ``S + V V^T`` is regular and ``D (S + V
V^T)^-1 D b`` is the solution that is smallest in these coordinates. What b has in the null space is
left over, and shows in the residual.
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

    D is made of powers of two, which bring the diagonal between 1/2 and 2: what is rounding does
    not depend on the units of columns. The last pivots of a singular matrix that was summed in
    rounded arithmetic are a few units of rounding, of either sign: where they are positive the
    factorisation alone would not notice. NaN for a matrix that is indefinite.
    """
    scale = _powers_of_two(jax.lax.stop_gradient(jnp.diagonal(matrix)))
    scaled = scale[:, None] * matrix * scale
    lower = jnp.linalg.cholesky(scaled)
    still = jax.lax.stop_gradient(scaled)
    regular = _has_pivots(jax.lax.stop_gradient(lower), still)
    added = cond_without_select(~regular, lambda: _null_space(still), jnp.zeros_like(still))

    def mended() -> Array:
        other = jnp.linalg.cholesky(scaled + added)
        return jnp.where(_has_pivots(other, scaled + added), other, jnp.nan)

    return Factor(jax.lax.cond(regular, lambda: lower, mended), scale, ~regular)


def _powers_of_two(diagonal: Array) -> Array:
    """Return D with a diagonal of ``D H D`` between 1/2 and 2, 1 where H has none above 0."""
    usable = diagonal > 0
    half = jnp.rint(jnp.log2(jnp.where(usable, diagonal, 1)) / 2)
    return jnp.ldexp(jnp.ones_like(diagonal), -half.astype(jnp.int32))


def _has_pivots(lower: Array, matrix: Array) -> Array:
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    return smallest > _PIVOT * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diagonal(matrix))


def _null_space(matrix: Array) -> Array:
    """Return ``V V^T`` of a matrix with a diagonal of about 1, or 0."""
    values, vectors = jnp.linalg.eigh(matrix)
    eps = jnp.finfo(matrix.dtype).eps
    rounding = max(len(matrix), _PIVOT) * eps * jnp.max(jnp.abs(values))
    null = jnp.where(jnp.abs(values) <= rounding, vectors, 0)
    return null @ null.T
