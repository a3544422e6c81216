"""Sizes of columns."""

import numpy as np

from bilevel.sklearn.losses.arrays import Matrix


def compute_column_squares(X: Matrix, weight: np.ndarray, centred: bool) -> np.ndarray:
    """Return the weighted, centred sum of squares of each column, ``[d]``.

    A column that is constant, or that rounding hides beside its mean, has that of the smallest
    other one, or 1: nothing then depends on it.
    """
    used = weight > 0
    total = weight.sum()
    if isinstance(X, np.ndarray):
        rows = X[used].astype(np.float64)
        mean = weight[used] @ rows / total if centred else np.zeros(X.shape[1])
        squares = weight[used] @ np.square(rows - mean)
        rounding = 1e-15 * total * mean**2
    else:
        raw = np.asarray(weight @ X.multiply(X).astype(np.float64)).ravel()
        mean = np.asarray(weight @ X).ravel() / total if centred else np.zeros(len(raw))
        squares, rounding = raw - total * mean**2, 1e-15 * raw
    seen = squares > np.maximum(rounding, 1e-300)
    return np.where(seen, squares, np.min(squares[seen]) if seen.any() else 1.0)
