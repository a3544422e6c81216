r"""Leave-one-out, GCV and SURE on the host, for one penalty and for many.

With rows ``X, Y`` times the square root of their weight, about the weighted means, the criteria are
functions of residuals ``e = Y - X w`` and of ``q_i = 1 - h_i``. One penalty, in singular vectors
``X = U diag(sqrt lambda) V^T``:

    e = e_0 + U f U^T Y,   q_i = q_0i + sum_k U_ik^2 f_k,   f_k = alpha / (lambda_k + alpha)

sums of numbers that are not negative, so that nothing cancels where the rows are interpolated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.row_products import TRUSTED, multiply_rows
from bilevel.sklearn.losses.spectrum import Spectrum, compute_spectrum, find_extremes
from bilevel.sklearn.search.descent import Evaluation

_CHUNK = 2_000_000  # residuals at once, of a grid


class CriterionTerms(NamedTuple):
    """Value of a criterion, its derivatives in the residuals ``[n, T]`` and in ``q [n]``."""

    value: float
    by_residual: np.ndarray
    by_freedom: np.ndarray


class CriterionRows(NamedTuple):
    """Rows times the root of their weight, those of weight 0 left out: ``X``, ``Y``, means apart.

    ``ones [n]`` is the share of the intercept in the leverage; ``total`` the sum of the weights.
    """

    X: np.ndarray
    Y: np.ndarray
    ones: np.ndarray
    total: float
    noise: float


def make_criterion_rows(
    X: Any, y: np.ndarray, weight: np.ndarray, centred: bool, noise: float
) -> CriterionRows:
    """Weigh and centre ``X [n, d]``, ``y [n, T]``; ``noise``: the variance for SURE.

    Sparse rows become dense: singular vectors, of which leverages are made, are as large.
    """
    used = weight > 0
    X, y, weight = X[used], y[used], weight[used]
    if sparse.issparse(X):
        X = X.toarray()
    total = float(weight.sum())
    if centred:
        X, y = X - weight @ X / total, y - weight @ y / total
    root = np.sqrt(weight)[:, None]
    return CriterionRows(root * X, root * y, centred * weight / total, total, noise)


def evaluate_loo(e: np.ndarray, q: np.ndarray, rows: CriterionRows) -> CriterionTerms:
    """Return ``sum_i (e_i / q_i)^2 / total``."""
    unit = 1 / (rows.total * e.shape[1])
    left = e / q[:, None]
    return CriterionTerms(
        unit * float(np.sum(left**2)),
        2 * unit * left / q[:, None],
        -2 * unit * np.sum(left**2, 1) / q,
    )


def evaluate_gcv(e: np.ndarray, q: np.ndarray, rows: CriterionRows) -> CriterionTerms:
    """Return ``n |e|^2 / (sum_i q_i)^2``."""
    unit = len(e) / (e.shape[1] * np.sum(q) ** 2)
    value = unit * float(np.sum(e**2))
    return CriterionTerms(value, 2 * unit * e, np.full(len(q), -2 * value / np.sum(q)))


def evaluate_sure(e: np.ndarray, q: np.ndarray, rows: CriterionRows) -> CriterionTerms:
    """Return ``|e|^2 / n + 2 noise sum_i (1 - q_i) / n - noise``."""
    n, unit = len(e), 1 / (len(e) * e.shape[1])
    value = unit * np.sum(e**2) + rows.noise * (1 - 2 * np.mean(q))
    return CriterionTerms(float(value), 2 * unit * e, np.full(n, -2 * rows.noise / n))


CRITERIA = {"loo": evaluate_loo, "gcv": evaluate_gcv, "sure": evaluate_sure}
Criterion = Callable[[np.ndarray, np.ndarray, CriterionRows], CriterionTerms]


class CriterionPath:
    """A criterion for one penalty; ``theta [1]`` is its logarithm."""

    def __init__(
        self, name: str, rows: CriterionRows, parts: tuple[Spectrum, np.ndarray] | None = None
    ) -> None:
        """Decompose the rows once; ``parts``: their spectrum and ``U``, if they are known."""
        self.criterion, self.rows = CRITERIA[name], rows
        if parts is None:
            spectrum = compute_spectrum(rows.X, rows.Y)
            parts = spectrum, rows.X @ spectrum.basis / np.sqrt(spectrum.values)
        (self.values, self.basis, self.images), self.left = parts
        self.squares = self.left**2
        self.fitted = self.left.T @ rows.Y
        self.constant = rows.Y - self.left @ self.fitted
        free = len(rows.X) - (1 if np.any(rows.ones) else 0)
        rest = 1 - rows.ones - np.sum(self.squares, 1)
        if len(self.values) >= free:  # the rows are interpolated: both are 0
            rest, self.constant = np.zeros_like(rest), np.zeros_like(self.constant)
        self.rest = np.maximum(rest, 0)

    def _parts(self, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        f = alpha / (self.values + alpha)
        e = self.constant + self.left @ (f[:, None] * self.fitted)
        q = np.maximum(self.rest + self.squares @ f, np.finfo(float).tiny)
        return f, e, q

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, derivative and the fit at one penalty."""
        f, e, q = self._parts(float(np.exp(theta[0])))
        terms = self.criterion(e, q, self.rows)
        change = f * (1 - f)  # of f by the logarithm of alpha
        slope = np.sum((self.left.T @ terms.by_residual) * change[:, None] * self.fitted)
        slope += terms.by_freedom @ (self.squares @ change)
        coef = self.basis @ (self.images / (self.values + np.exp(theta[0]))[:, None])
        return Evaluation(terms.value, np.array([slope]), [terms.value], coef[None], 0.0, 0.0)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest curvature."""
        return find_extremes(self.values)


def make_product_criterion(
    name: str, X: Matrix, y: np.ndarray, weight: np.ndarray, centred: bool, noise: float
) -> tuple[CriterionPath, Callable[[np.ndarray], np.ndarray]] | None:
    """Return the path of wide rows by their products, and the way of its coefficients back.

    Nothing where the products are not exact enough.
    """
    products, back = multiply_rows(X, weight, centred)
    used = np.flatnonzero(weight)
    root = np.sqrt(weight[used])[:, None]
    values, left = np.linalg.eigh(products[np.ix_(used, used)] * root * root.T)
    if centred:  # the roots of the weights have no product with anything
        values, left = values[1:], left[:, 1:]
    if not len(values) or not values[0] > TRUSTED * values[-1]:
        return None
    rows = make_criterion_rows(np.zeros((len(y), 0)), y, weight, centred, noise)
    basis = np.zeros((len(y), len(values)))
    basis[used] = root * left / np.sqrt(values)
    images = np.sqrt(values)[:, None] * (left.T @ rows.Y)
    return CriterionPath(name, rows, (Spectrum(values, basis, images), left)), back


class CriterionLoss:
    """A criterion for a penalty per column; ``theta [d]``."""

    def __init__(self, name: str, rows: CriterionRows) -> None:
        """Form the products of the rows once."""
        self.criterion, self.rows = CRITERIA[name], rows
        self.gram, self.cross = rows.X.T @ rows.X, rows.X.T @ rows.Y

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and the fit."""
        X, penalty = self.rows.X, np.exp(theta)
        factor = cho_factor(self.gram + np.diag(penalty), check_finite=False)
        w = cho_solve(factor, self.cross)
        e, inverse = self.rows.Y - X @ w, cho_solve(factor, X.T).T
        q = 1 - self.rows.ones - np.sum(inverse * X, 1)
        terms = self.criterion(e, np.maximum(q, np.finfo(float).tiny), self.rows)
        adjoint = cho_solve(factor, X.T @ terms.by_residual)
        grad = penalty * (np.sum(w * adjoint, 1) + terms.by_freedom @ inverse**2)
        left = self.gram @ w + penalty[:, None] * w - self.cross
        residual = np.linalg.norm(left) / max(np.linalg.norm(self.cross), 1e-300)
        return Evaluation(terms.value, grad, [terms.value], w[None], residual, residual)
