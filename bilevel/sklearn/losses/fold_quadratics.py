"""Folds of a least-squares problem as the working-set solver sees them: by moments or by rows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.active_set import QuadraticFold, SparseFit
from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.fold_sums import (
    FoldSums,
    compute_fold_sums,
    compute_group_sums,
    label_groups,
)
from bilevel.sklearn.losses.folds import make_folds

_MOMENTS = 1000  # columns up to which moments are formed, where rows are more


class SparsePenalty(Protocol):
    """A penalty under which most coefficients are 0."""

    def solve(self, fold: QuadraticFold, start: SparseFit) -> SparseFit:
        """Return the minimiser of a quadratic and the penalty, from ``start`` on."""
        ...

    def measure(self, slope: np.ndarray, fit: SparseFit) -> float:
        """Return the largest violation of the optimality conditions by a fit."""
        ...

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> float:
        """Return the penalty of ``w``, which is 0 outside ``support``."""
        ...


class SparseFold(Protocol):
    """One fold: its fit, the quadratic there, and the loss on what it holds out."""

    cross: np.ndarray  # [d]

    @property
    def diagonal(self) -> np.ndarray:
        """Return the diagonal of the curvature, ``[d]``."""
        ...

    def block(self, columns: np.ndarray) -> np.ndarray:
        """Return the rows and columns ``columns`` of the curvature."""
        ...

    def fit(self, penalty: SparsePenalty, start: SparseFit) -> SparseFit:
        """Return the minimiser under the penalty, from ``start`` on."""
        ...

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> "HeldLoss":
        """Return the loss on held-out rows at the last fit."""
        ...


class HeldLoss(NamedTuple):
    """The loss on held-out rows, and its slope in the coefficients of the support."""

    value: float
    slope: np.ndarray


class MomentFold:
    """A fold as second moments ``[d, d]``."""

    def __init__(self, sums: FoldSums, k: int, unit: float) -> None:
        """Take fold ``k``, per ``unit`` of weight of its training rows."""
        self.gram, self.cross = sums.gram[k] / unit, sums.cross[k, :, 0] / unit
        self.diagonal = np.diag(self.gram)
        self.held = sums.held_gram[k], sums.held_cross[k, :, 0], float(sums.held_square[k])

    def fit(self, penalty: SparsePenalty, start: SparseFit) -> SparseFit:
        """Return the minimiser."""
        return penalty.solve(self, start)

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``."""
        return self.cross - w @ self.gram[support]

    def block(self, columns: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Return a block of G."""
        return self.gram[np.ix_(columns, columns if others is None else others)]

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean squared error of the held-out rows."""
        gram, cross, square = self.held
        half = gram[np.ix_(support, support)] @ w - cross[support]
        return HeldLoss(max(square + w @ (half - cross[support]), 0.0), 2 * half)


class RowQuadratic:
    """A quadratic by weighted rows, about their mean if ``centred``; nothing of ``[d, d]``."""

    def __init__(self, X: Any, by_column: Any, weight: np.ndarray, centred: bool) -> None:
        """Take rows ``X [n, d]``, the same stored by column, and weights ``[n]``."""
        self.X, self.by_column, self.weight = X, by_column, weight
        self.total = max(float(weight.sum()), 1e-300)
        d = by_column.shape[1]
        self.mean = self.sum_columns(weight) / self.total if centred else np.zeros(d)
        self.cross = np.zeros(d)
        self._diagonal: np.ndarray | None = None

    @property
    def diagonal(self) -> np.ndarray:
        """Return the diagonal of G, ``[d]``, computed when it is first asked for."""
        if self._diagonal is None:
            rows = self.by_column
            squares = rows.multiply(rows) if sparse.issparse(rows) else rows**2
            raw = np.asarray(self.weight @ squares).ravel()
            self._diagonal = raw - self.total * self.mean**2
        return self._diagonal

    def sum_columns(self, weight: np.ndarray) -> np.ndarray:
        """Return ``X^T weight``; rows without weight are not read."""
        rows = np.flatnonzero(weight)
        part = self.X[rows] if 4 * len(rows) < len(weight) else self.X
        return np.asarray((weight[rows] if part is not self.X else weight) @ part).ravel()

    def sum_centred(self, weight: np.ndarray) -> np.ndarray:
        """Return ``(X - mean)^T weight``."""
        return self.sum_columns(weight) - self.mean * weight.sum()

    def image(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``(X - mean) w``, ``[n]``."""
        return np.asarray(self.by_column[:, support] @ w).ravel() - self.mean[support] @ w

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``."""
        if not len(support):
            return self.cross.copy()
        return self.cross - self.sum_centred(self.weight * self.image(support, w))

    def block(self, columns: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Return a block of G."""
        left = self._take(columns)
        right = left if others is None else self._take(others)
        if sparse.issparse(left):
            means = self.mean[columns], self.mean[columns if others is None else others]
            return (left.T @ right).toarray() - self.total * np.outer(*means)
        return left.T @ right

    def _take(self, columns: np.ndarray) -> Any:
        """Return columns times the root of the weights, those of weight 0 left out if dense."""
        taken = self.by_column[:, columns]
        if sparse.issparse(taken):
            return taken.multiply(np.sqrt(self.weight)[:, None]).tocsc()
        used = self.weight > 0
        return (taken[used] - self.mean[columns]) * np.sqrt(self.weight[used])[:, None]

    def differentiate(self, support: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Return the slope in the coefficients of the support by ``slope [n]`` in the scores."""
        by_w = np.asarray(slope @ self.by_column[:, support]).ravel()
        return by_w - self.mean[support] * slope.sum()


class RowFold(RowQuadratic):
    """A fold as weights on rows that all folds share."""

    def __init__(
        self,
        X: Any,
        by_column: Any,
        y: np.ndarray,
        train: np.ndarray,
        held: np.ndarray,
        centred: bool,
    ) -> None:
        """Take the weights of both sides, ``[n]``."""
        super().__init__(X, by_column, train / (train.sum() or 1.0), centred)
        self.held = held / (held.sum() or 1.0)
        self.y = y - (self.weight @ y if centred else 0.0)
        self.cross = self.sum_centred(self.weight * self.y)

    def fit(self, penalty: SparsePenalty, start: SparseFit) -> SparseFit:
        """Return the minimiser."""
        return penalty.solve(self, start)

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean squared error of the held-out rows."""
        error = self.image(support, w) - self.y
        value = float(self.held @ error**2)
        return HeldLoss(value, self.differentiate(support, 2 * self.held * error))


class FoldQuadratics(NamedTuple):
    """The folds of one problem, and the ``share [F]`` of each in the outer loss."""

    folds: Sequence[SparseFold]
    share: np.ndarray


def make_quadratics(
    X: Matrix,
    y: np.ndarray,
    weight: np.ndarray,
    splits: tuple[np.ndarray, np.ndarray],
    centred: bool,
) -> Callable[[int | None], FoldQuadratics]:
    """Return a function of a fold: the problem without it. ``X [n, d]`` dense or CSR, ``y [n]``."""
    train, held = splits
    shape: Any = X.shape
    if shape[1] <= min(_MOMENTS, shape[0]):
        parts = compute_group_sums(X, y[:, None], weight, label_groups(train, held)[0], centred)

        def by_moments(without: int | None) -> FoldQuadratics:
            sums, means = compute_fold_sums(parts, make_folds(train, held, weight, without))
            return FoldQuadratics(
                [MomentFold(sums, k, unit or 1.0) for k, unit in enumerate(means.weight)],
                sums.share,
            )

        return by_moments
    return make_row_folds(
        X, weight, splits, centred, lambda A, by_column, *side: RowFold(A, by_column, y, *side)
    )


def make_row_folds(
    X: Matrix,
    weight: np.ndarray,
    splits: tuple[np.ndarray, np.ndarray],
    centred: bool,
    make: Callable[..., SparseFold],
) -> Callable[[int | None], FoldQuadratics]:
    """Return a function of a fold: the problem without it, its folds by rows.

    ``make``: of rows about their mean if they are dense and ``centred``, the same by column, the
    weights of both sides, ``centred``.
    """
    train, held = splits
    if isinstance(X, np.ndarray) and centred:  # nothing large is left to cancel
        X = X - weight @ X / weight.sum()
    by_column: Any = np.asfortranarray(X) if isinstance(X, np.ndarray) else X.tocsc()

    def by_rows(without: int | None) -> FoldQuadratics:
        folds = make_folds(train, held, weight, without)
        sides = zip(folds.train * weight, folds.held * weight, strict=True)
        return FoldQuadratics([make(X, by_column, *side, centred) for side in sides], folds.share)

    return by_rows
