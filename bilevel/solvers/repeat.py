"""The loop of all solvers: steps of a fixed number, the mean of what they pass, and their keys.

The minibatches of a call are drawn at once: in the loop each draw costs as much as a small step.
The rows are those that the steps would draw one by one, from the same keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import INDEPENDENT
from bilevel.utils import Counter, DataTree, FloatTree, Int, Key, register_node

_T = TypeVar("_T")
_MOST = 2**22  # row numbers drawn ahead, 16 MiB: above, steps draw for themselves


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


@dataclass(frozen=True)
class DrawnKey:
    """The key of a step, and the rows ``[b]`` that it draws."""

    key: Key
    rows: Int[Array, " b"]


register_node(DrawnKey)
StepKey: TypeAlias = Key | DrawnKey  # the latter for a solver that :class:`DrawsAhead`


@runtime_checkable
class DrawsRows(Protocol):
    """What draws the rows of minibatches, as :class:`bilevel.solvers.Sampler` does."""

    @property
    def batch_size(self) -> int | None:
        """Rows of a minibatch; ``None`` for all."""
        ...

    @property
    def sampling(self) -> str:
        """Return one of ``INDEPENDENT`` where a draw depends on its key alone."""
        ...

    def ahead(
        self, data: DataTree, keys: Callable[[Counter], Key], state: tuple, count: int
    ) -> tuple[Int[Array, "count b"], tuple]:
        """Return the rows of ``count`` minibatches, the k-th drawn by ``keys(k)``."""
        ...


@runtime_checkable
class DrawsAhead(Protocol):
    """A solver whose step does nothing with its key but to draw a batch by its ``sampler``."""

    @property
    def sampler(self) -> "DrawsRows":
        """How minibatches are drawn."""
        ...


@dataclass(frozen=True)
class CallKey:
    """The key of a call, and the rows ``[count, b]`` of the steps from number ``first`` on."""

    key: Key
    rows: Int[Array, "count b"]
    first: Int[Array, ""]


register_node(CallKey)


def draw_ahead(
    solver: object,
    data: DataTree,
    key: Key | CallKey,
    count: int,
    first: int | Array = 0,
    most: int = _MOST,
) -> Key | CallKey:
    """Return the key of a call with the rows of ``count`` steps, or as it is where that is moot.

    More than ``most`` row numbers are not drawn ahead.
    """
    if isinstance(key, CallKey) or not isinstance(solver, DrawsAhead) or count < 2:
        return key
    sampler = solver.sampler
    size = sampler.batch_size
    if size is None or sampler.sampling not in INDEPENDENT or count * size > most:
        return key
    rows, _ = sampler.ahead(data, lambda k: jax.random.fold_in(key, first + k), (), count)
    return CallKey(key, rows, jnp.asarray(first, jnp.int32))


def step_key(key: Key | CallKey, k: int | Array) -> Any:
    """Return the key of step ``k``: ``fold_in(key, k)``, with its rows where they are drawn.

    A :class:`DrawnKey` for a solver that :class:`DrawsAhead`; others see plain keys only.
    """
    if not isinstance(key, CallKey):
        return jax.random.fold_in(key, k)
    rows = jax.lax.dynamic_index_in_dim(key.rows, k - key.first, keepdims=False)
    return DrawnKey(jax.random.fold_in(key.key, k), rows)
