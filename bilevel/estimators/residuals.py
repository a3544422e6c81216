"""How far the inner level is from its minimum: residuals of the full inner gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem, count_examples
from bilevel.utils import Hyper, Params, PyTree, Scalar, axpy, norm, vdot


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
    problem: Problem,
    hyper: Hyper,
    before: PyTree,
    after: PyTree,
    data: Data,
    reference: Scalar,
    sampled: bool = False,
) -> tuple[Scalar, Scalar]:
    """Return :func:`inner_residual` at the params ``after``.

    Neither a loop nor a branch: XLA runs convolutions inside of one many times slower on a CPU.
    From a random sample of the rows the noise of the gradient is taken out, on average, by the
    product of the two halves' gradients; what does not stand out of it is 0.
    """

    def size(params: Params) -> Array:
        return norm(full_gradient(problem, hyper, params, data)).astype(reference.dtype)

    first = jnp.where(reference > 0, reference, size(before))
    if not sampled:
        return _relative(size(after), first), first
    half = count_examples(data.inner) // 2

    def part(rows: slice) -> PyTree:
        some = jax.tree.map(lambda x: x[rows], data.inner)
        return full_gradient(problem, hyper, after, replace(data, inner=some))

    squared = vdot(part(slice(half)), part(slice(half, 2 * half))).astype(reference.dtype)
    return _relative(jnp.sqrt(jnp.maximum(squared, 0)), first), first


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
