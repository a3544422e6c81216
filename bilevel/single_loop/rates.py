"""How far a variable moves along its direction: a step size, or any optax transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optax
from jax import Array

from bilevel.core import StaticTransform, Transform, as_pytree, as_setting, evaluate
from bilevel.utils import PyTree, axpy

StepSize: TypeAlias = float | Array | Callable[..., Any]  # a number, or a schedule of the count
Rate: TypeAlias = StepSize | StaticTransform | Transform
RateState: TypeAlias = PyTree


def as_rate(owner: str, name: str, value: Rate | optax.GradientTransformation) -> Rate:
    """Normalise a setting: numbers stay leaves; functions and transformations become nodes."""
    if isinstance(value, optax.GradientTransformation | StaticTransform | Transform):
        return as_pytree(owner, value)
    return as_setting(owner, name, value)


class Rates(NamedTuple):
    """The rates of params and adjoint."""

    w: Rate
    v: Rate

    @classmethod
    def from_settings(cls, step_size: Rate, adjoint_step: Rate | None) -> "Rates":
        """Make the two rates; ``None`` for the adjoint: the same."""
        return cls(step_size, step_size if adjoint_step is None else adjoint_step)

    def init(self, params: PyTree) -> tuple[RateState, RateState]:
        """Return the states before the first move; empty for a step size."""
        return _init_rate(self.w, params), _init_rate(self.v, params)

    def at(self, count: Array, hyper: PyTree) -> "Rates":
        """Return the rates of this move; what is one schedule is evaluated once."""
        if isinstance(self.w, StaticTransform | Transform) or self.w is not self.v:
            return self
        step = evaluate(self.w, count, hyper)
        return Rates(step, step)


def stability_limits(steps: dict[str, Rate], count: Array, hyper: PyTree) -> dict[str, Array]:
    """Return ``2 / step`` of each variable; nothing for an optax transformation."""
    return {
        name: 2 / evaluate(step, count, hyper)
        for name, step in steps.items()
        if not isinstance(step, StaticTransform | Transform)
    }


def move_along(
    rate: Rate, x: PyTree, direction: PyTree, count: Array, hyper: PyTree, state: RateState
) -> tuple[PyTree, RateState]:
    """Return ``(x - step direction, state)``."""
    if isinstance(rate, Transform):
        rate = rate.at(count, hyper)
    if isinstance(rate, StaticTransform | Transform):
        updates, state = rate.update(direction, state, x)
        return optax.apply_updates(x, updates), state
    return axpy(-evaluate(rate, count, hyper), direction, x), state


def _init_rate(rate: Rate, x: PyTree) -> RateState:
    """Return the state of one rate."""
    return rate.init(x) if isinstance(rate, StaticTransform | Transform) else ()
