"""The loop of all solvers: steps of a fixed number, and the running mean of what they pass."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import FloatTree

_T = TypeVar("_T")


def repeat_step(
    advance: Callable[[Array, _T], _T],
    carry: _T,
    *,
    first: int | Array,
    length: int,
    averaged: Callable[[_T], FloatTree] | None = None,
) -> tuple[_T, FloatTree]:
    """Return ``carry = advance(k, carry)`` after ``k = first .. first + length - 1``, and a mean.

    The mean is that of ``averaged(carry)`` over these steps, ``None`` where it is not asked for.
    This is the loop of all solvers, and of the derivatives that are carried along with them.
    """

    def body(
        loop: tuple[Array, _T, FloatTree], _: None
    ) -> tuple[tuple[Array, _T, FloatTree], None]:
        k, carry, mean = loop
        carry = advance(k, carry)
        if averaged is not None:
            mean = _running_mean(mean, averaged(carry), k - first)
        return (k + 1, carry, mean), None

    mean = None if averaged is None else averaged(carry)
    initial = (jnp.asarray(first, jnp.int32), carry, mean)
    (_, carry, mean), _ = jax.lax.scan(body, initial, length=length)
    return carry, mean


def _running_mean(mean: FloatTree, new: FloatTree, count: Array) -> FloatTree:
    """Return the mean of ``count + 1`` trees from that of the first ``count`` and the next one."""
    return jax.tree.map(lambda m, x: (m + (x - m) / (count + 1)).astype(m.dtype), mean, new)
