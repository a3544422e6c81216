"""Minibatches: which examples a step sees, drawn inside the compiled loop."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.core import (
    INDEPENDENT,
    count_examples,
    draw_distinct_rows,
    draw_rows,
    shuffles_all,
)
from bilevel.solvers.repeat import DrawnKey, StepKey
from bilevel.utils import (
    Counter,
    DataTree,
    Int,
    Key,
    Shaped,
    cond_without_select,
    require_positive_int,
)

SAMPLINGS = (*INDEPENDENT, "epoch")
_BLOCK = 2**12  # row numbers drawn at once
Lazy: TypeAlias = Callable[[], Key]
SamplerState: TypeAlias = tuple[Int[Array, "..."], ...]  # permutation, position


@dataclass(frozen=True)
class Sampler:
    """Draw ``batch_size`` of the n examples per step; ``batch_size=None`` is the full batch.

    ``"iid"`` draws with replacement; ``"without_replacement"`` a batch of different examples, every
    subset as likely, whatever the batches before it were. ``"epoch"`` takes one random permutation
    after the other; where the batch size does not divide n a batch runs on into the next one, so
    that every example is drawn exactly once per n draws. ``"stream"`` takes the rows in their
    order, and begins again where they end: a block of minibatches of a :class:`bilevel.Stream`.

    Raises
    ------
    ValueError : unknown ``sampling``, a batch size below 1, or (when drawing) above n.
    """

    batch_size: int | None
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if self.sampling not in (*SAMPLINGS, "stream"):
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {self.sampling!r}.")
        if self.batch_size is not None:
            require_positive_int("minibatches", "batch_size", self.batch_size)

    def init(self, data: DataTree) -> SamplerState:
        """Return an exhausted epoch, ``(permutation [n], position)``; ``()`` without epochs."""
        n = count_examples(data)
        if self.batch_size is not None and self.batch_size > n:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the number of inner examples, {n}. "
                "Use a smaller batch, or batch_size=None for the full batch."
            )
        if self.batch_size is None or self.sampling in INDEPENDENT:
            return ()
        if self.sampling == "stream":
            return (jnp.zeros((), jnp.int32),)
        return jnp.arange(n, dtype=jnp.int32), jnp.asarray(n, jnp.int32)

    def indices(
        self, data: DataTree, key: StepKey | Lazy, state: SamplerState
    ) -> tuple[Int[Array, " b"], SamplerState]:
        """Return the row numbers of the next batch, ``[batch_size]``, and the new state.

        A key may be given as the function that makes it: epochs need one only where they shuffle.
        """
        n, b = count_examples(data), self.batch_size
        if b is None:
            return jnp.arange(n, dtype=jnp.int32), state
        if isinstance(key, DrawnKey):
            return key.rows, state
        if self.sampling == "iid":
            return draw_rows(_made(key), b, n), state
        if self.sampling == "without_replacement":
            return draw_distinct_rows(_made(key), b, n), state
        if self.sampling == "stream":
            rows = (state[0] + jnp.arange(b, dtype=jnp.int32)) % n
            return rows, ((state[0] + b) % n,)
        order, position = state
        exhausted = position + b > n

        def shuffle() -> Array:
            return jax.random.permutation(_made(key), jnp.arange(n, dtype=jnp.int32))

        following = cond_without_select(exhausted, shuffle, order)
        if n % b == 0:  # no batch runs on: the old permutation is read no more, and not copied
            begin = jnp.where(exhausted, 0, position)
            return jax.lax.dynamic_slice(following, (begin,), (b,)), (following, begin + b)
        slots = position + jnp.arange(b, dtype=jnp.int32)
        rows = jnp.where(
            slots < n, order[jnp.minimum(slots, n - 1)], following[jnp.maximum(slots - n, 0)]
        )
        return rows, (following, jnp.where(exhausted, position + b - n, position + b))

    def ahead(
        self, data: DataTree, keys: Callable[[Counter], Key], state: SamplerState, count: int
    ) -> tuple[Int[Array, "count b"], SamplerState]:
        """Return the rows of the next ``count`` batches, ``[count, batch_size]``, and the state.

        Those of as many calls of ``indices``, the k-th with ``keys(k)``, at the cost of about one.
        """
        n, b = count_examples(data), self.batch_size
        steps = jnp.arange(count)
        if b is None or self.sampling in INDEPENDENT:
            return self._in_blocks(data, keys, state, count), state
        if self.sampling == "stream":
            rows = (state[0] + jnp.arange(count * b, dtype=jnp.int32)) % n
            return rows.reshape(count, b), ((state[0] + count * b) % n,)
        if count * b > n:  # more than one shuffle may be due

            def one(state: SamplerState, k: Counter) -> tuple[SamplerState, Array]:
                rows, state = self.indices(data, partial(keys, k), state)
                return state, rows

            state, rows = jax.lax.scan(one, state, steps)
            return rows, state
        order, position = state
        whole = (n - position) // b  # batches that what is left of the permutation still fills
        exhausted = whole < count

        def shuffle() -> Array:
            return jax.random.permutation(keys(whole), jnp.arange(n, dtype=jnp.int32))

        slots = position + jnp.arange(count * b, dtype=jnp.int32)
        old = order[jnp.minimum(slots, n - 1)]
        following = cond_without_select(exhausted, shuffle, order)
        rows = jnp.where(slots < n, old, following[jnp.maximum(slots - n, 0)])
        end = position + count * b
        return rows.reshape(count, b), (following, jnp.where(exhausted, end - n, end))

    def _in_blocks(
        self, data: DataTree, keys: Callable[[Counter], Key], state: SamplerState, count: int
    ) -> Int[Array, "count b"]:
        """Return rows of independent batches, in blocks: drawing needs several times their memory.

        The last block may be too long, so that there is one kind of block to compile.
        """
        n = count_examples(data)
        b = self.batch_size or n
        shuffled = self.sampling == "without_replacement" and shuffles_all(b, n)
        block = min(count, max(_BLOCK // (n if shuffled else b), 1))
        blocks = -(-count // block)
        draw = jax.vmap(lambda k: self.indices(data, keys(k), state)[0])
        rows = jax.lax.map(draw, jnp.arange(blocks * block).reshape(blocks, block))
        return rows.reshape(blocks * block, -1)[:count]

    def draw(
        self, data: DataTree, key: StepKey | Lazy, state: SamplerState
    ) -> tuple[DataTree, SamplerState]:
        """Return the next batch, leading axis ``batch_size``, and the new state."""
        if self.batch_size is None:
            return data, state
        rows, state = self.indices(data, key, state)
        return jax.tree.map(lambda leaf: take_rows(leaf, rows), data), state


def _made(key: Key | Lazy) -> Array:
    return key() if callable(key) else key


def take_rows(leaf: ArrayLike, rows: Int[Array, " b"]) -> Shaped[Array, "..."]:
    """Return rows of one data leaf; ``rows`` are known to lie within it."""
    return jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds")
