"""Rows with fewer of them than columns, in as many coordinates as rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils.extmath import safe_sparse_dot

from bilevel.sklearn.losses.arrays import Matrix


def rotate_rows(
    X: Matrix, weight: np.ndarray, centred: bool
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return ``X [n, d]``, n < d, in at most n coordinates, and the way of coefficients back.

    Every solution with one penalty is a combination of the rows, so rows in an orthonormal basis
    of their span have the same solutions, fold by fold. Dense or sparse.
    """
    shape: Any = X.shape
    centre = np.zeros(shape[1])
    if centred:
        centre = np.asarray(weight @ X).ravel() / weight.sum()
    if isinstance(X, np.ndarray):
        basis, triangle = np.linalg.qr((X - centre).T)
        return triangle.T, lambda coef: basis @ coef
    cross = np.asarray(X @ centre).ravel()
    gram = safe_sparse_dot(X, X.T, dense_output=True)
    gram = gram - cross - cross[:, None] + centre @ centre
    values, vectors = np.linalg.eigh(gram)
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
    if not keep.any():
        keep[-1] = True
    root = np.sqrt(np.maximum(values[keep], np.finfo(float).tiny))
    combine = vectors[:, keep] / root

    def back(coef: np.ndarray) -> np.ndarray:
        combined = combine @ coef
        return np.asarray(X.T @ combined) - np.outer(centre, combined.sum(0))

    return vectors[:, keep] * root, back
