"""GMRES: systems without symmetry (Saad and Schultz, 1986)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import (
    Matvec,
    Solution,
    attainable_residual,
    divide_by_norm,
    relative_norm,
    warm_start,
)
from bilevel.utils import PyTree, axpy, norm, register_node, require_positive, require_positive_int


@dataclass(frozen=True)
class GMRES:
    r"""The smallest residual ``|H x - b|`` over a Krylov space, for any operator; restarted.

    The residual never grows. One product per step, memory for ``restart`` vectors. A restart
    forgets the space and may stall where the operator is indefinite.

    Parameters
    ----------
    tol : relative residual to reach.
    max_steps : cap on the number of products.
    restart : steps between restarts.

    Raises
    ------
    ValueError : ``tol`` not positive, ``max_steps`` or ``restart`` below 1.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> A, b = jnp.array([[1.0, 1.0], [0.0, 2.0]]), jnp.array([3.0, 4.0])
    >>> bl.GMRES().solve(lambda v: A @ v, b, jnp.zeros(2)).x.round(4)
    Array([1., 2.], dtype=float32)
    """

    tol: float | Array = 1e-6
    max_steps: int = 1000
    restart: int = 30

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("GMRES", "tol", self.tol)
        require_positive_int("GMRES", "max_steps", self.max_steps)
        require_positive_int("GMRES", "restart", self.restart)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Iterate from ``x0``. No key is used."""
        target = attainable_residual(self.tol, b)
        x0, r, first = warm_start(hessian, b, x0)

        def unfinished(carry: tuple[PyTree, ...]) -> Array:
            _, r, gained, k = carry
            return (norm(r) > target) & gained & (k < self.max_steps)

        def cycle(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            x, r, _, k = carry
            before = norm(r)
            correction, used = _cycle(hessian, r, target, self.restart, self.max_steps - k)
            x = axpy(1, correction, x)
            r = axpy(-1, hessian(x), b)
            return x, r, norm(r) < before, k + used + 1

        initial = (x0, r, jnp.array(True), jnp.zeros((), jnp.int32))
        x, r, _, k = jax.lax.while_loop(unfinished, cycle, initial)
        return Solution(x, relative_norm(r, b), first + k)


register_node(GMRES, data_fields=["tol"], meta_fields=["max_steps", "restart"])


class _Arnoldi(NamedTuple):
    """The basis ``[m + 1, ...]``, triangle ``[m, m]``, rotations ``[m]`` and rotated right side."""

    vectors: PyTree
    R: Array
    cosine: Array
    sine: Array
    rhs: Array
    k: Array


def _cycle(hessian: Matvec, r: PyTree, target: Array, m: int, most: Array) -> tuple[PyTree, Array]:
    """Return ``(correction, products)``: up to ``min(m, most)`` steps from the residual ``r``."""
    size = norm(r)
    vectors = jax.tree.map(lambda x: jnp.zeros((m + 1, *x.shape), x.dtype), r)
    start = _Arnoldi(
        jax.tree.map(lambda rows, x: rows.at[0].set(x), vectors, divide_by_norm(r, size)),
        jnp.eye(m, dtype=size.dtype),  # columns that are never reached leave the triangle regular
        jnp.zeros(m, size.dtype),
        jnp.zeros(m, size.dtype),
        jnp.zeros(m + 1, size.dtype).at[0].set(size),
        jnp.zeros((), jnp.int32),
    )

    def unfinished(at: _Arnoldi) -> Array:
        return (at.k < jnp.minimum(m, most)) & (jnp.abs(at.rhs[at.k]) > target)

    end = jax.lax.while_loop(unfinished, lambda at: _advance(hessian, at), start)
    rhs = jnp.where(jnp.arange(m) < end.k, end.rhs[:m], 0)
    y = jax.scipy.linalg.solve_triangular(end.R, rhs)
    correction = jax.tree.map(lambda rows: jnp.tensordot(y, rows[:m], 1), end.vectors)
    return correction, end.k


def _advance(hessian: Matvec, at: _Arnoldi) -> _Arnoldi:
    k, m = at.k, at.cosine.size
    image = hessian(jax.tree.map(lambda rows: rows[k], at.vectors))
    column = jnp.zeros_like(at.rhs)
    for _ in range(2):  # once is not enough in rounded arithmetic
        image, overlap = _orthogonal(at.vectors, image)
        column = column + overlap
    length = norm(image)

    def rotate(i: Array, column: Array) -> Array:
        a, b = column[i], column[i + 1]
        c, s = at.cosine[i], at.sine[i]
        return column.at[i].set(c * a + s * b).at[i + 1].set(c * b - s * a)

    # The rotations of earlier columns, then the one that clears the entry below the diagonal.
    column = jax.lax.fori_loop(0, k, rotate, column)
    diagonal = column[k]
    radius = jnp.hypot(diagonal, length)
    c = jnp.where(radius > 0, diagonal / radius, 0)
    s = jnp.where(radius > 0, length / radius, 1)
    column = column.at[k].set(jnp.where(radius > 0, radius, 1))
    kept = jnp.where(jnp.arange(m) <= k, column[:m], 0)
    vectors = jax.tree.map(
        lambda rows, x: rows.at[k + 1].set(x), at.vectors, divide_by_norm(image, length)
    )
    rhs = at.rhs.at[k + 1].set(-s * at.rhs[k]).at[k].set(c * at.rhs[k])
    return _Arnoldi(
        vectors, at.R.at[:, k].set(kept), at.cosine.at[k].set(c), at.sine.at[k].set(s), rhs, k + 1
    )


def _orthogonal(vectors: PyTree, image: PyTree) -> tuple[PyTree, Array]:
    """Return ``(image, components)``: the image without its parts along the vectors, and those."""
    parts = jax.tree.map(lambda rows, x: jnp.tensordot(rows, x, x.ndim), vectors, image)
    overlap = jax.tree.reduce(jnp.add, parts)
    left = jax.tree.map(
        lambda rows, x: (x - jnp.tensordot(overlap, rows, 1)).astype(x.dtype), vectors, image
    )
    return left, overlap
