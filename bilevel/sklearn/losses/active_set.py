r"""Exact minimiser of the elastic net by working sets; columns may depend on each other.

    min_w 1/2 w^T G w - c^T w + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2

Columns whose slope exceeds their penalty join a working set; on it the minimiser without
constraint is gone to as long as no sign changes (feature-sign search, Lee et al., NeurIPS 2006),
all columns that want to join at once. No matrix is larger than the working set (as in Massias et
al., "Celer", ICML 2018, where coordinate descent solves on it).
"""

from typing import NamedTuple, Protocol

import numpy as np
from scipy.linalg import cho_solve

from bilevel.sklearn.losses.working_set import WorkingSet, factorise

_SMALL = 1e-11  # of the largest slope at 0: violation at which a solution is one
_CURVED = 1e-10  # of the largest curvature: below it a direction is not determined
_MANY = 50  # columns in use: with so many they are first led to where their signs hold
_ROUNDS = 500
_LEAST = 20  # columns of the first working set


class QuadraticFold(Protocol):
    """The quadratic of one fold: its slope at 0 and products with its curvature."""

    cross: np.ndarray  # [d]

    @property
    def diagonal(self) -> np.ndarray:
        """Return the diagonal of G, ``[d]``."""
        ...

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``, ``[d]``, of a ``w`` that is 0 outside ``support``."""
        ...

    def block(self, columns: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Return the rows ``columns`` of G, of the same columns or of ``others``."""
        ...


class SparseFit(NamedTuple):
    """Coefficients ``w`` of the columns ``support``; ``violation`` relative to the slope at 0.

    The ``intercept`` of models that have no closed form for it.
    """

    support: np.ndarray
    w: np.ndarray
    violation: float
    intercept: float = 0.0


def fit_elastic_net(
    fold: QuadraticFold, l1: np.ndarray, l2: np.ndarray, start: SparseFit, *, positive: bool = False
) -> SparseFit:
    """Return the minimiser, from ``start`` on; ``positive``: of coefficients that are not below 0.

    Where it is not unique, one next to ``start``.
    """
    columns, w, working = start.support, start.w, None
    support, values = columns, w
    scale = max(float(np.max(np.abs(fold.cross), initial=0)), 1e-300)
    violation = np.inf
    for _ in range(_ROUNDS):
        kept = np.flatnonzero(w)
        support, values = columns[kept], w[kept]
        slope = fold.slope(support, values)
        excess = measure_excess(slope, l1, l2, support, values, positive=positive)
        worst = float(np.max(excess, initial=0)) / scale
        if worst <= _SMALL or (violation <= 1e3 * _SMALL and worst >= violation):
            violation = worst
            break
        violation = worst
        excess[columns] = 0
        outside = np.flatnonzero(excess > _SMALL * scale)
        if working is None and len(support) > _MANY:
            outside = outside[:0]
        # The worst of the rest join; each in the unit of its column, as their sizes differ.
        room = max(_LEAST, 2 * len(support))
        if len(outside) > room:
            unit = np.sqrt(np.maximum(fold.diagonal[outside], 1e-300))
            outside = outside[np.argpartition(-excess[outside] / unit, room)[:room]]
        old, columns = columns, np.append(columns, outside)
        w = np.append(w, np.zeros(len(outside)))
        if working is None:
            working = WorkingSet(fold.block(columns) + np.diag(l2[columns]))
        else:
            block = fold.block(outside) + np.diag(l2[outside])
            working.add(fold.block(old, outside), block)
        tol = 0.1 * _SMALL * scale
        w = minimise_on_columns(
            working, fold.cross[columns], l1[columns], w, tol=tol, positive=positive
        )
    order = np.argsort(support)
    return SparseFit(support[order], values[order], violation)


def measure_excess(
    slope: np.ndarray,
    l1: np.ndarray,
    l2: np.ndarray,
    support: np.ndarray,
    w: np.ndarray,
    *,
    positive: bool,
) -> np.ndarray:
    """Return by how much each column breaks the optimality conditions, ``[d]``, if above 0."""
    excess = (slope if positive else np.abs(slope)) - l1
    excess[support] = np.abs(slope[support] - l2[support] * w - l1[support] * np.sign(w))
    return excess


def minimise_on_columns(
    working: WorkingSet,
    cross: np.ndarray,
    l1: np.ndarray,
    w: np.ndarray,
    *,
    tol: float,
    positive: bool = False,
) -> np.ndarray:
    """Return the minimiser ``[k]`` from ``w`` on; the objective falls at every step.

    Ends where no slope is wrong by more than ``tol``, or where rounding lets nothing fall.
    """
    unit = np.sqrt(np.maximum(np.diag(working.matrix), 1e-300))
    one_by_one = False
    image, value = _evaluate(working, cross, l1, w)
    for _ in range(_ROUNDS):
        slope = cross - image
        excess = np.where(w == 0, (slope if positive else np.abs(slope)) - l1, 0)
        joins = excess > tol
        if one_by_one and joins.any():
            joins = np.arange(len(w)) == np.argmax(excess / unit)
        used = (w != 0) | joins
        sign = np.where(w != 0, np.sign(w), np.sign(slope))
        if not joins.any() and np.all(np.abs(slope - l1 * sign)[used] <= tol):
            break
        target = _solve_with_signs(working, slope - l1 * sign, sign, w, used)
        crossing = target * sign < 0
        new = np.where(crossing, 0.0, target)
        new_image, new_value = _evaluate(working, cross, l1, new)
        if crossing.any() and not new_value < value:
            # Not all the way: to the first change of sign, so far as the objective must fall.
            reach = np.where(crossing, w / np.where(crossing, w - target, 1), np.inf)
            first = min(float(np.min(reach)), 1.0)
            new = np.where(reach <= first, 0.0, w + first * (target - w))
            new_image, new_value = _evaluate(working, cross, l1, new)
        if not new_value < value:
            if not joins.any() and not crossing.any():
                return new  # the minimiser of the piece: what it gains is below rounding
            if one_by_one or not joins.any():
                break
            one_by_one = True
            continue
        one_by_one = False
        w, image, value = new, new_image, new_value
    return w


def _evaluate(
    working: WorkingSet, cross: np.ndarray, l1: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the product of the matrix with ``w``, and the objective."""
    image = working.matrix @ w
    return image, float(w @ image / 2 - cross @ w + l1 @ np.abs(w))


def _solve_with_signs(
    working: WorkingSet, slope: np.ndarray, sign: np.ndarray, w: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """Return the minimiser of the smooth piece that ``sign`` names, ``[k]``.

    Columns that join and would leave at once, on the wrong side, are left out.
    """
    while True:
        at = np.flatnonzero(used)
        target = np.zeros_like(w)
        target[at] = w[at] + working.solve(at, slope[at])
        wrong = used & (w == 0) & (target * sign < 0)
        if not wrong.any():
            return target
        used = used & ~wrong


def solve_determined(matrix: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, int]:
    """Solve a semidefinite system in the directions that have curvature, the smallest solution.

    Returns it, and how many directions are left out, below ``1e-10`` of the largest curvature of
    columns in units of their own: in those a derivative would be rounding over rounding.
    """
    unit = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scaled = matrix * unit * unit[:, None]
    factor, failed = factorise(scaled, lower=1)
    if not failed and len(unit) and np.min(np.diag(factor)) ** 2 > 100 * _CURVED:
        return unit * cho_solve((factor, True), unit * right, check_finite=False), 0
    values, vectors = np.linalg.eigh(scaled)
    keep = values > _CURVED * max(float(np.max(values, initial=0)), 1.0)
    basis = vectors[:, keep]
    x = unit * (basis @ ((basis.T @ (unit * right)) / values[keep]))
    return x, int(np.sum(~keep))
