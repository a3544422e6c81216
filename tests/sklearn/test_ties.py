"""Of penalties whose losses are equal to rounding the largest, whatever the order of a sum."""

import numpy as np
import pytest
from sklearn.base import clone

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)
from bilevel.sklearn.search.path import select_strongest

# Rows that the folds repeat ask for no penalty, and the estimators say so.
pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")

ESTIMATORS = {
    "ridge": HypergradRidge(cv=3),
    "ridge, per feature": HypergradRidge("per_feature", cv=3),
    "ridge, loo": HypergradRidge(cv="loo"),
    "ridge, gcv": HypergradRidge(cv="gcv"),
    "lasso": HypergradLasso(cv=3),
    "elastic net": HypergradElasticNet(cv=3),
    "kernel": HypergradKernelRidge(cv=3),
    "logistic": HypergradLogisticRegression(cv=3),
}
GRID = np.log([[100.0], [10.0], [1.0], [0.1]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1e-14, 3e-15, 0.0], 1),  # the last three are equal: the largest penalty of them
        ([1.0, 1e-3, 0.0, 2e-3], 2),  # one is better than all others
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([np.inf, np.inf, 2.0, 2.0], 2),
    ],
)
def test_the_largest_of_equal_losses(values, expected):
    assert select_strongest(GRID, np.array(values), 1e-12) == expected


def test_strength_says_what_larger_means():
    thetas = np.array([[0.0, 2.0], [1.0, 5.0], [1.0, 1.0]])
    assert select_strongest(thetas, np.zeros(3), 1e-12) == 1
    assert select_strongest(thetas, np.zeros(3), 1e-12, np.array([1.0, -0.01])) == 2


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_order_of_the_columns_does_not_choose(name):
    """Columns in another order: each sum of an inner product is rounded in another way."""
    rng = np.random.default_rng(0)
    X = np.tile(rng.standard_normal((8, 20)), (3, 1))  # every fold has seen all rows: interpolated
    y = np.tile((np.arange(8) % 3 > 0).astype(float), 3)
    order = rng.permutation(20)
    one = clone(ESTIMATORS[name]).fit(X, y)
    other = clone(ESTIMATORS[name]).fit(X[:, order], y)
    alphas = [np.sort(np.ravel(model.alpha_)) for model in (one, other)]
    np.testing.assert_allclose(*alphas, rtol=1e-5)
    np.testing.assert_allclose(one.predict(X), other.predict(X[:, order]), rtol=0, atol=1e-8)


def test_no_column_that_helps():
    """All penalties are equally good: the largest of the grid."""
    X, y = np.zeros((12, 3)), np.arange(12.0)
    X[:, 0] = np.tile([1.0, -1.0], 6) * 1e-300
    assert HypergradRidge(alphas=[0.1, 1.0, 10.0]).fit(X, y).alpha_ == pytest.approx(10.0)
