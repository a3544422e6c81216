"""Lasso that tunes its penalties by hypergradient."""

from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.choice import FitData, finish_fit
from bilevel.sklearn.losses import (
    ElasticNetLoss,
    FoldQuadratics,
    compute_column_squares,
    make_probes,
    make_quadratics,
)
from bilevel.sklearn.search import (
    ITERATED,
    ColumnPenalties,
    SearchResult,
    check_alphas,
    make_stages,
    share_in_groups,
    tune_penalties,
)

POINTS, DECADES = 60, 4  # of the grid of the lasso, down from the penalty that leaves no column


class HypergradLasso(LinearRegressor):
    r"""Lasso; its penalties minimise the cross-validated squared error.

    ``min_w 1/(2 n) sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j |w_j|``, n the total weight of the
    rows. The hypergradient is the implicit one on the support; the solver is one of working sets,
    so memory grows with the support, not with the square of the number of columns.

    Parameters
    ----------
    penalty : as for :class:`HypergradRidge`.
    positive : coefficients are not below 0.
    alphas : the single penalties to start from, the best of them; by default 60 from the smallest
        that leaves no column, 15 a decade.
    cv : folds, or ``"sure"``, Stein's unbiased risk estimate with ``noise_variance``, the known
        variance of the noise; its degrees of freedom by Monte Carlo, ``random_state`` draws them.
    guard, choose, scoring, refit, max_iter, tol, n_jobs, random_state : as for
        :class:`HypergradRidge`.

    Attributes
    ----------
    undetermined_ : directions in the columns in use that the data leave undetermined: 0, unless
        columns depend on each other; then the coefficients are one choice of many with equal fit.
    alpha_, cv_loss_, coef_, intercept_ and others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bilevel.sklearn import HypergradLasso
    >>> X, y = load_diabetes(return_X_y=True)
    >>> int((HypergradLasso().fit(X, y).coef_ != 0).sum()) < 10
    True
    """

    _kinds = 1  # of penalties: of |w| alone
    _parameter_constraints: ClassVar[dict[str, list]] = {
        **LinearRegressor._parameter_constraints,
        "positive": ["boolean"],
        "cv": ["cv_object", StrOptions({"sure"})],
        "noise_variance": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        positive=False,
        cv=None,
        noise_variance=None,
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
        self.positive = positive
        self.noise_variance = noise_variance

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
        require_one_target(y, type(self).__name__)
        X, y, weight = self._validate(X, y, sample_weight, accept_sparse="csr", y_numeric=True)
        rows, target = to_float64(X), np.asarray(y, np.float64)
        self._check_noise()
        penalties, d = self._group_columns(X.shape[1]), X.shape[1]
        columns = penalties.groups
        splits: Any = self._splits(X, y, groups)
        if splits is None:
            # The same probes at every call: a loss that changes by itself cannot be descended.
            random = check_random_state(0 if self.random_state is None else self.random_state)
            centred, noise = self.fit_intercept, float(self.noise_variance or 0)
            problem_of = make_probes(rows, target, weight, centred, noise, random)
        else:
            problem_of = make_quadratics(rows, target, weight, splits, self.fit_intercept)

        def make_loss(without: int | None) -> ElasticNetLoss:
            return ElasticNetLoss(problem_of(without), self._kinds, positive=self.positive)

        loss = make_loss(None)

        def outer_of(without: int | None) -> ElasticNetLoss:
            return loss if without is None else make_loss(without)

        # Columns as they are; for penalties that are many, also in units of their deviation.
        squares = compute_column_squares(rows, weight, self.fit_intercept) / weight.sum()
        scales = [np.ones(d)]
        if columns.max() > 0:
            scales.append(np.sqrt(share_in_groups(squares, columns)))
        offset = np.tile(penalties.offset, self._kinds)
        grids = [self._expand(self._grid(loss.problem, scale), scale) + offset for scale in scales]
        grid = np.concatenate(grids)
        unit = self._expand(np.log(self._units(loss.problem, scales[-1]))[None], scales[-1])[0]
        bounds = unit[:, None] + np.array([-16.0, 3.0])
        if self._kinds == 2:
            bounds[d:, 1] += 10.0
        bounds[:, 0] = np.minimum(bounds[:, 0], np.min(grid, 0))
        bounds[:, 1] = np.maximum(bounds[:, 1], np.max(grid, 0))
        bounds = penalties.free(bounds)
        search = replace(self._search(bounds, columns, splits), resolution=ITERATED)
        found = tune_penalties(outer_of, grids, self._stages(columns), search)
        data = FitData(X, y, sample_weight, weight, splits)
        found = finish_fit(self, found, data, self._place_coef(data))
        self._set_penalties(found, penalties)
        self.undetermined_ = loss.count_undetermined(found.theta)
        return self

    def _units(self, problem: FoldQuadratics, scale: np.ndarray) -> np.ndarray:
        """Return the unit of each kind of penalty: the smallest l1 that leaves no column.

        For the second kind the mean curvature; both of columns divided by ``scale``.
        """
        used = np.flatnonzero(problem.share)
        slopes = [np.max(np.abs(problem.folds[k].cross) / scale, initial=0) for k in (*used, -1)]
        curvature = float(np.mean(problem.folds[-1].diagonal / scale**2))
        largest = float(np.max(slopes))
        return np.array([largest or 1.0, curvature if curvature > 0 else 1.0])[: self._kinds]

    def _expand(self, grid: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Repeat ``grid [G, kinds]`` for every column, ``[G, kinds d]``, in units of its scale."""
        power = np.arange(1, self._kinds + 1)[:, None]
        return (grid[:, :, None] + power * np.log(scale)).reshape(len(grid), -1)

    def _grid(self, problem: FoldQuadratics, scale: np.ndarray) -> np.ndarray:
        """Return logarithms of the penalties to try, ``[G, kinds]``."""
        if self.alphas is not None:
            return np.log(check_alphas(self.alphas))[:, None]
        points = np.logspace(0, -DECADES, POINTS)
        return np.log(self._units(problem, scale)[0] * points)[:, None]

    def _stages(self, columns: np.ndarray) -> list[np.ndarray]:
        return make_stages(columns, len(columns))

    def _set_penalties(self, found: SearchResult, penalties: ColumnPenalties) -> None:
        self._report(found, penalties.groups, lambda log: log[0] if penalties.single else log)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def require_one_target(y: Any, name: str) -> None:
    """Validate that ``y`` is one target, which penalties of its own select columns for."""
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y of {name} must be one target, [n], got {list(shape)}: every target has "
            f"penalties of its own. Give MultiOutputRegressor({name}()) of sklearn.multioutput."
        )
