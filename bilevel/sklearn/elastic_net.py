"""Elastic net that tunes both its penalties by hypergradient."""

from typing import ClassVar

from bilevel.sklearn.lasso import HypergradLasso
from bilevel.sklearn.sparse import RATIOS, NetEstimator


class HypergradElasticNet(NetEstimator, HypergradLasso):
    r"""Elastic net; both its penalties minimise the cross-validated squared error.

    ``min_w 1/(2 n) sum_i (y_i - x_i . w - b)^2 + sum_j alpha_j (r_j |w_j| + (1 - r_j) w_j^2 / 2)``

    Parameters
    ----------
    alphas : the ``alpha`` of the grid, each with ``l1_ratios``; by default from the data, so that
        the choice depends on no unit.
    l1_ratios : the ``r`` of the grid; without ``alphas`` of penalties in units of the data: of the
        largest slope at 0, and of the mean curvature. Both are tuned from the best pair on.
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
            positive=positive,
            cv=cv,
            noise_variance=noise_variance,
            guard=guard,
            choose=choose,
            scoring=scoring,
            refit=refit,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.l1_ratios = l1_ratios
