"""Extreme eigenvalues of a symmetric operator from products alone, each with an error bound."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bilevel.linear.lanczos import Matvec, tridiagonal


class Eigenvalue(NamedTuple):
    """``value``, and ``error``: an eigenvalue of the operator lies within it; both ``()``."""

    value: Array
    error: Array


def extremes(product: Matvec, start: Array, steps: int) -> tuple[Eigenvalue, Eigenvalue]:
    r"""The smallest and the largest eigenvalue that ``steps`` Lanczos products show.

    Ritz values lie within the spectrum: ``smallest`` is never below and ``largest`` never above the
    true extreme. ``error = |A y - value y|`` of the unit Ritz vector ``y`` (in exact arithmetic
    ``|beta_k s_k|``) bounds the distance to *some* eigenvalue, rigorously; that it is the extreme
    one is almost sure for a random ``start``, and needs steps enough to separate it from its
    neighbours (Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13).

    Parameters
    ----------
    product : ``v [d] -> A v [d]``, symmetric.
    start : ``[d]``, not 0: a random vector where nothing is known.
    steps : number of products, at most d are used; two more measure the errors.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import spectrum
    >>> h = jnp.array([1.0, 2.0, 5.0])
    >>> smallest, largest = spectrum.extremes(lambda v: h * v, jnp.ones(3), 3)
    >>> round(float(smallest.value), 4), round(float(largest.value), 4)
    (1.0, 5.0)
    """
    t = tridiagonal(product, start, steps)
    # Behind an exhausted Krylov space all is 0: put the first entry there, which is not extreme.
    alive = jnp.sum(t.basis**2, 1) > 0
    diagonal = jnp.where(alive, t.diagonal, t.diagonal[0])
    values, vectors = jnp.linalg.eigh(t._replace(diagonal=diagonal).matrix)

    def measured(index: int) -> Eigenvalue:
        vector = t.basis.T @ vectors[:, index]
        vector = vector / jnp.linalg.norm(vector)
        return Eigenvalue(values[index], jnp.linalg.norm(product(vector) - values[index] * vector))

    return measured(0), measured(-1)


def largest_on_matrices(product: Matvec, n: int, steps: int, dtype: DTypeLike) -> Eigenvalue:
    """The largest eigenvalue of a self-adjoint map of ``[n, n]`` matrices that keeps them PSD.

    Its leading eigenvector is positive semidefinite (Krein and Rutman), so the identity, which is
    positive definite, has a share in it.
    """
    start = jnp.eye(n, dtype=dtype).reshape(-1)
    return extremes(lambda v: product(v.reshape(n, n)).reshape(-1), start, steps)[1]
