"""Which hyperparameters a traced function reads: never a false "unseen", few false "seen"."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bilevel.utils import unused_leaves

HYPER = {"a": jnp.ones(2), "b": jnp.ones(()), "c": (jnp.ones(3),)}


@jax.custom_jvp
def cube(x: Any) -> Any:
    return x**3


cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 3 * primals[0] ** 2 * tangents[0]))

READS: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda h: jnp.sum(h["a"]), ["hyper['b']", "hyper['c'][0]"]),
    (lambda h: 0.0, ["hyper['a']", "hyper['b']", "hyper['c'][0]"]),
    (lambda h: (h["a"], h["b"], h["c"]), []),
    # Computed, but the result is thrown away.
    (lambda h: (jnp.sin(h["a"]), h["b"] * h["c"][0])[0], ["hyper['b']", "hyper['c'][0]"]),
    # Through calls that have a body of their own.
    (lambda h: jax.jit(lambda a, b: (a, b))(h["a"], h["b"])[0], ["hyper['b']", "hyper['c'][0]"]),
    (lambda h: jax.checkpoint(lambda a, b: a * 2)(h["a"], h["b"]), ["hyper['b']", "hyper['c'][0]"]),
    (lambda h: cube(h["b"]), ["hyper['a']", "hyper['c'][0]"]),
    # Loops and branches count as reading whatever goes in.
    (
        lambda h: jax.lax.fori_loop(0, 3, lambda _, x: x * h["b"], h["a"]),
        ["hyper['c'][0]"],
    ),
    (
        lambda h: jax.lax.cond(h["b"] > 0, lambda: h["a"], lambda: 2 * h["a"]),
        ["hyper['c'][0]"],
    ),
    # A derivative in something else drops what enters linearly.
    (
        lambda h: jax.grad(lambda w: jnp.sum(w**2 * h["a"]) + h["b"])(jnp.ones(2)),
        ["hyper['b']", "hyper['c'][0]"],
    ),
]


@pytest.mark.parametrize(("fn", "expected"), READS)
def test_unseen(fn: Callable[[Any], Any], expected: list[str]) -> None:
    assert unused_leaves(fn, HYPER) == expected
