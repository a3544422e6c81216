r"""Newton's method, damped by backtracking, its systems solved without a matrix.

    w <- w - t H(w)^{-1} grad g(w),   t in {1, 1/2, 1/4, ...} the first that decreases g enough

Nocedal, Wright, "Numerical Optimization", Algorithm 7.1 (line-search Newton-CG). For an equation
``F(w) = 0`` the first t with ``|F| (1 - t / 1e4)`` or less; section 11.2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Equation, Loss
from bilevel.linear import CG, GMRES, LinearSolver, Operator, solve_scaled
from bilevel.solvers.line_search import backtrack_step, full_where_rounding
from bilevel.utils import (
    DataTree,
    Flag,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    Scalar,
    axpy,
    dtype,
    norm,
    register_node,
    require_tolerance,
    vdot,
    zeros_like,
)

_HALVINGS, _DECREASE = 20, 1e-4  # of the step on an equation, of its residual

HessianProduct: TypeAlias = Callable[[Params], Params]
# The first gradient's norm and whether to stop; nothing without a tolerance.
NewtonState: TypeAlias = tuple[Scalar | Flag, ...]


@dataclass(frozen=True)
class Newton:
    r"""Newton's method on all inner examples: no step size to choose, few steps.

    Where CG meets negative curvature at once, the direction is the gradient. Costs per step one
    full gradient, the products of ``linear`` and a few losses.

    Its steps may be differentiated: ``t`` is piecewise constant, hence without a derivative, and
    the system is differentiated as a system, not through the iterations that solve it. The
    derivative of the iterates converges quadratically with them, and at the minimiser the last
    step alone gives it: ``Reverse(Newton(), steps, truncate=1)`` is the one-step differentiation of
    Bolte, Pauwels, Vaiter, NeurIPS 2023.

    Parameters
    ----------
    linear : solver of ``H d = grad g``, to a tolerance that the derivative inherits.
    tol : stop where the gradient's norm is this fraction of what it was at the first start, further
        steps do nothing; ``None`` never stops. For ``Implicit``: a step that is not taken has no
        derivative.

    Raises
    ------
    ValueError : ``Problem.prox``; with ``tol`` an estimator that differentiates steps.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.Newton(), steps=10)
    """

    linear: LinearSolver = CG(tol=1e-8)
    tol: Number | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_tolerance("Newton", self.tol)

    def why_not_unrolled(self, state: PyTree) -> str | None:
        """Return that steps may be left out, if there is a tolerance."""
        return None if self.tol is None else "with tol its last steps may do nothing"

    def stopped(self, state: NewtonState) -> Flag | None:
        """Return, with ``tol``, whether the last step found nothing to do."""
        return None if self.tol is None else state[1]

    def init(self, params: Params, data: DataTree) -> NewtonState:
        """Return the first gradient's norm, 0 until measured, and whether to stop."""
        return () if self.tol is None else (jnp.zeros((), dtype(params)), jnp.array(False))

    def refresh(self, state: NewtonState) -> NewtonState:
        """Return a state that goes on, ``hyper`` having moved."""
        return () if self.tol is None else (state[0], jnp.array(False))

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: NewtonState
    ) -> tuple[Params, NewtonState]:
        """Take a damped Newton step; only a random ``linear`` uses the key."""
        if isinstance(loss, Equation):
            size, move = equation_step(self.linear, loss, params, hyper, data, key)
        else:
            size, move = self._slope(loss, params, hyper, data, key)
        if self.tol is None:
            return move(), state
        scale = jnp.where(state[0] > 0, state[0], size)
        done = size <= self.tol * scale
        return jax.lax.cond(done, lambda: params, move), (scale, done)

    def _slope(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key
    ) -> tuple[Scalar, Callable[[], Params]]:
        """Return the norm of the gradient, and the function that takes the step."""

        def slopes(params: Params) -> tuple[Params, Scalar]:
            value, gradient = jax.value_and_grad(loss)(params, hyper, data)
            # JAX cannot transpose a solve with a right side of which a leaf depends on nothing, as
            # the gradient of params that the loss does not use.
            return jax.tree.map(lambda g, w: g + 0 * w, gradient, params), value

        linearised: tuple = jax.linearize(slopes, params, has_aux=True)
        gradient, hvp, value = linearised

        def solve(matvec: HessianProduct, b: Params) -> Params:
            return solve_scaled(self.linear, matvec, b, zeros_like(b), key).x

        def move() -> Params:
            direction = newton_direction(solve, hvp, gradient)
            at = jax.lax.stop_gradient((params, hyper, data, direction, gradient, value))
            length = full_where_rounding(backtrack_step(loss, *at), loss, *at[:4], value=at[-1])
            return axpy(-length, direction, params)

        return norm(gradient), move


register_node(Newton, data_fields=["linear", "tol"], meta_fields=[])


def newton_direction(
    solve: Callable[[HessianProduct, Params], Params], hvp: HessianProduct, gradient: Params
) -> Params:
    """Return ``H^{-1} gradient``; the gradient where that is not a direction of descent."""
    newton = jax.lax.custom_linear_solve(hvp, gradient, solve, symmetric=True)
    # Where the gradient is 0 the Newton step is 0 too, but has its own derivative.
    not_descent = (vdot(newton, gradient) <= 0) & (vdot(gradient, gradient) > 0)
    return jax.tree.map(lambda d, g: jnp.where(not_descent, g, d), newton, gradient)


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
