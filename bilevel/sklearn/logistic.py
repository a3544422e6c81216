"""Logistic regression that tunes its penalties by hypergradient."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike
from sklearn.utils._param_validation import StrOptions

from bilevel.sklearn.choice import FitData
from bilevel.sklearn.classifier import LinearClassifier
from bilevel.sklearn.glm import GlmEstimator
from bilevel.sklearn.losses import LOGISTIC, MULTINOMIAL
from bilevel.sklearn.search import ColumnPenalties


class HypergradLogisticRegression(LinearClassifier, GlmEstimator):
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
    class_weight : as in ``LogisticRegression``, of the rows of each class in training and in
        held-out losses, beside ``sample_weight``; a scorer sees ``sample_weight`` alone.
    cv : folds, or ``"alo"``, approximate leave-one-out: a Newton step without each row.
    guard, choose, scoring, refit, confidence, max_iter, tol, n_jobs, random_state : as for
        :class:`HypergradRidge`, with folds.

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
        **GlmEstimator._parameter_constraints,
        "class_weight": LinearClassifier._parameter_constraints["class_weight"],
        "penalty": [
            StrOptions({"global", "per_feature", "per_class", "per_feature_and_class"}),
            "array-like",
            dict,
        ],
    }
    # Folds that a plane separates have a loss that falls to 0 with the penalty, and the more it
    # falls the surer the model is of its next mistake: so the search ends here.
    _decades = 3, -5

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        class_weight=None,
        cv=None,
        guard=True,
        choose="smallest_loss",
        scoring=None,
        refit=True,
        confidence=False,
        max_iter=30,
        tol=1e-4,
        n_jobs=None,
        random_state=None,
    ):
        super().__init__(
            penalty,
            alphas=alphas,
            fit_intercept=fit_intercept,
            cv=cv,
            guard=guard,
            choose=choose,
            scoring=scoring,
            refit=refit,
            confidence=confidence,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.class_weight = class_weight

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
        X, y, weight = self._validate_rows(X, y, sample_weight)
        labels, weight = self._encode(y, weight)
        binary = len(self.classes_) == 2
        target = np.eye(len(self.classes_))[labels][:, 1 if binary else 0 :]
        splits = self._split_classes(X, y, groups, labels, weight)
        link = LOGISTIC if binary else MULTINOMIAL
        data = FitData(X, y, sample_weight, weight, splits, groups)
        self._tune_glm(data, target, link)
        with np.errstate(divide="ignore"):  # a column without penalty
            self.C_ = 1 / self.alpha_
        return self

    def _place(self, coef: np.ndarray, intercept: np.ndarray, dtype: DTypeLike) -> dict[str, Any]:
        if len(intercept) > 1:
            # One number added to all of them changes no probability: rounding would choose it.
            intercept = intercept - intercept.mean()
        return self._place_linear(coef.T, intercept, False, dtype)

    def _entries(self, d: int, outputs: int) -> ColumnPenalties:
        none = np.zeros(d * outputs)
        if isinstance(self.penalty, str) and self.penalty == "per_class":
            return ColumnPenalties(np.tile(np.arange(outputs), d), none)
        if isinstance(self.penalty, str) and self.penalty == "per_feature_and_class":
            return ColumnPenalties(np.arange(d * outputs), none)
        return super()._entries(d, outputs)

    def _view(self, theta: np.ndarray, shape: tuple[int, int]) -> float | np.ndarray:
        if len(theta) > 1 and isinstance(self.penalty, str):
            entries = theta.reshape(shape)
            if self.penalty == "per_class":
                return entries[0]
            if self.penalty == "per_feature_and_class":
                return entries.T
        return super()._view(theta, shape)
