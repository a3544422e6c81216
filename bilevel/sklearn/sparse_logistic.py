"""Logistic regression with l1 or elastic-net penalties, tuned by hypergradient."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import type_of_target

from bilevel.sklearn.base import to_float64
from bilevel.sklearn.choice import FitData
from bilevel.sklearn.classifier import LinearClassifier
from bilevel.sklearn.losses import LOGISTIC, make_glm_folds
from bilevel.sklearn.sparse import NetEstimator


class HypergradSparseLogisticRegression(LinearClassifier, NetEstimator):
    r"""Logistic regression of two classes that leaves columns out, as the log-loss on folds asks.

    ``min_w sum_i s_i loss(x_i . w + b, y_i) + sum_j alpha_j (r |w_j| + (1 - r) w_j^2 / 2)``

    ``alpha = 1 / C``. Solved by proximal Newton on working sets, to rounding; the hypergradient is
    the implicit one on the support. Sparse X stays sparse. Internally in float64.

    Parameters
    ----------
    penalty : as for :class:`HypergradRidge`.
    l1_ratio : ``r``: 1, the default, for l1; a number between for an elastic net of that ratio; or
        ``"tuned"``, which tunes both penalties.
    alphas : the single penalties to start from, the best of them; by default 30 from the smallest
        that leaves no column, over four decades, more where columns differ in size.
    class_weight : as for :class:`HypergradLogisticRegression`.
    cv, guard, choose, scoring, refit, max_iter, tol, n_jobs, random_state : as for
        :class:`HypergradRidge`, with folds.

    Attributes
    ----------
    coef_, intercept_, classes_ : as in ``LogisticRegressionCV``, in the dtype of X.
    alpha_, C_, l1_ratio_ : penalties, their inverses, and the ratio: numbers, or one per column.
    undetermined_ : as for :class:`HypergradLasso`.
    cv_loss_, best_score_ : log-loss over the folds, and minus it.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from bilevel.sklearn import HypergradSparseLogisticRegression
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = HypergradSparseLogisticRegression().fit(X / X.std(0), y)
    >>> bool(model.score(X / X.std(0), y) > 0.97), int((model.coef_ != 0).sum()) < 30
    (True, True)
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **LinearClassifier._parameter_constraints,
        "l1_ratio": [Interval(Real, 0, 1, closed="right"), StrOptions({"tuned"})],
    }
    _points = 30
    _lowest = -11.5  # where a plane separates the folds the loss falls with the penalty, for ever

    def __init__(
        self,
        penalty="global",
        *,
        l1_ratio=1.0,
        alphas=None,
        fit_intercept=True,
        class_weight=None,
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
        super().__init__(
            penalty,
            alphas=alphas,
            fit_intercept=fit_intercept,
            cv=cv,
            guard=guard,
            choose=choose,
            scoring=scoring,
            refit=refit,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.class_weight = class_weight
        self.l1_ratio = l1_ratio

    @property
    def _kinds(self) -> int:
        return 2 if self.l1_ratio == "tuned" else 1

    @property
    def _ratio(self) -> float:
        return 1.0 if self.l1_ratio == "tuned" else float(self.l1_ratio)

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : labels of two classes, ``[n]``.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : more than two classes; bad data or parameters, in the words of scikit-learn.
        """
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr")
        labels, weight = self._encode(y, weight)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(y)}. Give OneVsRestClassifier({type(self).__name__}()) of "
                "sklearn.multiclass, which tunes a penalty for every class."
            )
        splits: Any = self._split_classes(X, y, groups, labels, weight)
        rows: Any = to_float64(X)
        centred = self.fit_intercept
        problem_of = make_glm_folds(LOGISTIC, rows, labels * 1.0, weight, splits, centred)
        # Intercepts of dense rows are of those about their mean.
        middle = np.zeros(rows.shape[1])
        if centred and isinstance(rows, np.ndarray):
            middle = weight @ rows / weight.sum()

        def place(_: np.ndarray, params: np.ndarray, __: np.ndarray) -> Mapping[str, Any]:
            coef = params[:-1]
            return self._place_linear(coef.T, params[-1] - middle @ coef, False, X.dtype)

        data = FitData(X, y, sample_weight, weight, splits)
        self._tune_sparse(data, rows, problem_of, place)
        if self._kinds == 1:
            self.l1_ratio_ = self._ratio
        with np.errstate(divide="ignore"):  # a column without penalty
            self.C_ = 1 / self.alpha_
        return self

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
