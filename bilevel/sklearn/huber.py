"""Huber regression that tunes its penalties by hypergradient."""

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike
from sklearn.base import RegressorMixin
from sklearn.utils._param_validation import Interval

from bilevel.sklearn.choice import FitData
from bilevel.sklearn.glm import GlmEstimator
from bilevel.sklearn.intervals import IntervalMixin
from bilevel.sklearn.losses import make_huber


class HypergradHuberRegressor(IntervalMixin, RegressorMixin, GlmEstimator):
    r"""Huber regression; its penalties minimise the cross-validated Huber loss.

    ``min_{w, s > 0} sum_i (s + H(r_i / s) s) + sum_j alpha_j w_j^2,   r_i = y_i - x_i . w - b``

    ``H(t) = t^2`` up to ``epsilon``, linear beyond; rows weighted: the objective of
    ``HuberRegressor`` (Owen, 2007). Held-out rows have the same loss, at the scale s of the fit, so
    that outliers among them count no more than those in training.

    Parameters
    ----------
    epsilon : residuals beyond so many scales are outliers; 1.35 is 95 % efficient for normal noise.
    Others : as for :class:`HypergradPoissonRegressor`.

    Attributes
    ----------
    coef_, intercept_, scale_, alpha_ : as in ``HuberRegressor``.
    cv_loss_, best_score_ : mean Huber loss over the folds, in the unit of y, and minus it.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> import numpy as np
    >>> from bilevel.sklearn import HypergradHuberRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = X @ [1.0, -0.5, 0.0] + rng.standard_t(1.5, size=200)
    >>> HypergradHuberRegressor().fit(X, y).coef_.round(1)
    array([ 0.9, -0.5,  0.1])
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **GlmEstimator._parameter_constraints,
        "epsilon": [Interval(Real, 1, None, closed="left")],
    }

    def __init__(
        self,
        penalty="global",
        *,
        epsilon=1.35,
        alphas=None,
        fit_intercept=True,
        cv=None,
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
            confidence=confidence,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.epsilon = epsilon

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
        X, y, weight = self._validate_rows(X, y, sample_weight, y_numeric=True)
        target = np.asarray(y, np.float64)
        self._centre = find_median(target, weight) if self.fit_intercept else 0.0
        away = np.abs(target - self._centre)
        # The unit in which the scale is about 1; that of y has no say.
        self._unit = find_median(away, weight) or float(weight @ away / weight.sum()) or 1.0
        near = (target - self._centre) / self._unit
        data = FitData(X, y, sample_weight, weight, self._splits(X, y, groups), groups)
        both = np.stack([near, np.zeros_like(near)], 1)
        self._tune_glm(data, both, make_huber(self.epsilon), unit=2 * self._unit, scale=self._unit)
        return self

    def _place(self, coef: np.ndarray, intercept: np.ndarray, dtype: DTypeLike) -> dict[str, Any]:
        shift = self._unit * intercept[:1] + self._centre
        placed = self._place_linear(self._unit * coef[:, :1].T, shift, True, dtype)
        return {**placed, "scale_": float(self._unit * intercept[1])}

    def predict(self, X):
        """Return ``X @ coef_ + intercept_``."""
        return self._linear(X)


def find_median(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the smallest of ``values [n]`` that half the ``weight [n]`` does not exceed."""
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
