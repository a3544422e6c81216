"""One variable: the minimum next to a point of a grid, as the root of the slope."""

from typing import NamedTuple

import numpy as np

from bilevel.sklearn.search.descent import OuterFunction

_LEAST = 0.02  # step


class ScalarPoint(NamedTuple):
    """A number, the loss there and its slope."""

    t: float
    value: float
    slope: float


def minimise_scalar(
    outer: OuterFunction,
    start: np.ndarray,
    reach: tuple[float, float],
    *,
    max_iter: int,
    tol: float,
    least: float = 0.0,
    curvature: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise ``outer(start + t)`` over the number ``t`` in ``reach``, downhill from 0.

    Steps, the first by the ``curvature`` if it is known, that at most double until the loss or the
    slope turns, then the secant of the latest slopes, bisection where that is slow. Ends where the
    gain to expect is below ``tol`` of the loss or below ``least``, or after ``max_iter``
    evaluations of each kind. Returns the ``t`` seen and their losses, the start first.
    """

    def look(t: float) -> ScalarPoint:
        at = outer(start + t)
        point = ScalarPoint(t, float(at.value), float(np.sum(at.grad)))
        seen.append(point)
        return point

    seen: list[ScalarPoint] = []
    near = look(0.0)
    enough = max(tol * abs(near.value), least)
    length = 1.5 * abs(near.slope) / curvature if curvature > 0 else 1.0
    far, step = None, -np.sign(near.slope) * min(max(length, _LEAST), 1.0)
    end = reach[1] if step > 0 else reach[0]

    def turns(point: ScalarPoint) -> bool:
        """Has the minimum been passed at this point?"""
        return not (point.value <= near.value and point.slope * step < 0)

    while near.t != end and far is None and len(seen) <= max_iter:
        if abs(near.slope * (end - near.t)) <= enough:
            break
        length, step = step, 2 * step
        if len(seen) == 2 and 0 < (ahead := 2 * (_find_root(*seen) - near.t) / length) < 0.25:
            # Once twice as far as the secant says: past the minimum unless the slope flattens.
            length, step = np.sign(step) * max(abs(ahead * length), _LEAST), length
        point = look(min(near.t + length, end) if step > 0 else max(near.t + length, end))
        near, far = (near, point) if turns(point) else (point, None)
    steps = [np.inf, np.inf]
    for _ in range(max_iter):
        if far is None:
            break
        best = near if near.value <= far.value else far
        t = _find_root(*seen[-2:])
        # As Brent has it: inside the bracket, and half as long as the step before the last one.
        length = abs(t - seen[-1].t)
        if not (min(near.t, far.t) < t < max(near.t, far.t) and length <= steps[-2] / 2):
            t = (near.t + far.t) / 2
        if abs(best.slope * (t - best.t)) <= enough or abs(far.t - near.t) < 1e-9:
            break
        steps.append(abs(t - seen[-1].t))
        point = look(t)
        near, far = (near, point) if turns(point) else (point, far)
    return np.array([p.t for p in seen]), np.array([p.value for p in seen])


def _find_root(one: ScalarPoint, other: ScalarPoint) -> float:
    """Return where the line through two slopes is 0, not a number where they are equal."""
    change = other.slope - one.slope
    return one.t - one.slope * (other.t - one.t) / change if change else np.nan


def find_vertex(at: np.ndarray, values: np.ndarray, best: int) -> tuple[float, float]:
    """Return where the parabola through a grid's best point and its neighbours is smallest.

    From the best point, and the parabola's curvature; both 0 at an end of the grid.
    """
    if not 0 < best < len(at) - 1 or not np.all(np.isfinite(values[best - 1 : best + 2])):
        return 0.0, 0.0
    (a, b), middle = at[[best - 1, best + 1]] - at[best], values[best]
    left, right = (values[best - 1] - middle) / a, (values[best + 1] - middle) / b
    curvature = 2 * (right - left) / (b - a)
    if not curvature > 0:
        return 0.0, 0.0
    slope = left - curvature * a / 2
    return float(np.clip(-slope / curvature, min(a, b) / 2, max(a, b) / 2)), float(curvature)
