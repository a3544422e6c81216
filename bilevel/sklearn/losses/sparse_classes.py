r"""Folds of multinomial regression under a penalty that leaves coefficients out.

    min_{W, b} sum_i s_i (log sum_k e^{z_ik} - z_i y_i) + penalty(W),   z_i = x_i W + b

As :mod:`~bilevel.sklearn.losses.sparse_glm`, proximal Newton on working sets, of the coefficients
``[d, K]`` flattened. Intercepts are the coefficients of a column of ones without penalty. With
``m_i`` the probabilities, the Hessian of two coefficients is

    sum_i s_i x_ij x_ij' (m_ik 1{k = k'} - m_ik m_ik')
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.active_set import SparseFit, solve_determined
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics, HeldLoss, make_row_folds
from bilevel.sklearn.losses.lasso import ElasticNetPenalty, SparseLoss
from bilevel.sklearn.losses.sparse_glm import GlmFold, Link


class ClassQuadratic:
    """The expansion about scores with probabilities ``m [n, K]`` of rows with weights ``[n]``."""

    def __init__(self, X: Any, by_column: Any, weight: np.ndarray, m: np.ndarray) -> None:
        """Take rows ``X [n, D]``, and the same stored by column."""
        self.X, self.by_column, self.weight, self.m = X, by_column, weight[:, None], m
        self.cross = np.zeros(X.shape[1] * m.shape[1])
        # Where one class is all but certain its 1 - m is what the others have, to all digits.
        self.top = m.argmax(1)[:, None]
        is_top = np.arange(m.shape[1]) == self.top
        self.rest = np.where(is_top, np.where(is_top, 0, m).sum(1, keepdims=True), 1 - m)

    @property
    def diagonal(self) -> np.ndarray:
        """Return the diagonal of the Hessian, flattened."""
        rows = self.by_column
        squares = rows.multiply(rows) if sparse.issparse(rows) else rows**2
        return np.asarray(squares.T @ (self.weight * self.m * self.rest)).ravel()

    def sum_rows(self, z: np.ndarray) -> np.ndarray:
        """Return ``X^T z``, flattened, of ``z [n, K]``."""
        return np.asarray(self.X.T @ z).ravel()

    def score(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return the scores ``[n, K]``."""
        K = self.m.shape[1]
        rows, place = np.unique(support // K, return_inverse=True)
        W = np.zeros((len(rows), K))
        W[place, support % K] = w
        return np.asarray(self.by_column[:, rows] @ W)

    def curve(self, t: np.ndarray) -> np.ndarray:
        """Return the Hessians of the rows times ``t [n, K]``, of which one number is nothing."""
        away = t - np.take_along_axis(t, self.top, 1)
        return self.weight * self.m * (away - np.sum(self.m * away, 1, keepdims=True))

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``."""
        if not len(support):
            return self.cross.copy()
        return self.cross - self.sum_rows(self.curve(self.score(support, w)))

    def block(self, columns: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Return the rows ``columns`` of the Hessian, of the same columns or of ``others``."""
        others = columns if others is None else others
        K = self.m.shape[1]
        root = np.sqrt(self.weight)
        both = [
            [self._take(part, root * power) for part in (columns, others)]
            for power in (self.m, np.sqrt(self.m * self.rest))
        ]
        (left, right), (own, own_right) = both
        across, within = left.T @ right, own.T @ own_right
        if sparse.issparse(across):
            across, within = across.toarray(), within.toarray()
        return np.where((columns % K)[:, None] == others % K, within, -across)

    def _take(self, columns: np.ndarray, factor: np.ndarray) -> Any:
        """Return the rows' entries of the columns, times those of ``factor [n, K]``."""
        K = factor.shape[1]
        taken = self.by_column[:, columns // K]
        if not sparse.issparse(taken):
            return taken * factor[:, columns % K]
        each = np.repeat(columns % K, np.diff(taken.indptr))
        data = taken.data * factor[taken.indices, each]
        return sparse.csc_array((data, taken.indices, taken.indptr), shape=taken.shape)


class ColumnSizes(NamedTuple):
    """The largest slope at the constant model, and the mean curvature, of every column ``[d]``."""

    cross: np.ndarray
    diagonal: np.ndarray


class ClassFold(GlmFold):
    """A fold, and the quadratic about its last fit."""

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
        """Take rows ``X [n, D]``, the last column of 1 if ``centred``; classes ``y [n, K]``."""
        self.link, self.X, self.by_column, self.y, self.train = link, X, by_column, y, train
        self.others = y == 0
        self.centred, self.start = False, 0.0  # no intercept beside the columns
        self.columns = X.shape[1] - centred
        self.held = held / (held.sum() or 1.0)
        start = self.link.start(train @ y / (train.sum() or 1.0)) if centred else np.zeros(1)
        none = SparseFit(np.zeros(0, int), np.zeros(0), np.inf)
        self._expand(none, np.broadcast_to(start, y.shape))
        self.cross, self.diagonal = self.at.cross, self.at.diagonal
        self.scale = max(float(np.max(np.abs(self.cross), initial=0)), 1e-300)

    def _losses(self, z: np.ndarray) -> np.ndarray:
        # To a relative error of rounding, where a loss is small beside the scores: of others alone.
        away = z - np.sum(self.y * z, 1, keepdims=True)
        top = np.maximum(away.max(1), 0)
        each = np.exp(away - top[:, None]) * self.others
        return top + np.log1p(each.sum(1) + np.expm1(-top))

    def _expand(self, fit: SparseFit, z: np.ndarray) -> None:
        self.z = z
        m = self.link.derive(z[:, None], self.y[:, None])[1][:, 0]
        # As the losses: what a class lacks of 1 is what the others have.
        error = m * self.others
        self.error = error - self.y * error.sum(1, keepdims=True)
        self.at = ClassQuadratic(self.X, self.by_column, self.train, m)
        self.at.cross = self.at.sum_rows(-self.train[:, None] * self.error)
        if len(fit.support):
            curved = self.at.curve(self.at.score(fit.support, fit.w))
            self.at.cross = self.at.cross + self.at.sum_rows(curved)

    def _score(self, fit: SparseFit) -> np.ndarray:
        return self.at.score(fit.support, fit.w)

    def size_columns(self) -> ColumnSizes:
        """Return what is known of the columns, but that of ones, over their classes."""
        cross, diagonal = (
            part.reshape(-1, self.y.shape[1])[: self.columns]
            for part in (self.cross, self.diagonal)
        )
        return ColumnSizes(np.max(np.abs(cross), 1), diagonal.mean(1))

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean loss of the held-out rows at the last fit, and its slope."""
        used, K = self.held > 0, self.y.shape[1]
        value = float(self.held[used] @ self._losses(self.z)[used])
        each = self.held[:, None] * self.error
        rows, place = np.unique(support // K, return_inverse=True)
        slope = np.asarray(self.by_column[:, rows].T @ each)
        return HeldLoss(value, slope[place, support % K])


class ClassPenalty:
    """One penalty a column, ``l1 [d]`` and ``l2 [d]``, for all ``K`` classes; ones have none."""

    def __init__(self, l1: np.ndarray, l2: np.ndarray, kinds: int, K: int, columns: int) -> None:
        """Take the number of ``columns`` with that of ones, if it is there."""
        # The last class has no intercept: one number added to all of them changes nothing.
        none = np.append(np.zeros(K - 1), np.inf) if columns > len(l1) else np.zeros(0)
        each, other = np.repeat(l1, K), np.repeat(l2, K)
        other = np.append(other, np.zeros(len(none)))
        self.flat = ElasticNetPenalty(np.append(each, none), other, kinds)
        self.solve, self.measure = self.flat.solve, self.flat.measure
        self.evaluate, self.curve = self.flat.evaluate, self.flat.curve
        self.d, self.K = len(l1), K

    def differentiate(self, support: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the derivative of ``v . slope of the penalty`` in the logarithms."""
        grad = self.flat.differentiate(support, w, v).reshape(self.flat.kinds, -1, self.K)
        return grad[:, : self.d].sum(2).ravel()


class ClassLoss(SparseLoss):
    """The mean over folds; ``theta``: as of the elastic net of the ``d`` columns."""

    def __init__(self, problem: FoldQuadratics, kinds: int, *, ratio: float = 1.0) -> None:
        """Start at no column; the folds are each a :class:`ClassFold`."""
        fold: Any = problem.folds[-1]
        columns, self.classes = fold.X.shape[1], fold.y.shape[1]

        def penalty_of(theta: np.ndarray) -> ClassPenalty:
            both = np.exp(theta).reshape(kinds, -1)
            if kinds == 1:
                both = np.array([[ratio], [1 - ratio]]) * both
            return ClassPenalty(both[0], both[1], kinds, self.classes, columns)

        super().__init__(problem, penalty_of)

    def count_undetermined(self, theta: np.ndarray) -> int:
        """Return how many directions have no curvature, but for those that change no probability.

        These add one number to the coefficients of all classes of a column.
        """
        support, w = self.fits[-1].support, self.fits[-1].w
        curved = self.penalty_of(theta).curve(support, w)
        found = solve_determined(self.problem.folds[-1].block(support) + curved, w)[1]
        full = np.bincount(support // self.classes) == self.classes
        neutral = full & (np.bincount(support // self.classes, np.diag(curved)) == 0)
        return max(found - int(neutral.sum()), 0)


def make_class_folds(
    link: Link,
    X: Any,
    y: np.ndarray,
    weight: np.ndarray,
    splits: tuple[np.ndarray, np.ndarray],
    intercept: bool,
) -> Callable[[int | None], FoldQuadratics]:
    """Return a function of a fold: the problem without it, for the multinomial ``link``.

    ``X [n, d]``, dense or CSR, classes ``y [n, K]``. With an intercept dense rows are about their
    mean.
    """
    rows: Any = X
    if intercept:
        ones = np.ones((len(y), 1))
        if isinstance(X, np.ndarray):
            rows = np.hstack([X - weight @ X / weight.sum(), ones])
        else:
            rows = sparse.hstack([X, ones], format="csr")

    def make(A: Any, by_column: Any, train: np.ndarray, held: np.ndarray, _: bool) -> ClassFold:
        return ClassFold(link, A, by_column, y, train, held, intercept)

    return make_row_folds(rows, weight, splits, False, make)
