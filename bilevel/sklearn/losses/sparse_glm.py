r"""Folds of a generalised linear model of one score under a penalty that leaves columns out.

    min_{w, b} sum_i s_i loss(x_i . w + b, y_i) + penalty(w)

Proximal Newton (Lee, Sun, Saunders, SIAM J. Optim. 2014): the loss is replaced by its second-order
expansion about the last point, a weighted least-squares problem that working sets solve exactly
(:mod:`~bilevel.sklearn.losses.active_set`), and the step is halved until the objective falls. The
intercept, without penalty, is eliminated: the quadratic is of rows about their weighted mean.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bilevel.sklearn.losses.active_set import SparseFit
from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.fold_quadratics import (
    FoldQuadratics,
    HeldLoss,
    RowQuadratic,
    SparsePenalty,
    make_row_folds,
)
from bilevel.sklearn.losses.links import Link

_STEPS, _HALVINGS = 100, 40
_DONE, _ROUNDING = 1e-13, 1e-15  # decrease, relative to the objective, at which Newton ends


class GlmFold:
    """A fold, and the quadratic about its last fit, whose ``block`` is the Hessian there."""

    def __init__(
        self,
        link: Link,
        X: Any,
        by_column: Any,
        y: np.ndarray,
        train: np.ndarray,
        held: np.ndarray,
        centred: bool,
    ) -> None:
        """Take rows ``X [n, d]``, the same by column, targets ``[n]``, the weights of both sides.

        Start at the constant model.
        """
        self.link, self.X, self.by_column, self.y = link, X, by_column, y[:, None, None]
        self.train, self.centred = train, centred
        self.held = held / (held.sum() or 1.0)
        mean = np.array([train @ y / (train.sum() or 1.0)])
        self.start = float(link.start(mean)[0]) if centred else 0.0
        none = SparseFit(np.zeros(0, int), np.zeros(0), np.inf, self.start)
        self._expand(none, np.full(len(y), self.start))
        self.cross, self.diagonal = self.at.cross, self.at.diagonal
        self.scale = max(float(np.max(np.abs(self.cross), initial=0)), 1e-300)

    def _losses(self, z: np.ndarray) -> np.ndarray:
        return self.link.value(z[:, None, None], self.y)[:, 0]

    def _expand(self, fit: SparseFit, z: np.ndarray) -> None:
        """Expand the loss about the scores ``z [n]`` of a fit."""
        self.z = z
        slope, curvature = self.link.derive(z[:, None, None], self.y)
        self.residual = -self.train * slope[:, 0, 0]
        weight = self.train * curvature[:, 0, 0]
        self.at = RowQuadratic(self.X, self.by_column, weight, self.centred)
        support, w = fit.support, fit.w
        self.at.cross = self.at.sum_centred(self.residual)
        if len(support):
            self.at.cross = self.at.cross + self.at.sum_centred(weight * self.at.image(support, w))

    def _score(self, fit: SparseFit) -> np.ndarray:
        return np.asarray(self.by_column[:, fit.support] @ fit.w).ravel() + fit.intercept

    def fit(self, penalty: SparsePenalty, start: SparseFit) -> SparseFit:
        """Return the minimiser under the penalty, from ``start`` on."""
        old = start
        if not np.isfinite(start.violation):
            old = start._replace(intercept=self.start)
        z = self._score(old)
        value = float(self.train @ self._losses(z)) + penalty.evaluate(old.support, old.w)
        for _ in range(_STEPS):
            self._expand(old, z)
            new = penalty.solve(self.at, old)
            if new.w is old.w and np.isfinite(old.violation):
                break
            intercept = 0.0
            if self.centred:  # that of the quadratic, for these coefficients
                shift = self.at.mean[new.support] @ new.w - self.at.mean[old.support] @ old.w
                intercept = old.intercept - shift + self.residual.sum() / self.at.total
            new = new._replace(intercept=intercept)
            found = self._search_line(penalty, old, new, z, value)
            if found is None:
                break
            before, (old, z, value) = value, found
            if before - value <= _DONE * abs(before):
                break
        self._expand(old, z)
        slope = self.at.slope(old.support, old.w)
        return old._replace(violation=penalty.measure(slope, old) / self.scale)

    def _search_line(
        self, penalty: SparsePenalty, old: SparseFit, new: SparseFit, z: np.ndarray, value: float
    ) -> tuple[SparseFit, np.ndarray, float] | None:
        """Return the longest of halved steps at which the objective is no higher, if there is one.

        With its scores and its objective.
        """
        way, part, fit = self._score(new) - z, 1.0, new
        for _ in range(_HALVINGS):
            trial = z + part * way
            at = self.train @ self._losses(trial) + penalty.evaluate(fit.support, fit.w)
            if at <= value + _ROUNDING * abs(value):
                return fit, trial, float(at)
            part /= 2
            fit = _mix(old, new, part)
        return None

    def block(self, columns: np.ndarray) -> np.ndarray:
        """Return a block of the Hessian at the last fit."""
        return self.at.block(columns)

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return minus the slope of the quadratic about the last fit."""
        return self.at.slope(support, w)

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean loss of the held-out rows at the last fit, and its slope."""
        used = self.held > 0
        slope = self.link.derive(self.z[:, None, None], self.y)[0][:, 0, 0]
        value = self.held[used] @ self._losses(self.z)[used]
        return HeldLoss(float(value), self.at.differentiate(support, self.held * slope))


def _mix(old: SparseFit, new: SparseFit, part: float) -> SparseFit:
    """Return the fit at a ``part`` of the way."""
    support = np.union1d(old.support, new.support)
    w = np.zeros(len(support))
    w[np.searchsorted(support, old.support)] += (1 - part) * old.w
    w[np.searchsorted(support, new.support)] += part * new.w
    intercept = (1 - part) * old.intercept + part * new.intercept
    return SparseFit(support, w, np.inf, intercept)


def make_glm_folds(
    link: Link,
    X: Matrix,
    y: np.ndarray,
    weight: np.ndarray,
    splits: tuple[np.ndarray, np.ndarray],
    centred: bool,
) -> Callable[[int | None], FoldQuadratics]:
    """Return a function of a fold: the problem without it. ``X [n, d]`` dense or CSR, ``y [n]``."""

    def make(A: Any, by_column: Any, *sides: Any) -> GlmFold:
        return GlmFold(link, A, by_column, y, *sides)

    return make_row_folds(X, weight, splits, centred, make)
