"""What the estimators of this package share: parameters, data at the border, fitted attributes."""

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import get_scorer_names
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bilevel.core import Evidence
from bilevel.sklearn.choice import FitData, Placement
from bilevel.sklearn.convergence import warn_at_bounds, warn_if_unsolved
from bilevel.sklearn.intervals import IntervalMixin
from bilevel.sklearn.losses import Matrix, centre_full_columns, find_nested_folds, make_splits
from bilevel.sklearn.search import ColumnPenalties, SearchOptions, SearchResult, group_columns
from bilevel.sklearn.threads import limit_threads, take_one_thread

FLOATS = (np.float64, np.float32)


class HypergradEstimator(BaseEstimator):
    """Base of the estimators: penalties tuned by hypergradient on cross-validation folds."""

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "penalty": [StrOptions({"global", "per_feature"}), "array-like", dict],
        "choose": [StrOptions({"smallest_loss", "one_standard_error"})],
        "alphas": ["array-like", None],
        "fit_intercept": ["boolean"],
        "cv": ["cv_object"],
        "guard": ["boolean"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }
    _classifier = False
    _take_one_thread = staticmethod(take_one_thread)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let ``fit`` of every estimator take one BLAS thread where X is small."""
        super().__init_subclass__(**options)
        if "fit" in cls.__dict__:
            cls.fit = limit_threads(cls.__dict__["fit"])

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        cv=None,
        guard=True,
        choose="smallest_loss",
        scoring=None,
        refit=True,
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
        self.choose = choose
        self.scoring = scoring
        self.refit = refit
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _validate(self, X, y, sample_weight, **options) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return ``X, y, weights`` as scikit-learn's own estimators take them."""
        self._validate_params()
        checked: Any = validate_data(self, X, y, dtype=FLOATS, **options)
        X, y = checked
        return (
            X,
            y,
            _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True),
        )

    def _check_noise(self) -> None:
        """Validate that ``noise_variance`` is given for SURE, and for nothing else."""
        noise = getattr(self, "noise_variance", None)
        if (isinstance(self.cv, str) and self.cv == "sure") != (noise is not None):
            raise ValueError(
                f"noise_variance, the known variance of the targets' noise, belongs to cv='sure' "
                f"and to it alone; got cv={self.cv!r}, noise_variance={noise!r}."
            )

    def _splits(
        self, X: Matrix, y: np.ndarray, groups: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the splits, or nothing where ``cv`` names a criterion that needs none."""
        if isinstance(self.cv, str):
            return None
        return make_splits(
            self.cv, X, y, groups, classifier=self._classifier, random_state=self.random_state
        )

    def _search(
        self,
        bounds: np.ndarray,
        columns: np.ndarray,
        splits: tuple[np.ndarray, np.ndarray] | None,
        strength: np.ndarray | None = None,
    ) -> SearchOptions:
        guarded, one = self._guarded(columns, splits), self.choose == "one_standard_error"
        if one and (splits is None or len(splits[0]) < 2):
            raise ValueError(
                "choose='one_standard_error' needs the losses of at least two folds: give cv more "
                "splits, or choose='smallest_loss'."
            )
        return SearchOptions(
            *(bounds, self.max_iter, self.tol, self.n_jobs, guarded, strength),
            one_error=one and self.scoring is None,
        )

    def _group_columns(self, d: int) -> ColumnPenalties:
        """Read ``penalty`` for ``d`` columns, by their names if X has them."""
        return group_columns(self.penalty, d, getattr(self, "feature_names_in_", None))

    def _guarded(
        self, columns: np.ndarray, splits: tuple[np.ndarray, np.ndarray] | None
    ) -> list[int]:
        """Return the folds by which the guard judges penalties that are more than one."""
        if not self.guard or columns.max() == 0 or splits is None:
            return []
        usable = find_nested_folds(*splits)
        if len(usable) < 2:
            warnings.warn(
                f"guard=True has nothing to judge {columns.max() + 1} penalties by: cv has "
                f"{len(splits[0])} split(s), and with the rows of {len(usable)} of them set aside "
                "another split is left on the rest. They are tuned without guard, and may over-fit "
                "the folds. Give cv more splits, or set guard=False.",
                UserWarning,
                stacklevel=3,
            )
            return []
        return usable

    def _report(
        self, found: SearchResult, groups: np.ndarray, view: Callable, kinds: int = 1
    ) -> None:
        """Set the attributes that say what the search did; ``view(theta)`` is like alpha_."""
        if found.scores is None:
            warn_at_bounds(found, kinds)
        warn_if_unsolved(found)
        alphas = np.exp(np.stack([view(theta) for theta in found.path]))
        self.alpha_path_ = alphas
        self.alpha_ = float(alphas[-1]) if alphas.ndim == 1 else alphas[-1]
        self.cv_loss_path_ = found.values
        self.cv_loss_ = float(found.evaluation.value)
        self.best_score_ = -self.cv_loss_
        share = found.evaluation.share
        self.cv_losses_ = np.asarray(found.evaluation.losses)[: None if share is None else -1]
        self.cv_results_ = {
            "alpha": np.exp(np.stack([view(theta) for theta in found.points])),
            "mean_loss": found.grid,
            "fold_losses": found.losses,
        }
        if found.scores is not None:
            scores = found.scores @ found.evaluation.share[found.evaluation.share > 0]
            self.cv_results_ |= {"mean_score": scores, "fold_scores": found.scores}
            self.cv_scores_, self.best_score_ = found.scores[found.chosen], scores[found.chosen]
        self.n_iter_ = max(1, len(found.path) - 1)
        grad = np.bincount(groups, found.evaluation.grad[: len(groups)])
        self.hypergradient_ = float(grad[0]) if len(grad) == 1 else grad
        self.shrinkage_ = found.shrinkage
        self.guard_loss_ = found.guard
        self.evidence_ = Evidence(
            inner_residual=float(found.evaluation.inner_residual),
            linear_residual=float(found.evaluation.linear_residual),
        )

    def _place_linear(
        self, coef: np.ndarray, intercept: np.ndarray, single: bool, dtype: DTypeLike
    ) -> dict[str, Any]:
        """Return ``coef_`` and ``intercept_`` in the dtype of the data, shaped as usual."""
        coef, intercept = coef.astype(dtype), intercept.astype(dtype)
        shift = (intercept[0] if single else intercept) if self.fit_intercept else 0.0
        return {"coef_": coef[0] if single else coef, "intercept_": shift}

    def _linear(self, X) -> np.ndarray:
        """Return ``X @ coef_.T + intercept_`` of a fitted model."""
        self.coef_: np.ndarray
        self.intercept_: float | np.ndarray
        check_is_fitted(self)
        checked: Any = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        return safe_sparse_dot(checked, self.coef_.T, dense_output=True) + self.intercept_


class LinearRegressor(IntervalMixin, RegressorMixin, HypergradEstimator):
    """Base of the linear models for squared errors."""

    def _place_coef(
        self, data: FitData, back: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> Placement:
        """Return the way from coefficients ``[d, T]``, before ``back``, to those of a model."""
        rows, targets = to_float64(data.X), np.asarray(data.y, np.float64)
        targets = targets.reshape(len(targets), -1)

        def place(_: np.ndarray, params: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
            coef, shift = back(params), np.zeros(targets.shape[1])
            if self.fit_intercept:
                shift = (weight @ targets - np.asarray(weight @ rows) @ coef) / weight.sum()
            return self._place_linear(coef.T, shift, np.ndim(data.y) == 1, data.X.dtype)

        return place

    def predict(self, X):
        """Return ``X @ coef_.T + intercept_``, in the dtype of the training data."""
        return self._linear(X)


def to_float64(X: Matrix, weight: np.ndarray | None = None) -> Matrix:
    """Convert rows, dense or sparse; with ``weight`` by :func:`centre_full_columns`."""
    converted: Any = X.astype(np.float64) if sparse.issparse(X) else np.asarray(X, np.float64)
    return converted if weight is None else centre_full_columns(converted, weight)
