r"""Prediction intervals from the folds: CV+ (Barber, Candes, Ramdas, Tibshirani, Ann. Stat. 2021).

With ``mu_k`` the fit without fold k, ``k(i)`` the fold that holds row i out, ``R_i = |y_i -
mu_{k(i)}(x_i)|`` and m rows, the interval of coverage ``1 - a`` at x is

    [floor(a (m + 1))-th smallest of mu_{k(i)}(x) - R_i,
     ceil((1 - a) (m + 1))-th smallest of mu_{k(i)}(x) + R_i]
"""

from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

_CHUNK = 5_000_000  # numbers sorted at once
_FEW = 0.25  # part of the coefficients: below it they are stored sparse
_ROUNDING = 1e-9  # of a rank


class FoldFitsKept(NamedTuple):
    """The fits of F folds, ``coef [T, d]``, sparse where few are not 0, and ``intercept [T]``.

    Of the m rows that count ``residual [m, T]``, and the fold ``[m]`` that holds each out.
    ``single``: predictions are a vector; ``dtype`` is theirs.
    """

    coef: list[Any]
    intercept: list[np.ndarray]
    residual: np.ndarray
    fold: np.ndarray
    single: bool
    dtype: np.dtype


class IntervalMixin:
    """Mixin of regressors that are linear in some features: prediction intervals."""

    _kept: FoldFitsKept | str = ""  # or why there are none

    def _make_features(self, X: Any) -> Any:
        """Return what the coefficients multiply, ``[n, d]``."""
        return X

    def _read_fit(self, fit: Any) -> tuple[Any, Any]:
        """Return coefficients ``[T, d]`` and intercepts ``[T]`` of a fit's attributes."""
        return np.atleast_2d(fit["coef_"]), np.atleast_1d(fit["intercept_"])

    def _keep_folds(
        self, X: Any, y: np.ndarray, weight: np.ndarray, fits: Iterable[Any], held: np.ndarray
    ) -> None:
        """Keep the fits of the folds and their residuals on the rows ``held [F, n]`` out."""
        used = np.flatnonzero(weight > 0)
        count, fold = held[:, used].sum(0), held[:, used].argmax(0)
        if np.any(count != 1):
            self._kept = (
                f"cv does not hold out every row once: {int(np.sum(count == 0))} rows never, "
                f"{int(np.sum(count > 1))} more than once. Give a cv such as KFold"
            )
            return
        if np.ptp(weight[used]) > 1e-9 * weight.max():
            self._kept = "rows of different weight are not exchangeable. Fit without sample_weight"
            return
        target = np.asarray(y, np.float64).reshape(len(y), -1)
        residual, coefs, shifts = np.empty((len(used), target.shape[1])), [], []
        for k, fit in enumerate(fits):
            coef, shift = self._read_fit(fit)
            if np.count_nonzero(coef) < _FEW * coef.size:
                coef = sparse.csr_array(coef)
            coefs.append(coef)
            shifts.append(shift)
            own = used[fold == k]
            seen = self._make_features(X[own])
            residual[fold == k] = np.abs(target[own] - _predict(seen, coef, shift))
        self._kept = FoldFitsKept(coefs, shifts, residual, fold, np.ndim(y) == 1, X.dtype)

    def predict_interval(self, X, coverage=0.9):
        r"""Return the lower and the upper ends of prediction intervals, shaped as ``predict``.

        CV+: from the fits of the folds at the tuned penalties, each judged on the rows that it has
        not seen. If rows are exchangeable and the penalties were given, a new target lies inside
        with probability at least ``1 - 2 a`` less ``1 / n`` or so, ``a = 1 - coverage``, and in
        practice about ``coverage``. Ends are infinite where there are too few rows for it,
        and one point where those of a small coverage would pass each other.

        Parameters
        ----------
        X : array or CSR matrix, ``[n, d]``.
        coverage : between 0 and 1.

        Raises
        ------
        ValueError : ``cv`` does not hold out every row once; rows had different weights.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevel.sklearn import HypergradRidge
        >>> X, y = load_diabetes(return_X_y=True)
        >>> low, high = HypergradRidge().fit(X, y).predict_interval(X, coverage=0.9)
        >>> bool(0.88 < ((low <= y) & (y <= high)).mean() < 0.93)
        True
        """
        check_is_fitted(self)
        if not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {coverage!r}.")
        kept = self._kept
        if not isinstance(kept, FoldFitsKept):
            why = kept or "this cv makes no fits without some rows. Give a cv of folds"
            raise ValueError(f"predict_interval needs residuals on unseen rows, and {why}.")
        kinds, model = [np.float64, np.float32], cast(Any, self)
        checked: Any = validate_data(model, X, accept_sparse="csr", dtype=kinds, reset=False)
        seen = self._make_features(checked)
        by_fold = [_predict(seen, *pair) for pair in zip(kept.coef, kept.intercept, strict=True)]
        low, high = find_ends(np.stack(by_fold), kept.residual, kept.fold, float(coverage))
        if kept.single:
            low, high = low[:, 0], high[:, 0]
        return low.astype(kept.dtype), high.astype(kept.dtype)


def find_ends(
    by_fold: np.ndarray, residual: np.ndarray, fold: np.ndarray, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of CV+, ``[n, T]`` each.

    From predictions ``by_fold [F, n, T]``, residuals ``[m, T]`` and the fold of each, ``[m]``.
    """
    m, n, outputs = len(residual), *by_fold.shape[1:]
    # The other end is its mirror image.
    rank = max(1, int(np.ceil(coverage * (m + 1) - _ROUNDING)))
    low, high = np.full((n, outputs), -np.inf), np.full((n, outputs), np.inf)
    if rank > m:
        return low, high
    step = max(1, _CHUNK // m)
    for t in range(outputs):
        for start in range(0, n, step):
            part = slice(start, start + step)
            middle = by_fold[fold, part, t]
            ends = np.partition(middle + residual[:, t, None], rank - 1, 0)
            high[part, t] = ends[rank - 1]
            ends = np.partition(residual[:, t, None] - middle, rank - 1, 0)
            low[part, t] = -ends[rank - 1]
    crossed, point = low > high, (low + high) / 2
    return np.where(crossed, point, low), np.where(crossed, point, high)


def _predict(X: Any, coef: Any, intercept: np.ndarray) -> np.ndarray:
    return np.asarray(safe_sparse_dot(X, coef.T, dense_output=True)) + intercept
