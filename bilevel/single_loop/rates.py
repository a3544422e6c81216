"""How far a variable moves along its direction: a step size, or any optax transformation."""

from typing import Any

import optax
from jax import Array

from bilevel.core import StaticTransform, Transform, as_pytree, as_setting, evaluate
from bilevel.utils import PyTree, axpy


def as_rate(owner: str, name: str, value: Any) -> Any:
    """Normalise a setting: numbers stay leaves; functions and transformations become nodes."""
    if isinstance(value, optax.GradientTransformation | StaticTransform | Transform):
        return as_pytree(owner, value)
    return as_setting(owner, name, value)


def begin_rate(rate: Any, x: PyTree) -> PyTree:
    """The state before the first move; empty for a step size."""
    return rate.init(x) if isinstance(rate, StaticTransform | Transform) else ()


def at(rates: tuple[Any, Any], count: Array, hyper: PyTree) -> tuple[Any, Any]:
    """The two rates of this move; what is one schedule is evaluated once."""
    one, two = rates
    if isinstance(one, StaticTransform | Transform) or one is not two:
        return rates
    step = evaluate(one, count, hyper)
    return step, step


def move(
    rate: Any, x: PyTree, direction: PyTree, count: Array, hyper: PyTree, state: PyTree
) -> tuple[PyTree, PyTree]:
    """``(x - step direction, state)``."""
    if isinstance(rate, Transform):
        rate = rate.at(count, hyper)
    if isinstance(rate, StaticTransform | Transform):
        updates, state = rate.update(direction, state, x)
        return optax.apply_updates(x, updates), state
    return axpy(-evaluate(rate, count, hyper), direction, x), state
