"""All folds of a generalised linear model at once: rows, weights and products with both."""

from typing import Any

import numpy as np
from scipy import sparse

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.folds import Folds


class GlmFolds:
    """F folds over n rows, d columns, T outputs; coefficients are ``[d + 1, F, T]``.

    The last coefficient is the intercept, of rows about ``centre [d]``. The last ``plain`` outputs
    have nothing but an intercept, whether the others have one or not.
    """

    def __init__(
        self,
        X: Matrix,
        target: np.ndarray,
        weight: np.ndarray,
        folds: Folds,
        intercept: bool,
        plain: int = 0,
    ) -> None:
        """Keep the folds that count and that of all rows; ``X`` dense or CSR, ``target [n, T]``."""
        self.sloped = target.shape[1] - plain
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
        self.single: Any = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return ``(d + 1, F, T)``."""
        return len(self.centre) + 1, len(self.share), self.target.shape[2]

    def _cast_rows(self, dtype: np.dtype) -> Any:
        """Return the rows, and keep those in single precision."""
        if dtype != np.float32:
            return self.X
        if self.single is None:
            self.single = self.X.astype(np.float32)
        return self.single

    def product(self, w: np.ndarray) -> np.ndarray:
        """Return the scores ``[n, F, T]``, in the precision of ``w``."""
        flat = w[:, :, : self.sloped].reshape(len(w), -1)
        image = np.asarray(self._cast_rows(w.dtype) @ flat[:-1])
        shift = flat[-1] if self.intercept else np.zeros(flat.shape[1], w.dtype)
        if not self.dense:
            shift = shift - self.centre @ flat[:-1]
        image += shift
        image = image.reshape(len(image), w.shape[1], -1)
        plain = w[-1, :, self.sloped :]
        if plain.size:
            image = np.concatenate([image, np.broadcast_to(plain, (len(image), *plain.shape))], 2)
        return image

    def back(self, z: np.ndarray) -> np.ndarray:
        """Apply the transpose of :meth:`product`."""
        n, folds, outputs = z.shape
        flat = z[:, :, : self.sloped].reshape(n, -1)
        total = np.ones(n, z.dtype) @ flat  # a product is faster than a sum
        image = np.empty((len(self.centre) + 1, flat.shape[1]), z.dtype)
        image[:-1] = self._cast_rows(z.dtype).T @ flat
        if not self.dense:
            image[:-1] -= self.centre[:, None] * total
        image[-1] = total if self.intercept else 0.0
        image = image.reshape(len(image), folds, -1)
        if outputs > self.sloped:
            plain = np.zeros((len(image), folds, outputs - self.sloped), z.dtype)
            plain[-1] = z[:, :, self.sloped :].sum(0)
            image = np.concatenate([image, plain], 2)
        return image

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


def norm_folds(x: np.ndarray) -> np.ndarray:
    """Return the norm of every fold's part of ``[d + 1, F, T]``, ``[F]``."""
    return np.sqrt(dot_folds(x, x))


def dot_folds(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner product of every fold's parts, ``[F]``."""
    each = np.ones(len(a), a.dtype) @ (a * b).reshape(len(a), -1)  # faster than a sum
    return each.reshape(a.shape[1:]).sum(1)


def sum_weighted(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted sums over the rows, ``[F]``; a row of weight 0 may be infinite."""
    with np.errstate(invalid="ignore"):
        total = np.einsum("nf,nf->f", weight, values)
    if np.all(np.isfinite(total)):
        return total
    return np.sum(weight * np.where(weight > 0, values, 0), 0)
