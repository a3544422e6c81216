"""How far the inner level is from its minimum: residuals of the full inner gradient."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.utils import Hyper, Params, PyTree, Scalar, axpy, norm


def inner_residual(
    problem: Problem, hyper: Hyper, before: PyTree, end: PyTree, data: Data, reference: Scalar
) -> tuple[Scalar, Scalar]:
    """Return ``(|end| / reference, reference)`` for the full inner gradient ``end`` at the end.

    The reference is the gradient's norm at the params ``before``, measured when it is still 0.
    """

    def measure() -> Array:
        return norm(full_gradient(problem, hyper, before, data)).astype(reference.dtype)

    reference = jax.lax.cond(reference > 0, lambda: reference, measure)
    return _relative(norm(end).astype(reference.dtype), reference), reference


def find_progress(
    problem: Problem, hyper: Hyper, before: PyTree, after: PyTree, data: Data, reference: Scalar
) -> tuple[Scalar, Scalar]:
    """Return :func:`inner_residual` at the params ``after``, by one program for both gradients.

    One after the other: XLA multiplies a matrix by two vectors slower than by one twice.
    """

    def size(params: Params) -> Array:
        return norm(full_gradient(problem, hyper, params, data)).astype(reference.dtype)

    def both() -> tuple[Array, Array]:
        sizes = jax.lax.map(size, jax.tree.map(lambda *x: jnp.stack(x), before, after))
        return sizes[0], sizes[1]

    reference, end = jax.lax.cond(reference > 0, lambda: (reference, size(after)), both)
    return _relative(end, reference), reference


def _relative(size: Array, reference: Scalar) -> Array:
    return jnp.where(size == 0, 0, size / reference)


def full_gradient(problem: Problem, hyper: Hyper, params: Params, data: Data) -> PyTree:
    """Return the gradient of the inner loss over all inner examples, like ``params``.

    With a proximal part it is the proximal-gradient mapping ``params - prox(params - gradient)``,
    which vanishes at the minimiser as the gradient does without one.
    """
    gradient = jax.grad(problem.inner)(params, hyper, data.inner)
    if problem.prox is None:
        return gradient
    moved = problem.prox(axpy(-1, gradient, params), hyper, 1.0)
    return axpy(-1, moved, params)
