"""Row numbers drawn with replacement."""

import jax
import jax.numpy as jnp

from bilevel.utils import Int, Key

_MOST = 2**16  # rows up to which one random word per draw is uniform enough


def draw_rows(key: Key, size: int, n: int) -> Int[jax.Array, " size"]:
    """Return ``size`` row numbers below ``n``, ``[size]``, drawn uniformly with replacement.

    Up to 2**16 rows it is ``bits(key) % n``: no row is 2e-5 more probable than another. Above,
    ``jax.random.randint``, which is half of a small program's compilation.
    """
    if n > _MOST:
        return jax.random.randint(key, (size,), 0, n, jnp.int32)
    return (jax.random.bits(key, (size,), jnp.uint32) % n).astype(jnp.int32)
