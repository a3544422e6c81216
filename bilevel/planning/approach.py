"""The way from params to where the inner loss is quadratic, by gradient descent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

_MOST_DESCENT = 10_000


def approach_solution(
    gradient: Callable[[Array], Array],
    first: Array,
    x: Array,
    *,
    hvp: Callable[[Array], Array],
    step: Array,
) -> tuple[Array, Array]:
    """Return the first point ``[n]`` at which the gradient is linear to a fifth, and how far it is.

    Until then linear theory does not hold. From ``first`` to the solution ``x``; the distance is in
    step size times steps of gradient descent, infinite beyond 10 000 steps. ``hvp`` is the Hessian
    at the solution, ``step`` a step size that is safe all the way.
    """

    def is_far(carry: tuple[Array, Array]) -> Array:
        at, k = carry
        linear = hvp(at - x)
        gap = gradient(at) - linear
        return (jnp.sum(gap**2) > 0.04 * jnp.sum(linear**2)) & (k < _MOST_DESCENT)

    def descend(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] - step * gradient(carry[0]), carry[1] + 1

    at, k = jax.lax.while_loop(is_far, descend, (first, jnp.zeros((), jnp.int32)))
    return at, jnp.where(k < _MOST_DESCENT, k * step, jnp.inf)
