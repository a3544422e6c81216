"""Functions of a symmetric operator by Lanczos, from products alone.

Shared by all of ``bilevel.noise``: :func:`tridiagonal` also gives Hessian extremes (eigenvalues of
the small matrix) and spectral quadrature (their first components squared).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Matvec
from bilevel.utils import PyTree, require_positive_int


class Tridiagonal(NamedTuple):
    """The tridiagonal ``basis @ A @ basis.T``: ``basis [m, d]``, ``diagonal [m]``, ``off [m-1]``.

    After the Krylov space is exhausted the further rows of ``basis`` and entries are 0.
    """

    basis: Array
    diagonal: Array
    off: Array

    @property
    def matrix(self) -> Array:
        """Return the small matrix ``[m, m]``."""
        return jnp.diag(self.diagonal) + jnp.diag(self.off, 1) + jnp.diag(self.off, -1)


def tridiagonal(matvec: Matvec, vector: Array, steps: int) -> Tridiagonal:
    """Run Lanczos with full reorthogonalisation from ``vector`` ``[d]``; ``steps`` products.

    Raises
    ------
    ValueError : ``vector`` is not one-dimensional, ``steps`` below 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.linear.lanczos import tridiagonal
    >>> t = tridiagonal(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2), 2)
    >>> jnp.linalg.eigvalsh(t.matrix).round(4)
    Array([1., 3.], dtype=float32)
    """
    require_positive_int("tridiagonal", "steps", steps)
    if jnp.ndim(vector) != 1:
        raise ValueError(
            f"tridiagonal: vector must be flat [d], got {jnp.shape(vector)}. Use ravel_pytree."
        )
    steps = min(steps, vector.shape[0])
    tiny = 10 * jnp.finfo(vector.dtype).eps

    def body(
        carry: tuple[Array, Array], j: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        basis, scale = carry
        image = matvec(basis[j])
        alpha = basis[j] @ image
        # Twice is enough: the second pass removes what rounding left of the first.
        rest = image - basis.T @ (basis @ image)
        rest = rest - basis.T @ (basis @ rest)
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        beta = jnp.linalg.norm(rest)
        exhausted = beta <= tiny * scale
        beta = jnp.where(exhausted, 0.0, beta)
        following = jnp.where(exhausted, 0.0, rest / jnp.where(exhausted, 1.0, beta))
        return (basis.at[j + 1].set(following, mode="drop"), scale), (alpha, beta)

    size = jnp.linalg.norm(vector)
    first = vector / jnp.where(size > 0, size, 1.0)
    basis = jnp.zeros((steps, vector.shape[0]), vector.dtype).at[0].set(first)
    start = (basis, jnp.zeros((), vector.dtype))
    (basis, _), (diagonal, off) = jax.lax.scan(body, start, jnp.arange(steps))
    return Tridiagonal(basis, diagonal, off[:-1])


def function_product(
    fn: Callable[[Array], Array], matvec: Matvec, vector: Array, steps: int
) -> Array:
    """Return ``fn(A) v`` for a symmetric ``A`` ``[d, d]`` known by its products; shape ``[d]``.

    ``fn`` acts on arrays of eigenvalues. The error falls with ``steps`` as fast as polynomials of
    that degree approach ``fn`` on the spectrum (Druskin and Knizhnerman, 1989); exact at ``d``.
    """
    t = tridiagonal(matvec, vector, steps)
    values, vectors = jnp.linalg.eigh(t.matrix)
    return jnp.linalg.norm(vector) * (t.basis.T @ (vectors @ (fn(values) * vectors[0])))


def dominant_eigenpair(matvec: Matvec, start: PyTree, steps: int) -> tuple[Array, PyTree]:
    """Return the largest modulus of an eigenvalue, ``()``, and a unit vector of it, by Lanczos.

    The modulus is a lower bound; ``start`` is a tree of one dtype that is not 0, of which
    ``steps`` further ones like it are kept.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.linear import dominant_eigenpair
    >>> dominant_eigenpair(lambda v: jnp.array([1.0, -3.0]) * v, jnp.ones(2), 2)[0].round(4)
    Array(3., dtype=float32)
    """
    flat, unravel = ravel_pytree(start)
    t = tridiagonal(lambda v: ravel_pytree(matvec(unravel(v)))[0], flat, steps)
    full = jnp.promote_types(flat.dtype, jnp.float32)  # LAPACK has no half precision
    values, vectors = jnp.linalg.eigh(t.matrix.astype(full))
    dominant = jnp.argmax(jnp.abs(values))
    vector = t.basis.T @ vectors[:, dominant].astype(flat.dtype)
    return jnp.abs(values[dominant]), unravel(vector)
