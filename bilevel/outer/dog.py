r"""Distance over gradients: a step size from how far the run has come.

    x+ = x - max_i |x_i - x_0| / sqrt(sum_i |g_i|^2) g

Ivgi, Hinder, Carmon, ICML 2023, with the polynomial-decay average of Shamir, Zhang, ICML 2013.
Noise does not harm it: the steps shrink like 1 / sqrt(steps) and the value is never looked at.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.utils import PyTree, register_node, require_positive

_DECAY = 8  # of the average, which then spans about a ninth of the run


class DoGState(NamedTuple):
    """The state between two steps, ``[p]`` and ``()``.

    ``origin`` of the run, the last point ``x``, ``max_distance`` between the two so far;
    ``sum_squares`` of the gradients; ``average`` of the points, ``mean_value`` of their values,
    ``spread`` of these around it; ``points`` so far.
    """

    origin: Array
    x: Array
    max_distance: Array
    sum_squares: Array
    average: Array
    mean_value: Array
    spread: Array
    points: Array


def init_dog(origin: Array, first: float | Array) -> DoGState:
    """Return the state before a first step of the length ``first``."""
    zero = jnp.zeros((), origin.dtype)
    first = jnp.asarray(first, origin.dtype)
    none = jnp.zeros((), jnp.int32)
    return DoGState(origin, origin, first, zero, origin, zero, zero, none)


def update_average(state: DoGState, x: Array, value: Array) -> DoGState:
    """Average over one more point; recent ones weigh more."""
    points = state.points + 1
    share = (1 + _DECAY) / (points.astype(x.dtype) + _DECAY)
    mean_value = state.mean_value + share * (value - state.mean_value)
    deviation = jnp.where(points > 1, jnp.abs(value - mean_value), 0)
    return state._replace(
        x=x,
        average=state.average + share * (x - state.average),
        mean_value=mean_value,
        spread=state.spread + share * (deviation - state.spread),
        points=points,
    )


def take_step(
    state: DoGState, x: Array, value: Array, slope: Array, unit: float | Array = 1.0
) -> tuple[Array, DoGState]:
    """Return the step from ``x`` and the state after it; lengths are those of ``x / unit``."""
    state = update_average(state, x, value)
    gradient = unit * slope
    max_distance = jnp.maximum(state.max_distance, jnp.linalg.norm((x - state.origin) / unit))
    sum_squares = state.sum_squares + gradient @ gradient
    step = max_distance / jnp.where(sum_squares > 0, jnp.sqrt(sum_squares), 1)
    state = state._replace(max_distance=max_distance, sum_squares=sum_squares)
    return -step * unit * gradient, state


@dataclass(frozen=True)
class DoG:
    """Distance over gradients: no step size, for stochastic hypergradients.

    All that it is given is the length of the first step; any small number does, since steps grow by
    themselves. A run ends with a weighted average of its points, those of the last tenth above all.

    Parameters
    ----------
    first : length of the first step relative to ``1 + |hyper|``.

    Raises
    ------
    ValueError : ``first`` not positive.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> rule, x = bl.outer.DoG(), jnp.array([-1.0, 1.0])
    >>> state = rule.init(x)
    >>> for _ in range(60):
    ...     step, state = rule.update(2 * x, state, x, value=jnp.sum(x**2))
    ...     x = x + step
    >>> bool(jnp.all(jnp.abs(x) < 1e-3))
    True
    """

    first: float | Array = 1e-2

    def __post_init__(self) -> None:
        """Validate the length of the first step."""
        require_positive("DoG", "first", self.first)

    def init(self, params: PyTree) -> DoGState:
        """Return the state at the origin."""
        flat = ravel_pytree(params)[0]
        return init_dog(flat, self.first * (1 + jnp.linalg.norm(flat)))

    def update(
        self,
        updates: PyTree,
        state: DoGState,
        params: PyTree = None,
        *,
        value: float | Array = 0.0,
        **_: Any,
    ) -> tuple[PyTree, DoGState]:
        """Take one step; ``value`` is averaged, not needed."""
        x, back = ravel_pytree(params)
        slope = ravel_pytree(updates)[0].astype(x.dtype)
        step, state = take_step(state, x, jnp.asarray(value, x.dtype), slope)
        return back(step), state

    def best(self, state: DoGState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return the average of the points, ``hyper`` included, and that of their values."""
        flat, back = ravel_pytree(hyper)
        state = update_average(state, flat, jnp.asarray(value).astype(flat.dtype))
        return back(state.average), state.mean_value.astype(jnp.result_type(value))


register_node(DoG, data_fields=["first"], meta_fields=[])
