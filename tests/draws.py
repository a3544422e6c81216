"""The documented draw of rows with replacement, by hand."""

from typing import Any

import jax
import jax.numpy as jnp


def rows_by_hand(key: Any, size: int, n: int) -> jax.Array:
    """``size`` of at most 2**16 rows: the remainder of a random word each."""
    return jax.random.bits(key, (size,), jnp.uint32) % n
