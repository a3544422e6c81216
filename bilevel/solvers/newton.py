r"""Newton's method, damped by backtracking, its systems solved without a matrix.

    w <- w - t H(w)^{-1} grad g(w),   t in {1, 1/2, 1/4, ...} the first that decreases g enough

Nocedal, Wright, "Numerical Optimization", Algorithm 7.1 (line-search Newton-CG).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Loss
from bilevel.linear import CG, LinearSolver
from bilevel.solvers.line_search import backtrack
from bilevel.utils import (
    DataTree,
    Hyper,
    Key,
    Params,
    PyTree,
    axpy,
    dtype,
    norm,
    register_node,
    vdot,
    zeros_like,
)
from bilevel.utils.validation import require_tolerance


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
    tol: Any = None

    def __post_init__(self) -> None:
        """Refuse a tolerance that is none."""
        require_tolerance("Newton", self.tol)

    def why_not_unrolled(self, state: PyTree) -> str | None:
        """Steps that may be left out, if there is a tolerance."""
        return None if self.tol is None else "with tol its last steps may do nothing"

    def stopped(self, state: Any) -> Array | None:
        """With ``tol``: where the last step found nothing to do."""
        return None if self.tol is None else state[1]

    def init(self, params: Params, data: DataTree) -> Any:
        """With ``tol``: the first gradient's norm, 0 until measured, and whether to rest."""
        return () if self.tol is None else (jnp.zeros((), dtype(params)), jnp.array(False))

    def refresh(self, state: Any) -> Any:
        """To go on, ``hyper`` having moved."""
        return () if self.tol is None else (state[0], jnp.array(False))

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: Any
    ) -> tuple[PyTree, Any]:
        """One damped Newton step; only a random ``linear`` uses the key."""
        if self.tol is None:
            _, move = self._slope(loss, params, hyper, data, key)
            return move(), state

        size, move = self._slope(loss, params, hyper, data, key)
        scale = jnp.where(state[0] > 0, state[0], size)
        done = size <= self.tol * scale
        return jax.lax.cond(done, lambda: params, move), (scale, done)

    def _slope(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key
    ) -> tuple[Array, Callable[[], PyTree]]:
        """Norm of the gradient, and the function that takes the step."""

        def slopes(params: Params) -> tuple[PyTree, Array]:
            value, gradient = jax.value_and_grad(loss)(params, hyper, data)
            return gradient, value

        def solve(matvec: Any, b: PyTree) -> PyTree:
            return self.linear.solve(matvec, b, zeros_like(b), key).x

        linearised: Any = jax.linearize(slopes, params, has_aux=True)
        gradient, hvp, value = linearised

        def move() -> PyTree:
            newton = jax.lax.custom_linear_solve(hvp, gradient, solve, symmetric=True)
            # Where the gradient is 0 the Newton step is 0 too, but has its own derivative.
            bent = (vdot(newton, gradient) <= 0) & (vdot(gradient, gradient) > 0)
            direction = jax.tree.map(lambda d, g: jnp.where(bent, g, d), newton, gradient)
            at = jax.lax.stop_gradient((params, hyper, data, direction, gradient, value))
            return axpy(-backtrack(loss, *at), direction, params)

        return norm(gradient), move


register_node(Newton, data_fields=["linear", "tol"], meta_fields=[])
