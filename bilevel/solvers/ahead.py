"""Minibatches of a whole call drawn at once: in the loop each draw costs as much as a small step.

The rows are those that the steps would draw one by one, from the same keys.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.solvers.sampling import DrawnKey, Sampler
from bilevel.utils import DataTree, Int, Key, register_node

_MOST = 2**22  # row numbers kept for a call, 16 MiB: above, steps draw for themselves


@runtime_checkable
class DrawsAhead(Protocol):
    """A solver whose step does nothing with its key but to draw a batch by its ``sampler``."""

    @property
    def sampler(self) -> Sampler:
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
    solver: object, data: DataTree, key: Key | CallKey, count: int, first: int | Array = 0
) -> Key | CallKey:
    """Return the key of a call with the rows of ``count`` steps, or as it is where that is moot."""
    if isinstance(key, CallKey) or not isinstance(solver, DrawsAhead) or count < 2:
        return key
    sampler = solver.sampler
    size = sampler.batch_size
    if size is None or sampler.sampling != "iid" or count * size > _MOST:
        return key
    rows, _ = sampler.ahead(data, lambda k: jax.random.fold_in(key, first + k), (), count)
    return CallKey(key, rows, jnp.asarray(first, jnp.int32))


def step_key(key: Key | CallKey, k: int | Array) -> Key | DrawnKey:
    """Return the key of step ``k``: ``fold_in(key, k)``, with its rows where they are drawn."""
    if not isinstance(key, CallKey):
        return jax.random.fold_in(key, k)
    rows = jax.lax.dynamic_index_in_dim(key.rows, k - key.first, keepdims=False)
    return DrawnKey(jax.random.fold_in(key.key, k), rows)
