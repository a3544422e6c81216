"""Logistic regression that tunes its penalties by hypergradient."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets

from bilevel.sklearn.base import HypergradEstimator, to_float64
from bilevel.sklearn.losses import (
    LOGISTIC,
    MULTINOMIAL,
    GlmFolds,
    GlmLoss,
    compute_column_squares,
    make_folds,
    rotate_rows,
)
from bilevel.sklearn.search import (
    ITERATED,
    ColumnPenalties,
    check_alphas,
    make_log_bounds,
    make_stages,
    share_in_groups,
    tune_penalties,
)

POINTS = 3, -6, -1  # powers of 10 of the grid, in units of the mean curvature of a column
# Folds that a plane separates have a loss that falls to 0 with the penalty, and the more it falls
# the surer the model is of its next mistake: so the search ends at this power of 10.
LOWEST = -5
_FEW = 500  # rows up to which sparse ones are rotated


class HypergradLogisticRegression(ClassifierMixin, HypergradEstimator):
    r"""Logistic regression; its penalties minimise the cross-validated log-loss.

    ``min_w sum_i s_i loss(x_i . w + b, y_i) + 1/2 sum alpha w^2``, multinomial for more than two
    classes. ``alpha = 1 / C``. The hypergradient is the implicit one, at the solved minimum of
    every fold. Sparse X stays sparse. Internally in float64.

    Parameters
    ----------
    penalty : ``"global"``, one alpha; ``"per_feature"``; ``"per_class"``;
        ``"per_feature_and_class"``; or groups and factors of columns, as for
        :class:`HypergradRidge`.
    alphas : the single penalties to start from, the best of them; by default one a decade about the
        scale of the data, so that the choice depends on no unit.
    cv, guard, choose, max_iter, tol, n_jobs, random_state : as for :class:`HypergradRidge`, with
        folds.

    Attributes
    ----------
    coef_, intercept_, classes_ : as in ``LogisticRegressionCV``, in the dtype of X.
    alpha_, C_ : penalties and their inverses: a number, ``[d]``, ``[classes]`` or like ``coef_``.
    cv_loss_, best_score_ : log-loss over the folds, and minus it.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from bilevel.sklearn import HypergradLogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(HypergradLogisticRegression().fit(X, y).score(X, y) > 0.95)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **HypergradEstimator._parameter_constraints,
        "penalty": [
            StrOptions({"global", "per_feature", "per_class", "per_feature_and_class"}),
            "array-like",
            dict,
        ],
    }
    _classifier = True

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : class labels, ``[n]``.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn.
        """
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data "
                f"contains only one class: {self.classes_[0]!r}"
            )
        binary = len(self.classes_) == 2
        target = np.eye(len(self.classes_))[labels][:, 1 if binary else 0 :]
        link = LOGISTIC if binary else MULTINOMIAL
        splits = self._splits(X, y, groups)
        warn_of_missing_classes(splits[0], labels, weight, self.classes_)
        rows: Any = to_float64(X)
        penalties = self._entries(X.shape[1], target.shape[1])
        entries, offset = penalties
        back: Callable[[np.ndarray], np.ndarray] = np.asarray
        single = penalties.single
        if single and X.shape[1] > X.shape[0] and (not sparse.issparse(X) or X.shape[0] <= _FEW):
            rows, back = rotate_rows(rows, weight, self.fit_intercept)

        def outer_of(without: int | None) -> GlmLoss:
            folds = make_folds(*splits, weight, without)
            return GlmLoss(link, GlmFolds(rows, target, weight, folds, self.fit_intercept))

        # Penalties flattened as the coefficients are, ``[d, T]``; from the strongest on.
        squares = compute_column_squares(X, weight, self.fit_intercept) / 4
        scales = [np.full(1 if single else len(entries), squares.mean())]
        if not single:
            each = np.repeat(squares, target.shape[1])
            scales.append(share_in_groups(each, entries))
        points = np.log(10.0) * np.arange(*POINTS)
        grids = [points[:, None] + np.log(scale) for scale in scales]
        if self.alphas is not None:
            alphas = np.log(check_alphas(self.alphas))[:, None]
            grids = [alphas + np.log(scale / scales[0]) for scale in scales]
        if not single:
            grids = [grid + offset for grid in grids]
        grid = np.concatenate(grids)
        bounds = make_log_bounds(scales[-1], grid.shape[1], LOWEST)
        bounds[:, 0] = np.minimum(bounds[:, 0], np.min(grid, 0))
        bounds[:, 1] = np.maximum(bounds[:, 1], np.max(grid, 0))
        bounds = bounds if single else penalties.free(bounds)
        search = replace(self._search(bounds, entries, splits), resolution=ITERATED)
        stages = make_stages(entries[: grid.shape[1]], grid.shape[1])
        found = tune_penalties(outer_of, grids, stages, search)
        params = found.evaluation.params
        coef, intercept = back(params[-1, :-1]), params[-1, -1]
        if self.fit_intercept:
            intercept = intercept - np.asarray(weight @ X).ravel() / weight.sum() @ coef
            # One number added to all of them changes no probability: rounding would choose it.
            intercept = intercept if binary else intercept - intercept.mean()
        shape = X.shape[1], target.shape[1]
        self._report(found, entries[: len(found.theta)], lambda theta: self._view(theta, shape))
        self._set_linear(coef.T, intercept, False, X.dtype)
        with np.errstate(divide="ignore"):  # a column without penalty
            self.C_ = 1 / self.alpha_
        return self

    def _entries(self, d: int, targets: int) -> ColumnPenalties:
        """Return group and factor of each coefficient ``[d, T]``, flattened."""
        none = np.zeros(d * targets)
        if isinstance(self.penalty, str) and self.penalty == "per_class":
            return ColumnPenalties(np.tile(np.arange(targets), d), none)
        if isinstance(self.penalty, str) and self.penalty == "per_feature_and_class":
            return ColumnPenalties(np.arange(d * targets), none)
        return ColumnPenalties(*(np.repeat(part, targets) for part in self._group_columns(d)))

    def _view(self, theta: np.ndarray, shape: tuple[int, int]) -> float | np.ndarray:
        """Return entries of the coefficients as ``alpha_`` shows them."""
        if len(theta) == 1:
            return theta[0]
        entries = theta.reshape(shape)
        if isinstance(self.penalty, str):
            if self.penalty == "per_class":
                return entries[0]
            if self.penalty == "per_feature_and_class":
                return entries.T
        return entries[:, 0]

    def decision_function(self, X):
        """Return ``X @ coef_.T + intercept_``: ``[n]`` for two classes, else ``[n, classes]``."""
        scores = self._linear(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X):
        """Return the likeliest class of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X):
        """Return the probability of each class, ``[n, classes]``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], 1)
        return softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Return the logarithm of :meth:`predict_proba`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([log_expit(-scores), log_expit(scores)], 1)
        return log_softmax(scores, axis=1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def warn_of_missing_classes(
    train: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: np.ndarray
) -> None:
    """Warn of splits that train on no row of a class; ``train [K, n]``, ``labels [n]``."""
    missing = [
        (k, name)
        for k, rows in enumerate(train)
        for c, name in enumerate(classes)
        if not weight[rows & (labels == c)].any()
    ]
    if missing:
        pairs = ", ".join(f"fold {k} of class {name!s}" for k, name in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        warnings.warn(
            f"Training folds without a row of a class: {pairs}{more} (folds from 0). There that "
            "class has next to no probability, and the log-loss of its held-out rows says how "
            "large a penalty hides this, not which is good. Give a cv that keeps the classes "
            "together, such as StratifiedKFold, with at most as many splits as the rarest class "
            "has rows, or leave the class out.",
            UserWarning,
            stacklevel=3,
        )
