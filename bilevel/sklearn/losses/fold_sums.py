r"""Least squares by second moments: folds of any number of rows as matrices ``[d, d]``.

    gram = sum_i s_i (x_i - m)(x_i - m)^T,   cross = sum_i s_i (x_i - m)(y_i - n)^T

about the means ``m, n`` of the training rows of a fold. Computed once, in float64, by NumPy, from
dense or sparse rows; what an outer step costs then does not depend on the number of rows.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.folds import Folds
from bilevel.sklearn.losses.padding import pad, rounded


class Moments(NamedTuple):
    """Moments of the folds of one problem, F of them, d columns, T targets.

    ``gram [F, d, d]``, ``cross [F, d, T]`` of the training rows; ``held_*`` of the held-out ones
    about the same means, per unit of weight and target, ``held_square [F]``; ``share [F]``.
    d and T are padded with zeros.
    """

    gram: Any
    cross: Any
    held_gram: Any
    held_cross: Any
    held_square: Any
    share: Any


class Atoms(NamedTuple):
    """Raw sums over each set of rows that no split tells apart, about common means.

    Every fold is a sum of atoms, so each row is multiplied once however many folds there are, and
    nothing is subtracted that could cancel.
    """

    labels: np.ndarray  # [n], the atom of each row
    weight: np.ndarray  # [a]
    x: np.ndarray  # [a, d]
    y: np.ndarray  # [a, T]
    gram: np.ndarray  # [a, d, d]
    cross: np.ndarray  # [a, d, T]
    square: np.ndarray  # [a, T]
    x_centre: np.ndarray
    y_centre: np.ndarray
    centred: bool


def atoms(
    X: Any, y: np.ndarray, weight: np.ndarray, train: np.ndarray, held: np.ndarray, centre: bool
) -> Atoms:
    """Sums of ``X [n, d]`` (dense or CSR) and ``y [n, T]`` by membership in the splits."""
    _, labels = np.unique(train + 2 * held, axis=1, return_inverse=True)
    labels = labels.ravel()
    n_atoms, d = labels.max() + 1, X.shape[1]
    total = weight.sum()
    x_centre = np.asarray(weight @ X).ravel() / total if centre else np.zeros(d)
    y_centre = weight @ y / total if centre else np.zeros(y.shape[1])
    y = y - y_centre
    sx, sy = np.zeros((n_atoms, d)), np.zeros((n_atoms, y.shape[1]))
    gram, cross = np.zeros((n_atoms, d, d)), np.zeros((n_atoms, d, y.shape[1]))
    size, square = np.zeros(n_atoms), np.zeros((n_atoms, y.shape[1]))
    for a in range(n_atoms):
        rows = np.flatnonzero((labels == a) & (weight > 0))
        s, t = weight[rows], y[rows]
        size[a], sy[a], square[a] = s.sum(), s @ t, s @ t**2
        if sparse.issparse(X):
            sx[a], gram[a], cross[a] = _sparse_sums(X[rows], s, t, x_centre)
        else:
            x = X[rows] - x_centre
            weighted = x * s[:, None]
            sx[a], gram[a], cross[a] = s @ x, weighted.T @ x, weighted.T @ t
    return Atoms(labels, size, sx, sy, gram, cross, square, x_centre, y_centre, centre)


def _sparse_sums(X: Any, s: np.ndarray, t: np.ndarray, centre: np.ndarray) -> Any:
    """The three sums of centred rows from rows that stay sparse."""
    weighted = X.multiply(s[:, None]).tocsr()
    raw = np.asarray(s @ X).ravel()
    between = np.outer(centre, raw)
    gram = (weighted.T @ X).toarray() - between - between.T + s.sum() * np.outer(centre, centre)
    cross = weighted.T @ t - np.outer(centre, s @ t)
    return raw - s.sum() * centre, gram, cross


class Means(NamedTuple):
    """Of the training rows of every fold: ``x [F, d]``, ``y [F, T]``, and their ``weight [F]``."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray


def moments(parts: Atoms, folds: Folds) -> tuple[Moments, Means]:
    """The moments of every fold, and the means that they are about."""
    _, first = np.unique(parts.labels, return_index=True)
    train, held = (side[:, first].astype(float) for side in (folds.train, folds.held))
    n, m = train @ parts.weight, held @ parts.weight
    per_row = 1 / np.where(n > 0, n, 1)
    per_held = 1 / (np.where(m > 0, m, 1) * parts.y.shape[1])
    x, y = train @ parts.x * per_row[:, None], train @ parts.y * per_row[:, None]
    if not parts.centred:
        x, y = np.zeros_like(x), np.zeros_like(y)
    d, targets = rounded(x.shape[1]), rounded(y.shape[1], 1)

    def about(side: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums about the means of the training rows."""
        size, sx, sy = side @ parts.weight, side @ parts.x, side @ parts.y
        gram = np.tensordot(side, parts.gram, 1) - _outer(x, sx) - _outer(sx, x)
        gram += size[:, None, None] * _outer(x, x)
        cross = np.tensordot(side, parts.cross, 1) - _outer(x, sy) - _outer(sx, y)
        cross += size[:, None, None] * _outer(x, y)
        square = side @ parts.square - 2 * y * sy + size[:, None] * y**2
        scale = unit[:, None, None]
        return pad(gram * scale, d, d), pad(cross * scale, d, targets), square * unit[:, None]

    gram, cross, _ = about(train, np.ones_like(n))
    held_gram, held_cross, square = about(held, per_held)
    means = Means(parts.x_centre + x, parts.y_centre + y, n)
    return Moments(gram, cross, held_gram, held_cross, square.sum(1), folds.share), means


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]
