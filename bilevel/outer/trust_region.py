r"""A quasi-Newton step within a trust region, cut into what happens between two evaluations.

    propose_trial   s = -H g, shortened to |s| <= radius, |s|_inf <= max_coordinate_step
    judge_trial     accept what is not worse; grow or shrink the radius by decrease over prediction

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

from bilevel.solvers import Pairs, descent_direction, remember_pair
from bilevel.utils import PyTree

AdmitVector = Callable[[Array], Array]  # onto what a space admits

_FIRST = 0.5  # largest change of a coordinate in the first move, in units of the largest allowed
_LITTLE = 0.1  # curvature along a step, relative to its slope, below which it is pretended
_GOOD, _POOR = 0.5, 0.1  # decrease over the predicted one
_GROW = 2.0
_FORGET = 0.9  # of the mean of squared gradients
_REFUSALS = 6  # in a row
_FLOOR = 1e-2  # a coordinate's gradient counts as at least this much of the largest


class TrustRegionState(NamedTuple):
    """The state of the search between two evaluations.

    ``base`` is the best accepted point ``[p]``, with ``value`` (infinite before the first) and
    ``slope``; ``start``, where the run began; ``power``, the mean of squared gradients; ``radius``
    of the next step, ``ceiling`` on it after refusals; ``accepted_length``, the length of the last
    accepted step; ``fraction`` of the full quasi-Newton step that the trial is; ``rejections`` and
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
    accepted_length: Array
    fraction: Array
    rejections: Array
    refusals: Array


class Verdict(NamedTuple):
    """The verdict on a trial: ``accepted``; ``decrease`` expected to first order; consistency.

    The value ``violates_slopes`` if its change lies outside ``[min, max]`` of the slopes at both
    ends: impossible for a convex (or concave) segment. On a smooth function that needs an
    inflection within the step, so it ends as steps get short. Noise does not.
    """

    accepted: Array
    decrease: Array
    violates_slopes: Array


def init_trust_region(flat: Array, memory: int) -> TrustRegionState:
    """Return the state before the first evaluation."""
    rows = jnp.zeros((memory, flat.size), flat.dtype)
    infinite, zero = jnp.full((), jnp.inf, flat.dtype), jnp.zeros((), flat.dtype)
    none = jnp.zeros((), jnp.int32)
    nothing = jnp.zeros_like(flat)
    pairs = Pairs(rows, rows, rows[:, 0], none)
    return TrustRegionState(
        flat, infinite, nothing, flat, pairs, nothing, zero, infinite, zero, zero + 1, none, none
    )


def max_coordinate_step(start: Array, base: Array) -> Array:
    """Return the largest change of one coordinate in one step.

    The size of the start, 1 at least (hyperparameters are mostly logarithms), and what has been
    travelled already, so that distances of any scale are reached in time.
    """
    travelled = jnp.max(jnp.abs(base - start))
    return jnp.maximum(jnp.maximum(1, jnp.max(jnp.abs(start)) / 2), travelled / 8)


def first_fraction(start: Array, value: Array, slope: Array, d: Array) -> Array:
    """Return how much of the descent direction ``d`` to go first, ``()``.

    No coordinate moves by more than half the largest allowed, and no more decrease is
    expected than all.
    """
    largest, fall = jnp.max(jnp.abs(d)), -(d @ slope)
    times = _FIRST * max_coordinate_step(start, start) / jnp.where(largest > 0, largest, 1)
    everything = jnp.abs(value) / jnp.where(fall > 0, fall, 1)
    return jnp.where(everything > 0, jnp.minimum(times, everything), times)


def compute_scales(state: TrustRegionState) -> Array:
    """Return the units of the variables, ``[p]``: square roots of the diagonal metric."""
    largest = jnp.max(state.power)
    relative = state.power / jnp.where(largest > 0, largest, 1)
    return (relative + _FLOOR**2) ** (-1 / 8)


def judge_trial(
    state: TrustRegionState, trial: Array, value: Array, slope: Array
) -> tuple[TrustRegionState, Verdict]:
    """Return the state after the evaluation trial ``trial``, and the verdict on it."""
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    value, slope = jnp.where(finite, value, jnp.inf), jnp.where(finite, slope, state.slope)
    first = jnp.isinf(state.value)
    known = jnp.where(first, value, state.value)
    s = trial - state.base
    change = jnp.where(finite, value - known, jnp.inf)
    before, after = state.slope @ s, slope @ s
    rounding = 8 * jnp.finfo(trial.dtype).eps * jnp.abs(known)
    accepted = finite & (first | (change <= rounding))
    low, high = jnp.minimum(before, after), jnp.maximum(before, after)
    violates_slopes = finite & ~first & ((change < low - rounding) | (change > high + rounding))

    # A pair of curvature from every trial; along an accepted step at least a little is pretended.
    length, squared = jnp.linalg.norm(s), s @ s
    lacking = jnp.maximum(_LITTLE * jnp.abs(before) - (after - before), 0)
    pretend = jnp.where(accepted & (squared > 0), lacking / jnp.where(squared > 0, squared, 1), 0)
    pairs = remember_pair(state.pairs, s, slope - state.slope + pretend * s)

    predicted = before * (1 - state.fraction / 2)
    ratio = change / jnp.where(predicted < 0, predicted, -1)
    minimum = -before / (2 * jnp.maximum(change - before, jnp.finfo(trial.dtype).tiny))
    shorter = length * jnp.clip(minimum, 0.1, 0.5)
    # The radius follows decrease over prediction; after a rejection, the parabola's minimum.
    kept = jnp.where(ratio < _POOR, jnp.clip(state.radius, 0.5 * length, length), state.radius)
    longer = jnp.where(ratio > _GOOD, jnp.maximum(state.radius, _GROW * length), kept)
    mean = _FORGET * state.power + (1 - _FORGET) * slope**2
    power = jnp.where(first, slope**2, jnp.where(finite, mean, state.power))
    judged = TrustRegionState(
        base=jnp.where(accepted, trial, state.base),
        value=jnp.where(accepted, value, state.value),
        slope=jnp.where(accepted, slope, state.slope),
        start=state.start,
        pairs=jax.tree.map(lambda a, b: jnp.where(first, a, b), state.pairs, pairs),
        power=power,
        radius=jnp.where(accepted, longer, shorter),
        ceiling=state.ceiling,
        accepted_length=jnp.where(accepted, length, state.accepted_length),
        fraction=state.fraction,
        rejections=jnp.where(accepted, 0, state.rejections + 1),
        refusals=jnp.zeros_like(state.refusals),
    )
    # The first evaluation has no step before it: its radius follows from value and slope.
    d = -(compute_scales(judged) ** 2) * slope
    reach = first_fraction(trial, value, slope, d) * jnp.linalg.norm(d)
    judged = judged._replace(
        radius=jnp.where(first, reach, judged.radius),
        accepted_length=jnp.where(first, reach / 4, judged.accepted_length),
    )
    return judged, Verdict(accepted, before, violates_slopes)


def propose_trial(
    state: TrustRegionState, admit: AdmitVector | None = None
) -> tuple[Array, TrustRegionState]:
    """Return the next trial point, ``[p]``, and the state that expects its evaluation.

    ``admit`` projects onto a box. Coordinates that rest on an end, the slope pressing, stay there;
    those that the step would take across one stop at it; the others move as if they were alone
    (Bertsekas, SIAM J. Control Optim. 1982: a projected step descends only with such an H).
    """
    if admit is None:
        return _within(state, jnp.ones(state.base.shape, bool))
    base, slope = state.base, state.slope
    little = jnp.sqrt(jnp.finfo(base.dtype).eps) * jnp.maximum(1, jnp.abs(base))
    alone = (admit(base - little * jnp.sign(slope)) != base) | (slope == 0)
    first, _ = _within(state, alone)
    ends = admit(first)
    alone = alone & (ends == first)
    second, after = _within(state, alone)
    stopped = (ends != first) & (slope * (ends - base) < 0)
    return admit(jnp.where(stopped, ends, second)), after


def _within(state: TrustRegionState, alone: Array) -> tuple[Array, TrustRegionState]:
    """Return the trial that moves these coordinates only, ``[p]`` boolean."""
    unit, slope = compute_scales(state), jnp.where(alone, state.slope, 0)
    pairs = _restricted(state.pairs, alone)
    scaled = pairs._replace(s=pairs.s / unit, y=pairs.y * unit)
    d = jnp.where(alone, unit * descent_direction(scaled, unit * slope), 0)
    down = d @ slope < 0
    known = jnp.any(pairs.rho > 0) & down
    d = jnp.where(known, d, -(unit**2) * slope)
    radius = jnp.minimum(state.radius, state.ceiling)
    length, largest = jnp.linalg.norm(d), jnp.max(jnp.abs(d))
    within = radius / jnp.where(length > 0, length, 1)
    allowed = max_coordinate_step(state.start, state.base) / jnp.where(largest > 0, largest, 1)
    fraction = jnp.minimum(jnp.where(known, jnp.minimum(within, 1), within), allowed)
    forget = ~down & jnp.all(alone)
    after = state._replace(
        pairs=state.pairs._replace(rho=jnp.where(forget, 0, state.pairs.rho)),
        ceiling=_GROW * state.ceiling,
        fraction=jnp.where(known, fraction, 1),
    )
    return state.base + fraction * d, after


def _restricted(pairs: Pairs, alone: Array) -> Pairs:
    """Restrict curvature to some of the coordinates; pairs that show none there are left out."""
    s, y = jnp.where(alone, pairs.s, 0), jnp.where(alone, pairs.y, 0)
    curvature = jnp.sum(s * y, -1)
    good = (pairs.rho > 0) & (curvature > jnp.finfo(s.dtype).eps * jnp.sum(y * y, -1))
    rho = jnp.where(good, 1 / jnp.where(good, curvature, 1), 0)
    return pairs._replace(s=s, y=y, rho=jnp.where(jnp.all(alone), pairs.rho, rho))


def limit_step(state: TrustRegionState, step: Array) -> tuple[Array, TrustRegionState]:
    """Shorten a step of another rule to what is allowed; the state after it."""
    length, largest = jnp.linalg.norm(step), jnp.max(jnp.abs(step))
    times = jnp.minimum(
        state.ceiling / jnp.where(length > 0, length, 1),
        max_coordinate_step(state.start, state.base) / jnp.where(largest > 0, largest, 1),
    )
    after = state._replace(ceiling=_GROW * state.ceiling, refusals=jnp.zeros_like(state.refusals))
    return jnp.minimum(times, 1) * step, after


def shorten_refused(before: TrustRegionState, length: Array) -> tuple[TrustRegionState, Array]:
    """Return the state that allows a quarter of a refused ``length``, six times at most."""
    again = before._replace(ceiling=length / 4, refusals=before.refusals + 1)
    return again, again.refusals <= _REFUSALS


def best_point(state: TrustRegionState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
    """Return the best accepted point, or ``hyper`` where that is better; and the value."""
    flat, back = ravel_pytree(hyper)
    better = value < state.value
    return back(jnp.where(better, flat, state.base)), jnp.where(
        better, value, state.value.astype(value.dtype)
    )
