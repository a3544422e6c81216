"""All of scikit-learn's own checks pass, none is expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradGammaRegressor,
    HypergradHuberRegressor,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradPoissonRegressor,
    HypergradRidge,
    HypergradTweedieRegressor,
)

# The checks themselves warn (a column vector as y, a sparse format); they say what must warn.
pytestmark = pytest.mark.filterwarnings("default")


@parametrize_with_checks([HypergradRidge()])
def test_check(estimator, check):
    check(estimator)


@pytest.mark.extended
@parametrize_with_checks([HypergradLogisticRegression()])
def test_check_of_the_classifier(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        HypergradRidge("per_feature"),
        HypergradRidge(cv="loo"),
        HypergradLasso(),
        HypergradElasticNet(),
        HypergradKernelRidge(),
        HypergradPoissonRegressor(),
        HypergradGammaRegressor(),
        HypergradTweedieRegressor(),
        HypergradHuberRegressor(),
        HypergradHuberRegressor(cv="alo"),
    ]
)
def test_check_of_the_others(estimator, check):
    check(estimator)
