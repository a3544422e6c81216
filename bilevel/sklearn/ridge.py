"""Ridge regression that tunes its penalties by hypergradient."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import MultiOutputMixin
from sklearn.utils._param_validation import Interval, StrOptions

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.choice import FitData, finish_fit
from bilevel.sklearn.confidence import measure_confidence, require_smallest_loss
from bilevel.sklearn.losses import Matrix, compute_column_squares
from bilevel.sklearn.ridge_problem import RidgeProblem
from bilevel.sklearn.search import (
    ColumnPenalties,
    SearchResult,
    check_alphas,
    make_log_bounds,
    make_spectral_grid,
    share_in_groups,
    tune_penalties,
)


class HypergradRidge(MultiOutputMixin, LinearRegressor):
    r"""Ridge regression; its penalties minimise the cross-validated squared error.

    ``min_w sum_i s_i (y_i - x_i . w - b)^2 + sum_j alpha_j w_j^2``

    Value and hypergradient are closed forms on the spectrum (one penalty) or the second moments
    (many) of the folds, so a step costs the same however many rows there are. One penalty: the
    best over the whole range of the spectrum, so the answer has no unit. Internally in float64.

    Parameters
    ----------
    penalty : ``"global"``, one alpha; ``"per_feature"``; a group label per column of X; or a
        mapping from column names, patterns or numbers to a group label, to a factor of the common
        penalty, or to 0 for none: ``{"age": 0, "gene*": "genes"}``.
    alphas : the single penalties to start from, the best of them; by default two in each factor of
        e over the spectrum of the data. The result is never worse on the folds.
    cv : folds as in scikit-learn, 5 by default; or, without folds and in closed form, ``"loo"``
        (leave-one-out), ``"gcv"``, ``"sure"``; of sparse X in ``n min(n, d)`` numbers.
    noise_variance : of the targets, for ``cv="sure"``.
    guard : penalties that are more than one follow the descent only as far as it generalises, by
        the folds that each descent has not seen (not without folds).
    choose : ``"smallest_loss"`` on the folds, or ``"one_standard_error"``: the largest penalties
        whose loss is within one standard error of it.
    scoring : chooses among the grid and the points of the descent, which follows the squared error:
        a name or a callable of scikit-learn; by default that loss itself. Equal scores: the largest
        penalties. Needs folds.
    refit : ``False``: the mean of the folds' fits at the chosen penalties, not the fit of all rows.
    confidence : set ``confidence_``, for one penalty that minimises the loss.
    max_iter, tol : most descent steps; the relative gain of a step at which to stop.
    n_jobs : threads of the guard.
    random_state : shuffles the folds, if given and ``cv`` is a number.

    Attributes
    ----------
    coef_, intercept_ : as in ``RidgeCV``, in the dtype of X.
    alpha_ : the penalty, or one per column; ``alpha_path_``, ``cv_loss_path_``: at every step.
    cv_loss_, best_score_ : mean squared error over the folds (mean of the folds' means), and
        minus it.
    cv_losses_, cv_results_ : the loss of every fold; those at each point of the grid.
    cv_scores_, best_score_ : with ``scoring``, the scores of the folds, and their mean.
    confidence_ : :class:`PenaltyConfidence`, standard error of ``log alpha_`` and intervals of it
        over the draw of the rows, or of the ``groups``; a row of weight 2 is one draw, not two.
    hypergradient_ : of the loss in the logarithms of the penalties, at the end.
    evidence_ : :class:`bilevel.Evidence`, how exactly the linear systems were solved.
    shrinkage_, guard_loss_ : how far the guard went from one penalty (0) to all (1); what it saw.
    n_iter_, n_features_in_, feature_names_in_ : as usual.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bilevel.sklearn import HypergradRidge
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HypergradRidge().fit(X, y)
    >>> bool(model.cv_loss_ < 2994)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **LinearRegressor._parameter_constraints,
        "cv": ["cv_object", StrOptions({"loo", "gcv", "sure"})],
        "confidence": ["boolean"],
        "noise_variance": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        cv=None,
        noise_variance=None,
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
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.noise_variance = noise_variance
        self.confidence = confidence

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : ``[n]``, or ``[n, T]`` for targets that share their penalties.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn.
        """
        by_rows = isinstance(self.cv, str)  # needs a row beside each
        X, y, weight = self._validate(
            X,
            y,
            sample_weight,
            accept_sparse="csr",
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2 if by_rows else 1,
        )
        self._check_noise()
        penalties = self._group_columns(X.shape[1])
        if self.confidence:
            require_smallest_loss(self, penalties.single)
        columns = penalties.groups
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        rows: Any = to_float64(X, weight if self.fit_intercept else None)
        splits = self._splits(X, y, groups)
        noise = self.noise_variance
        problem = RidgeProblem(
            rows, targets, weight, splits, self.fit_intercept, str(self.cv), noise
        )
        if penalties.single:
            found, back = self._tune_one(problem, rows)
        else:
            found, back = self._tune_many(problem, penalties), np.asarray
        data = FitData(X, y, sample_weight, weight, splits, groups)
        found = finish_fit(self, found, data, self._place_coef(data, back))
        free = columns[: len(found.theta)]
        self._report(found, free, lambda log: log[0] if penalties.single else log)
        if self.confidence:
            look = problem.make_influence()
            self.confidence_ = measure_confidence(look, found, self.alpha_, data)
        return self

    def _tune_one(
        self, problem: RidgeProblem, rows: Matrix, tol: float | None = None
    ) -> tuple[SearchResult, Callable[[np.ndarray], np.ndarray]]:
        """Return the best single penalty for these rows, and the way of coefficients back."""
        path, back = problem.make_path(rows)
        grid, bounds = make_spectral_grid(path.extremes())
        if self.alphas is not None:
            grid = np.log(check_alphas(self.alphas))
            bounds = np.array([min(bounds[0], grid[-1]), max(bounds[1], grid[0])])
        zeros = np.zeros(1, int)
        search = replace(self._search(bounds[None], zeros, problem.splits), tol=min(self.tol, 1e-6))
        found = tune_penalties(lambda _: path, [grid[:, None]], [zeros], search)
        return found, back

    def _tune_many(self, problem: RidgeProblem, penalties: ColumnPenalties) -> SearchResult:
        """Return the best penalties of groups of columns, from one for all on.

        One for all columns as they are, or of unit variance: from both, and the better end.
        """
        rows, (columns, offset), d = problem.rows, penalties, len(penalties.groups)
        squares = compute_column_squares(rows, problem.weight, self.fit_intercept)
        shared = share_in_groups(squares, columns)
        grids = []
        for scale in (np.ones(d), shared):
            unit = 1 / np.sqrt(scale)
            scaled = rows * unit if isinstance(rows, np.ndarray) else rows.multiply(unit).tocsr()
            one = self._tune_one(problem, scaled)[0]
            # With factors the best of one penalty is elsewhere: its whole grid is tried.
            points = one.points if offset.any() else one.theta[None]
            grids.append(points + np.log(scale) + offset)
        bounds = make_log_bounds(squares, d)
        bounds[:, 0] = np.minimum(bounds[:, 0], np.min(np.concatenate(grids), 0))
        bounds[:, 1] = np.maximum(bounds[:, 1], np.max(np.concatenate(grids), 0))
        bounds = penalties.free(bounds)
        # A step costs little: so far on that the end is within tol, not only the last step.
        search = replace(self._search(bounds, columns, problem.splits), tol=self.tol / 100)
        return tune_penalties(problem.make_loss(), grids, [columns], search)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
