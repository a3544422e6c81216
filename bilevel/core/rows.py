"""Row numbers drawn at random: with replacement, and a subset of all without."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import Int, Key

INDEPENDENT = ("iid", "without_replacement")  # samplings whose batches depend on no other batch
_MOST = 2**16  # rows up to which one random word per draw is uniform enough
_PAIRS = 64  # pairs of draws for each row, above which shuffling all rows is cheaper


def draw_rows(key: Key, size: int, n: int) -> Int[Array, " size"]:
    """Return ``size`` row numbers below ``n``, ``[size]``, drawn uniformly with replacement.

    Up to 2**16 rows it is ``bits(key) % n``: no row is 2e-5 more probable than another. Above,
    ``jax.random.randint``, which is half of a small program's compilation.
    """
    if n > _MOST:
        return jax.random.randint(key, (size,), 0, n, jnp.int32)
    return (jax.random.bits(key, (size,), jnp.uint32) % n).astype(jnp.int32)


def draw_distinct_rows(key: Key, size: int, n: int) -> Int[Array, " size"]:
    """Return ``size`` different row numbers below ``n``, ``[size]``, in random order.

    Every subset is as likely as every other, up to what :func:`draw_rows` says. The beginning of a
    shuffle by transpositions (Fisher and Yates), of which only the places that were touched are
    kept: O(size) memory, O(size^2) comparisons. Where these are many, all rows are shuffled.
    """
    if shuffles_all(size, n):
        return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[:size]
    steps = jnp.arange(size, dtype=jnp.int32)
    left = n - steps  # rows that draw k may still choose from
    if n > _MOST:
        targets = steps + jax.random.randint(key, (size,), 0, left, jnp.int32)
    else:
        words = jax.random.bits(key, (size,), jnp.uint32)
        targets = steps + (words % left.astype(jnp.uint32)).astype(jnp.int32)

    def swap(k: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, moved = now  # moved[j]: the row that draw j put into the place targets[j]

        def row_at(place: Array) -> Array:
            last = jnp.max(jnp.where((targets == place) & (steps < k), steps, -1))
            return jnp.where(last < 0, place, moved[last])

        return rows.at[k].set(row_at(targets[k])), moved.at[k].set(row_at(k))

    return jax.lax.fori_loop(0, size, swap, (steps, steps))[0]


def shuffles_all(size: int, n: int) -> bool:
    """Return whether :func:`draw_distinct_rows` shuffles all rows, in O(n) memory for each draw."""
    return size**2 > _PAIRS * n
