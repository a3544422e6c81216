"""Group lasso that tunes its penalties by hypergradient."""

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.choice import FitData
from bilevel.sklearn.lasso import require_one_target
from bilevel.sklearn.losses import FoldQuadratics, GroupLassoLoss, SparseLoss, make_quadratics
from bilevel.sklearn.search import ColumnPenalties, group_columns
from bilevel.sklearn.sparse import L1Estimator


class HypergradGroupLasso(L1Estimator, LinearRegressor):
    r"""Group lasso, sparse inside groups if asked; its penalties minimise the loss on folds.

    ``min_w 1/(2 n) sum_i (y_i - x_i . w - b)^2
    + sum_g alpha_g ((1 - r) sqrt(d_g) |w_g|_2 + r |w_g|_1)``

    ``d_g`` columns in group g, n the total weight of the rows; the loss is the squared error. A
    group is in the model as a whole or not at all. Solved to rounding on working sets of groups;
    the hypergradient is the implicit one on the columns in use.

    Parameters
    ----------
    column_groups : a label per column of X, equal for the columns of a group; by default every
        column is its own, which is the lasso.
    penalty : ``"global"``; ``"per_group"``; or as for :class:`HypergradRidge`, where columns of
        one group with different penalties have their geometric mean.
    l1_ratio : ``r``: 0, the default, or the part of the penalty that leaves out columns inside
        groups, the sparse-group lasso.
    alphas, cv, guard, choose, scoring, refit, max_iter, tol, n_jobs, random_state : as for
        :class:`HypergradLasso`, with folds.

    Attributes
    ----------
    alpha_ : the penalty, or one per column, equal in a group.
    undetermined_, cv_loss_, coef_, intercept_ and others : as for :class:`HypergradLasso`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bilevel.sklearn import HypergradGroupLasso
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HypergradGroupLasso([0, 0, 1, 1, 2, 2, 2, 2, 2, 2]).fit(X, y)
    >>> model.coef_.shape
    (10,)
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **LinearRegressor._parameter_constraints,
        "penalty": [StrOptions({"global", "per_group", "per_feature"}), "array-like", dict],
        "column_groups": ["array-like", None],
        "l1_ratio": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        column_groups=None,
        penalty="global",
        *,
        l1_ratio=0.0,
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
        self.column_groups = column_groups
        self.l1_ratio = l1_ratio

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : ``[n]``.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, of rows, for a ``cv`` that keeps them together.

        Raises
        ------
        ValueError : labels that are not one per column; bad data or parameters.
        """
        require_one_target(y, type(self).__name__)
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr", y_numeric=True)
        self._labels(X.shape[1])
        splits: Any = self._splits(X, y, groups)
        rows: Any = to_float64(X, weight if self.fit_intercept else None)
        target = np.asarray(y, np.float64)
        problem_of = make_quadratics(rows, target, weight, splits, self.fit_intercept)
        data = FitData(X, y, sample_weight, weight, splits)
        place = self._place_coef(data, lambda params: params[:-1])
        self._tune_sparse(data, rows, problem_of, place)
        return self

    def _labels(self, d: int) -> np.ndarray:
        """Return the group of each column, from 0."""
        given = self.column_groups
        labels = np.arange(d) if given is None else np.asarray(given, object)
        if labels.shape != (d,):
            raise ValueError(
                f"column_groups must hold one group label per column of X: X has {d} features, "
                f"column_groups has shape {labels.shape}."
            )
        return group_columns(labels, d).groups

    def _group_columns(self, d: int) -> ColumnPenalties:
        if isinstance(self.penalty, str) and self.penalty == "per_group":
            return group_columns(self._labels(d), d)
        return super()._group_columns(d)

    def _make_loss(self, problem: FoldQuadratics) -> SparseLoss:
        labels = self._labels(len(problem.folds[-1].cross))
        return GroupLassoLoss(problem, labels, float(self.l1_ratio))

    def _find_largest(self, cross: np.ndarray) -> float:
        """Return a penalty that leaves no column: the smaller of those by either part alone."""
        labels, ratio = self._labels(len(cross)), float(self.l1_ratio)
        sizes = np.sqrt(np.bincount(labels, cross**2) / np.bincount(labels)) / (1 - ratio)
        largest = float(np.max(sizes))
        return min(largest, float(np.max(np.abs(cross))) / ratio) if ratio else largest
