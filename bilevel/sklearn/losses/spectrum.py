r"""One ridge penalty: every fold in the basis of its singular vectors, so a penalty costs a sum.

    X = U diag(sqrt lambda) V^T,   w(alpha) = V (lambda + alpha)^{-1} V^T X^T y
    loss = |y_held - X_held w|^2,   d loss / d log alpha = alpha (d loss / d w) . dw / d alpha

Rows of a group that no split tells apart are first replaced by the triangle of their QR
decomposition, at most one row per column: products of the rows with themselves would square the
condition number, and columns of very different size would be lost.
"""

from typing import Any, NamedTuple

import numpy as np

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.fold_sums import GroupSums, compute_group_sums, label_groups
from bilevel.sklearn.losses.folds import Folds
from bilevel.sklearn.search.descent import Evaluation

# Eigenvalues of products of the rows are exact to 1e-16 of the largest: above this part of it they
# serve, which costs a fifth of the singular values.
_TRUSTED = 1e-8


class Spectrum(NamedTuple):
    """Eigenvalues ``values [r]`` of ``X^T X`` above rounding, ``basis [d, r]``, ``images [r, T]``.

    ``images`` are ``basis^T X^T Y``. Directions without data are left out: their coefficient is 0.
    """

    values: np.ndarray
    basis: np.ndarray
    images: np.ndarray


def compute_spectrum(X: np.ndarray, Y: np.ndarray) -> Spectrum:
    """Decompose ``X [n, d]``; ``Y [n, T]``."""
    n, d = X.shape
    if n >= d > 0:
        values, basis = np.linalg.eigh(X.T @ X)
        if values[0] > _TRUSTED * values[-1]:
            return Spectrum(values, basis, basis.T @ (X.T @ Y))
    left, root, right = np.linalg.svd(X, full_matrices=False)
    keep = root > max(n, d) * np.finfo(float).eps * max(np.max(root, initial=0), 1e-300)
    return Spectrum(root[keep] ** 2, right[keep].T, (root[:, None] * (left.T @ Y))[keep])


class RootRows(NamedTuple):
    """Rows with the square root of their weight: of ones ``[k]``, ``X [k, d]``, ``Y [k, T]``."""

    ones: np.ndarray
    X: np.ndarray
    Y: np.ndarray


def compress_groups(
    X: Matrix, y: np.ndarray, weight: np.ndarray, labels: np.ndarray
) -> list[RootRows]:
    """Return the rows of each group, not more of them than columns."""
    shape: Any = X.shape
    d, stacked = shape[1], []
    dense = isinstance(X, np.ndarray)
    sums = None if dense else compute_group_sums(X, y, weight, labels, False)
    for a in range(labels.max() + 1):
        rows = np.flatnonzero((labels == a) & (weight > 0))
        root = np.sqrt(weight[rows])[:, None]
        target: np.ndarray = root * y[rows]
        if sums is not None:
            stacked.append(_root_of_moments(sums, a, target.T @ target))
            continue
        block = np.hstack([root, root * X[rows], target])
        much = len(block) > block.shape[1]
        stacked.append(np.linalg.qr(block, mode="r") if much else block)
    return [RootRows(r[:, 0], r[:, 1 : d + 1], r[:, d + 1 :]) for r in stacked]


def _root_of_moments(sums: GroupSums, a: int, squares: np.ndarray) -> np.ndarray:
    """Return rows whose products with themselves are the sums of group ``a``."""
    head = np.concatenate([[sums.weight[a]], sums.x[a], sums.y[a]])
    middle = np.column_stack([sums.x[a], sums.gram[a], sums.cross[a]])
    tail = np.column_stack([sums.y[a], sums.cross[a].T, squares])
    values, vectors = np.linalg.eigh(np.vstack([head, middle, tail]))
    real = values > len(values) * np.finfo(float).eps * values[-1]  # the rest is rounding
    return np.sqrt(values[real])[:, None] * vectors.T[real]


class FoldSpectrum(NamedTuple):
    """One fold: its spectrum, and the held-out loss ``square + w . (gram w - 2 cross)``."""

    values: np.ndarray
    basis: np.ndarray
    images: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    square: float


class RidgePath:
    """The cross-validation loss of one ridge penalty; ``theta [1]`` is its logarithm."""

    def __init__(
        self, X: Matrix, y: np.ndarray, weight: np.ndarray, folds: Folds, centred: bool
    ) -> None:
        """Decompose the training rows of every fold; dense or CSR ``X [n, d]``, ``y [n, T]``."""
        labels, first = label_groups(folds.train, folds.held)
        if centred:
            y = y - weight @ y / weight.sum()
            if isinstance(X, np.ndarray):
                X = X - weight @ X / weight.sum()
        parts = compress_groups(X, y, weight, labels)
        used = folds.share > 0
        used[-1] = True
        sides = (folds.train[used][:, first], folds.held[used][:, first])
        self.share = folds.share[used]
        self.folds = [_make_fold(parts, *pair, centred) for pair in zip(*sides, strict=True)]

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds at each of ``grid [G, 1]``."""
        alphas, losses = np.exp(grid[:, 0]), []
        for share, fold in zip(self.share, self.folds, strict=True):
            if share > 0:
                w = fold.images[:, :, None] / (fold.values[:, None] + alphas)[:, None, :]
                change = np.tensordot(fold.gram, w, 1) - 2 * fold.cross[:, :, None]
                losses.append(np.maximum(fold.square + np.sum(w * change, (0, 1)), 0))
        return np.stack(losses, 1)

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, derivative and fits at one penalty."""
        alpha = float(np.exp(theta[0]))
        losses, slope, worst, coefs = np.zeros(len(self.folds)), 0.0, 0.0, []
        for k, (share, fold) in enumerate(zip(self.share, self.folds, strict=True)):
            strength = (fold.values + alpha)[:, None]
            w = fold.images / strength
            held = fold.gram @ w - fold.cross
            losses[k] = max(fold.square + np.sum(w * (held - fold.cross)), 0)
            slope -= share * 2 * alpha * np.sum(held * w / strength)
            left = np.linalg.norm(strength * w - fold.images)
            worst = max(worst, left / max(np.linalg.norm(fold.images), 1e-300))
            coefs.append(fold.basis @ w)
        coef = np.stack(coefs)
        value = float(self.share @ losses)
        return Evaluation(value, np.array([slope]), losses, coef, worst, worst, self.share)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest curvature over the folds; 1 where there is none."""
        return find_extremes(np.concatenate([fold.values for fold in self.folds]))


def find_extremes(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest of the eigenvalues that are not 0; 1 if none is."""
    values = values[values > 1e-300]
    return (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)


def _make_fold(
    parts: list[RootRows], train: np.ndarray, held: np.ndarray, centred: bool
) -> FoldSpectrum:
    """Decompose the groups that train, and express those held out in their basis."""
    ones, X, Y = (np.concatenate(side) for side in zip(*_take(parts, train), strict=True))
    x_mean, y_mean = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if centred and ones @ ones > 0:
        x_mean, y_mean = ones @ X / (ones @ ones), ones @ Y / (ones @ ones)
    found = compute_spectrum(X - np.outer(ones, x_mean), Y - np.outer(ones, y_mean))
    gram = np.zeros((len(found.values),) * 2)
    cross, square, size = np.zeros_like(found.images), 0.0, 0.0
    for part in _take(parts, held):
        Z = (part.X - np.outer(part.ones, x_mean)) @ found.basis
        target = part.Y - np.outer(part.ones, y_mean)
        gram, cross = gram + Z.T @ Z, cross + Z.T @ target
        square, size = square + np.sum(target**2), size + part.ones @ part.ones
    unit = 1 / (Y.shape[1] * (size if size > 0 else 1))
    return FoldSpectrum(*found, gram * unit, cross * unit, square * unit)


def _take(parts: list[RootRows], chosen: np.ndarray) -> list[RootRows]:
    return [parts[a] for a in np.flatnonzero(chosen)]
