"""One variable: the minimum next to a point of a grid, as the root of the slope."""

from typing import NamedTuple

import numpy as np

from bilevel.sklearn.search.descent import OuterFunction

_SHARP = 0.03  # of tol: at this possible gain the search ends, as the root is found fast near it


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

    Steps, the first by the ``curvature`` if it is known, that double until the loss or the slope
    turns, then the secant of the slopes, and bisection where that is slow. Ends where the gain to
    expect is below ``tol * 0.03`` of the loss or below ``least``, or after ``max_iter`` evaluations
    of each kind. Returns the ``t`` seen and their losses, the start first.
    """

    def look(t: float) -> ScalarPoint:
        at = outer(start + t)
        point = ScalarPoint(t, float(at.value), float(np.sum(at.grad)))
        seen.append(point)
        return point

    seen: list[ScalarPoint] = []
    near = look(0.0)
    enough = max(tol * _SHARP * abs(near.value), least)
    length = 1.5 * abs(near.slope) / curvature if curvature > 0 else 1.0
    far, step = None, -np.sign(near.slope) * min(max(length, 0.02), 1.0)
    end = reach[1] if step > 0 else reach[0]

    def turns(point: ScalarPoint) -> bool:
        """Has the minimum been passed at this point?"""
        return not (point.value <= near.value and point.slope * step < 0)

    while near.t != end and far is None and len(seen) <= max_iter:
        if abs(near.slope * (end - near.t)) <= enough:
            break
        point = look(min(near.t + step, end) if step > 0 else max(near.t + step, end))
        near, far = (near, point) if turns(point) else (point, None)
        step *= 2
    for _ in range(max_iter):
        if far is None:
            break
        width = far.t - near.t
        part = near.slope / (near.slope - far.slope) if near.slope * far.slope < 0 else 0.5
        best = near if near.value <= far.value else far
        left = part * width if best is near else (1 - part) * width
        if not np.isfinite(part) or abs(best.slope * left) <= enough or abs(width) < 1e-9:
            break
        point = look(near.t + part * width)
        before, (near, far) = width, (near, point) if turns(point) else (point, far)
        if abs(far.t - near.t) > abs(before) / 2:  # the secant holds on to one end
            point = look((near.t + far.t) / 2)
            near, far = (near, point) if turns(point) else (point, far)
    return np.array([p.t for p in seen]), np.array([p.value for p in seen])


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
