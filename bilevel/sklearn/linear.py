"""What the estimators of this package share: parameters, data at the border, fitted attributes."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bilevel.estimate import Evidence
from bilevel.sklearn.folds import splits
from bilevel.sklearn.tuning import Found, Search

FLOATS = (np.float64, np.float32)


class HypergradEstimator(BaseEstimator):
    """Base of the estimators: penalties tuned by hypergradient on cross-validation folds."""

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "penalty": [StrOptions({"global", "per_feature"}), "array-like"],
        "alphas": ["array-like", None],
        "fit_intercept": ["boolean"],
        "cv": ["cv_object"],
        "guard": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }
    _classifier = False
    # Set by the constructors of the estimators, which scikit-learn reads, each on its own.
    penalty: Any
    alphas: Any
    fit_intercept: bool
    cv: Any
    guard: bool
    max_iter: int
    tol: float
    n_jobs: int | None
    random_state: Any

    def _validated(self, X: Any, y: Any, sample_weight: Any, **options: Any) -> Any:
        """``X, y, weights`` as scikit-learn's own estimators take them."""
        self._validate_params()
        X, y = validate_data(self, X, y, dtype=FLOATS, **options)
        return (
            X,
            y,
            _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True),
        )

    def _splits(self, X: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
        return splits(
            self.cv, X, y, groups, classifier=self._classifier, random_state=self.random_state
        )

    def _search(
        self, scale: float, length: int, columns: np.ndarray, folds: int, lowest: float = -10
    ) -> Search:
        """Penalties between ``scale`` times ``10**lowest`` and 1e8."""
        bounds = np.log(scale) + np.log(10.0) * np.array([lowest, 8.0])
        bounds = np.tile(bounds, (length, 1))
        return self._bounded(bounds, self._guarded(columns, folds))

    def _bounded(self, bounds: np.ndarray, guarded: int) -> Search:
        return Search(bounds, self.max_iter, self.tol, self.n_jobs, guarded)

    def _guarded(self, columns: np.ndarray, folds: int) -> int:
        """By how many folds the guard judges penalties that are more than one."""
        if not self.guard or columns.max() == 0 or isinstance(self.cv, str):
            return 0
        if folds < 3:
            raise ValueError(
                f"The guard of more than one penalty leaves out one fold after the other and needs "
                f"at least 3, got {folds}. Set cv=3 or more, or guard=False."
            )
        return folds

    def _report(self, found: Found, groups: np.ndarray, view: Callable) -> None:
        """The fitted attributes that say what the search did; ``view(theta)`` is like alpha_."""
        alphas = np.exp(np.stack([view(theta) for theta in found.path]))
        self.alpha_path_ = alphas
        self.alpha_ = float(alphas[-1]) if alphas.ndim == 1 else alphas[-1]
        self.cv_loss_path_ = found.values
        self.cv_loss_ = float(found.evaluation.value)
        self.best_score_ = -self.cv_loss_
        self.n_iter_ = max(1, len(found.path) - 1)
        grad = np.bincount(groups, found.evaluation.grad[: len(groups)])
        self.hypergradient_ = float(grad[0]) if len(grad) == 1 else grad
        self.shrinkage_ = found.shrinkage
        self.guard_loss_ = found.guard
        self.evidence_ = Evidence(
            inner_residual=float(found.evaluation.inner_residual),
            linear_residual=float(found.evaluation.linear_residual),
        )

    def _set_linear(
        self, coef: np.ndarray, intercept: np.ndarray, single: bool, dtype: Any
    ) -> None:
        """``coef_`` and ``intercept_`` in the dtype of the data, shaped as in scikit-learn."""
        coef, intercept = coef.astype(dtype), intercept.astype(dtype)
        self.coef_ = coef[0] if single else coef
        if not self.fit_intercept:
            self.intercept_ = 0.0
        else:
            self.intercept_ = intercept[0] if single else intercept

    def _linear(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        return safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
