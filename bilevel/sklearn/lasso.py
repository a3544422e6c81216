"""Lasso that tunes its penalties by hypergradient."""

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from bilevel.sklearn.base import LinearRegressor, to_float64
from bilevel.sklearn.choice import FitData
from bilevel.sklearn.losses import make_probes, make_quadratics
from bilevel.sklearn.sparse import L1Estimator


class HypergradLasso(L1Estimator, LinearRegressor):
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
        rows, target = (
            to_float64(X, weight if self.fit_intercept else None),
            np.asarray(y, np.float64),
        )
        self._check_noise()
        splits: Any = self._splits(X, y, groups)
        if splits is None:
            # The same probes at every call: a loss that changes by itself cannot be descended.
            random = check_random_state(0 if self.random_state is None else self.random_state)
            centred, noise = self.fit_intercept, float(self.noise_variance or 0)
            problem_of = make_probes(rows, target, weight, centred, noise, random)
        else:
            problem_of = make_quadratics(rows, target, weight, splits, self.fit_intercept)
        data = FitData(X, y, sample_weight, weight, splits)
        place = self._place_coef(data, lambda params: params[:-1])
        self._tune_sparse(data, rows, problem_of, place)
        return self


def require_one_target(y: Any, name: str) -> None:
    """Validate that ``y`` is one target, which penalties of its own select columns for."""
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y of {name} must be one target, [n], got {list(shape)}: every target has "
            f"penalties of its own. Give MultiOutputRegressor({name}()) of sklearn.multioutput."
        )
