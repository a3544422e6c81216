"""Rules that correct a minibatch by what was seen before: their noise vanishes at the solution."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from bilevel.single_loop.rules import Memoryless, Recursive, Sample
from bilevel.utils import PyTree, register_node, require_positive, require_positive_int, zeros_like


@dataclass(frozen=True)
class SAGA(Memoryless):
    """A table of directions: ``now - table[block] + mean(table)``, then ``table[block] = now``.

    The table starts at zero.

    Defazio, Bach, Lacoste-Julien, NeurIPS 2014. Memory: a direction per minibatch of the data.
    """

    by_level: ClassVar[bool] = True

    def init(self, parts: tuple, blocks: tuple[int, ...]) -> PyTree:
        """Return ``(table [blocks, *leaf], mean [*leaf])`` for each part."""

        def table(part: PyTree, n: int) -> PyTree:
            return jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), leaf.dtype), part)

        pairs = zip(parts, blocks, strict=False)  # the inner level's alone, or both
        return tuple((table(part, n), zeros_like(part)) for part, n in pairs)

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the corrected direction; the table takes the new entry."""
        directions, memories = [], []
        for now, (table, mean), (j, n) in zip(sample.now, memory, sample.slots, strict=False):
            old = jax.tree.map(partial(_row, j), table)
            change = jax.tree.map(jnp.subtract, now, old)
            directions.append(jax.tree.map(jnp.add, change, mean))
            put = partial(lax.dynamic_update_index_in_dim, index=j, axis=0)
            table = jax.tree.map(lambda t, o, c, put=put: put(t, o + c), table, old, change)
            mean = jax.tree.map(lambda m, c, n=n: m + c / n, mean, change)
            memories.append((table, mean))
        return tuple(directions), tuple(memories)


@dataclass(frozen=True)
class SVRG(Recursive):
    """A snapshot, renewed every ``period`` steps: ``now - snapshot + full(snapshot)``.

    Johnson, Zhang, NeurIPS 2013.

    Parameters
    ----------
    period : steps between two full directions; ``None``: ``(n + m) / (2 batch_size)``.
    """

    period: int | None = None
    looks_back: ClassVar[str | None] = "snapshot"

    def __post_init__(self) -> None:
        """Validate the period."""
        _check_period(self)

    def due(self, count: Array, coin: Array, period: int) -> bool | Array:
        """Return whether a period begins; the first step is included."""
        del coin
        return count % (self.period or period) == 0

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the corrected direction; memory is the snapshot's full one."""
        memory = _where(sample.due, sample.full, memory)
        corrected = jax.tree.map(lambda n, s, f: n - s + f, sample.now, sample.snapshot, memory)
        return _where(sample.due, sample.full, corrected), memory


@dataclass(frozen=True)
class SARAH(Recursive):
    """A recursion, ``now - previous + old``; every ``period`` steps the full direction instead.

    Nguyen, Liu, Scheinberg, Takac, ICML 2017.

    Parameters
    ----------
    period : steps between two full directions; ``None``: ``(n + m) / (2 batch_size)``.
    """

    period: int | None = None
    looks_back: ClassVar[str | None] = "previous"

    def __post_init__(self) -> None:
        """Validate the period."""
        _check_period(self)

    def due(self, count: Array, coin: Array, period: int) -> bool | Array:
        """Return whether a period begins; the first step is included."""
        del coin
        return count % (self.period or period) == 0

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the recursive direction."""
        return _recursive(sample, memory)


@dataclass(frozen=True)
class PAGE(Recursive):
    """SARAH whose full directions come by a coin: with ``probability``, and at the first step.

    Li, Bao, Zhang, Richtarik, ICML 2021. All variables share one coin.

    Parameters
    ----------
    probability : a number in (0, 1]; ``None``: ``2 batch_size / (n + m)``.
    """

    probability: float | Array | None = None
    looks_back: ClassVar[str | None] = "previous"

    def __post_init__(self) -> None:
        """Validate the probability."""
        if self.probability is not None:
            require_positive("PAGE", "probability", self.probability)

    def due(self, count: Array, coin: Array, period: int) -> bool | Array:
        """Decide by the coin."""
        probability = 1 / period if self.probability is None else self.probability
        return (coin < probability) | (count == 0)

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the recursive direction."""
        return _recursive(sample, memory)


for _rule, _leaves, _static in (
    (SAGA, [], []),
    (SVRG, [], ["period"]),
    (SARAH, [], ["period"]),
    (PAGE, ["probability"], []),
):
    register_node(_rule, data_fields=_leaves, meta_fields=_static)


def _check_period(rule: SVRG | SARAH) -> None:
    """Validate the period."""
    if rule.period is not None:
        require_positive_int(type(rule).__name__, "period", rule.period)


def _where(flag: bool | Array, yes: PyTree, no: PyTree) -> PyTree:
    """Choose one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)


def _row(j: Array, table: Array) -> Array:
    """Return entry j, read before anything is written: a branch is not fused into what comes later.

    Together with writing ``old + change``, which waits for it, this lets XLA write in place. Else
    it copies the whole table at every step.
    """
    blank = jnp.zeros(table.shape[1:], table.dtype)
    return lax.cond(
        j >= 0, lambda t: lax.dynamic_index_in_dim(t, j, 0, False), lambda _: blank, table
    )


def _recursive(sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
    """Return ``now - previous + old``, the full direction where it is due."""
    moved = jax.tree.map(lambda n, p, o: n - p + o, sample.now, sample.previous, memory)
    direction = _where(sample.due, sample.full, moved)
    return direction, direction
