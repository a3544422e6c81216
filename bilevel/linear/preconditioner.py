"""What brings an adjoint system nearer to the identity, so that CG takes fewer products."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Matvec, Operator
from bilevel.utils import Count, PyTree


class Inverse(NamedTuple):
    """``apply(v)``, symmetric and positive definite, about ``H^{-1} v``; ``matvecs`` it took."""

    apply: Matvec
    matvecs: Count


@runtime_checkable
class InvertsOperator(Protocol):
    """Anything that makes an approximate inverse of an operator: one method.

    It decides how many products a solve takes, never what is solved: the residual is that of the
    system itself. Frozen dataclasses that are registered as pytrees.
    """

    def invert(self, operator: Operator, like: PyTree, key: Array | None) -> Inverse:
        """Return the approximate inverse for vectors ``like``."""
        ...


def floor_curvatures(curvatures: Array, damping: float | Array | None, share: float) -> Array:
    """Return ``|curvatures| + damping``, none below ``share`` of the mean: they are divided by."""
    size = jnp.abs(curvatures) + (0 if damping is None else damping)
    least = jnp.maximum(share * jnp.mean(size), jnp.finfo(size.dtype).tiny)
    return jnp.maximum(size, least)
