"""A branch that stays a branch under ``vmap``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils.trees import PyTree


def cond_without_select(flag: Array, fn: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """Return ``fn()`` where ``flag`` (``()``, boolean), else ``otherwise``, which it is like.

    A loop of at most one turn. ``lax.cond`` becomes a selection under ``vmap``: both branches run
    at every step. This runs where any lane asks, and costs nothing where none does.
    """

    def turn(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        return jnp.zeros_like(carry[0]), fn()

    return jax.lax.while_loop(lambda carry: carry[0], turn, (flag, otherwise))[1]
