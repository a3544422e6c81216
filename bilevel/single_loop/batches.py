"""Minibatches of both levels: independent draws, or fixed blocks that index a table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, count_examples
from bilevel.solvers import Lazy, Sampler, take_rows
from bilevel.utils import PyTree

# Examples per minibatch, of both levels or of each; ``None``: all of them.
BatchSize: TypeAlias = int | tuple[int | None, int | None] | None


class Drawn(NamedTuple):
    """A minibatch: its examples (``None`` for a block) and its number among the blocks."""

    batch: PyTree
    block: Array


@dataclass(frozen=True)
class Batches:
    """The minibatches of one level: ``size`` examples per draw, ``None`` for all of them.

    With ``blocks`` the examples are cut, in their order, into ``ceil(n / size)`` blocks, the last
    one smaller where ``size`` does not divide n. A mean over block j is then multiplied by ``n_j
    blocks / n``, which is 1 for equal blocks: so the blocks weigh alike, and the mean over all of
    them is the mean over all examples.
    """

    size: int | None
    sampling: str
    blocks: bool

    def __post_init__(self) -> None:
        """Validate what can be before the data is known."""
        Sampler(self.size, self.sampling)

    def count(self, data: PyTree) -> int:
        """Return the minibatches per pass, rounded up; 1 for the full batch."""
        n = count_examples(data)
        return -(-n // (self.size or n))

    def check(self, level: str, data: PyTree) -> None:
        """Raise if there are fewer examples than a minibatch takes."""
        if self.size is not None and self.size > count_examples(data):
            raise ValueError(
                f"batch_size={self.size} is larger than the number of {level} examples, "
                f"{count_examples(data)}. Use a smaller batch, None for the full batch, or a pair "
                "batch_size=(inner, outer)."
            )

    def init(self, data: PyTree) -> PyTree:
        """Return the sampler's state."""
        sampler, items = self._sampler(data)
        return sampler.init(items)

    def draw(self, data: PyTree, key: Array | Lazy, state: PyTree) -> tuple[Drawn, PyTree]:
        """Return the next minibatch and the sampler's state."""
        sampler, items = self._sampler(data)
        if not self.blocks or self.size is None:
            batch, state = sampler.draw(data, key, state)
            return Drawn(batch, jnp.zeros((), jnp.int32)), state
        rows, state = sampler.indices(items, key, state)
        return Drawn(None, rows[0]), state

    def ahead(
        self, data: PyTree, keys: Callable[[Array], Array], state: PyTree, count: int
    ) -> tuple[Callable[[Array], Drawn], PyTree]:
        """Return ``i -> minibatch i`` of the next ``count``, of ``keys(i)``, and the state."""
        if self.size is None:
            return self._numbered(data, None), state
        sampler, items = self._sampler(data)
        rows, state = sampler.ahead(items, keys, state, count)
        return self._numbered(data, rows), state

    def series(
        self, data: PyTree, key: Array, state: PyTree, count: int
    ) -> tuple[Callable[[Array], Drawn], PyTree]:
        """Return ``i -> minibatch i`` of the ``count`` of a series, and the sampler's state.

        The next ones of the epoch, or independent ones, all drawn with one key.
        """
        if self.size is None or self.sampling != "iid":
            return self.ahead(data, partial(jax.random.fold_in, key), state, count)
        n, width = (self.count(data), 1) if self.blocks else (count_examples(data), self.size)
        rows = jax.random.randint(key, (count, width), 0, n, jnp.int32)
        return self._numbered(data, rows), state

    def _numbered(self, data: PyTree, rows: Array | None) -> Callable[[Array], Drawn]:
        """Return ``i -> `` the minibatch of ``rows[i]``; ``None``: all examples."""
        none = jnp.zeros((), jnp.int32)
        if rows is None:
            return lambda i: Drawn(data, none)
        if self.blocks:
            return lambda i: Drawn(None, rows[i, 0])
        return lambda i: Drawn(jax.tree.map(lambda leaf: take_rows(leaf, rows[i]), data), none)

    def _sampler(self, data: PyTree) -> tuple[Sampler, PyTree]:
        """Return the sampler, and what it samples: examples, or numbers of blocks."""
        if not self.blocks or self.size is None:
            return Sampler(self.size, self.sampling), data
        return Sampler(1, self.sampling), jnp.arange(self.count(data))

    def mean(self, fn: Callable[[PyTree], PyTree], data: PyTree, drawn: Drawn) -> PyTree:
        """Apply ``fn``, a mean over examples, to the minibatch; a block has a weight."""
        if drawn.batch is not None:
            return fn(drawn.batch)
        n, blocks, size = count_examples(data), self.count(data), self.size or count_examples(data)
        last = n - (blocks - 1) * size

        def at(start: int | Array, length: int) -> PyTree:
            cut = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, length),
                jax.tree.map(jnp.asarray, data),
            )
            weight = length * blocks / n
            return fn(cut) if weight == 1 else jax.tree.map(lambda x: weight * x, fn(cut))

        if last == size:
            return at(drawn.block * size, size)
        return jax.lax.cond(
            drawn.block == blocks - 1,
            lambda: at(n - last, last),
            lambda: at(drawn.block * size, size),
        )


class Minibatches(NamedTuple):
    """The minibatches of both levels."""

    inner: Batches
    outer: Batches

    @classmethod
    def from_size(
        cls, size: int | tuple[int | None, int | None] | None, sampling: str, blocks: bool = False
    ) -> "Minibatches":
        """Make those of one size for both levels, or of a pair ``(inner, outer)``."""
        inner, outer = size if isinstance(size, tuple) else (size, size)
        return cls(Batches(inner, sampling, blocks), Batches(outer, sampling, blocks))

    def per_pass(self, data: Data) -> tuple[int, int]:
        """Return the minibatches per pass of both levels."""
        return self.inner.count(data.inner), self.outer.count(data.outer)

    def init(self, data: Data) -> tuple[PyTree, PyTree]:
        """Return the states of both samplers; check that there are examples enough."""
        self.inner.check("inner", data.inner)
        self.outer.check("outer", data.outer)
        return self.inner.init(data.inner), self.outer.init(data.outer)
