"""Outer rules on functions whose value and gradient are known: one compiled loop per rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Oracle = Callable[[Any, Any], tuple[Any, Any]]


class Run(NamedTuple):
    """Points ``[n, p]`` and values ``[n]`` as evaluated; best value after each; where it ends."""

    points: Any
    values: Any
    best: Any
    final: Any
    state: Any


def play(rule: Any, oracle: Oracle, start: Any, steps: int, key: Any) -> Run:
    """`steps` evaluations of ``oracle(x, key) -> (value, gradient)``; traceable."""

    def advance(carry: Any, key: Any) -> Any:
        x, state = carry
        value, grad = oracle(x, key)
        best = rule.best(state, x, value) if hasattr(rule, "best") else (x, value)
        updates, state = rule.update(grad, state, x, value=value)
        return (x + updates, state), (x, value, best)

    keys = jax.random.split(key, steps)
    (x, state), (points, values, best) = jax.lax.scan(advance, (start, rule.init(start)), keys)
    final = best[0][-1] if hasattr(rule, "best") else x
    return Run(points, values, best[1], final, state)


def exact(value: Callable[[Any], Any]) -> Oracle:
    """A function without noise."""
    return lambda x, key: jax.value_and_grad(value)(x)
