"""The Pareto front of two outer losses, traced from one end to the other by hypergradients.

Where neither loss can fall without the other rising, a weighted mean of the two is stationary:

    (1 - s) grad f1(h) / r1 + s grad f2(h) / r2 = 0,   dh/ds = -H_s^-1 (grad f2 / r2 - grad f1 / r1)

with the range ``r`` of each loss over the front and the Hessian ``H_s`` of the mean. A predictor
steps along ``dh/ds``, a corrector goes back to the front (Allgower, Georg, Numerical continuation
methods, 1990; Hillermeier, Nonlinear multiobjective optimization, 2001).
"""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Data, Estimator, Problem, UserLoss, require_arguments
from bilevel.estimators import EvidenceWarning
from bilevel.tuning.two_losses import Floats, Tried, TwoLosses, solve_within
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    not_callable,
    require_positive_int,
    require_variables,
)

_ENDS = 30  # points that the search for an end may take
_BACK = 3  # points that the corrector may take for one of the front
_WRONG = 0.5  # relative error of both hypergradients together, from which on there is a warning
_LITTLE = 1e-4  # of a loss's range: what promises less is not worth a point


@dataclass(frozen=True)
class Front:
    """Points of which none is better in both losses than another; made by :func:`trace_front`.

    Parameters
    ----------
    hyper : like ``hyper`` with a leading axis of m points, in natural units, from the end that is
        best in the first loss to the end that is best in the second.
    values : ``[m, 2]``, the two losses.
    errors : ``[m]``; what is known of the relative error of the two hypergradients there, together.
    solved : how many points were tried, each an inner problem and two hypergradients.
    """

    hyper: Hyper
    values: Array
    errors: Array
    solved: int

    def hypervolume(self, reference: tuple[float, float] | None = None) -> float:
        """Return the area of what the front dominates, up to ``reference``: the larger the better.

        Without one it is the rectangle between the ends, of area 1.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from bilevel.tuning.front import Front
        >>> values = jnp.array([[0.0, 2.0], [0.5, 1.0], [1.0, 0.0]])
        >>> Front(jnp.zeros(3), values, jnp.zeros(3), 3).hypervolume()
        0.25
        >>> Front(jnp.zeros(3), values, jnp.zeros(3), 3).hypervolume((2.0, 2.0))
        2.5
        """
        values = np.asarray(self.values, float)
        end = np.asarray(values.max(0) if reference is None else reference, float)
        left = np.maximum(end - values, 0)
        widths = left[:, 0] - np.append(left[1:, 0], 0)
        area = float(widths @ left[:, 1])
        whole = float(np.prod(end - values.min(0))) if reference is None else 1.0
        return area / whole if whole else 1.0


def trace_front(
    problem: Problem,
    second: UserLoss,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    *,
    key: Key,
    points: int = 16,
) -> Front:
    """Return the Pareto front of ``problem.outer`` and ``second``, both of the same inner problem.

    It begins at the minimum of the first loss, then finds that of the second, and goes from one to
    the other in steps of equal length in the plane of the losses, each over its range. A front is
    found as far as it is convex: of a dent only the edges are stationary minima of a mean.

    Parameters
    ----------
    problem, estimator, hyper, params, data : as for :func:`bilevel.hypergradient`; its ``outer`` is
        the first loss. Dense matrices of ``hyper``'s size are kept: for up to some thousand.
    second : the second loss, of the arguments of ``problem.outer``; it sees the same rows.
    key : held for all points, so that their noise is common.
    points : about how many points lie between the ends.

    Warns
    -----
    EvidenceWarning : points whose hypergradients are known to be wrong by more than a half.

    Raises
    ------
    TypeError : ``second`` is no function. ValueError : fewer than 3 points; ``has_aux`` or
        ``running``, which belong to one outer loss; a loss that is not finite at the start.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(  # w* = h, which is to be near 0, and near 1
    ...     inner=lambda w, h, x: jnp.mean((w - h + 0 * x) ** 2) / 2,
    ...     outer=lambda w, h, x: w**2 + 0 * jnp.mean(x),
    ... )
    >>> data = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))
    >>> start = jnp.array(0.3), jnp.array(0.0), data
    >>> near_one = lambda w, h, x: (w - 1) ** 2 + 0 * jnp.mean(x)
    >>> front = bl.trace_front(problem, near_one, bl.Auto(), *start, key=jax.random.key(0))
    >>> bool(jnp.allclose(jnp.sqrt(front.values).sum(1), 1, atol=1e-3))  # h and 1 - h
    True
    """
    require_arguments(problem, estimator, data, key)
    require_variables("hyper", hyper)
    problem.require_inside(hyper)
    require_positive_int("trace_front", "points", points)
    if points < 3:
        raise ValueError(f"trace_front: points must be at least 3, the ends and one, got {points}.")
    if not callable(second):
        raise TypeError(not_callable("trace_front: second", second))
    for name in ("has_aux", "running"):
        if getattr(problem, name):
            raise ValueError(f"trace_front takes no Problem({name}=...): it has two outer losses.")
    losses = TwoLosses(problem, second, estimator, hyper, params, data, key)
    begun = losses.seen[0]
    if not np.all(np.isfinite([*begun.values, *begun.gradients.ravel()])):
        raise ValueError(
            f"trace_front: the losses at hyper are {begun.values} and their hypergradients are "
            f"{begun.gradients}. Begin where the inner solver converges."
        )
    one = _descend(losses, begun, np.array([1.0, 0.0]), _ENDS, 0.0)
    other = _descend(losses, one, np.array([0.0, 1.0]), _ENDS, 0.0)
    ranges = np.abs(other.values - one.values)
    if np.all(ranges > 0):
        _follow(losses, one, other, ranges, points)
    return _make_front(losses, ranges)


def _descend(losses: TwoLosses, point: Tried, weights: Floats, most: int, least: float) -> Tried:
    """Return a minimum of ``weights @ values`` by at most so many steps within a trust region.

    It ends where the model promises less than ``least``, or than a little of what was gained.
    """
    radius = max(1.0, 0.1 * float(np.linalg.norm(point.z)))
    begun = float(weights @ point.values)
    for _ in range(most):
        slope = weights @ point.gradients
        hessian = np.tensordot(weights, losses.hessians, 1)
        promised = -float(slope @ solve_within(hessian, slope, np.inf)) / 2
        if promised <= max(least, _LITTLE * (begun - float(weights @ point.values))):
            break
        step = solve_within(hessian, slope, radius)
        after = losses.move(point, step)
        promised = -float(slope @ step + step @ hessian @ step / 2)
        gain = float(weights @ (point.values - after.values))
        length = float(np.linalg.norm(step))
        if not gain > 0.1 * promised:  # NaN too
            radius = length / 4
        elif gain > 0.75 * promised:
            radius = max(radius, 2 * length)
        if gain > 0 and np.all(np.isfinite(after.gradients)):
            point = after
    return point


def _follow(losses: TwoLosses, point: Tried, end: Tried, ranges: Floats, points: int) -> None:
    """Step from one end of the front to the other, ``s`` from 0 to 1."""
    s, longest = 0.0, max(1.0, float(np.linalg.norm(end.z - point.z)) / 4)
    for _ in range(4 * points):
        hessian = np.tensordot(np.array([1 - s, s]) / ranges, losses.hessians, 1)
        turn = point.gradients[1] / ranges[1] - point.gradients[0] / ranges[0]
        along = solve_within(hessian, turn, np.inf)
        moved = float(np.linalg.norm(point.gradients @ along / ranges))
        # The losses move by one part of the front, coordinates by what the model may be good for.
        ds = 1 / max((points - 1) * moved, float(np.linalg.norm(along)) / longest, 1.0 / points)
        if s + ds >= 1:
            return
        predicted = losses.move(point, ds * along)
        if not np.all(np.isfinite(predicted.gradients)):
            longest /= 4
            continue
        s += ds
        weights = np.array([1 - s, s]) / ranges
        point = _descend(losses, predicted, weights, _BACK, _LITTLE)


def _make_front(losses: TwoLosses, ranges: Floats) -> Front:
    """Keep the points that no other is below in both losses, in the order of the first."""
    seen = [point for point in losses.seen if np.all(np.isfinite(point.values))]
    kept: list[Tried] = []
    for point in sorted(seen, key=lambda p: tuple(p.values)):
        if not kept or point.values[1] < kept[-1].values[1]:
            kept.append(point)
    hyper = jax.tree.map(lambda *x: jnp.stack(x), *(losses.natural(p.z) for p in kept))
    over = np.where(ranges > 0, ranges, 1)

    def error(point: Tried) -> float:
        sizes = np.linalg.norm(point.gradients, axis=1) / over
        wrong = np.where(sizes > 0, point.errors * sizes, 0)
        return float(np.linalg.norm(wrong) / max(sizes.sum(), 1e-300))

    errors = jnp.array([error(point) for point in kept])
    if bad := int(jnp.sum(errors > _WRONG)):
        warnings.warn(
            f"trace_front: hypergradients of {bad} of {len(kept)} points are known to be wrong by "
            f"more than {100 * _WRONG:.0f} % (front.errors), so that the front may lie below them. "
            "Use an estimator that solves the inner problem further.",
            EvidenceWarning,
            stacklevel=3,
        )
    return Front(hyper, jnp.array([p.values for p in kept]), errors, len(losses.seen))
