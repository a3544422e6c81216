"""Logistic regression that tunes its penalties by hypergradient."""

import warnings
from typing import ClassVar

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets

from bilevel.sklearn.base import HypergradEstimator
from bilevel.sklearn.losses import (
    compute_mean_square_sum,
    init_fits,
    logistic_loss,
    make_folds,
    make_rows,
    multinomial_loss,
    set_folds,
)
from bilevel.sklearn.search import (
    OuterLoss,
    group_columns,
    make_log_bounds,
    make_log_grid,
    make_stages,
    tune_penalties,
)

EXPONENTS = -4, 4, 10  # of 1 / C, the ten of LogisticRegressionCV
# Folds that a plane separates have a loss that falls to 0 with the penalty, and the more it falls
# the surer the model is of its next mistake: so the search ends at this power of 10.
LOWEST = -5


class HypergradLogisticRegression(ClassifierMixin, HypergradEstimator):
    r"""Logistic regression; its penalties minimise the cross-validated log-loss.

    ``min_w sum_i s_i loss(x_i . w + b, y_i) + 1/2 sum alpha w^2``, multinomial for more than two
    classes. ``alpha = 1 / C``. The hypergradient is the implicit one, at the solved minimum of
    every fold. Sparse X stays sparse. Internally in float64.

    Parameters
    ----------
    penalty : ``"global"``, one alpha; ``"per_feature"``; ``"per_class"``;
        ``"per_feature_and_class"``; or a group label per column of X.
    alphas : the single penalties to start from, the best of them; by default the inverses of the
        ten of ``LogisticRegressionCV`` and 5 about the scale of the data.
    cv, guard, max_iter, tol, n_jobs, random_state : as for :class:`HypergradRidge`, with folds.

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
        objective = logistic_loss if binary else multinomial_loss
        train, held = self._splits(X, y, groups)
        warn_of_missing_classes(train, labels, weight, self.classes_)
        # Rows once for all folds, penalties flattened as the coefficients are, ``[d, T]``.
        base, centre = make_rows(X, target, weight, self.fit_intercept)
        shape = X.shape[1], target.shape[1]
        entries = self._entries(*shape)
        length = len(base.centre) * target.shape[1]
        scale = compute_mean_square_sum(X, weight, self.fit_intercept) / 4
        grid = np.tile(
            make_log_grid(self.alphas, scale, np.logspace(*EXPONENTS), 5, LOWEST)[:, None], length
        )
        search = self._search(make_log_bounds(scale, length, LOWEST), entries, (train, held))

        def outer_of(without: int | None) -> OuterLoss:
            batch = set_folds(base, make_folds(train, held, weight, without), weight)
            return OuterLoss(objective, batch, init_fits(batch))

        found = tune_penalties(outer_of, [grid], make_stages(entries, length), search)
        params = found.evaluation.params
        coef = params[-1, : X.shape[1]]
        intercept = params[-1, -1] - centre @ coef
        self._report(found, entries, lambda theta: self._view(theta, shape))
        self._set_linear(coef.T, intercept, False, X.dtype)
        self.C_ = 1 / self.alpha_
        return self

    def _entries(self, d: int, targets: int) -> np.ndarray:
        """Return the group of each coefficient ``[d, T]``, flattened."""
        if isinstance(self.penalty, str) and self.penalty.startswith("per_class"):
            return np.tile(np.arange(targets), d)
        if isinstance(self.penalty, str) and self.penalty == "per_feature_and_class":
            return np.arange(d * targets)
        return np.repeat(group_columns(self.penalty, d), targets)

    def _view(self, theta: np.ndarray, shape: tuple[int, int]) -> float | np.ndarray:
        """Return entries of the coefficients as ``alpha_`` shows them."""
        entries = theta[: shape[0] * shape[1]].reshape(shape)
        if isinstance(self.penalty, str):
            if self.penalty == "global":
                return entries[0, 0]
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
