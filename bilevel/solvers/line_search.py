"""Armijo's rule by halving: the one line search of the inner solvers."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Loss
from bilevel.utils import DataTree, Hyper, Params, Scalar, axpy, dtype, norm, vdot

_ULPS = 32  # a step that is shorter than so many units of rounding of the params is rounding


def backtrack_step(
    loss: Loss,
    params: Params,
    hyper: Hyper,
    data: DataTree,
    direction: Params,
    gradient: Params,
    value: Scalar,
) -> Scalar:
    """Return the first of 1, 1/2, 1/4, ... with which ``direction`` decreases enough; ``()``.

    Enough is ``1e-4`` of what the slope promises (Armijo), up to the rounding of the loss, which
    is ``value`` at ``params``.
    """
    eps, slope = jnp.finfo(dtype(params)).eps, vdot(direction, gradient)

    def too_long(length: Array) -> Array:
        bound = value - 1e-4 * length * slope + 4 * eps * jnp.abs(value)
        moved = axpy(-length, direction, params)
        return ~(loss(moved, hyper, data) <= bound) & (length > eps)

    return jax.lax.while_loop(too_long, lambda length: length / 2, jnp.ones_like(slope))


def full_where_rounding(
    length: Scalar,
    loss: Loss,
    params: Params,
    hyper: Hyper,
    data: DataTree,
    direction: Params,
    value: Scalar,
) -> Scalar:
    """Return the ``length`` of a Newton step, 1 where the search for it compared rounding errors.

    Under interpolation the loss is 0 at its minimum, and next to it all rounding: no length
    decreases it, or one does by chance. The minimiser moves with ``hyper`` as a full step does; the
    derivative of a shorter one is that much too small. A length of 1 is never changed.
    """
    eps, size, change = jnp.finfo(dtype(params)).eps, norm(params), norm(direction)

    def not_full() -> Array:
        moved = loss(axpy(-length, direction, params), hyper, data)
        stuck = ~(moved < value) & (change <= jnp.sqrt(eps) * size)
        return jnp.where(stuck | (change <= _ULPS * eps * size), 1, length)

    return jax.lax.cond(length < 1, not_full, lambda: length)
