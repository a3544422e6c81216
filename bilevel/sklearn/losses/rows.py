"""Problems that need their rows: a matrix, dense or sparse, and every fold as weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.folds import Folds
from bilevel.sklearn.losses.padding import pad, round_up


class SparseRows(NamedTuple):
    """A sparse matrix with n rows: ``data, row, column [nonzeros]``; padding is zeros."""

    data: Any
    row: Any
    column: Any


class WeightedRows(NamedTuple):
    """All folds of one problem over n rows, d columns, T outputs, padded with zero weights.

    ``X``, ``[n, d]`` or :class:`SparseRows`, is about ``centre [d]``; ``target [n, T]``;
    ``train, held [F, n]`` weights; ``share [F]``; ``intercept``, 1 or 0, whether there is one.
    """

    X: Any
    centre: Any
    target: Any
    train: Any
    held: Any
    share: Any
    intercept: Any

    def product(self, w: Array) -> Array:
        """Return ``(X - centre) w + b``, ``[n, T]``; ``b`` is the last row of ``w [d + 1, T]``."""
        w, b = w[:-1], w[-1]
        if isinstance(self.X, SparseRows):
            data, row, column = self.X
            image = jax.ops.segment_sum(data[:, None] * w[column], row, len(self.target))
        else:
            image = self.X @ w
        return image - self.centre @ w + self.intercept * b

    def back(self, z: Array) -> Array:
        """Apply the transpose of :meth:`product`: ``[n, T]`` to ``[d + 1, T]``."""
        total = jnp.sum(z, 0)
        if isinstance(self.X, SparseRows):
            data, row, column = self.X
            image = jax.ops.segment_sum(data[:, None] * z[row], column, len(self.centre))
        else:
            image = self.X.T @ z
        image = image - self.centre[:, None] * total
        return jnp.concatenate([image, self.intercept * total[None]])

    def squares(self) -> Array:
        """Return ``sum_i train_i x_ij^2`` for every fold, ``[F, d]``."""
        if isinstance(self.X, SparseRows):
            data, row, column = self.X
            weighted = self.train[:, row] * data**2
            columns = len(self.centre)
            return jax.vmap(lambda x: jax.ops.segment_sum(x, column, columns))(weighted)
        return self.train @ self.X**2


def make_rows(
    X: Matrix, target: np.ndarray, weight: np.ndarray, intercept: bool
) -> tuple[WeightedRows, np.ndarray]:
    """Return the rows, padded, without folds yet, and the centre they are about, ``[d]``.

    ``X [n, d]`` dense or CSR, ``target [n, T]``.
    """
    shape: Any = X.shape
    n, d = round_up(shape[0], 32), round_up(shape[1])
    centre = np.zeros(shape[1])
    if intercept:
        centre = np.asarray(weight @ X).ravel() / weight.sum()
    if not isinstance(X, np.ndarray):
        found = X.tocoo()
        size = round_up(max(found.nnz, 1), 64)
        index = lambda i: pad(i.astype(np.int32), size)  # noqa: E731
        matrix = SparseRows(
            pad(found.data.astype(np.float64), size), index(found.row), index(found.col)
        )
    else:
        matrix = pad(np.asarray(X, np.float64) - centre, n, d)
    taken = np.zeros_like(centre) if isinstance(X, np.ndarray) else centre
    none = np.zeros((0, n))
    flag = np.float64(intercept)
    target = pad(target, n, None)
    return WeightedRows(matrix, pad(taken, d), target, none, none, np.zeros(0), flag), centre


def set_folds(of: WeightedRows, folds: Folds, weight: np.ndarray) -> WeightedRows:
    """Return the rows with the folds of one problem."""
    n = len(of.target)
    train, held = (pad(side * weight, n) for side in (folds.train, folds.held))
    return of._replace(train=train, held=held, share=folds.share)


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


def compute_mean_square_sum(X: Matrix, weight: np.ndarray, centred: bool) -> float:
    """Return the mean over columns of weighted, centred sums of squares; 1 where that is 0."""
    return float(compute_column_squares(X, weight, centred).mean())
