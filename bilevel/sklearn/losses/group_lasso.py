r"""Sparse-group lasso: its exact minimiser, and what its hypergradient needs.

    min_w 1/2 w^T G w - c^T w + sum_g s_g |w_g|_2 + sum_j l1_j |w_j|

Yuan, Lin, JRSS B 2006; Simon, Friedman, Hastie, Tibshirani, JCGS 2013. Groups whose slope exceeds
their penalty join a working set; on it sweeps of proximal steps, one group after the other, say
which groups and columns are in use, and Newton's method on these, where the objective is smooth,
solves to rounding. The implicit function theorem holds on the columns in use, with the curvature
``s_g (I / |w_g| - w_g w_g^T / |w_g|^3)`` of the norms.
"""

from typing import NamedTuple

import numpy as np

from bilevel.sklearn.losses.active_set import QuadraticFold, SparseFit
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics
from bilevel.sklearn.losses.lasso import SparseLoss
from bilevel.sklearn.losses.working_set import solve_near

_SMALL = 1e-11  # of the largest slope at 0: violation at which a solution is one
_ROUNDS, _HALVINGS = 500, 20
_LEAST = 20  # columns of the first working set


class GroupPenalty(NamedTuple):
    """The penalties ``norms [groups]`` and ``l1 [d]``; ``labels [d]``: the group of each column.

    Both as functions of logarithms ``theta [d]``: of ``l1``, and of ``norms`` by their mean over
    the group.
    """

    labels: np.ndarray
    norms: np.ndarray
    l1: np.ndarray

    def solve(self, fold: QuadraticFold, start: SparseFit) -> SparseFit:
        """Return the minimiser of a quadratic and the penalty, from ``start`` on."""
        fit, violation, joins = start, np.inf, np.zeros(0, int)
        scale = max(float(np.max(np.abs(fold.cross), initial=0)), 1e-300)
        for _ in range(_ROUNDS):
            excess = self._measure_groups(fold.slope(fit.support, fit.w), fit)
            worst = float(np.max(excess, initial=0)) / scale
            stuck = worst >= violation and (violation <= 1e3 * _SMALL or not len(joins))
            if worst <= _SMALL or stuck:
                return fit._replace(violation=worst)
            violation = worst
            used = np.zeros(len(self.norms), bool)
            used[self.labels[fit.support]] = True
            joins = np.flatnonzero((excess > _SMALL * scale) & ~used)
            room = max(_LEAST, 2 * int(used.sum()))
            if len(joins) > room:
                unit = np.maximum(self.norms[joins], 1e-300)
                joins = joins[np.argpartition(-excess[joins] / unit, room)[:room]]
            used[joins] = True
            columns = np.flatnonzero(used[self.labels])
            first = np.zeros(len(columns))
            first[np.searchsorted(columns, fit.support)] = fit.w
            block, cross = fold.block(columns), fold.cross[columns]
            found = self._take(columns).minimise(block, cross, first, 0.1 * _SMALL * scale)
            fit = SparseFit(columns[found != 0], found[found != 0], violation)
        return fit._replace(violation=violation)

    def _take(self, columns: np.ndarray) -> "GroupPenalty":
        """Return the penalty of some columns, all of each group."""
        groups, labels = np.unique(self.labels[columns], return_inverse=True)
        return GroupPenalty(labels, self.norms[groups], self.l1[columns])

    def minimise(
        self, gram: np.ndarray, cross: np.ndarray, w: np.ndarray, tol: float
    ) -> np.ndarray:
        """Return the minimiser ``[d]`` of a quadratic that is known, from ``w`` on."""
        parts = [np.flatnonzero(self.labels == g) for g in range(len(self.norms))]
        lengths = [1 / max(float(np.linalg.norm(gram[np.ix_(p, p)])), 1e-300) for p in parts]
        every, best, left = np.arange(len(w)), w, np.inf
        for _ in range(_ROUNDS):
            slope = cross - gram @ w
            fit = SparseFit(every[w != 0], w[w != 0], np.inf)
            now = self.measure(slope, fit)
            if now < left:
                best, left = w, now
            if now <= tol:
                break
            for g, (part, length) in enumerate(zip(parts, lengths, strict=True)):
                new = shrink_group(
                    w[part] + length * slope[part],
                    length * self.norms[g],
                    length * self.l1[part],
                )
                change = new - w[part]
                if change.any():
                    slope = slope - gram[:, part] @ change
                    w = w.copy()
                    w[part] = new
            w = self._step_newton(gram, cross, w, slope)
        return best

    def _step_newton(
        self, gram: np.ndarray, cross: np.ndarray, w: np.ndarray, slope: np.ndarray
    ) -> np.ndarray:
        """Return the end of one step on the columns in use, halved until the objective falls."""
        support = np.flatnonzero(w)
        if not len(support):
            return w
        matrix = gram[np.ix_(support, support)] + self.curve(support, w[support])
        step = np.zeros_like(w)
        step[support] = solve_near(matrix, slope[support] - self._find_slope(support, w[support]))

        def look(at: np.ndarray) -> float:
            every = np.arange(len(at))
            return float(at @ (gram @ at) / 2 - cross @ at) + self.evaluate(every, at)

        # All the way, without what would turn round; or to the first that does.
        turn = self._find_turns(w, step)
        first = float(np.min(turn, initial=np.inf))
        value = look(w)
        for part in (1.0, *(first / 2.0**k for k in range(_HALVINGS) if first < 1)):
            new = np.where(turn <= part, 0.0, w + part * step)
            if look(new) <= value + 1e-15 * abs(value):
                return new
        for halvings in range(1, 0 if first < 1 else _HALVINGS):
            new = w + step / 2**halvings
            if look(new) <= value + 1e-15 * abs(value):
                return new
        return w

    def _find_turns(self, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return after which part of the step each column is at 0, or its group turns round."""
        count = len(self.norms)
        along = np.bincount(self.labels, step * w, count)
        squares = np.bincount(self.labels, w**2, count)
        group = np.where(along < 0, -squares / np.where(along < 0, along, 1), np.inf)
        back = (step * w < 0) & (self.l1 > 0)
        own = np.where(back, -w / np.where(back, step, 1), np.inf)
        return np.where(w != 0, np.minimum(group[self.labels], own), np.inf)

    def _sizes(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return the norm of its group for each column of the support."""
        squares = np.bincount(self.labels[support], w**2, len(self.norms))
        return np.sqrt(squares)[self.labels[support]]

    def _find_slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return the slope of the penalty on the support."""
        norms = self.norms[self.labels[support]]
        return norms * w / self._sizes(support, w) + self.l1[support] * np.sign(w)

    def _measure_groups(self, slope: np.ndarray, fit: SparseFit) -> np.ndarray:
        """Return by how much each group breaks the optimality conditions, if above 0."""
        support, w = fit.support, fit.w
        soft = np.maximum(np.abs(slope) - self.l1, 0)
        count = len(self.norms)
        excess = np.sqrt(np.bincount(self.labels, soft**2, count)) - self.norms
        used = np.zeros(count, bool)
        used[self.labels[support]] = True
        soft[support] = np.abs(slope[support] - self._find_slope(support, w))
        worst = np.zeros(count)
        np.maximum.at(worst, self.labels, soft)
        return np.where(used, worst, excess)

    def measure(self, slope: np.ndarray, fit: SparseFit) -> float:
        """Return the largest violation of the optimality conditions."""
        return float(np.max(self._measure_groups(slope, fit), initial=0))

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> float:
        """Return the penalty of ``w``."""
        squares = np.bincount(self.labels[support], w**2, len(self.norms))
        return float(self.norms @ np.sqrt(squares) + self.l1[support] @ np.abs(w))

    def curve(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return its Hessian on the support."""
        labels, size = self.labels[support], self._sizes(support, w)
        unit, strength = w / size, self.norms[labels] / size
        same = labels[:, None] == labels
        return np.diag(strength) - same * strength * np.outer(unit, unit)

    def differentiate(self, support: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the derivative of ``v . slope of the penalty`` in the logarithms."""
        labels, grad = self.labels[support], np.zeros(len(self.labels))
        grad[support] = self.l1[support] * np.sign(w) * v
        inner = np.bincount(labels, w / self._sizes(support, w) * v, len(self.norms))
        each = self.norms * inner / np.bincount(self.labels)
        return grad + each[self.labels]


def shrink_group(w: np.ndarray, norm: float, l1: np.ndarray) -> np.ndarray:
    """Return the proximal point of one group: shrunk column by column, then as a whole."""
    soft = np.sign(w) * np.maximum(np.abs(w) - l1, 0)
    size = float(np.linalg.norm(soft))
    return soft * (1 - norm / size) if size > norm else np.zeros_like(w)


class GroupLassoLoss(SparseLoss):
    """The mean over folds; ``theta [d]``: logarithms of the penalties, by their mean over a group.

    A part ``ratio`` is on ``|w_j|``, the rest on ``sqrt(size) |w_g|``.
    """

    def __init__(self, problem: FoldQuadratics, labels: np.ndarray, ratio: float) -> None:
        """Start at no column; ``labels [d]``: groups from 0."""
        size = np.bincount(labels)

        def penalty_of(theta: np.ndarray) -> GroupPenalty:
            mean = np.bincount(labels, theta) / size
            norms = (1 - ratio) * np.sqrt(size) * np.exp(mean)
            return GroupPenalty(labels, norms, ratio * np.exp(theta))

        super().__init__(problem, penalty_of)
