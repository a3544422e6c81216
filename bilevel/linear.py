"""Matrix-free linear solvers on pytrees, for the adjoint system ``H v = b``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.messages import require_positive, require_positive_int
from bilevel.trees import PyTree, axpy, dtype, norm, vdot

Matvec = Callable[[PyTree], PyTree]


class Solution(NamedTuple):
    """``x``; ``residual = |H x - b| / |b|``, recomputed, ``()``; ``matvecs`` used, ``()``."""

    x: PyTree
    residual: Array
    matvecs: Array


class LinearSolver(Protocol):
    """Anything that solves ``matvec(x) = b`` from the warm start ``x0``."""

    def solve(self, matvec: Matvec, b: PyTree, x0: PyTree) -> Solution:
        """The solution with its true relative residual."""
        ...


@dataclass(frozen=True)
class CG:
    r"""Conjugate gradients on a symmetric positive definite operator (Hestenes, Stiefel, 1952).

    Stops when ``|r| <= tol |b|`` (never below the rounding of the dtype), after ``max_steps``
    products, or at a direction of non-positive curvature; the residual that is reported is
    recomputed from the solution, so an early stop shows. Never squares the condition number.

    Parameters
    ----------
    tol : relative residual to reach.
    max_steps : cap on the number of products.

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

    tol: Any = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """Refuse settings that could not end or would do nothing."""
        require_positive("CG", "tol", self.tol)
        require_positive_int("CG", "max_steps", self.max_steps)

    def solve(self, matvec: Matvec, b: PyTree, x0: PyTree) -> Solution:
        """Iterate from ``x0``; ``matvec`` must be symmetric positive definite."""
        tol = jnp.maximum(self.tol, 2 * jnp.finfo(dtype(b)).eps)
        target = (tol * norm(b)) ** 2
        cold = norm(x0) == 0
        r = jax.lax.cond(cold, lambda: b, lambda: axpy(-1, matvec(x0), b))

        def unfinished(carry: Any) -> Array:
            _, _, _, squared, curved, k = carry
            return (squared > target) & curved & (k < self.max_steps)

        def advance(carry: Any) -> Any:
            x, r, p, squared, _, k = carry
            image = matvec(p)
            curvature = vdot(p, image)
            curved = curvature > 0
            alpha = jnp.where(curved, squared / jnp.where(curved, curvature, 1), 0)
            x, r = axpy(alpha, p, x), axpy(-alpha, image, r)
            following = vdot(r, r)
            return x, r, axpy(following / squared, p, r), following, curved, k + 1

        initial = (x0, r, r, vdot(r, r), jnp.array(True), jnp.zeros((), jnp.int32))
        x, _, _, _, _, k = jax.lax.while_loop(unfinished, advance, initial)
        return Solution(x, relative_residual(matvec, b, x), k + jnp.where(cold, 1, 2))


jax.tree_util.register_dataclass(CG, data_fields=["tol"], meta_fields=["max_steps"])


def relative_residual(matvec: Matvec, b: PyTree, x: PyTree) -> Array:
    """``|matvec(x) - b| / |b|``, 0 where both vanish; costs one product."""
    error, size = norm(axpy(-1, matvec(x), b)), norm(b)
    return jnp.where(error == 0, 0, error / size)
