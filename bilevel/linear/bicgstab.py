"""BiCGSTAB: systems without symmetry in short memory (van der Vorst, 1992)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Matvec, Solution, attainable_residual, relative_residual, warm_start
from bilevel.utils import (
    PyTree,
    axpy,
    norm,
    register_node,
    require_positive,
    require_positive_int,
    vdot,
)


@dataclass(frozen=True)
class BiCGSTAB:
    r"""Stabilised bi-conjugate gradients, for any operator: two products a step, seven vectors.

    Its residual is not monotone, and it may break down; then it stops, and the residual of where
    it is (recomputed) shows it. GMRES is the safe choice where memory allows.

    Parameters
    ----------
    tol : relative residual to reach.
    max_steps : cap on the number of steps, of two products each.

    Raises
    ------
    ValueError : ``tol`` not positive, ``max_steps`` below 1.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> A, b = jnp.array([[1.0, 1.0], [0.0, 2.0]]), jnp.array([3.0, 4.0])
    >>> bl.BiCGSTAB().solve(lambda v: A @ v, b, jnp.zeros(2)).x.round(4)
    Array([1., 2.], dtype=float32)
    """

    tol: float | Array = 1e-6
    max_steps: int = 500

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("BiCGSTAB", "tol", self.tol)
        require_positive_int("BiCGSTAB", "max_steps", self.max_steps)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Iterate from ``x0``. No key is used."""
        target = attainable_residual(self.tol, b)
        x0, shadow, first = warm_start(hessian, b, x0)

        def unfinished(carry: tuple[PyTree, ...]) -> Array:
            _, r, _, rho, k = carry
            return (norm(r) > target) & (rho != 0) & (k < self.max_steps)

        def advance(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            x, r, p, rho, k = carry
            image = hessian(p)
            alpha = _ratio(rho, vdot(shadow, image))
            half = axpy(-alpha, image, r)
            turned = hessian(half)
            omega = _ratio(vdot(turned, half), vdot(turned, turned))
            x = axpy(omega, half, axpy(alpha, p, x))
            r = axpy(-omega, turned, half)
            following = jnp.where(omega != 0, vdot(shadow, r), 0)
            beta = _ratio(following, rho) * _ratio(alpha, omega)
            p = axpy(beta, axpy(-omega, image, p), r)
            return x, r, p, following, k + 1

        initial = (x0, shadow, shadow, vdot(shadow, shadow), jnp.zeros((), jnp.int32))
        x, _, _, _, k = jax.lax.while_loop(unfinished, advance, initial)
        return Solution(x, relative_residual(hessian, b, x), first + 2 * k + 1)


register_node(BiCGSTAB, data_fields=["tol"], meta_fields=["max_steps"])


def _ratio(above: Array, below: Array) -> Array:
    """Return ``above / below``, 0 where the method has broken down."""
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))
