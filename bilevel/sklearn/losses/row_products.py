r"""Cross-validation loss of one ridge penalty on wide rows, by their products with each other.

    K_ij = s_i (x_i - m) . (x_j - m) s_j = (Q T Q^T)_ij,   s: roots of the weights, m: their mean
    w = sum_i s_i a_i (x_i - m),   a = Q (T + alpha)^{-1} Q^T (s y)

A fold's are a block of those of all rows, T is tridiagonal: a third of the price of eigenvectors,
and nothing of the number of columns after the products. Where these have lost what rounding takes
from a square there is no such path, and the rows are decomposed (``spectrum.py``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal, get_lapack_funcs
from sklearn.utils.extmath import safe_sparse_dot

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.folds import Folds
from bilevel.sklearn.search.descent import Evaluation

(reduce, find_work, reflect, factorise, solve) = get_lapack_funcs(
    ("sytrd", "sytrd_lwork", "ormqr", "pttrf", "pttrs"), dtype=np.float64
)

_RANGE = 1e-150, 1e150  # of the largest eigenvalue, or squares of products have no number
TRUSTED = 1e-8  # of the largest eigenvalue: the smallest must be above, as the error is 1e-16


class ProductFold(NamedTuple):
    """One fold: ``T``, ``images [k, T]`` of its targets, what is held out, and the way back.

    ``Z [m, k]``, ``target [m, T]``: products of rows held out, times the root of their share.
    ``combine``: of ``Q^T a [k, T]``, the coefficients as a combination of all rows, ``[n, T]``.
    """

    diagonal: np.ndarray
    off: np.ndarray
    images: np.ndarray
    Z: np.ndarray
    target: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest eigenvalue."""
        unit = float(np.max(np.abs(self.diagonal))) or 1.0  # bisection works on squares
        parts = self.diagonal / unit, self.off / unit
        ends = [
            eigvalsh_tridiagonal(*parts, select="i", select_range=(i, i))[0]
            for i in (0, len(self.diagonal) - 1)
        ]
        return unit * float(ends[0]), unit * float(ends[1])


class ProductPath:
    """The loss of one ridge penalty; ``theta [1]`` is its logarithm, params combine the rows."""

    def __init__(self, folds: list[ProductFold], share: np.ndarray) -> None:
        """Take the folds, the last of all rows, and their share in the loss."""
        self.folds, self.share = folds, share

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds at each of ``grid [G, 1]``."""
        table = []
        for fold in (f for f, share in zip(self.folds, self.share, strict=True) if share > 0):
            w = np.stack([_solve(fold, a, fold.images)[0] for a in np.exp(grid[:, 0])], 1)
            error = np.tensordot(fold.Z, w, 1) - fold.target[:, None]
            table.append(np.sum(error**2, (0, 2)))
        return np.stack(table, 1)

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value and derivative at one penalty; the fits wait."""
        return self._evaluate(float(np.exp(theta[0])))[0]

    def evaluate_exactly(self, theta: np.ndarray) -> Evaluation:
        """Return value, derivative and fits at one penalty."""
        at, ws = self._evaluate(float(np.exp(theta[0])))
        pairs = zip(self.folds, ws, strict=True)
        return at._replace(params=np.stack([fold.combine(w) for fold, w in pairs]))

    def _evaluate(self, alpha: float) -> tuple[Evaluation, list[np.ndarray]]:
        """Return value and derivative, and ``Q^T a`` of every fold."""
        losses, slope, worst, ws = np.zeros(len(self.folds)), 0.0, 0.0, []
        for k, (share, fold) in enumerate(zip(self.share, self.folds, strict=True)):
            w, change = _solve(fold, alpha, fold.images)
            error = fold.Z @ w - fold.target
            losses[k] = np.sum(error**2)
            slope -= share * 2 * alpha * np.sum(error * (fold.Z @ change))
            left = (fold.diagonal + alpha)[:, None] * w - fold.images
            left[1:] += fold.off[:, None] * w[:-1]
            left[:-1] += fold.off[:, None] * w[1:]
            worst = max(worst, np.linalg.norm(left) / max(np.linalg.norm(fold.images), 1e-300))
            ws.append(w)
        value, grad = float(self.share @ losses), np.array([slope])
        return Evaluation(value, grad, losses, None, worst, worst, self.share), ws

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest curvature: those of a fold lie between."""
        return self.folds[-1].extremes()


def _solve(fold: ProductFold, alpha: float, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the solution of ``T + alpha``, and the solution for the solution."""
    if not len(fold.off):
        w = right / (fold.diagonal + alpha)
        return w, w / (fold.diagonal + alpha)
    diagonal, off, _ = factorise(fold.diagonal + alpha, fold.off)
    w = solve(diagonal, off, right)[0]
    return w, solve(diagonal, off, w)[0]


def multiply_rows(
    X: Matrix, weight: np.ndarray, centred: bool
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return products of rows about their weighted mean, ``[n, n]``, and a way back.

    From weights of the rows ``[n, T]`` to what they combine to, ``[d, T]``. ``X``: dense or CSR.
    """
    shape: Any = X.shape
    centre = np.asarray(weight @ X).ravel() / weight.sum() if centred else np.zeros(shape[1])
    if isinstance(X, np.ndarray):
        rows, centre = X - centre, np.zeros(shape[1])
        products = rows @ rows.T
    else:
        rows, cross = X, np.asarray(X @ centre).ravel()
        products = safe_sparse_dot(X, X.T, dense_output=True)
        products = products - cross - cross[:, None] + centre @ centre

    def back(combined: np.ndarray) -> np.ndarray:
        return np.asarray(rows.T @ combined) - np.outer(centre, combined.sum(0))

    return products, back


def make_product_path(
    X: Matrix, y: np.ndarray, weight: np.ndarray, folds: Folds, centred: bool
) -> tuple[ProductPath, Callable[[np.ndarray], np.ndarray]] | None:
    """Return the path of rows ``X [n, d]``, dense or CSR, and the way of coefficients back.

    ``y [n, T]``. Nothing where the products are not exact enough.
    """
    products, back = multiply_rows(X, weight, centred)
    y = y - weight @ y / weight.sum() if centred else y

    def make(k: int) -> ProductFold:
        sides = folds.train[k] * weight, folds.held[k] * weight
        return _make_fold(products, y, *sides, centred)

    every = make(len(folds.share) - 1)
    low, high = every.extremes()
    if not (low > TRUSTED * high and _RANGE[0] < high < _RANGE[1]):
        return None
    used = [int(k) for k in np.flatnonzero(folds.share[:-1] > 0)]
    share = np.append(folds.share[used], folds.share[-1])
    return ProductPath([*(make(k) for k in used), every], share), back


def _make_fold(
    products: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray, centred: bool
) -> ProductFold:
    """Reduce the rows that train, and express those held out by them; weights ``[n]``."""
    at, out = np.flatnonzero(train), np.flatnonzero(held)
    root, part = np.sqrt(train[at]), train[at] / train.sum()
    K, between, target = products[np.ix_(at, at)], products[np.ix_(at, out)], y[at]
    held_target = y[out]
    if centred:
        mean = part @ K
        between = between - mean[:, None] - part @ between + part @ mean
        K = K - mean - mean[:, None] + part @ mean
        held_target, target = held_target - part @ target, target - part @ target
    K = K * root * root[:, None]
    if centred:  # the roots have no product with anything: any curvature of theirs will do
        K += np.outer(np.sqrt(part), np.sqrt(part)) * (np.trace(K) / len(K))
    work = int(find_work(len(K), lower=1)[0])
    packed, diagonal, off, tau, _ = reduce(np.asfortranarray(K), lower=1, lwork=work, overwrite_a=1)
    turns = np.asfortranarray(packed[1:, :-1])

    def turn(columns: np.ndarray, side: str) -> np.ndarray:
        """Return ``Q`` or its transpose, times ``columns``."""
        below = np.asfortranarray(columns[1:])
        if not below.size:
            return columns
        size = int(reflect("L", side, turns, tau, below, -1)[1][0])
        return np.vstack([columns[:1], reflect("L", side, turns, tau, below, size)[0]])

    def combine(w: np.ndarray) -> np.ndarray:
        inside = root[:, None] * turn(w, "N")
        combined = np.zeros((len(y), w.shape[1]))
        combined[at] = inside - centred * np.outer(part, inside.sum(0))
        return combined

    unit = np.sqrt(held[out] / (y.shape[1] * (held.sum() or 1.0)))[:, None]
    Z = unit * turn(root[:, None] * between, "T").T
    images = turn(root[:, None] * target, "T")
    return ProductFold(diagonal, off, images, Z, unit * held_target, combine)
