"""Elastic net that tunes both its penalties by hypergradient."""

from typing import ClassVar

import numpy as np

from bilevel.sklearn.lasso import DECADES, HypergradLasso
from bilevel.sklearn.losses import FoldQuadratics
from bilevel.sklearn.search import ColumnPenalties, SearchResult, check_alphas, make_stages

# Of the l1 part of the elastic net's grid, where both parts are in units of the data.
RATIOS = (0.01, 0.1, 0.5, 0.9, 0.999)


class HypergradElasticNet(HypergradLasso):
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

    _kinds = 2
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

    def _grid(self, problem: FoldQuadratics, scale: np.ndarray) -> np.ndarray:
        ratios = np.asarray(self.l1_ratios, np.float64).ravel()
        if not ratios.size or np.any(ratios <= 0) or np.any(ratios >= 1):
            raise ValueError(f"l1_ratios must lie between 0 and 1, got {self.l1_ratios!r}.")
        if self.alphas is not None:
            alphas = check_alphas(self.alphas)
            return np.log([(a * r, a * (1 - r)) for r in ratios for a in alphas])
        slope, curvature = self._units(problem, scale)
        parts = np.logspace(0, -DECADES, 17)
        return np.log(
            [(a * slope, a * curvature * (1 - r) / r) for r in ratios[::-1] for a in parts]
        )

    def _stages(self, columns: np.ndarray) -> list[np.ndarray]:
        each = make_stages(columns, len(columns))
        return [np.concatenate([groups, groups + groups.max() + 1]) for groups in each]

    def _set_penalties(self, found: SearchResult, penalties: ColumnPenalties) -> None:
        columns, single = penalties.groups, penalties.single
        d = len(columns)

        def parts(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            l1, l2 = np.exp(log[:d]), np.exp(log[d:])
            return (l1[0], l2[0]) if single else (l1, l2)

        l1, l2 = parts(found.theta)
        self._report(found, np.arange(2 * d), lambda log: log_sum(*parts(log)), 2)
        grad = found.evaluation.grad.reshape(2, d)
        self.hypergradient_ = np.array([np.bincount(columns, g) for g in grad])
        both = np.asarray(l1 + l2)
        ratio = np.divide(l1, both, out=np.zeros_like(both), where=both > 0)
        self.l1_ratio_ = float(ratio) if single else ratio


def log_sum(l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Return the logarithm of both penalties together; of none, minus infinity."""
    with np.errstate(divide="ignore"):
        return np.log(l1 + l2)
