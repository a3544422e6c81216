r"""Least squares by second moments: folds of any number of rows as matrices ``[d, d]``.

    gram = sum_i s_i (x_i - m)(x_i - m)^T,   cross = sum_i s_i (x_i - m)(y_i - n)^T

about the means ``m, n`` of the training rows of a fold. Computed once, in float64, by NumPy, from
dense or sparse rows; what an outer step costs then does not depend on the number of rows.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.folds import Folds


class FoldSums(NamedTuple):
    """Second moments of the folds of one problem, F of them, d columns, T targets.

    ``gram [F, d, d]``, ``cross [F, d, T]`` of the training rows; ``held_*`` of the held-out ones
    about the same means, per unit of weight and target, ``held_square [F]``; ``share [F]``.
    """

    gram: Any
    cross: Any
    held_gram: Any
    held_cross: Any
    held_square: Any
    share: Any


class GroupSums(NamedTuple):
    """Raw sums over each set of rows that no split tells apart, about common means.

    Every fold is a sum of groups, so each row is multiplied once however many folds there are, and
    nothing is subtracted that could cancel.
    """

    labels: np.ndarray  # [n], the group of each row
    weight: np.ndarray  # [a]
    x: np.ndarray  # [a, d]
    y: np.ndarray  # [a, T]
    gram: np.ndarray  # [a, d, d]
    cross: np.ndarray  # [a, d, T]
    square: np.ndarray  # [a, T]
    x_centre: np.ndarray
    y_centre: np.ndarray
    centred: bool


def label_groups(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the set of each row ``[n]`` that no split tells apart, and a row of each set."""
    pattern = np.ascontiguousarray((train + 2 * held).T.astype(np.uint8))
    keys = pattern.view([("", np.uint8)] * pattern.shape[1]).ravel()
    _, first, labels = np.unique(keys, return_index=True, return_inverse=True)
    return labels.ravel(), first


def compute_group_sums(
    X: Matrix, y: np.ndarray, weight: np.ndarray, labels: np.ndarray, centre: bool
) -> GroupSums:
    """Sum ``X [n, d]`` (dense or CSR) and ``y [n, T]`` over the sets of rows ``labels [n]``."""
    shape: Any = X.shape
    n_groups, d = labels.max() + 1, shape[1]
    total = weight.sum()
    x_centre = np.asarray(weight @ X).ravel() / total if centre else np.zeros(d)
    y_centre = weight @ y / total if centre else np.zeros(y.shape[1])
    y = y - y_centre
    sx, sy = np.zeros((n_groups, d)), np.zeros((n_groups, y.shape[1]))
    gram, cross = np.zeros((n_groups, d, d)), np.zeros((n_groups, d, y.shape[1]))
    size, square = np.zeros(n_groups), np.zeros((n_groups, y.shape[1]))
    for a in range(n_groups):
        rows = np.flatnonzero((labels == a) & (weight > 0))
        s, t = weight[rows], y[rows]
        size[a], sy[a], square[a] = s.sum(), s @ t, s @ t**2
        if isinstance(X, np.ndarray):
            x = X[rows] - x_centre
            weighted = x * s[:, None]
            sx[a], gram[a], cross[a] = s @ x, weighted.T @ x, weighted.T @ t
        else:
            sx[a], gram[a], cross[a] = _sparse_sums(X[rows], s, t, x_centre)
    return GroupSums(labels, size, sx, sy, gram, cross, square, x_centre, y_centre, centre)


def _sparse_sums(
    X: sparse.csr_matrix, s: np.ndarray, t: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three sums of centred rows from rows that stay sparse."""
    weighted = X.multiply(s[:, None]).tocsr()
    raw = np.asarray(s @ X).ravel()
    between = np.outer(centre, raw)
    gram = (weighted.T @ X).toarray() - between - between.T + s.sum() * np.outer(centre, centre)
    cross = weighted.T @ t - np.outer(centre, s @ t)
    return raw - s.sum() * centre, gram, cross


class FoldMeans(NamedTuple):
    """Means of every fold's training rows: ``x [F, d]``, ``y [F, T]``; their ``weight [F]``."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray


def compute_fold_sums(parts: GroupSums, folds: Folds) -> tuple[FoldSums, FoldMeans]:
    """Return the sums of every fold, and the means that they are about."""
    _, first = np.unique(parts.labels, return_index=True)
    train, held = (side[:, first].astype(float) for side in (folds.train, folds.held))
    n, m = train @ parts.weight, held @ parts.weight
    per_row = 1 / np.where(n > 0, n, 1)
    per_held = 1 / (np.where(m > 0, m, 1) * parts.y.shape[1])
    x, y = train @ parts.x * per_row[:, None], train @ parts.y * per_row[:, None]
    if not parts.centred:
        x, y = np.zeros_like(x), np.zeros_like(y)
    # Sums about common means become sums about those of a fold by the parallel axis theorem.

    def about(side: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return sums about the means of the training rows."""
        size, sx, sy = side @ parts.weight, side @ parts.x, side @ parts.y
        gram = np.tensordot(side, parts.gram, 1) - _outer(x, sx) - _outer(sx, x)
        gram += size[:, None, None] * _outer(x, x)
        cross = np.tensordot(side, parts.cross, 1) - _outer(x, sy) - _outer(sx, y)
        cross += size[:, None, None] * _outer(x, y)
        square = side @ parts.square - 2 * y * sy + size[:, None] * y**2
        scale = unit[:, None, None]
        return gram * scale, cross * scale, square * unit[:, None]

    gram, cross, _ = about(train, np.ones_like(n))
    held_gram, held_cross, square = about(held, per_held)
    means = FoldMeans(parts.x_centre + x, parts.y_centre + y, n)
    return FoldSums(gram, cross, held_gram, held_cross, square.sum(1), folds.share), means


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]
