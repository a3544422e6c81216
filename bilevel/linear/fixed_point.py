"""The adjoint fixed-point iteration (Grazzi, Franceschi, Pontil, Salzo, ICML 2020: AID-FP)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Matvec, Solution, attainable_residual, relative_residual, warm_start
from bilevel.linear.step_size import require_step_size, stable_step
from bilevel.utils import PyTree, axpy, norm, register_node, require_positive, require_positive_int


@dataclass(frozen=True)
class FixedPoint:
    r"""The iteration ``x <- x - s (H x - b)``, the adjoint of gradient descent.

    It converges as fast as gradient descent on the inner problem: by ``1 - 1 / kappa`` per product
    when ``s = 1 / L``. Unlike the Neumann series it starts at the solution of the last call,
    stops at a tolerance, and stops when it diverges; unlike CG it needs no symmetry.

    Parameters
    ----------
    tol : relative residual to reach.
    max_steps : cap on the number of steps.
    step_size : ``s``; ``None`` measures ``1 / L`` by power iteration (21 more products).

    Raises
    ------
    ValueError : ``tol`` or ``step_size`` not positive, ``max_steps`` below 1.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> H, b = jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 4.0])
    >>> solver = bl.FixedPoint(tol=1e-5, step_size=0.25)
    >>> solver.solve(lambda v: H @ v, b, jnp.zeros(2)).x.round(3)
    Array([1., 1.], dtype=float32)
    """

    tol: float | Array = 1e-6
    max_steps: int = 1000
    step_size: float | Array | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("FixedPoint", "tol", self.tol)
        require_positive_int("FixedPoint", "max_steps", self.max_steps)
        require_step_size("FixedPoint", self.step_size)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Iterate from ``x0``; the key serves to measure the step size."""
        step, used = stable_step("FixedPoint", self.step_size, hessian, b, key)
        target = attainable_residual(self.tol, b)
        x0, r, first = warm_start(hessian, b, x0)

        # A contraction never lets the residual grow: ten times more is divergence, and shows.
        most = 10 * norm(r)

        def unfinished(carry: tuple[PyTree, ...]) -> Array:
            _, r, k = carry
            size = norm(r)
            return (size > target) & (size <= most) & (k < self.max_steps)

        def advance(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            x, r, k = carry
            return axpy(step, r, x), axpy(-step, hessian(r), r), k + 1

        x, _, k = jax.lax.while_loop(unfinished, advance, (x0, r, jnp.zeros((), jnp.int32)))
        return Solution(x, relative_residual(hessian, b, x), first + k + 1 + used)


register_node(FixedPoint, data_fields=["tol", "step_size"], meta_fields=["max_steps"])
