"""Units: no choice may depend on those of y, of X, or of a column with its own penalty."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone

from bilevel.sklearn import (
    DataCleaner,
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)
from tests.marks import quick_cases

# A penalty that ends at its bound says so; here it may.
pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)) + 1.0
Y = X[:, 0] - 2 * X[:, 1] + RNG.normal(size=48)
LABELS = (np.median(Y) < Y).astype(int)
FEW = settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
POWERS = st.integers(-30, 30).map(lambda k: 2.0**k)
HALF = np.array(list("aababb"))
# What is tuned, and the powers of the unit of X in its penalty (that of y cancels or not).
REGRESSORS = {
    "ridge": HypergradRidge(),
    "ridge, loo": HypergradRidge(cv="loo"),
    "ridge, gcv": HypergradRidge(cv="gcv"),
    "ridge, per feature": HypergradRidge("per_feature", guard=False),
    "ridge, guarded": HypergradRidge("per_feature"),
    "ridge, groups": HypergradRidge(HALF, guard=False),
    "ridge, per feature, loo": HypergradRidge("per_feature", cv="loo"),
    "lasso": HypergradLasso(),
    "elastic net": HypergradElasticNet(),
    "kernel": HypergradKernelRidge(),
    "lasso, per feature": HypergradLasso("per_feature", guard=False),
    "lasso, guarded": HypergradLasso("per_feature"),
    "elastic net, per feature": HypergradElasticNet("per_feature", guard=False),
    "kernel, per feature": HypergradKernelRidge("per_feature", guard=False),
}
PARTS = {"ridge": 2, "lasso": 1}


@pytest.fixture(scope="module")
def fitted():
    found = {}

    def fit(name):
        if name not in found:
            found[name] = clone(REGRESSORS[name]).fit(X, Y)
        return found[name]

    return fit


@quick_cases(10, "name", REGRESSORS)
@given(unit=POWERS, of_x=POWERS)
@FEW
def test_units_of_x_and_y(name, unit, of_x, fitted):
    """Powers of two, so that nothing is rounded; the loss goes with the square of that of y."""
    one = fitted(name)
    other = clone(REGRESSORS[name]).fit(of_x * X, unit * Y)
    # The kernel's exponentials are rounded differently, so its descents differ within tol.
    near, close = (one.tol, 2e-2) if "kernel" in name else (1e-5, 5e-3)
    np.testing.assert_allclose(other.cv_loss_ / unit**2, one.cv_loss_, rtol=near)
    np.testing.assert_allclose(other.predict(of_x * X) / unit, one.predict(X), atol=close)
    if name.split(",")[0] in PARTS and "per feature" not in name:
        power = PARTS[name.split(",")[0]]
        expected = np.multiply(one.alpha_, of_x**power * (unit if power == 1 else 1))
        np.testing.assert_allclose(other.alpha_, expected, rtol=1e-3)


PER_COLUMN = [name for name in REGRESSORS if "per feature" in name]


@quick_cases(2, "name", PER_COLUMN)
@given(exponents=st.lists(st.integers(-10, 10), min_size=6, max_size=6))
@FEW
def test_units_of_columns_that_have_their_own_penalty(name, exponents):
    """From columns of one size on the way is the same; from others it may start elsewhere."""
    scaled = X * 2.0 ** np.array(exponents)
    one = clone(REGRESSORS[name]).fit((X - X.mean(0)) / X.std(0), Y)
    other = clone(REGRESSORS[name]).fit(scaled, Y)
    assert other.cv_loss_ <= one.cv_loss_ * 1.002


@given(unit=POWERS)
@FEW
def test_unit_of_x_in_logistic_regression(unit):
    one = HypergradLogisticRegression(cv=3).fit(X, LABELS)
    other = HypergradLogisticRegression(cv=3).fit(unit * X, LABELS)
    np.testing.assert_allclose(other.cv_loss_, one.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(other.predict_proba(unit * X), one.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("name", ["ridge", "ridge, loo", "lasso", "elastic net", "kernel"])
def test_a_constant_added_to_x_and_y(name, fitted):
    """With an intercept, or a kernel of differences, where zero is does not matter."""
    one = fitted(name)
    shift = 2.0**20
    other = clone(REGRESSORS[name]).fit(X + shift, Y)
    np.testing.assert_allclose(other.cv_loss_, one.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(other.predict(X + shift), one.predict(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ridge", "lasso", "elastic net", "ridge, per feature"])
def test_float32_rows_and_sparse_ones_choose_alike(name, fitted):
    one = fitted(name)
    for other in (X.astype(np.float32), sparse.csr_array(X)):
        found = clone(REGRESSORS[name]).fit(other, Y)
        np.testing.assert_allclose(found.cv_loss_, one.cv_loss_, rtol=1e-4)


@given(unit=st.sampled_from([1e-3, 1.0, 1e3]))
@FEW
def test_the_cleaner_with_its_penalty_in_the_same_unit(unit):
    from sklearn.linear_model import LogisticRegression

    def trust(A, alpha):
        return DataCleaner(LogisticRegression(), alpha=alpha, max_iter=3).fit_transform(
            A[:36], LABELS[:36], A[36:], LABELS[36:]
        )

    np.testing.assert_allclose(trust(unit * X, unit**2), trust(X, 1.0), atol=1e-4)
