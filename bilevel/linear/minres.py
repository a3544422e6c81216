"""MINRES: symmetric systems that may be indefinite or singular (Paige and Saunders, 1975)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import (
    Matvec,
    Solution,
    attainable_residual,
    divide_by_norm,
    relative_residual,
    warm_start,
)
from bilevel.utils import (
    PyTree,
    axpy,
    dtype,
    norm,
    register_node,
    require_positive,
    require_positive_int,
    vdot,
    zeros_like,
)


@dataclass(frozen=True)
class MINRES:
    r"""The smallest residual ``|H x - b|`` over a Krylov space, for any symmetric operator.

    Needs no positive curvature, so it also solves at a saddle point of the inner loss, where CG
    stops; such a point is no minimum, and its "hypergradient" no derivative of a minimiser. One
    product per step. Stops at ``|r| <= tol |b|`` or after ``max_steps``.

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
    >>> H, b = jnp.diag(jnp.array([1.0, -4.0])), jnp.array([1.0, 4.0])
    >>> bl.MINRES().solve(lambda v: H @ v, b, jnp.zeros(2)).x.round(4)
    Array([ 1., -1.], dtype=float32)
    """

    needs_symmetry: ClassVar[bool] = True

    tol: float | Array = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("MINRES", "tol", self.tol)
        require_positive_int("MINRES", "max_steps", self.max_steps)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Iterate from ``x0``; ``hessian`` must be symmetric. No key is used."""
        target = attainable_residual(self.tol, b)
        x0, r, first = warm_start(hessian, b, x0)

        def unfinished(carry: _Carry) -> Array:
            return (carry.left > target) & (carry.beta > 0) & (carry.k < self.max_steps)

        initial = _begin(x0, r)
        end = jax.lax.while_loop(unfinished, lambda carry: _advance(hessian, carry), initial)
        return Solution(end.x, relative_residual(hessian, b, end.x), first + end.k + 1)


register_node(MINRES, data_fields=["tol"], meta_fields=["max_steps"])


class _Carry(NamedTuple):
    """Lanczos vectors ``before, v``, directions ``w1, w2``, the last rotation, what it left over.

    ``left`` is the norm of the residual; ``beta`` 0 means that the Krylov space is exhausted.
    """

    x: PyTree
    before: PyTree
    v: PyTree
    beta: Array
    w1: PyTree
    w2: PyTree
    cosine: Array
    sine: Array
    above: Array
    far_above: Array
    left: Array
    k: Array


def _begin(x0: PyTree, r: PyTree) -> _Carry:
    size, zero = norm(r), zeros_like(r)
    none, one = jnp.zeros_like(size), jnp.ones_like(size)
    k = jnp.zeros((), jnp.int32)
    return _Carry(
        x0, zero, divide_by_norm(r, size), size, zero, zero, -one, none, none, none, size, k
    )


def _advance(hessian: Matvec, at: _Carry) -> _Carry:
    """Return the carry one Lanczos step and one rotation on; what is rounding counts as 0."""
    eps = jnp.finfo(dtype(at.v)).eps
    beta = jnp.where(at.k == 0, 0, at.beta)
    image = axpy(-beta, at.before, hessian(at.v))
    alpha = vdot(at.v, image)
    image = axpy(-alpha, at.v, image)
    following = norm(image)
    rounding = 4 * eps * (jnp.abs(alpha) + beta)
    following = jnp.where(following > rounding, following, 0)
    # The QR factors of the tridiagonal matrix, extended by the column (beta, alpha, following).
    upper = at.cosine * at.above + at.sine * alpha
    diagonal = at.sine * at.above - at.cosine * alpha
    radius = jnp.hypot(diagonal, following)
    radius = jnp.where(radius > rounding, radius, 0)  # 0: singular, and b not in the range
    cosine, sine = (jnp.where(radius > 0, x / radius, 0) for x in (diagonal, following))
    w = divide_by_norm(axpy(-at.far_above, at.w2, axpy(-upper, at.w1, at.v)), radius)
    return _Carry(
        x=axpy(cosine * at.left, w, at.x),
        before=at.v,
        v=divide_by_norm(image, following),
        beta=following,
        w1=w,
        w2=at.w1,
        cosine=cosine,
        sine=sine,
        above=-at.cosine * following,
        far_above=at.sine * following,
        left=sine * at.left,
        k=at.k + 1,
    )
