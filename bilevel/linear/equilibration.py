r"""A diagonal scaling that makes the rows of a symmetric operator alike, from products alone.

    d <- d / sqrt(r),   r_i^2 = mean_k (D H D z_k)_i^2,   z_k random signs

Bradley, Murray, "Matrix-Free Approximate Equilibration", arXiv:1110.2805, 2011. Rows of ``D H D``
of norm 1 have a diagonal near 1, up to how far the coordinates work together: the units of params
do not matter any more.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Matvec
from bilevel.utils import PyTree

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

    def refine(
        product: Matvec, d: Array, key: Array, sure: Array | int, most: int, least: float
    ) -> Array:
        """Take ``sure`` rounds, then up to ``most`` while the ratio of scales is above ``least``.

        One loop, as every copy of a product is compiled anew.
        """

        def advance(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            k, d = carry
            shape = (_PROBES, flat.size)
            signs = jax.random.rademacher(jax.random.fold_in(key, k), shape, flat.dtype)
            images = jax.lax.map(lambda z: d * ravel_pytree(product(unravel(d * z)))[0], signs)
            rows = jnp.sqrt(jnp.mean(images**2, axis=0))
            used = (rows > 0) & jnp.isfinite(rows)
            return k + 1, d * jnp.where(used, jax.lax.rsqrt(jnp.where(used, rows, 1)), 1)

        def goes_on(carry: tuple[Array, Array]) -> Array:
            k, d = carry
            return (k < sure) | ((k < most) & (jnp.max(d) > least * jnp.min(d)))

        return jax.lax.while_loop(goes_on, advance, (jnp.zeros((), int), d))[1]

    first, second = jax.random.split(key)
    d = refine(rough, jnp.ones_like(flat), first, 1, 1 + _ROUGH, _UNSURE)
    differ = jnp.max(d) > _ALIKE * jnp.min(d)
    d = refine(product, jnp.where(differ, d, 1), second, jnp.where(differ, _FULL, 0), 0, jnp.inf)
    return unravel(d), jnp.where(differ, _PROBES * _FULL, 1)
