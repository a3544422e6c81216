"""A smooth inner problem solved completely, matrix-free: what finite differences are taken of."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.core import Data, Problem
from bilevel.linear import CG
from bilevel.solvers.line_search import backtrack_step
from bilevel.solvers.newton import HessianProduct, newton_direction
from bilevel.utils import Counter, Flag, Hyper, Params, Scalar, axpy, dtype, vdot, zeros_like

# Params; gradient, direction and slope there; whether the last step is done; the count of steps.
MinimiseCarry: TypeAlias = tuple[Params, tuple[Params, Params, Scalar], Flag, Counter]


class Minimum(NamedTuple):
    """``params`` reached; ``decrease``, ``()``: what one more Newton step would gain."""

    params: Params
    decrease: Scalar


def minimise(
    problem: Problem, hyper: Hyper, params: Params, data: Data, *, steps: int = 100
) -> Minimum:
    """Minimise by Newton's method with backtracking, its systems solved by CG, down to rounding.

    Stops when the loss that a step would gain is below the rounding of the loss squared, one step
    later, or after ``steps``. A direction of negative curvature is replaced by the gradient.
    """
    linear = CG(tol=1e-3)

    def solve(matvec: HessianProduct, b: Params) -> Params:
        return linear.solve(matvec, b, zeros_like(b)).x

    eps = jnp.finfo(dtype(params)).eps

    def look(params: Params) -> tuple[Params, Params, Scalar]:
        """Return the gradient, a direction to step against, and the slope along it."""
        slopes = jax.grad(lambda w: problem.inner(w, hyper, data.inner))
        gradient, hvp = jax.linearize(slopes, params)
        direction = newton_direction(solve, hvp, gradient)
        return gradient, direction, vdot(direction, gradient)

    def unfinished(carry: MinimiseCarry) -> Flag:
        _, (_, _, decrease), last, k = carry
        return (decrease > 0) & ~last & (k < steps)

    def advance(carry: MinimiseCarry) -> MinimiseCarry:
        params, (gradient, direction, decrease), _, k = carry
        value = problem.inner(params, hyper, data.inner)
        # From here on rounding hides whether the loss decreases: one full step ends it.
        last = decrease <= eps**1.25 * (1 + jnp.abs(value))
        args = problem.inner, params, hyper, data.inner, direction, gradient, value
        length = jnp.where(last, 1, backtrack_step(*args))
        params = axpy(-length, direction, params)
        return params, look(params), last, k + 1

    initial = (params, look(params), jnp.array(False), jnp.zeros((), jnp.int32))
    params, (_, _, decrease), _, _ = jax.lax.while_loop(unfinished, advance, initial)
    return Minimum(params, decrease)
