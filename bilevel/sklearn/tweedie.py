"""Poisson, Gamma and other Tweedie regressions that tune their penalties by hypergradient."""

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import d2_tweedie_score
from sklearn.utils._param_validation import Interval

from bilevel.sklearn.choice import FitData
from bilevel.sklearn.glm import GlmEstimator
from bilevel.sklearn.losses import make_tweedie


class HypergradPoissonRegressor(RegressorMixin, GlmEstimator):
    r"""Poisson regression; its penalties minimise the cross-validated deviance.

    ``min_w sum_i s_i (e^{z_i} - y_i z_i) / sum s + 1/2 sum_j alpha_j w_j^2,   z_i = x_i . w + b``

    The objective of ``PoissonRegressor``; the hypergradient is the implicit one, at the solved
    minimum of every fold. Sparse X stays sparse. Internally in float64.

    Parameters
    ----------
    penalty : as for :class:`HypergradRidge`.
    alphas : the single penalties to start from, the best of them; by default one a decade about the
        scale of the data, so that the choice depends on no unit.
    cv : folds, or ``"alo"``, approximate leave-one-out: a Newton step without each row.
    guard, choose, scoring, refit, confidence, max_iter, tol, n_jobs, random_state : as for
        :class:`HypergradRidge`, with folds.

    Attributes
    ----------
    coef_, intercept_ : as in ``PoissonRegressor``, in the dtype of X.
    alpha_ : the penalty, or one per column, in the unit of ``PoissonRegressor``.
    cv_loss_, best_score_ : half the mean deviance over the folds, and minus it.
    Others : as for :class:`HypergradRidge`.

    Examples
    --------
    >>> import numpy as np
    >>> from bilevel.sklearn import HypergradPoissonRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = rng.poisson(np.exp(X @ [1.0, -0.5, 0.0]))
    >>> bool(HypergradPoissonRegressor().fit(X, y).score(X, y) > 0.5)
    True
    """

    _power = 1.0

    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the penalties on the folds, then fit all rows with them.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        y : ``[n]``, not negative; positive for a power of 2 or more.
        sample_weight : ``[n]``, weights of the rows in training and in held-out losses.
        groups : ``[n]``, for a ``cv`` that keeps groups together.

        Raises
        ------
        ValueError : bad data or parameters, in the words of scikit-learn; y out of range.
        """
        X, y, weight = self._validate_rows(X, y, sample_weight, y_numeric=True)
        target, name = np.asarray(y, np.float64)[:, None], type(self).__name__
        low = float(target.min())
        if low < 0 or (low == 0 and self._power >= 2) or not weight @ target > 0:
            rule = "positive" if self._power >= 2 else "not negative, and not 0 in every row"
            raise ValueError(
                f"y of {name} must be {rule}: it is a mean of {np.mean(target):.4g}, and its "
                f"smallest value is {low:.4g}. Give counts or amounts, or use HypergradRidge."
            )
        data = FitData(X, y, sample_weight, weight, self._splits(X, y, groups), groups)
        self._tune_glm(data, target, make_tweedie(self._power), mean=True)
        return self

    def predict(self, X):
        """Return the means ``exp(X @ coef_ + intercept_)``."""
        return np.exp(self._linear(X))

    def score(self, X, y, sample_weight=None):
        """Return the part of the deviance that is explained, D squared."""
        means = np.asarray(self.predict(X), np.float64)
        power: Any = self._power
        return float(d2_tweedie_score(y, means, sample_weight=sample_weight, power=power))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


class HypergradGammaRegressor(HypergradPoissonRegressor):
    r"""Gamma regression; its penalties minimise the cross-validated deviance.

    ``min_w sum_i s_i (y_i e^{-z_i} + z_i) / sum s + 1/2 sum_j alpha_j w_j^2,   z_i = x_i . w + b``

    The objective of ``GammaRegressor``. Parameters and attributes are those of
    :class:`HypergradPoissonRegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> from bilevel.sklearn import HypergradGammaRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = rng.gamma(5.0, np.exp(X @ [1.0, -0.5, 0.0]) / 5)
    >>> bool(HypergradGammaRegressor().fit(X, y).score(X, y) > 0.5)
    True
    """

    _power = 2.0


class HypergradTweedieRegressor(HypergradPoissonRegressor):
    r"""Tweedie regression; its penalties minimise the cross-validated deviance.

    ``min_w sum_i s_i d_p(y_i, e^{z_i}) / (2 sum s) + 1/2 sum_j alpha_j w_j^2,   z_i = x_i . w + b``

    ``d_p`` is the deviance of power p; the objective of ``TweedieRegressor``, convex for these p.

    Parameters
    ----------
    power : p from 1, Poisson's, to 2, Gamma's; between them for amounts that are often 0.
    Others : those of :class:`HypergradPoissonRegressor`, as are the attributes.

    Examples
    --------
    >>> import numpy as np
    >>> from bilevel.sklearn import HypergradTweedieRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> y = rng.poisson(np.exp(X @ [1.0, -0.5, 0.0])) * rng.gamma(2.0, size=200)
    >>> bool(HypergradTweedieRegressor(power=1.5).fit(X, y).score(X, y) > 0.3)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **HypergradPoissonRegressor._parameter_constraints,
        "power": [Interval(Real, 1, 2, closed="both")],
    }

    def __init__(
        self,
        penalty="global",
        *,
        power=1.5,
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
        self.power = power

    @property
    def _power(self) -> float:
        return self.power
