"""Ridge regression that tunes its penalties by hypergradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy import sparse
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.extmath import safe_sparse_dot

from bilevel.sklearn.descent import Outer
from bilevel.sklearn.folds import problem
from bilevel.sklearn.linear import HypergradEstimator
from bilevel.sklearn.moments import atoms, moments
from bilevel.sklearn.padding import rounded
from bilevel.sklearn.penalties import columns_of, log_grid, stages
from bilevel.sklearn.ridge_loss import ridge_loss
from bilevel.sklearn.rows import mean_square_sum
from bilevel.sklearn.tuning import tuned


ALPHAS = (0.1, 1.0, 10.0)  # those of RidgeCV


class HypergradRidge(MultiOutputMixin, RegressorMixin, HypergradEstimator):
    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        cv=None,
        guard=True,
        max_iter=30,
        tol=1e-4,
        n_jobs=None,
        random_state=None,
    ):
        self.penalty = penalty
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.guard = guard
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : ``[n]``, or ``[n, T]`` for targets that share their penalties.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn.
        """
        X, y, weight = self._validated(
            X, y, sample_weight, accept_sparse="csr", multi_output=True, y_numeric=True
        )
        columns = columns_of(self.penalty, X.shape[1])
        train, held = self._splits(X, y, groups)
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        rows = X.astype(np.float64) if sparse.issparse(X) else np.asarray(X, np.float64)
        rotation = None
        if columns.max() == 0 and X.shape[1] > X.shape[0]:
            rotation = Rotation.of(rows, weight, self.fit_intercept)
            rows, columns = rotation.rows, columns[: rotation.rows.shape[1]]
        parts = atoms(rows, targets, weight, train, held, self.fit_intercept)
        scale = mean_square_sum(rows, weight, self.fit_intercept)
        length = rounded(rows.shape[1])
        grid = np.tile(log_grid(self.alphas, scale, ALPHAS, 13)[:, None], length)
        search = self._search(scale, length, columns, len(train))

        def outer_of(without: int | None) -> Outer:
            return Outer(ridge_loss, moments(parts, problem(train, held, weight, without))[0])

        with jax.enable_x64(True):
            found = tuned(outer_of, grid, stages(columns, length), search)
        _, means = moments(parts, problem(train, held, weight))
        coef = found.evaluation.params[-1, : rows.shape[1], : targets.shape[1]]
        intercept = means.y[-1] - means.x[-1] @ coef
        if rotation is not None:
            coef = rotation.back(coef)
            intercept = intercept - rotation.centre @ coef
        d = len(columns)
        self._report(found, columns, lambda log: log[0] if columns.max() == 0 else log[:d])
        self._set_linear(coef.T, intercept, np.ndim(y) == 1, X.dtype)
        return self

    def predict(self, X):
        """``X @ coef_.T + intercept_``, in the dtype of the training data."""
        return self._linear(X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


@dataclass(frozen=True)
class Rotation:
    """Fewer rows than columns and one penalty: the same problem in at most n coordinates.

    Every solution is a combination of the rows, so ``rows [n, r]`` in an orthonormal basis of
    their span have the same solutions, fold by fold.
    """

    rows: np.ndarray
    back: Callable[[np.ndarray], np.ndarray]
    centre: np.ndarray

    @classmethod
    def of(cls, X: Any, weight: np.ndarray, centred: bool) -> "Rotation":
        """From ``X [n, d]``, dense or sparse, by the eigenvectors of its Gram matrix."""
        centre = np.zeros(X.shape[1])
        if centred:
            centre = np.asarray(weight @ X).ravel() / weight.sum()
        cross = np.asarray(X @ centre).ravel()
        gram = safe_sparse_dot(X, X.T, dense_output=True)
        gram = gram - cross - cross[:, None] + centre @ centre
        values, vectors = np.linalg.eigh(gram)
        keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
        if not keep.any():
            keep[-1] = True
        root = np.sqrt(np.maximum(values[keep], np.finfo(float).tiny))
        basis = vectors[:, keep] / root

        def back(coef: np.ndarray) -> np.ndarray:
            combined = basis @ coef
            return np.asarray(X.T @ combined) - np.outer(centre, combined.sum(0))

        return cls(vectors[:, keep] * root, back, centre)
