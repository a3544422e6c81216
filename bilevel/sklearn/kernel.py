"""Gaussian kernel ridge regression that tunes penalty and length scales by hypergradient."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevel.sklearn.base import FLOATS, HypergradEstimator
from bilevel.sklearn.choice import FitData, finish_fit
from bilevel.sklearn.intervals import IntervalMixin
from bilevel.sklearn.losses import KernelLoss, compute_column_squares, make_folds
from bilevel.sklearn.search import (
    check_alphas,
    share_in_groups,
    tune_penalties,
)


class HypergradKernelRidge(IntervalMixin, MultiOutputMixin, RegressorMixin, HypergradEstimator):
    r"""Kernel ridge with a Gaussian kernel; penalty and widths minimise the cross-validated error.

    ``k(x, x') = exp(-sum_j gamma_j (x_j - x'_j)^2)``, no intercept, as in ``KernelRidge``. Costs
    n^3 operations per fold and step.

    Parameters
    ----------
    penalty : which columns share a ``gamma``: ``"global"``, ``"per_feature"``, or a group label per
        column of X. There is one ``alpha``.
    alphas : of the grid, each with three widths.
    cv, guard, choose, max_iter, tol, n_jobs, random_state : as for :class:`HypergradRidge`, with
        folds.

    Attributes
    ----------
    alpha_, gamma_ : a number each, or ``gamma_ [d]``.
    dual_coef_, X_fit_ : as in ``KernelRidge``.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> import numpy as np
    >>> from bilevel.sklearn import HypergradKernelRidge
    >>> X = np.linspace(0, 6, 40)[:, None]
    >>> bool(HypergradKernelRidge(cv=4, random_state=0).fit(X, np.sin(X[:, 0])).cv_loss_ < 1e-3)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        name: rule
        for name, rule in HypergradEstimator._parameter_constraints.items()
        if name != "fit_intercept"
    }

    def __init__(
        self,
        penalty="global",
        *,
        alphas=(1e-4, 1e-2, 1.0),
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
        self.penalty = penalty
        self.alphas = alphas
        self.cv = cv
        self.guard = guard
        self.choose = choose
        self.scoring = scoring
        self.refit = refit
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune on the folds, then fit all rows; arguments as for :class:`HypergradRidge`."""
        X, y, weight = self._validate(X, y, sample_weight, multi_output=True, y_numeric=True)
        (columns, offset), d = self._group_columns(X.shape[1]), X.shape[1]
        if offset.any():
            raise ValueError(
                "penalty of HypergradKernelRidge groups columns by their width, which has no "
                "factor: give labels of groups alone."
            )
        sides: Any = self._splits(X, y, groups)
        train, held = sides
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        # The kernel sees differences alone, which rounding spoils where the mean is large.
        self._centre = weight @ X.astype(np.float64) / weight.sum()
        rows = X - self._centre
        # Widths about the inverse variance of all columns, or, where they are many, of each group;
        # entry 0 of theta is the penalty.
        squares = compute_column_squares(X, weight, True) / weight.sum()
        scales = [np.full(d, squares.mean())]
        if columns.max() > 0:
            scales.append(share_in_groups(squares, columns))
        usual = check_alphas((1e-4, 1e-2, 1.0) if self.alphas is None else self.alphas)
        widths = [np.log(2 / (d * scale)) for scale in scales]
        grids = [
            np.array([np.append(np.log(a), w + np.log(g)) for a in usual for g in (0.1, 1, 10)])
            for w in widths
        ]
        grid = np.concatenate(grids)
        first = np.append(0, np.ones(d, int))
        own = first.copy()
        own[1 : d + 1] = 1 + columns
        bounds = np.stack([np.min(grid, 0) - 12.0, np.max(grid, 0) + 9.0], 1)
        bounds[0] = min(-23.0, np.min(grid[:, 0])), max(9.0, np.max(grid[:, 0]))

        def outer_of(without: int | None) -> KernelLoss:
            return KernelLoss(rows, targets, weight, make_folds(train, held, weight, without))

        both = [first] if columns.max() == 0 else [first, own]
        # The smoother of two equally good functions: a large penalty first, then wide kernels.
        strength = np.append(1.0, np.full(d, -1e-3 / d))
        search = self._search(bounds, columns, (train, held), strength)
        found = tune_penalties(outer_of, grids, both, search)
        self.X_fit_ = X
        self.gamma_: float | np.ndarray
        self.dual_coef_: np.ndarray

        def place(theta: np.ndarray, params: np.ndarray, _: np.ndarray) -> dict:
            gamma, dual = np.exp(theta[1 : d + 1]) / 2, params[: len(y)].astype(X.dtype)
            return {
                "gamma_": float(gamma[0]) if columns.max() == 0 else gamma,
                "dual_coef_": dual[:, 0] if np.ndim(y) == 1 else dual,
            }

        data = FitData(X, y, sample_weight, weight, (train, held))
        found = finish_fit(self, found, data, place)
        self._report(found, own[: d + 1], lambda log: log[0])
        return self

    def predict(self, X):
        """Return ``k(X, X_fit_) @ dual_coef_``."""
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, dtype=FLOATS, reset=False))
        return (self._make_features(X) @ self.dual_coef_).astype(X.dtype)

    def _make_features(self, X: Any) -> np.ndarray:
        root = np.sqrt(self.gamma_)
        near, fitted = ((rows - self._centre) * root for rows in (X, self.X_fit_))
        return rbf_kernel(near, fitted, gamma=1.0)

    def _read_fit(self, fit: Any) -> tuple[Any, Any]:
        return np.atleast_2d(fit["dual_coef_"].T), np.zeros(1)
