"""Logistic regression with l1 or elastic-net penalties, tuned by hypergradient."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from bilevel.sklearn.base import to_float64
from bilevel.sklearn.choice import FitData
from bilevel.sklearn.classifier import LinearClassifier
from bilevel.sklearn.losses import (
    LOGISTIC,
    MULTINOMIAL,
    ClassLoss,
    FoldQuadratics,
    SparseLoss,
    make_class_folds,
    make_glm_folds,
)
from bilevel.sklearn.sparse import NetEstimator


class HypergradSparseLogisticRegression(LinearClassifier, NetEstimator):
    r"""Logistic regression that leaves columns out, as the log-loss on folds asks.

    ``min_w sum_i s_i loss(x_i . w + b, y_i) + sum_j alpha_j (r |w_j| + (1 - r) w_j^2 / 2)``

    ``alpha = 1 / C``. For more than two classes the loss is the multinomial one, and a column has
    one penalty for all of them. Solved by proximal Newton on working sets, to rounding; the
    hypergradient is the implicit one on the support. Sparse X stays sparse. Internally in float64.

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
        y : class labels, ``[n]``.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn.
        """
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr")
        labels, weight = self._encode(y, weight)
        splits: Any = self._split_classes(X, y, groups, labels, weight)
        rows: Any = to_float64(X, weight if self.fit_intercept else None)
        centred = self.fit_intercept
        K, d = len(self.classes_), rows.shape[1]
        problem_of = (
            make_glm_folds(LOGISTIC, rows, labels * 1.0, weight, splits, centred)
            if K == 2
            else make_class_folds(MULTINOMIAL, rows, np.eye(K)[labels], weight, splits, centred)
        )
        # Intercepts are of dense rows about their mean, of sparse ones as they are here.
        middle = np.zeros(d)
        if centred:
            moved: Any = rows if isinstance(rows, np.ndarray) else to_float64(X) - rows
            middle = np.asarray(weight @ moved).ravel() / weight.sum()

        def place(_: np.ndarray, params: np.ndarray, __: np.ndarray) -> Mapping[str, Any]:
            coef, shift = params[:d], params[-1]
            if K > 2:
                W = params[:-1].reshape(-1, K)
                coef, shift = W[:d], W[d:].sum(0)
            shift = shift - middle @ coef
            if K > 2:  # one number added to all of them changes no probability
                shift = shift - shift.mean()
            return self._place_linear(coef.T, shift, False, X.dtype)

        data = FitData(X, y, sample_weight, weight, splits)
        self._tune_sparse(data, rows, problem_of, place)
        if self._kinds == 1:
            self.l1_ratio_ = self._ratio
        with np.errstate(divide="ignore"):  # a column without penalty
            self.C_ = 1 / self.alpha_
        return self

    def _make_loss(self, problem: FoldQuadratics) -> SparseLoss:
        if len(self.classes_) == 2:
            return super()._make_loss(problem)
        return ClassLoss(problem, self._kinds, ratio=self._ratio)

    def _units(self, problem: FoldQuadratics, scale: np.ndarray) -> np.ndarray:
        if len(self.classes_) > 2:
            folds: Any = problem.folds
            problem = problem._replace(folds=[fold.size_columns() for fold in folds])
        return super()._units(problem, scale)
