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

from bilevel.utils import PyTree, register_node
from bilevel.utils.validation import require_positive

_DECAY = 8  # of the average, which then spans about a ninth of the run


class Walk(NamedTuple):
    """``origin`` of the walk, where it stands ``at``; ``farthest`` from the origin; ``power``, the
    sum of squared gradients; ``average`` of the points, ``level`` of their values, ``spread`` of
    these around it; ``seen`` points. ``[p]`` and ``()``.
    """

    origin: Array
    at: Array
    farthest: Array
    power: Array
    average: Array
    level: Array
    spread: Array
    seen: Array


def begin(origin: Array, reach: Any) -> Walk:
    """A walk whose first step has the length ``reach``."""
    zero = jnp.zeros((), origin.dtype)
    reach = jnp.asarray(reach, origin.dtype)
    none = jnp.zeros((), jnp.int32)
    return Walk(origin, origin, reach, zero, origin, zero, zero, none)


def absorb(walk: Walk, at: Array, value: Array) -> Walk:
    """The averages with one more point; recent ones weigh more."""
    seen = walk.seen + 1
    share = (1 + _DECAY) / (seen.astype(at.dtype) + _DECAY)
    level = walk.level + share * (value - walk.level)
    aside = jnp.where(seen > 1, jnp.abs(value - level), 0)
    return walk._replace(
        at=at,
        average=walk.average + share * (at - walk.average),
        level=level,
        spread=walk.spread + share * (aside - walk.spread),
        seen=seen,
    )


def stride(
    walk: Walk, at: Array, value: Array, slope: Array, unit: Any = 1.0
) -> tuple[Array, Walk]:
    """The next point; lengths are those of ``x / unit``."""
    walk = absorb(walk, at, value)
    gradient = unit * slope
    farthest = jnp.maximum(walk.farthest, jnp.linalg.norm((at - walk.origin) / unit))
    power = walk.power + gradient @ gradient
    step = farthest / jnp.where(power > 0, jnp.sqrt(power), 1)
    return -step * unit * gradient, walk._replace(farthest=farthest, power=power)


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

    first: Any = 1e-2

    def __post_init__(self) -> None:
        """Refuse a first step of no length."""
        require_positive("DoG", "first", self.first)

    def init(self, params: PyTree) -> Walk:
        """At the origin."""
        flat = ravel_pytree(params)[0]
        return begin(flat, self.first * (1 + jnp.linalg.norm(flat)))

    def update(
        self, updates: PyTree, state: Walk, params: PyTree = None, *, value: Any = 0.0, **_: Any
    ) -> tuple[PyTree, Walk]:
        """One step; ``value`` is averaged, not needed."""
        at, back = ravel_pytree(params)
        slope = ravel_pytree(updates)[0].astype(at.dtype)
        step, walk = stride(state, at, jnp.asarray(value, at.dtype), slope)
        return back(step), walk

    def best(self, state: Walk, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """The average, ``hyper`` included, and that of the values."""
        flat, back = ravel_pytree(hyper)
        walk = absorb(state, flat, jnp.asarray(value).astype(flat.dtype))
        return back(walk.average), walk.level.astype(jnp.result_type(value))


register_node(DoG, data_fields=["first"], meta_fields=[])
