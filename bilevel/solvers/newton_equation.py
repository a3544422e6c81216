r"""Newton's method for an equation ``F(w) = 0``, damped until the residual decreases.

    w <- w - t J(w)^{-1} F(w),   t in {1, 1/2, 1/4, ...} the first with |F| (1 - t / 1e4) or less

Nocedal, Wright, "Numerical Optimization", section 11.2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Equation
from bilevel.linear import GMRES, LinearSolver, Operator, solve_scaled
from bilevel.utils import DataTree, Hyper, Key, Params, Scalar, axpy, norm, zeros_like

_HALVINGS, _DECREASE = 20, 1e-4


def equation_step(
    linear: LinearSolver, equation: Equation, params: Params, hyper: Hyper, data: DataTree, key: Key
) -> tuple[Scalar, Callable[[], Params]]:
    """Return ``|F|``, and the function that takes the step."""
    if getattr(linear, "needs_symmetry", False):
        linear = GMRES(tol=getattr(linear, "tol", 1e-8))

    def residual(params: Params) -> Params:
        return equation.residual(params, hyper, data)

    f, product = jax.linearize(residual, params)
    transpose = jax.linear_transpose(product, params)
    operator = Operator(product, transposed=Operator(lambda u: transpose(u)[0]))

    def move() -> Params:
        direction = solve_scaled(linear, operator, f, zeros_like(params), key).x
        length = jax.lax.stop_gradient(_shorten(residual, params, direction, norm(f)))
        return axpy(-length, direction, params)

    return norm(f), move


def _shorten(
    residual: Callable[[Params], Params], params: Params, direction: Params, size: Scalar
) -> Scalar:
    """Return the first of 1, 1/2, 1/4, ... at which the residual has decreased enough."""
    params, direction, size = jax.lax.stop_gradient((params, direction, size))
    # Next to the solution rounding decides what decreases, and the error is the square of the step.
    next_to_it = norm(direction) <= jnp.finfo(size.dtype).eps ** 0.5 * norm(params)

    def too_long(carry: tuple[Array, Array]) -> Array:
        k, t = carry
        there = norm(residual(axpy(-t, direction, params)))
        return (k < _HALVINGS) & ~next_to_it & ~(there <= (1 - _DECREASE * t) * size)

    def halve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] + 1, carry[1] / 2

    begin = jnp.zeros((), jnp.int32), jnp.ones((), size.dtype)
    return jax.lax.while_loop(too_long, halve, begin)[1]
