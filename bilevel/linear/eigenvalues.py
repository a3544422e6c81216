"""Eigenvalues of a symmetric operator, from products alone: power iteration and Lanczos.

Power iteration works on trees, keeps one vector and is enough for a step size; Lanczos works on
flat vectors, keeps them all, finds both ends of the spectrum, and bounds its own error.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bilevel.linear import lanczos
from bilevel.linear.base import Matvec, divide_by_norm
from bilevel.utils import PyTree, norm, vdot

POWER_STEPS = 20  # enough to come within a few per cent, which a step size does not feel


def power_iteration(matvec: Matvec, start: PyTree, steps: int | Array) -> PyTree:
    """Return the unit vector that ``steps`` products turn ``start`` into; 0 stays 0."""

    def normalise(v: PyTree) -> PyTree:
        return divide_by_norm(v, norm(v))

    return jax.lax.fori_loop(0, steps, lambda _, v: normalise(matvec(v)), normalise(start))


def largest_eigenvalue(
    matvec: Matvec, like: PyTree, key: Array, steps: int | Array = POWER_STEPS
) -> Array:
    """Return the largest eigenvalue in modulus of a symmetric operator on trees like ``like``.

    Its modulus is a lower bound that ``steps + 1`` products bring close: the Rayleigh quotient of
    the last vector; ``()``.
    """
    v = power_iteration(matvec, gaussian(like, key), steps)
    return vdot(v, matvec(v))


def spectral_norm(matvec: Matvec, start: PyTree, steps: int) -> Array:
    """Return a lower bound of the spectral norm of a symmetric operator, by ``steps`` products.

    The length of the last image, ``()``: closer than the Rayleigh quotient, and without its sign.
    """
    return norm(matvec(power_iteration(matvec, start, steps - 1)))


def largest_without_compiling(
    matvec: Callable[[np.ndarray], np.ndarray], start: np.ndarray, tol: float = 1e-6
) -> float:
    """Return the largest eigenvalue of a positive semidefinite operator on NumPy vectors.

    Power iteration in NumPy until the Rayleigh quotient changes by less than ``tol`` of itself: for
    small operators that are asked once each, where a compilation would take longest of all.
    """
    v, largest, before = start, 1.0, 0.0
    while abs(largest - before) > tol * largest:
        v = v / np.linalg.norm(v)
        image = matvec(v)
        largest, before, v = float(v @ image), largest, image
    return largest


def gaussian(like: PyTree, key: Array) -> PyTree:
    """Return independent standard normal entries, like ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, draws)


class Eigenvalue(NamedTuple):
    """A ``value`` with an ``error`` within which an eigenvalue of the operator lies.

    Both ``()``.
    """

    value: Array
    error: Array


def extremes(product: Matvec, start: Array, steps: int) -> tuple[Eigenvalue, Eigenvalue]:
    r"""Return the smallest and the largest eigenvalue that ``steps`` Lanczos products show.

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
    t = lanczos.tridiagonal(product, start, steps)
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
    """Return the largest eigenvalue of a self-adjoint map of PSD matrices to PSD matrices.

    Its leading eigenvector is positive semidefinite (Krein and Rutman), so the identity, which is
    positive definite, has a share in it.
    """
    start = jnp.eye(n, dtype=dtype).reshape(-1)
    return extremes(lambda v: product(v.reshape(n, n)).reshape(-1), start, steps)[1]
