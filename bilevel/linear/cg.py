"""Conjugate gradients (Hestenes and Stiefel, 1952)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import (
    Matvec,
    Solution,
    as_operator,
    attainable_residual,
    relative_residual,
)
from bilevel.linear.preconditioner import Inverse, InvertsOperator
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
class CG:
    r"""Conjugate gradients on a symmetric positive definite operator.

    Stops when ``|r| <= tol |b|`` (never below the rounding of the dtype), after ``max_steps``
    products, or at a direction of non-positive curvature; the residual that is reported is
    recomputed from the solution, so an early stop shows. Never squares the condition number:
    the error falls by ``(sqrt(kappa) - 1) / (sqrt(kappa) + 1)`` per product or faster, ``kappa``
    being that of the preconditioned operator.

    Parameters
    ----------
    tol : relative residual to reach.
    max_steps : cap on the number of products, beside those of the preconditioner.
    preconditioner : :class:`bilevel.HessianDiagonal`, :class:`bilevel.SolverInverse` or
        :class:`bilevel.EKFAC`; ``None`` for none. What is solved stays the same.

    Raises
    ------
    ValueError : ``tol`` not positive, ``max_steps`` below 1.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> H, b = jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 4.0])
    >>> bl.CG(tol=1e-6).solve(lambda v: H @ v, b, jnp.zeros(2)).x.round(4)
    Array([1., 1.], dtype=float32)
    """

    needs_symmetry: ClassVar[bool] = True

    tol: float | Array = 1e-6
    max_steps: int = 1000
    preconditioner: InvertsOperator | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("CG", "tol", self.tol)
        require_positive_int("CG", "max_steps", self.max_steps)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Iterate from ``x0``; ``hessian`` must be symmetric positive definite.

        The key is the preconditioner's.
        """
        target = attainable_residual(self.tol, b) ** 2
        x0 = jax.tree.map(lambda x: jnp.where(norm(b) == 0, 0, x), x0)
        warm = norm(x0) > 0
        first = warm.astype(jnp.int32)
        inverse = Inverse(lambda v: v, 0)
        if self.preconditioner is not None:
            inverse = self.preconditioner.invert(as_operator(hessian), b, key)

        # The product with x0 is a turn of the loop, so that there is one to compile.
        def unfinished(carry: tuple[PyTree, ...]) -> Array:
            *_, squared, curved, k = carry
            return (squared > target) & curved & (k < self.max_steps)

        def advance(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            x, r, p, inside, _, _, k = carry
            starting = k < 0
            image = hessian(p)
            curvature = vdot(p, image)
            curved = curvature > 0
            alpha = jnp.where(curved, inside / jnp.where(curved, curvature, 1), 0)
            x = axpy(jnp.where(starting, 0, alpha), p, x)
            r = axpy(-jnp.where(starting, 1, alpha), image, r)
            z = inverse.apply(r)
            following = vdot(r, z)
            squared = following if self.preconditioner is None else vdot(r, r)
            beta = jnp.where(starting, 0, following / inside)
            return x, r, axpy(beta, p, z), following, squared, curved | starting, k + 1

        z = inverse.apply(b)
        p = jax.tree.map(lambda x, y: jnp.where(warm, x, y), x0, z)
        inside, squared = (jnp.where(warm, jnp.inf, vdot(b, y)) for y in (z, b))
        initial = (x0, b, p, inside, squared, jnp.array(True), -first)
        x, *_, k = jax.lax.while_loop(unfinished, advance, initial)
        return Solution(x, relative_residual(hessian, b, x), first + k + 1 + inverse.matvecs)


register_node(CG, data_fields=["tol", "preconditioner"], meta_fields=["max_steps"])
