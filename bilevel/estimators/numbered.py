"""Row numbers in place of rows: what a step keeps for a backward pass is then a few integers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Loss, count_examples
from bilevel.solvers import DrawsAhead, take_rows
from bilevel.utils import DataTree, Hyper, Int, Params, Scalar


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
