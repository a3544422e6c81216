"""One line search, trial by trial, that ensures the strong Wolfe conditions.

Nocedal, Wright, "Numerical Optimization", section 3.5; Hager, Zhang, ACM TOMS 2006 (the decrease
that rounding still lets one see).
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import Counter, Flag, Float, Scalar

_DECREASE, _CURVATURE = 1e-4, 0.9  # Wolfe
Vector: TypeAlias = Float[Array, " d"]


class Point(NamedTuple):
    """A point ``at`` on the line: value and derivative there."""

    at: Scalar
    value: Scalar
    slope: Scalar


class Search(NamedTuple):
    """The line search: trial ``t``, bracket ``low < high``, what was found at the last trial."""

    t: Scalar
    low: Point
    high: Point
    value: Scalar
    gradient: Vector
    found: Flag
    trials: Counter


def narrow_search(
    search: Search, value: Scalar, gradient: Vector, d: Vector, value0: Scalar, slope0: Scalar
) -> Search:
    """Return the search after a trial: accepted, or with a new end and the next trial.

    ``low`` decreases enough and still descends; ``high`` does not decrease enough or ascends.
    """
    t, slope = search.t, gradient @ d
    rounding = 4 * jnp.finfo(t.dtype).eps * jnp.abs(value0)
    enough = value <= value0 + _DECREASE * t * slope0 + rounding
    found = enough & (jnp.abs(slope) <= _CURVATURE * jnp.abs(slope0))
    here, right = Point(t, value, slope), ~enough | (slope >= 0)
    low = jax.tree.map(lambda new, old: jnp.where(right, old, new), here, search.low)
    high = jax.tree.map(lambda new, old: jnp.where(right, new, old), here, search.high)
    following = jnp.where(found, t, next_trial(search.low, low, high))
    return Search(following, low, high, value, gradient, found, search.trials + 1)


def next_trial(before: Point, low: Point, high: Point) -> Scalar:
    """Return the minimum of the cubic through both ends, or a secant step if ``high`` is open."""
    width = high.at - low.at
    theta = low.slope + high.slope - 3 * (high.value - low.value) / width
    root = jnp.sqrt(jnp.maximum(theta**2 - low.slope * high.slope, 0))
    cubic = high.at - width * (high.slope + root - theta) / (high.slope - low.slope + 2 * root)
    inside = jnp.clip(cubic, low.at + 0.1 * width, high.at - 0.1 * width)
    inside = jnp.where(jnp.isfinite(inside), inside, low.at + 0.5 * width)
    ahead = low.at - before.at
    secant = low.at - low.slope * ahead / (low.slope - before.slope)
    outside = jnp.where(jnp.isfinite(secant) & (secant > low.at), secant, jnp.inf)
    outside = jnp.clip(outside, low.at + 0.1 * ahead, low.at + 9 * ahead)
    return jnp.where(jnp.isfinite(high.at), inside, outside)
