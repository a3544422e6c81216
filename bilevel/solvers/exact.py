"""The inner problem alone: solved completely, matrix-free, or by so many steps of a solver."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from bilevel.core import Data, InnerState, Problem, bind_losses, inner_loss, require_model_state
from bilevel.linear import CG
from bilevel.solvers.base import Solver, run_steps, start_solver
from bilevel.solvers.line_search import backtrack_step
from bilevel.solvers.model import ModelSolver
from bilevel.solvers.newton import HessianProduct, newton_direction
from bilevel.utils import (
    Counter,
    Flag,
    FloatTreeLike,
    Hyper,
    Key,
    Params,
    PyTree,
    Scalar,
    axpy,
    dtype,
    require_positive_int,
    strip_weak_types,
    vdot,
    zeros_like,
)

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


def solve(
    problem: Problem,
    solver: Solver,
    hyper: FloatTreeLike,
    params: FloatTreeLike,
    data: Data,
    key: Key,
    *,
    steps: int,
    model_state: PyTree = None,
) -> Params:
    """Return the inner ``params`` after ``steps`` steps: the loop that estimators differentiate.

    Step ``k = 0, 1, ...`` is ``solver.step(problem.inner, params, hyper, data.inner,
    jax.random.fold_in(key, k), state)``. Differentiable in ``hyper`` and ``params``. Of a problem
    that ``has_state``, which begins at ``model_state``, the pair ``(params, last model state)``.

    Raises
    ------
    ValueError : ``steps`` below 1, no ``model_state`` for a problem that ``has_state``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(lambda w, h, x: jnp.mean((x - w) ** 2), lambda w, h, x: w)
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver, key = bl.GradientDescent(step_size=0.25), jax.random.key(0)
    >>> bl.solve(problem, solver, 0.0, jnp.array(0.0), data, key, steps=50).round(4)
    Array(2., dtype=float32)
    """
    require_positive_int("solve", "steps", steps)
    require_model_state(problem, model_state)
    hyper, params = strip_weak_types(hyper), strip_weak_types(params)
    if not problem.is_plain:
        solver = ModelSolver(solver, problem, strip_weak_types(model_state))
    problem = bind_losses(problem, key, model_state)
    carry = start_solver(
        problem, solver, hyper, InnerState(params, solver.init(params, data.inner)), data
    )
    params, state = run_steps(inner_loss(problem), solver, hyper, carry, data, key, steps=steps)
    return (params, state.model_state) if problem.has_state else params
