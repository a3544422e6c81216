"""Ridge regression that tunes its penalties by hypergradient."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import MultiOutputMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.losses import (
    CriterionData,
    Matrix,
    compute_fold_sums,
    compute_group_sums,
    compute_mean_square_sum,
    gcv_loss,
    loo_loss,
    make_folds,
    pad,
    ridge_loss,
    round_up,
    sure_loss,
)
from bilevel.sklearn.search import (
    OuterLoss,
    group_columns,
    make_log_bounds,
    make_log_grid,
    make_stages,
    tune_penalties,
)

CRITERIA = {"loo": loo_loss, "gcv": gcv_loss, "sure": sure_loss}
ALPHAS = (0.1, 1.0, 10.0)  # those of RidgeCV


class HypergradRidge(MultiOutputMixin, LinearRegressor):
    r"""Ridge regression; its penalties minimise the cross-validated squared error.

    ``min_w sum_i s_i (y_i - x_i . w - b)^2 + sum_j alpha_j w_j^2``

    Value and hypergradient are closed forms on the second moments of the folds, so a step costs
    the same however many rows there are. Internally in float64.

    Parameters
    ----------
    penalty : ``"global"``, one alpha; ``"per_feature"``; or a group label per column of X.
    alphas : the single penalties to start from, the best of them; by default those of ``RidgeCV``
        and 13 about the scale of the data. The result is never worse on the folds.
    cv : folds as in scikit-learn, 5 by default; or, without folds and in closed form, ``"loo"``
        (leave-one-out), ``"gcv"``, ``"sure"``.
    noise_variance : of the targets, for ``cv="sure"``.
    guard : penalties that are more than one follow the descent only as far as it generalises, by
        the folds that each descent has not seen (not without folds).
    max_iter, tol : most descent steps; the relative gain of a step at which to stop.
    n_jobs : threads of the guard.
    random_state : shuffles the folds, if given and ``cv`` is a number.

    Attributes
    ----------
    coef_, intercept_ : as in ``RidgeCV``, in the dtype of X.
    alpha_ : the penalty, or one per column; ``alpha_path_``, ``cv_loss_path_``: at every step.
    cv_loss_, best_score_ : mean squared error over the folds (mean of the folds' means), and
        minus it.
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
        "cv": ["cv_object", StrOptions(set(CRITERIA))],
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
        self.noise_variance = noise_variance

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
        by_rows = isinstance(self.cv, str)  # its leverages are dense, and need a row beside them
        X, y, weight = self._validate(
            X,
            y,
            sample_weight,
            accept_sparse=not by_rows and "csr",
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2 if by_rows else 1,
        )
        columns = group_columns(self.penalty, X.shape[1])
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        rows: Any = to_float64(X)
        rotation = None  # one penalty is the same in every orthonormal basis
        if columns.max() == 0 and X.shape[1] > X.shape[0]:
            rotation = Rotation.from_rows(rows, weight, self.fit_intercept)
            rows, columns = rotation.rows, columns[: rotation.rows.shape[1]]
        scale = compute_mean_square_sum(rows, weight, self.fit_intercept)
        length = round_up(rows.shape[1])
        grid = np.tile(make_log_grid(self.alphas, scale, ALPHAS, 13)[:, None], length)
        if by_rows:
            outer_of = self._criterion(rows, targets, weight)
            folds = 0
        else:
            train, held = self._splits(X, y, groups)
            parts = compute_group_sums(rows, targets, weight, train, held, self.fit_intercept)
            folds = len(train)

            def outer_of(without: int | None) -> OuterLoss:
                return OuterLoss(
                    ridge_loss,
                    compute_fold_sums(parts, make_folds(train, held, weight, without))[0],
                )

        # From the grid to the best point; then back to the columns of X.
        search = self._search(make_log_bounds(scale, length), columns, folds)
        found = tune_penalties(outer_of, grid, make_stages(columns, length), search)
        coef = found.evaluation.params[-1, : rows.shape[1], : targets.shape[1]]
        intercept = self._intercept(rows, targets, weight, coef)
        if rotation is not None:
            coef = rotation.back(coef)
            intercept = intercept - rotation.centre @ coef
        d = len(columns)
        self._report(found, columns, lambda log: log[0] if columns.max() == 0 else log[:d])
        self._set_linear(coef.T, intercept, np.ndim(y) == 1, X.dtype)
        return self

    def _criterion(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Callable:
        """Make the problem of a criterion without folds."""
        if (self.cv == "sure") != (self.noise_variance is not None):
            raise ValueError(
                f"noise_variance, the known variance of the targets' noise, belongs to cv='sure' "
                f"and to it alone; got cv={self.cv!r}, noise_variance={self.noise_variance!r}."
            )
        n = round_up(len(y), 32)
        flag, noise = np.float64(self.fit_intercept), np.float64(self.noise_variance or 0)
        X, y, weight = pad(X, n, round_up(X.shape[1])), pad(y, n, None), pad(weight, n)
        data = CriterionData(X, y, weight, flag, noise)
        objective = CRITERIA[str(self.cv)]
        return lambda _: OuterLoss(objective, data)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = not isinstance(self.cv, str)
        return tags


@dataclass(frozen=True)
class Rotation:
    """A problem with fewer rows than columns and one penalty, in at most n coordinates.

    Every solution is a combination of the rows, so ``rows [n, r]`` in an orthonormal basis of
    their span have the same solutions, fold by fold.
    """

    rows: np.ndarray
    back: Callable[[np.ndarray], np.ndarray]
    centre: np.ndarray

    @classmethod
    def from_rows(cls, X: Matrix, weight: np.ndarray, centred: bool) -> "Rotation":
        """Rotate ``X [n, d]``, dense or sparse, by the eigenvectors of its Gram matrix."""
        shape: Any = X.shape
        centre = np.zeros(shape[1])
        if centred:
            centre = np.asarray(weight @ X).ravel() / weight.sum()
        cross = np.asarray(X @ centre).ravel()
        gram = safe_sparse_dot(X, X.T, dense_output=True)
        gram = gram - cross - cross[:, None] + centre @ centre
        values, vectors = np.linalg.eigh(gram)
        keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0)
        if not keep.any():
            keep[-1] = True
        root = np.sqrt(np.maximum(values[keep], np.finfo(float).tiny))
        basis = vectors[:, keep] / root

        def back(coef: np.ndarray) -> np.ndarray:
            combined = basis @ coef
            return np.asarray(X.T @ combined) - np.outer(centre, combined.sum(0))

        return cls(vectors[:, keep] * root, back, centre)
