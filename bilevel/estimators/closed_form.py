r"""The closed form: a quadratic inner problem solved, and differentiated, by one factorisation.

    H = d^2 inner / d params^2,   w* = w - H^{-1} grad_w inner(w)   from any w,
    grad = grad_h outer - C^T H^{-1} grad_w outer   at w*,   C = d^2 inner / d params d hyper

Bengio, "Gradient-Based Optimization of Hyperparameters", Neural Computation 2000, which treats the
quadratic inner loss and its Cholesky factor; Larsen et al., 1996, for one ridge penalty.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Evidence,
    InnerState,
    Problem,
    draw_outer,
    init_inner_state,
    note_outer_rows,
)
from bilevel.estimators.refusals import check_minimiser
from bilevel.estimators.residuals import find_progress
from bilevel.linear import factorise, relative_residual
from bilevel.utils import Hyper, Key, Params, register_node


@dataclass(frozen=True)
class ClosedForm:
    """Exact value and hypergradient of a problem whose inner loss is quadratic in ``params``.

    Takes no solver and no key: one dense Hessian, one Cholesky factorisation, each solution refined
    once. Memory O(size(params)^2).

    Where the Hessian is singular, and the inner loss has minimisers all the same, the nearest one
    is taken (in coordinates of curvature 1; params that the inner loss does not use stay as they
    are), and the answer holds if the outer loss does not tell them apart.

    Evidence: ``linear_residual`` of the adjoint system; it is infinite, and value and gradient are
    NaN, where the Hessian is indefinite, or singular to working precision in a direction that a
    loss depends on, so that no minimiser is defined. ``inner_residual`` far from 0 says that the
    inner loss is not quadratic after all.

    Parameters
    ----------
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : a problem that does not declare ``quadratic=True``; one with a proximal part; a
        hyperparameter that enters neither loss.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> w, h, key = jnp.array(0.0), jnp.array(1.0), jax.random.key(0)
    >>> estimate, state = bl.hypergradient(problem, bl.ClosedForm(), h, w, data, key)
    >>> estimate.grad.round(4)  # (w* - 1.5) dw*/dh, w* = 2 / (1 + h)
    Array(0.25, dtype=float32)
    """

    outer_batch_size: int | None = None

    def init(self, params: Params, data: Data) -> InnerState:
        """Return a state at ``params``: any point will do."""
        return init_inner_state(params, ())

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Minimise, then differentiate the minimiser; the key draws outer examples alone."""
        data = draw_outer(data, self.outer_batch_size, key)
        _check(problem, hyper, lower.params, data)
        flat, unravel = ravel_pytree(lower.params)

        def slopes(w: Array) -> tuple[Params, Hyper]:
            return jax.grad(problem.inner, argnums=(0, 1))(unravel(w), hyper, data.inner)

        def inner_grad(w: Array) -> Array:
            return ravel_pytree(slopes(w)[0])[0]

        # One factorisation serves both levels; one step of refinement each removes its rounding.
        gradient, hvp = jax.linearize(inner_grad, flat)
        hessian = jax.vmap(hvp)(jnp.eye(flat.size, dtype=flat.dtype))
        factor = factorise(hessian)

        w = flat - factor.solve(gradient)
        after = inner_grad(w)
        size = jnp.linalg.norm(factor.scale * gradient) + jnp.linalg.norm(flat / factor.scale)
        unbounded = factor.misses(gradient + hessian @ (w - flat), size)
        w = jnp.where(unbounded, jnp.nan, w - factor.solve(after))
        params = unravel(w)
        outer = jax.value_and_grad(problem.outer, argnums=(0, 1))
        value, (b, direct) = outer(params, hyper, data.outer)
        b = ravel_pytree(b)[0]
        adjoint = factor.solve(b)
        adjoint = adjoint + factor.solve(b - hessian @ adjoint)
        size = jnp.linalg.norm(factor.scale * b)
        touched = factor.misses(b - hessian @ adjoint, size)
        value, adjoint = (jnp.where(touched, jnp.nan, x) for x in (value, adjoint))
        cross = jax.jvp(lambda w: slopes(w)[1], (w,), (adjoint,))[1]

        residual, reference = find_progress(
            problem, hyper, lower.params, params, data, lower.reference
        )
        left = relative_residual(lambda v: hessian @ v, b, adjoint)
        left = jnp.where(jnp.isfinite(left), left, jnp.inf)
        counts = Counts.of(gradients=3, hvps=flat.size)
        estimate = Estimate(
            value,
            jax.tree.map(jnp.subtract, direct, cross),
            note_outer_rows(Evidence(residual, left, counts=counts), self.outer_batch_size),
        )
        return estimate, InnerState(params, lower.solver_state, None, reference)


register_node(ClosedForm, data_fields=[], meta_fields=["outer_batch_size"])


def _check(problem: Problem, hyper: Hyper, params: Params, data: Data) -> None:
    if not problem.quadratic:
        raise ValueError(
            "ClosedForm needs an inner loss that is quadratic in params, and this problem does not "
            "say so. If it is, declare it: Problem(inner, outer, quadratic=True). If not, use "
            "Implicit."
        )
    if problem.prox is not None:
        raise ValueError(
            "ClosedForm cannot minimise a quadratic inner loss plus the non-smooth part that "
            "problem.prox stands for. Use Implicit with a proximal solver."
        )
    check_minimiser("ClosedForm", problem, hyper, params, data)
