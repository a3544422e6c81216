r"""A diagonal scaling that makes the rows of a symmetric operator alike, from products alone.

    d <- d / sqrt(r),   r_i^2 = mean_k (D H D z_k)_i^2,   z_k random signs

Bradley, Murray, "Matrix-Free Approximate Equilibration", arXiv:1110.2805, 2011. Rows of ``D H D``
of norm 1 have a diagonal near 1, up to how far the coordinates work together: the units of params
do not matter any more.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Matvec
from bilevel.utils import PyTree, cond_without_select

_PROBES = 4  # products in a round
_ROUGH, _FULL = 2, 2  # rounds of either kind, after a rough one that tells whether to go on
_UNSURE, _ALIKE = 10.0, 30.0  # ratios of scales, after a round and at last: below nothing is scaled


def equilibrate_rows(
    product: Matvec, like: PyTree, key: Array, rough: Matvec | None = None
) -> tuple[PyTree, Array]:
    """Return ``d``, like ``like``, and the products used; 1 where all scales are about alike.

    ``rough`` is a cheaper product, by which that is seen, such as that of some of the rows.
    """
    rough = product if rough is None else rough
    flat, unravel = ravel_pytree(like)

    def advance(product: Matvec, d: Array, key: Array) -> tuple[Array, None]:
        signs = jax.random.rademacher(key, (_PROBES, flat.size), flat.dtype)
        images = jax.vmap(lambda z: d * ravel_pytree(product(unravel(d * z)))[0])(signs)
        rows = jnp.sqrt(jnp.mean(images**2, axis=0))
        used = (rows > 0) & jnp.isfinite(rows)
        return d * jnp.where(used, jax.lax.rsqrt(jnp.where(used, rows, 1)), 1), None

    def refine(product: Matvec, d: Array, key: Array, rounds: int) -> Array:
        keys = jax.random.split(key, rounds)
        return jax.lax.scan(partial(advance, product), d, keys)[0]

    first, second, third = jax.random.split(key, 3)
    one = jnp.ones_like(flat)
    begun, _ = advance(rough, one, first)
    differ = jnp.max(begun) > _UNSURE * jnp.min(begun)
    d = cond_without_select(differ, lambda: refine(rough, begun, second, _ROUGH), one)
    differ = jnp.max(d) > _ALIKE * jnp.min(d)
    d = cond_without_select(differ, lambda: refine(product, d, third, _FULL), one)
    return unravel(d), jnp.where(differ, _PROBES * _FULL, 1)
