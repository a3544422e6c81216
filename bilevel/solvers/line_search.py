"""Armijo's rule by halving: the one line search of the inner solvers."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Loss
from bilevel.utils import DataTree, Hyper, Params, Scalar, axpy, dtype, vdot


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
