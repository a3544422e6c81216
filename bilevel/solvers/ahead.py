"""Minibatches of a whole call drawn at once: in the loop each draw costs as much as a small step.

The rows are those that the steps would draw one by one, from the same keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Loss, count_examples
from bilevel.solvers.sampling import DrawnKey, Sampler, take_rows
from bilevel.utils import DataTree, Hyper, Int, Key, Params, Scalar, register_node

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


def draw_ahead(solver: object, data: DataTree, key: Key, count: int, first: int | Array = 0) -> Key:
    """Return the key of a call with the rows of ``count`` steps, or as it is where that is moot."""
    if isinstance(key, CallKey) or not isinstance(solver, DrawsAhead) or count < 2:
        return key
    sampler = solver.sampler
    size = sampler.batch_size
    if size is None or sampler.sampling != "iid" or count * size > _MOST:
        return key
    rows, _ = sampler.ahead(data, lambda k: jax.random.fold_in(key, first + k), (), count)
    return cast(Key, CallKey(key, rows, jnp.asarray(first, jnp.int32)))


def step_key(key: Key, k: int | Array) -> Key:
    """Return the key of step ``k``: ``fold_in(key, k)``, with its rows where they are drawn."""
    if not isinstance(key, CallKey):
        return jax.random.fold_in(key, k)
    rows = jax.lax.dynamic_index_in_dim(key.rows, k - key.first, keepdims=False)
    return cast(Key, DrawnKey(jax.random.fold_in(key.key, k), rows))


class NumberedBatch(NamedTuple):
    """A minibatch as the ``numbers [b]`` of its rows, and all rows."""

    numbers: Int[Array, " b"]
    rows: DataTree


@dataclass(frozen=True)
class NumberedRows:
    """Data as a solver that draws ahead may see it: each inner row is its number.

    What a step keeps for a backward pass is then its row numbers, and all the ``rows`` once. Where
    ``rows`` is ``None`` the solver sees the data themselves.
    """

    data: Data
    rows: DataTree

    @classmethod
    def of(cls, solver: object, data: Data) -> "NumberedRows":
        """Return numbered rows for a solver whose minibatches are drawn by a sampler."""
        if not isinstance(solver, DrawsAhead) or solver.sampler.batch_size is None:
            return cls(data, None)
        numbers = jnp.arange(count_examples(data.inner), dtype=jnp.int32)
        return cls(Data(numbers, data.outer), data.inner)

    def loss(self, loss: Loss, rule: Callable[[Loss], Loss] = lambda loss: loss) -> Loss:
        """Return the loss of batches of ``data``; ``rule`` is applied around the lookup of rows."""
        if self.rows is None:
            return rule(loss)

        @rule
        def of_rows(params: Params, hyper: Hyper, batch: NumberedBatch) -> Scalar:
            drawn = jax.tree.map(lambda x: take_rows(x, batch.numbers), batch.rows)
            return loss(params, hyper, drawn)

        return lambda params, hyper, numbers: of_rows(
            params, hyper, NumberedBatch(numbers, self.rows)
        )
