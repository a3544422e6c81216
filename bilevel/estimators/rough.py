"""Numbers of which one digit is enough: a few steps of conjugate gradients, relative sizes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel.utils import PyTree, axpy, norm, vdot, zeros_like


def solve_roughly(product: Callable[[PyTree], PyTree], b: PyTree, steps: int) -> PyTree:
    """Return ``H^{-1} b`` by a few steps of conjugate gradients, up to negative curvature."""
    length = norm(b)
    scaled = jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), b)

    def advance(carry: PyTree, _: None) -> tuple[PyTree, None]:
        x, r, p, squared = carry
        image = product(p)
        curvature = vdot(p, image)
        good = (curvature > 0) & (squared > 0)
        alpha = jnp.where(good, squared / jnp.where(good, curvature, 1), 0)
        x, r = axpy(alpha, p, x), axpy(-alpha, image, r)
        following = jnp.where(good, vdot(r, r), 0)
        p = axpy(following / jnp.where(squared > 0, squared, 1), p, r)
        return (x, r, p, following), None

    begin = zeros_like(scaled), scaled, scaled, vdot(scaled, scaled)
    (x, _, _, _), _ = jax.lax.scan(advance, begin, length=steps)
    return jax.tree.map(lambda x: length * x, x)
