r"""A quasi-Newton step within a trust region, cut into what happens between two evaluations.

    propose   s = -H g, shortened to |s| <= radius, |s|_inf <= cap
    judge     accept what is not worse; grow or shrink the radius by decrease over prediction

H is that of L-BFGS (Liu, Nocedal 1989) in variables scaled by ``diag(mean g^2)^(1/8)``: its first
guess is halfway between the plain gradient and the coordinatewise steps of Adam, since gradients of
the hyperparameters of one problem differ by orders of magnitude. Rejected trials teach curvature
too (Nocedal, Wright, "Numerical Optimization", section 6.2). Where an accepted step shows little or
negative curvature, a little is pretended, so that the radius alone bounds the next step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.solvers.lbfgs import Pairs, direction, remember
from bilevel.utils import PyTree

Admit = Callable[[Array], Array]  # onto what a space admits

_FIRST = 0.5  # largest change of a coordinate in the first move, in units of the cap
_LITTLE = 0.1  # curvature along a step, relative to its slope, below which it is pretended
_GOOD, _POOR = 0.5, 0.1  # decrease over the predicted one
_GROW = 2.0
_FORGET = 0.9  # of the mean of squared gradients
_REFUSALS = 6  # in a row
_FLOOR = 1e-2  # a coordinate's gradient counts as at least this much of the largest


class Trust(NamedTuple):
    """What is known between two evaluations.

    ``base`` is the best accepted point ``[p]``, with ``value`` (infinite before the first) and
    ``slope``; ``start``, where the run began; ``power``, the mean of squared gradients; ``radius``
    of the next step, ``ceiling`` on it after refusals; ``stride``, the length of the last accepted
    step; ``fraction`` of the full quasi-Newton step that the pending trial is; ``rejections`` and
    ``refusals`` in a row.
    """

    base: Array
    value: Array
    slope: Array
    start: Array
    pairs: Pairs
    power: Array
    radius: Array
    ceiling: Array
    stride: Array
    fraction: Array
    rejections: Array
    refusals: Array


class Verdict(NamedTuple):
    """On a trial: ``accepted``; ``decrease`` expected to first order; whether the value ``jumped``.

    It jumped if it changed by what no point between could explain were the slope monotone: outside
    ``[min, max]`` of the slopes at both ends. On a smooth function that needs an inflection within
    the step, so it ends as steps get short. Noise does not.
    """

    accepted: Array
    decrease: Array
    jumped: Array


def begin(flat: Array, memory: int) -> Trust:
    """Before the first evaluation."""
    rows = jnp.zeros((memory, flat.size), flat.dtype)
    infinite, zero = jnp.full((), jnp.inf, flat.dtype), jnp.zeros((), flat.dtype)
    none = jnp.zeros((), jnp.int32)
    nothing = jnp.zeros_like(flat)
    pairs = Pairs(rows, rows, rows[:, 0], none)
    return Trust(
        flat, infinite, nothing, flat, pairs, nothing, zero, infinite, zero, zero + 1, none, none
    )


def cap(start: Array, base: Array) -> Array:
    """Largest change of one coordinate in one step.

    The size of the start, 1 at least (hyperparameters are mostly logarithms), and what has been
    travelled already, so that distances of any scale are reached in time.
    """
    travelled = jnp.max(jnp.abs(base - start))
    return jnp.maximum(jnp.maximum(1, jnp.max(jnp.abs(start)) / 2), travelled / 8)


def first_step(start: Array, value: Array, slope: Array, d: Array) -> Array:
    """How much of the descent direction ``d`` to go first, ``()``.

    No coordinate moves by more than half the cap, and no more decrease is expected than all.
    """
    largest, fall = jnp.max(jnp.abs(d)), -(d @ slope)
    times = _FIRST * cap(start, start) / jnp.where(largest > 0, largest, 1)
    everything = jnp.abs(value) / jnp.where(fall > 0, fall, 1)
    return jnp.where(everything > 0, jnp.minimum(times, everything), times)


def scales(trust: Trust) -> Array:
    """Square roots of the diagonal metric, ``[p]``: variables are measured in these units."""
    largest = jnp.max(trust.power)
    relative = trust.power / jnp.where(largest > 0, largest, 1)
    return (relative + _FLOOR**2) ** (-1 / 8)


def judge(trust: Trust, at: Array, value: Array, slope: Array) -> tuple[Trust, Verdict]:
    """What the evaluation at the pending trial ``at`` teaches."""
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    value, slope = jnp.where(finite, value, jnp.inf), jnp.where(finite, slope, trust.slope)
    first = jnp.isinf(trust.value)
    known = jnp.where(first, value, trust.value)
    s = at - trust.base
    change = jnp.where(finite, value - known, jnp.inf)
    before, after = trust.slope @ s, slope @ s
    rounding = 8 * jnp.finfo(at.dtype).eps * jnp.abs(known)
    accepted = finite & (first | (change <= rounding))
    low, high = jnp.minimum(before, after), jnp.maximum(before, after)
    jumped = finite & ~first & ((change < low - rounding) | (change > high + rounding))

    length, squared = jnp.linalg.norm(s), s @ s
    lacking = jnp.maximum(_LITTLE * jnp.abs(before) - (after - before), 0)
    pretend = jnp.where(accepted & (squared > 0), lacking / jnp.where(squared > 0, squared, 1), 0)
    pairs = remember(trust.pairs, s, slope - trust.slope + pretend * s)

    predicted = before * (1 - trust.fraction / 2)
    ratio = change / jnp.where(predicted < 0, predicted, -1)
    minimum = -before / (2 * jnp.maximum(change - before, jnp.finfo(at.dtype).tiny))
    shorter = length * jnp.clip(minimum, 0.1, 0.5)
    kept = jnp.where(ratio < _POOR, jnp.clip(trust.radius, 0.5 * length, length), trust.radius)
    longer = jnp.where(ratio > _GOOD, jnp.maximum(trust.radius, _GROW * length), kept)
    mean = _FORGET * trust.power + (1 - _FORGET) * slope**2
    power = jnp.where(first, slope**2, jnp.where(finite, mean, trust.power))
    judged = Trust(
        base=jnp.where(accepted, at, trust.base),
        value=jnp.where(accepted, value, trust.value),
        slope=jnp.where(accepted, slope, trust.slope),
        start=trust.start,
        pairs=jax.tree.map(lambda a, b: jnp.where(first, a, b), trust.pairs, pairs),
        power=power,
        radius=jnp.where(accepted, longer, shorter),
        ceiling=trust.ceiling,
        stride=jnp.where(accepted, length, trust.stride),
        fraction=trust.fraction,
        rejections=jnp.where(accepted, 0, trust.rejections + 1),
        refusals=jnp.zeros_like(trust.refusals),
    )
    d = -(scales(judged) ** 2) * slope
    reach = first_step(at, value, slope, d) * jnp.linalg.norm(d)
    judged = judged._replace(
        radius=jnp.where(first, reach, judged.radius),
        stride=jnp.where(first, reach / 4, judged.stride),
    )
    return judged, Verdict(accepted, before, jumped)


def propose(trust: Trust, admit: Admit | None = None) -> tuple[Array, Trust]:
    """The next trial point, ``[p]``, and the state with the trial pending.

    ``admit`` projects onto a box. Coordinates that rest on an end, the slope pressing, stay there;
    those that the step would take across one stop at it; the others move as if they were alone
    (Bertsekas, SIAM J. Control Optim. 1982: a projected step descends only with such an H).
    """
    if admit is None:
        return _within(trust, jnp.ones(trust.base.shape, bool))
    base, slope = trust.base, trust.slope
    little = jnp.sqrt(jnp.finfo(base.dtype).eps) * jnp.maximum(1, jnp.abs(base))
    alone = (admit(base - little * jnp.sign(slope)) != base) | (slope == 0)
    first, _ = _within(trust, alone)
    ends = admit(first)
    alone = alone & (ends == first)
    second, pending = _within(trust, alone)
    stopped = (ends != first) & (slope * (ends - base) < 0)
    return admit(jnp.where(stopped, ends, second)), pending


def _within(trust: Trust, alone: Array) -> tuple[Array, Trust]:
    """The trial that moves these coordinates only, ``[p]`` boolean."""
    unit, slope = scales(trust), jnp.where(alone, trust.slope, 0)
    pairs = _restricted(trust.pairs, alone)
    scaled = pairs._replace(s=pairs.s / unit, y=pairs.y * unit)
    d = jnp.where(alone, unit * direction(scaled, unit * slope), 0)
    down = d @ slope < 0
    known = jnp.any(pairs.rho > 0) & down
    d = jnp.where(known, d, -(unit**2) * slope)
    radius = jnp.minimum(trust.radius, trust.ceiling)
    length, largest = jnp.linalg.norm(d), jnp.max(jnp.abs(d))
    within = radius / jnp.where(length > 0, length, 1)
    allowed = cap(trust.start, trust.base) / jnp.where(largest > 0, largest, 1)
    fraction = jnp.minimum(jnp.where(known, jnp.minimum(within, 1), within), allowed)
    forget = ~down & jnp.all(alone)
    pending = trust._replace(
        pairs=trust.pairs._replace(rho=jnp.where(forget, 0, trust.pairs.rho)),
        ceiling=_GROW * trust.ceiling,
        fraction=jnp.where(known, fraction, 1),
    )
    return trust.base + fraction * d, pending


def _restricted(pairs: Pairs, alone: Array) -> Pairs:
    """Curvature among some of the coordinates; pairs that show none there are left out."""
    s, y = jnp.where(alone, pairs.s, 0), jnp.where(alone, pairs.y, 0)
    curvature = jnp.sum(s * y, -1)
    good = (pairs.rho > 0) & (curvature > jnp.finfo(s.dtype).eps * jnp.sum(y * y, -1))
    rho = jnp.where(good, 1 / jnp.where(good, curvature, 1), 0)
    return pairs._replace(s=s, y=y, rho=jnp.where(jnp.all(alone), pairs.rho, rho))


def shorten(trust: Trust, step: Array) -> tuple[Array, Trust]:
    """A step of another rule within the cap and the ceiling, and the state after it."""
    length, largest = jnp.linalg.norm(step), jnp.max(jnp.abs(step))
    times = jnp.minimum(
        trust.ceiling / jnp.where(length > 0, length, 1),
        cap(trust.start, trust.base) / jnp.where(largest > 0, largest, 1),
    )
    after = trust._replace(ceiling=_GROW * trust.ceiling, refusals=jnp.zeros_like(trust.refusals))
    return jnp.minimum(times, 1) * step, after


def backtrack(before: Trust, length: Array) -> tuple[Trust, Array]:
    """After a step of this length was refused: a quarter of it, six times at most."""
    again = before._replace(ceiling=length / 4, refusals=before.refusals + 1)
    return again, again.refusals <= _REFUSALS


def best(trust: Trust, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
    """The best accepted point, or ``hyper`` where that is better; and the value."""
    flat, back = ravel_pytree(hyper)
    better = value < trust.value
    return back(jnp.where(better, flat, trust.base)), jnp.where(
        better, value, trust.value.astype(value.dtype)
    )
