"""A smooth inner problem solved completely, matrix-free: what finite differences are taken of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.linear import CG
from bilevel.utils import Hyper, Params, PyTree, axpy, dtype, vdot, zeros_like


class Minimum(NamedTuple):
    """``params`` reached; ``decrease``, ``()``: what one more Newton step would gain."""

    params: Params
    decrease: Array


def minimise(
    problem: Problem, hyper: Hyper, params: Params, data: Data, *, steps: int = 100
) -> Minimum:
    """Newton's method with backtracking, its systems solved by CG, down to rounding.

    Stops when the loss that a step would gain is below the rounding of the loss squared, one step
    later, or after ``steps``. A direction of negative curvature is replaced by the gradient.
    """
    linear = CG(tol=1e-3)
    eps = jnp.finfo(dtype(params)).eps

    def loss(params: Params) -> Array:
        return problem.inner(params, hyper, data.inner)

    def newton(params: Params) -> tuple[PyTree, Array]:
        """A descent direction, and the slope along it."""
        gradient, hvp = jax.linearize(jax.grad(loss), params)
        b = jax.tree.map(jnp.negative, gradient)
        solved = linear.solve(hvp, b, zeros_like(b)).x
        bent = vdot(solved, b) <= 0
        direction = jax.tree.map(lambda s, g: jnp.where(bent, g, s), solved, b)
        return direction, vdot(direction, b)

    def unfinished(carry: Any) -> Array:
        _, _, decrease, gained, k = carry
        return (decrease > 0) & (gained > 0) & (k < steps)

    def advance(carry: Any) -> Any:
        params, direction, decrease, _, k = carry
        value = loss(params)
        last = decrease <= eps**1.25 * (1 + jnp.abs(value))

        def too_long(length: Array) -> Array:
            bound = value - 1e-4 * length * decrease + 4 * eps * jnp.abs(value)
            return ~(loss(axpy(length, direction, params)) <= bound) & (length > eps) & ~last

        one = jnp.ones((), decrease.dtype)
        length = jax.lax.while_loop(too_long, lambda length: length / 2, one)
        moved = axpy(length, direction, params)
        direction, decrease = newton(moved)
        return moved, direction, decrease, jnp.where(last, 0 * one, one), k + 1

    one = jnp.ones((), dtype(params))
    initial = (params, *newton(params), one, jnp.zeros((), jnp.int32))
    params, _, decrease, _, _ = jax.lax.while_loop(unfinished, advance, initial)
    return Minimum(params, decrease)
