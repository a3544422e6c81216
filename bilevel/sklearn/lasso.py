"""Lasso and elastic net that tune their penalties by hypergradient."""

from typing import ClassVar

import numpy as np

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.losses import (
    FoldSums,
    compute_fold_sums,
    compute_group_sums,
    elastic_net_loss,
    lasso_loss,
    make_folds,
    round_up,
)
from bilevel.sklearn.search import (
    OuterLoss,
    SearchResult,
    group_columns,
    make_stages,
    tune_penalties,
)

RATIOS = (0.1, 0.5, 0.9, 0.99)  # of the l1 part, on the grid of the elastic net


class HypergradLasso(LinearRegressor):
    r"""Lasso; its penalties minimise the cross-validated squared error.

    ``min_w 1/(2 n) sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j |w_j|``, n the total weight of the
    rows. The hypergradient is the implicit one on the support. Needs memory for a matrix ``[d, d]``
    per fold.

    Parameters
    ----------
    penalty : ``"global"``, one alpha; ``"per_feature"``; or a group label per column of X.
    alphas : the single penalties to start from, the best of them; by default 20 from the smallest
        that leaves no column down to a thousandth of it.
    cv, guard, max_iter, tol, n_jobs, random_state : as for :class:`HypergradRidge`, with folds.

    Attributes
    ----------
    alpha_, cv_loss_, coef_, intercept_ and others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bilevel.sklearn import HypergradLasso
    >>> X, y = load_diabetes(return_X_y=True)
    >>> int((HypergradLasso().fit(X, y).coef_ != 0).sum()) < 10
    True
    """

    _objective = staticmethod(lasso_loss)

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : ``[n]``.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn.
        """
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr", y_numeric=True)
        rows = to_float64(X)
        targets = np.asarray(y, np.float64)[:, None]
        columns, d = group_columns(self.penalty, X.shape[1]), X.shape[1]
        train, held = self._splits(X, y, groups)
        parts = compute_group_sums(rows, targets, weight, train, held, self.fit_intercept)
        length = round_up(d)

        def problem_of(without: int | None) -> FoldSums:
            found, means = compute_fold_sums(parts, make_folds(train, held, weight, without))
            unit = np.where(means.weight > 0, means.weight, 1)[:, None, None]
            return found._replace(gram=found.gram / unit, cross=found.cross / unit)

        def outer_of(without: int | None) -> OuterLoss:
            batch = problem_of(without)
            return OuterLoss(self._objective, batch, np.zeros(batch.cross.shape[:2]))

        # From the smallest penalty that leaves no column down; the best of them is the start.
        largest = float(np.max(np.abs(problem_of(None).cross[-1]))) or 1.0
        grid, both = self._grid(largest), self._stages(columns, length)
        grid = np.repeat(grid, length, axis=1)
        bounds = np.tile(np.log(largest) + np.array([-14.0, 3.0]), (grid.shape[1], 1))
        found = tune_penalties(outer_of, grid, both, self._search(bounds, columns, len(train)))
        coef = found.evaluation.params[-1, :d]
        intercept = self._intercept(rows, targets, weight, coef)
        self._set_linear(coef.T, intercept, True, X.dtype)
        self._set_penalties(found, columns, length)
        return self

    def _grid(self, largest: float) -> np.ndarray:
        """Return logarithms of the penalties to try, ``[G, kinds]``."""
        return np.log(self._alphas(largest))[:, None]

    def _alphas(self, largest: float) -> np.ndarray:
        alphas = largest * np.logspace(0, -3, 20) if self.alphas is None else self.alphas
        alphas = np.sort(np.asarray(alphas, np.float64).ravel())[::-1]
        if not alphas.size or not np.all(np.isfinite(alphas)) or np.any(alphas <= 0):
            raise ValueError(f"alphas must be positive and finite, got {alphas!r}.")
        return alphas

    def _stages(self, columns: np.ndarray, length: int) -> list[np.ndarray]:
        return make_stages(columns, length)

    def _set_penalties(self, found: SearchResult, columns: np.ndarray, length: int) -> None:
        d = len(columns)
        self._report(found, columns, lambda log: log[0] if columns.max() == 0 else log[:d])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class HypergradElasticNet(HypergradLasso):
    r"""Elastic net; both its penalties minimise the cross-validated squared error.

    ``min_w 1/(2 n) sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j (r_j |w_j| + (1 - r_j) w_j^2 / 2)``

    Parameters
    ----------
    alphas : the ``alpha`` of the grid, each with ``l1_ratios``; by default 8.
    l1_ratios : the ``r`` of the grid. Both are tuned from the best pair on.
    Others : as for :class:`HypergradLasso`.

    Attributes
    ----------
    alpha_, l1_ratio_ : numbers, or one per column.
    hypergradient_ : in the logarithms of ``alpha r`` and of ``alpha (1 - r)``.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bilevel.sklearn import HypergradElasticNet
    >>> X, y = load_diabetes(return_X_y=True)
    >>> 0 < HypergradElasticNet().fit(X, y).l1_ratio_ < 1
    True
    """

    _objective = staticmethod(elastic_net_loss)
    _parameter_constraints: ClassVar[dict[str, list]] = {
        **HypergradLasso._parameter_constraints,
        "l1_ratios": ["array-like"],
    }

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        l1_ratios=RATIOS,
        fit_intercept=True,
        cv=None,
        guard=True,
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
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.l1_ratios = l1_ratios

    def _grid(self, largest: float) -> np.ndarray:
        ratios = np.asarray(self.l1_ratios, np.float64).ravel()
        if not ratios.size or np.any(ratios <= 0) or np.any(ratios >= 1):
            raise ValueError(f"l1_ratios must lie between 0 and 1, got {self.l1_ratios!r}.")
        if self.alphas is None:
            pairs = [(a / r, r) for r in ratios for a in largest * np.logspace(0, -3, 8)]
        else:
            pairs = [(a, r) for r in ratios for a in self._alphas(largest)]
        return np.log([(a * r, a * (1 - r)) for a, r in pairs])

    def _stages(self, columns: np.ndarray, length: int) -> list[np.ndarray]:
        each = make_stages(columns, length)
        return [np.concatenate([groups, groups + groups.max() + 1]) for groups in each]

    def _set_penalties(self, found: SearchResult, columns: np.ndarray, length: int) -> None:
        d, single = len(columns), columns.max() == 0

        def parts(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            l1, l2 = np.exp(log[:length]), np.exp(log[length:])
            return (l1[0], l2[0]) if single else (l1[:d], l2[:d])

        l1, l2 = parts(found.theta)
        self._report(found, np.arange(2 * length), lambda log: np.log(sum(parts(log))))
        grad = found.evaluation.grad.reshape(2, length)[:, :d]
        self.hypergradient_ = np.array([np.bincount(columns, g) for g in grad])
        self.l1_ratio_ = float(l1 / (l1 + l2)) if single else l1 / (l1 + l2)
