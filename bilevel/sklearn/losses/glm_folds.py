"""All folds of a generalised linear model at once: rows, weights and products with both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import expit

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.folds import Folds


class Link(NamedTuple):
    """A loss of scores ``z [n, F, T]`` and targets ``y [n, 1, T]``, its mean and curvature.

    ``value [n, F]``; ``mean``, with slope ``mean(z) - y``; ``curved(m, t)``: the Hessian in z at
    the mean m times t; ``diagonal(m)``: that Hessian's diagonal, averaged over outputs, ``[n, F]``.
    """

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    mean: Callable[[np.ndarray], np.ndarray]
    curved: Callable[[np.ndarray, np.ndarray], np.ndarray]
    diagonal: Callable[[np.ndarray], np.ndarray]


def _sum_outputs(z: np.ndarray) -> np.ndarray:
    """Sum over the last axis, which is short: a product is ten times as fast as a reduction."""
    return z @ np.ones(z.shape[2])


def _find_top(z: np.ndarray) -> np.ndarray:
    """Return the largest entry of the last axis, which is short."""
    if z.shape[2] > 32:
        return z.max(2)
    top = z[:, :, 0]
    for k in range(1, z.shape[2]):
        top = np.maximum(top, z[:, :, k])
    return top


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - _find_top(z)[:, :, None])
    e /= _sum_outputs(e)[:, :, None]
    return e


def _log_sum_exp(z: np.ndarray) -> np.ndarray:
    top = _find_top(z)
    return np.log(_sum_outputs(np.exp(z - top[:, :, None]))) + top


def _multinomial_curved(m: np.ndarray, t: np.ndarray) -> np.ndarray:
    image = m * t
    image -= m * _sum_outputs(image)[:, :, None]
    return image


LOGISTIC = Link(
    lambda z, y: _sum_outputs(np.logaddexp(0, z) - y * z),
    expit,
    lambda m, t: m * (1 - m) * t,
    lambda m: _sum_outputs(m * (1 - m)) / m.shape[2],
)
MULTINOMIAL = Link(
    lambda z, y: _log_sum_exp(z) - _sum_outputs(y * z),
    _softmax,
    _multinomial_curved,
    lambda m: _sum_outputs(m * (1 - m)) / m.shape[2],
)
SQUARED = Link(
    lambda z, y: _sum_outputs((z - y) ** 2) / 2,
    lambda z: z,
    lambda m, t: np.array(t),
    lambda m: np.ones(m.shape[:2]),
)


class GlmFolds:
    """F folds over n rows, d columns, T outputs; coefficients are ``[d + 1, F, T]``.

    The last coefficient is the intercept, of rows about ``centre [d]``.
    """

    def __init__(
        self, X: Matrix, target: np.ndarray, weight: np.ndarray, folds: Folds, intercept: bool
    ) -> None:
        """Keep the folds that count and that of all rows; ``X`` dense or CSR, ``target [n, T]``."""
        used = folds.share > 0
        used[-1] = True
        train, held = (side[used].T * weight[:, None] for side in (folds.train, folds.held))
        self.share, self.intercept, self.target = folds.share[used], intercept, target[:, None, :]
        self.size = train.sum(0)
        total = held.sum(0)
        self.train, self.held = train / self.size, held / np.where(total > 0, total, 1)
        shape: Any = X.shape
        self.centre = np.zeros(shape[1])
        if intercept:
            self.centre = np.asarray(weight @ X).ravel() / weight.sum()
        self.dense = isinstance(X, np.ndarray)
        self.X: Any = X - self.centre if self.dense else X

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return ``(d + 1, F, T)``."""
        return len(self.centre) + 1, len(self.share), self.target.shape[2]

    def product(self, w: np.ndarray) -> np.ndarray:
        """Return the scores ``[n, F, T]``."""
        d, folds, outputs = w.shape
        flat = w.reshape(d, -1)
        image = np.asarray(self.X @ flat[:-1])
        shift = flat[-1] if self.intercept else np.zeros(flat.shape[1])
        if not self.dense:
            shift = shift - self.centre @ flat[:-1]
        image += shift
        return image.reshape(-1, folds, outputs)

    def back(self, z: np.ndarray) -> np.ndarray:
        """Apply the transpose of :meth:`product`."""
        n, folds, outputs = z.shape
        flat = z.reshape(n, -1)
        total = flat.sum(0)
        image = np.empty((len(self.centre) + 1, folds * outputs))
        image[:-1] = self.X.T @ flat
        if not self.dense:
            image[:-1] -= self.centre[:, None] * total
        image[-1] = total if self.intercept else 0.0
        return image.reshape(-1, folds, outputs)

    def weigh_squares(self, weight: np.ndarray) -> np.ndarray:
        """Return ``sum_i weight_i x_ij^2``, ``[d + 1]``, for ``weight [n]``."""
        if sparse.issparse(self.X):
            raw = np.asarray(weight @ self.X.multiply(self.X)).ravel()
            first = np.asarray(weight @ self.X).ravel()
            raw = raw - 2 * self.centre * first + self.centre**2 * weight.sum()
        else:
            raw = weight @ self.X**2
        return np.append(np.maximum(raw, 0), weight.sum())

    def weigh_products(self, weight: np.ndarray) -> np.ndarray:
        """Return ``X^T diag(weight) X`` with the intercept, ``[d + 1, d + 1]``, of dense rows."""
        rows = self.X * np.sqrt(weight)[:, None]
        first = self.X.T @ weight if self.intercept else np.zeros(len(self.centre))
        total = weight.sum() if self.intercept else 1.0
        return np.block([[rows.T @ rows, first[:, None]], [first[None], np.array([[total]])]])
