"""The lasso with one penalty on diabetes, degree-2 features; derivatives known to 8 digits.

Standardised features, their degree-2 polynomial, a permutation by ``RandomState(0)`` into 150
training, 150 validation and 142 test rows; columns and y standardised on the training rows, 64
distinct columns. Inner loss |X w - y|^2 / 2n + alpha |w|_1, outer loss half the validation MSE.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")

TRAIN = 150
ALPHA_MAX, BEST_VALUE = 0.512247, 0.30656923


def squares(w: Any, log_alpha: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def soft(z: Any, log_alpha: Any, step: Any) -> Any:
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * jnp.exp(log_alpha), 0)


PROBLEM = bl.Problem(squares, squares, prox=soft)


@pytest.fixture(scope="module")
def data() -> bl.Data:
    X, y = load_diabetes(return_X_y=True)
    X = PolynomialFeatures(2, include_bias=False).fit_transform(StandardScaler().fit_transform(X))
    rows = np.random.RandomState(0).permutation(len(y))
    train, validation = rows[:TRAIN], rows[TRAIN : 2 * TRAIN]
    X = StandardScaler().fit(X[train]).transform(X)
    # The square of the binary feature is that feature again, up to scale and sign.
    distinct = [
        j
        for j in range(X.shape[1])
        if all(abs(X[train, j] @ X[train, i]) < (1 - 1e-9) * TRAIN for i in range(j))
    ]
    X = X[:, distinct]
    y = (y - y[train].mean()) / y[train].std()
    return bl.Data(inner=(X[train], y[train]), outer=(X[validation], y[validation]))


def test_the_data_are_those_of_the_case(data: bl.Data) -> None:
    X, y = data.inner
    assert X.shape == (TRAIN, 64)
    assert np.abs(X.T @ y).max() / TRAIN == pytest.approx(ALPHA_MAX, abs=1e-6)


@pytest.mark.parametrize(("fraction", "slope"), [(0.5, 0.16685773), (0.3, 0.07566838)])
@pytest.mark.parametrize("linear", [bl.CG(tol=1e-12), bl.Dense()], ids=["CG", "Dense"])
def test_the_derivative_is_the_known_one(
    data: bl.Data, linear: Any, fraction: float, slope: float
) -> None:
    X, y = data.inner
    alpha = fraction * np.abs(X.T @ y).max() / TRAIN
    start = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    estimator = bl.Implicit(solver(data), steps=20, linear=linear)
    estimate, _ = bl.hypergradient(
        PROBLEM, estimator, np.log(alpha), start, data, jax.random.key(0)
    )
    assert float(estimate.grad) == pytest.approx(slope, abs=2e-8)
    assert estimate.evidence.linear_residual < 1e-11


def test_the_secant_method_finds_the_minimum_in_15_evaluations(data: bl.Data) -> None:
    estimator, key = bl.Implicit(solver(data), steps=2000), jax.random.key(0)
    state, values, slopes = None, [], []
    points = [np.log(ALPHA_MAX / 2), np.log(ALPHA_MAX / 2) - 1]
    for _ in range(15):
        estimate, state = bl.hypergradient(
            PROBLEM, estimator, points[len(values)], np.zeros(64), data, key, state=state
        )
        values.append(float(estimate.value))
        slopes.append(float(estimate.grad))
        if len(values) > 1:
            (a, b), (u, v) = points[-2:], slopes[-2:]
            secant = -v * (b - a) / (v - u) if v != u else 0.0
            points.append(b + np.clip(secant, -1, 1))
    assert BEST_VALUE - 1e-7 < min(values) <= 0.306575


def solver(data: bl.Data) -> bl.FISTA:
    X, _ = data.inner
    return bl.FISTA(float(TRAIN / np.linalg.eigvalsh(X.T @ X)[-1]))
