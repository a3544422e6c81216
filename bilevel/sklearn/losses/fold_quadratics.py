"""Folds of a least-squares problem as the working-set solver sees them: by moments or by rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.fold_sums import (
    FoldSums,
    compute_fold_sums,
    compute_group_sums,
    label_groups,
)
from bilevel.sklearn.losses.folds import make_folds

_MOMENTS = 1000  # columns up to which moments are formed, where rows are more


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

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``."""
        return self.cross - w @ self.gram[support]

    def block(self, columns: np.ndarray) -> np.ndarray:
        """Return a block of G."""
        return self.gram[np.ix_(columns, columns)]

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean squared error of the held-out rows."""
        gram, cross, square = self.held
        half = gram[np.ix_(support, support)] @ w - cross[support]
        return HeldLoss(max(square + w @ (half - cross[support]), 0.0), 2 * half)


class RowFold:
    """A fold as weights on rows that all folds share; nothing of ``[d, d]``."""

    def __init__(
        self,
        X: Any,
        by_column: Any,
        y: np.ndarray,
        train: np.ndarray,
        held: np.ndarray,
        centred: bool,
    ) -> None:
        """Take rows ``X [n, d]``, the same stored by column, and the weights of both sides."""
        self.X, self.by_column = X, by_column
        total = train.sum()
        self.train, self.held = train / (total or 1.0), held / (held.sum() or 1.0)
        d = by_column.shape[1]
        self.mean = self._columns_times(self.train) if centred else np.zeros(d)
        self.y = y - (self.train @ y if centred else 0.0)
        self.cross = self._columns_times(self.train * self.y)
        if centred:
            self.cross = self.cross - self.mean * (self.train @ self.y)
        squares = by_column.multiply(by_column) if sparse.issparse(X) else by_column**2
        self.diagonal = np.asarray(self.train @ squares).ravel() - self.mean**2

    def _columns_times(self, weight: np.ndarray) -> np.ndarray:
        """Return ``X^T weight``; rows without weight are not read."""
        rows = np.flatnonzero(weight)
        part = self.X[rows] if 4 * len(rows) < len(weight) else self.X
        return np.asarray((weight[rows] if part is not self.X else weight) @ part).ravel()

    def _take(self, columns: np.ndarray) -> Any:
        return self.by_column[:, columns]

    def _predict(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.asarray(self._take(support) @ w).ravel() - self.mean[support] @ w

    def slope(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return ``c - G w``."""
        if not len(support):
            return self.cross.copy()
        image = self.train * self._predict(support, w)
        return self.cross - self._columns_times(image) + self.mean * image.sum()

    def block(self, columns: np.ndarray) -> np.ndarray:
        """Return a block of G."""
        taken, mean = self._take(columns), self.mean[columns]
        if sparse.issparse(taken):
            weighted = taken.multiply(self.train[:, None]).tocsc()
            return (taken.T @ weighted).toarray() - np.outer(mean, mean)
        used = self.train > 0
        rows = (taken[used] - mean) * np.sqrt(self.train[used])[:, None]
        return rows.T @ rows

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the mean squared error of the held-out rows."""
        error = self._predict(support, w) - self.y
        weighted = 2 * self.held * error
        slope = np.asarray(weighted @ self._take(support)).ravel()
        return HeldLoss(float(self.held @ error**2), slope - self.mean[support] * weighted.sum())


class FoldQuadratics(NamedTuple):
    """The folds of one problem, and the ``share [F]`` of each in the outer loss."""

    folds: list[MomentFold] | list[RowFold]
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
    dense = isinstance(X, np.ndarray)
    if dense and centred:  # nothing large is left to cancel
        X = X - weight @ X / weight.sum()
    by_column: Any = np.asfortranarray(X) if isinstance(X, np.ndarray) else X.tocsc()

    def by_rows(without: int | None) -> FoldQuadratics:
        folds = make_folds(train, held, weight, without)
        sides = zip(folds.train * weight, folds.held * weight, strict=True)
        made = [RowFold(X, by_column, y, *side, centred) for side in sides]
        return FoldQuadratics(made, folds.share)

    return by_rows
