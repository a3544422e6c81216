"""Prediction intervals against CV+ written by hand, and their coverage on draws of the rows."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Lasso, Ridge
from sklearn.model_selection import KFold, ShuffleSplit, TimeSeriesSplit

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradGroupLasso,
    HypergradHuberRegressor,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradRidge,
)

RNG = np.random.default_rng(0)
N = 23
X = RNG.normal(size=(N, 4))
Y = X[:, 0] - X[:, 1] + RNG.normal(size=N)
NEW = RNG.normal(size=(7, 4))
FOLDS = KFold(4, shuffle=True, random_state=1)


def write_cv_plus(model, A, y, new, a):
    """The definition of Barber et al. (2021), row by row, of a scikit-learn model."""
    low, high = [], []
    for train, held in FOLDS.split(A):
        fit = clone(model).fit(A[train], y[train])
        for i in held:
            r = abs(y[i] - fit.predict(A[[i]])[0])
            low.append(fit.predict(new) - r)
            high.append(fit.predict(new) + r)
    low, high = np.sort(low, 0), np.sort(high, 0)
    first, last = int(np.floor(a * (N + 1) + 1e-9)), int(np.ceil((1 - a) * (N + 1) - 1e-9))
    return low[first - 1], high[last - 1]


@pytest.mark.parametrize("a", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_it_is_cv_plus(kind, a):
    for model, other_of in (
        (HypergradRidge(cv=FOLDS), lambda alpha: Ridge(alpha, tol=1e-12)),
        (HypergradLasso(cv=FOLDS), lambda alpha: Lasso(alpha, tol=1e-12)),
    ):
        model.fit(kind(X), Y)
        found = model.predict_interval(kind(NEW), coverage=1 - a)
        np.testing.assert_allclose(
            found, write_cv_plus(other_of(model.alpha_), X, Y, NEW, a), atol=1e-7
        )


@pytest.mark.parametrize("penalty", ["global", "per_feature"])
def test_of_a_kernel_it_is_cv_plus(penalty):
    model = HypergradKernelRidge(penalty, cv=FOLDS, guard=False).fit(X, Y)
    root = np.sqrt(model.gamma_)
    other = KernelRidge(alpha=model.alpha_, kernel="rbf", gamma=1.0)
    for a in (0.5, 0.1):
        expected = write_cv_plus(other, X * root, Y, NEW * root, a)
        np.testing.assert_allclose(model.predict_interval(NEW, 1 - a), expected, atol=1e-7)


@pytest.mark.parametrize(
    "model",
    [
        HypergradRidge(),
        HypergradKernelRidge(),
        HypergradLasso(),
        HypergradElasticNet(),
        HypergradGroupLasso(),
        HypergradHuberRegressor(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_shapes_dtypes_order_and_rows_without_weight(model):
    low, high = model.fit(X.astype("f4"), Y.astype("f4")).predict_interval(NEW.astype("f4"))
    assert low.shape == high.shape == (7,)
    assert low.dtype == "f4"
    middle, (narrow, _) = model.predict(NEW), model.predict_interval(NEW, 0.5)
    assert np.all(low < middle)
    assert np.all(middle < high)
    assert np.all(low <= narrow)
    weight = np.where(np.arange(N) < 20, 3.0, 0.0)
    few = clone(model).set_params(cv=[(np.arange(10, N), np.arange(10)),
                                      (np.arange(10), np.arange(10, N))])  # fmt: skip
    some = few.fit(X, Y, sample_weight=weight).predict_interval(NEW)
    few.set_params(cv=[(np.arange(10, 20), np.arange(10)), (np.arange(10), np.arange(10, 20))])
    means = isinstance(model, HypergradLasso | HypergradElasticNet | HypergradGroupLasso)
    scale = 1.0 if means else 3.0  # of an objective that sums
    own = few.fit(X[:20], Y[:20], sample_weight=np.full(20, scale)).predict_interval(NEW)
    np.testing.assert_allclose(some, own, rtol=1e-3, atol=1e-4)


def test_several_targets_and_too_few_rows():
    both = np.stack([Y, -3 * Y], 1)
    for model in (HypergradRidge(cv=FOLDS), HypergradKernelRidge(cv=FOLDS)):
        low, high = model.fit(X, both).predict_interval(NEW, 0.8)
        assert low.shape == (7, 2)
        np.testing.assert_allclose(low[:, 1], -3 * high[:, 0])
    low, high = HypergradRidge(cv=FOLDS).fit(X, Y).predict_interval(NEW, 0.97)
    assert np.all(np.isinf(low))
    assert np.all(np.isinf(high))


@pytest.mark.parametrize("coverage", [1e-12, 1e-9, 0.01, 0.1, 0.3])
def test_the_lower_end_is_never_above_the_upper_one(coverage):
    """Where CV+ written by hand has ends that pass each other, the point between them."""
    model = HypergradRidge(cv=FOLDS).fit(X, Y)
    low, high = model.predict_interval(NEW, coverage)
    assert np.all(low <= high)
    rank = max(int(np.ceil(coverage * (N + 1))), 1)
    ends = [write_ends(Ridge(model.alpha_, tol=1e-12), rank, upper) for upper in (False, True)]
    crossed = ends[0] > ends[1]
    assert np.any(crossed) == (coverage < 0.2)  # so that it is about something
    middle = np.mean(ends, axis=0)
    np.testing.assert_allclose(low, np.where(crossed, middle, ends[0]), atol=1e-7)
    np.testing.assert_allclose(high, np.where(crossed, middle, ends[1]), atol=1e-7)


def write_ends(model, rank, upper):
    """The ``rank``-th end of CV+ from the inside out, row by row."""
    sign, ends = (1 if upper else -1), []
    for train, held in FOLDS.split(X):
        fit = clone(model).fit(X[train], Y[train])
        ends += [sign * fit.predict(NEW) + abs(Y[i] - fit.predict(X[[i]])[0]) for i in held]
    return sign * np.sort(ends, 0)[rank - 1]


def test_refusals():
    with pytest.raises(NotFittedError):
        HypergradRidge().predict_interval(X)
    model = HypergradRidge().fit(X, Y)
    with pytest.raises(ValueError, match="coverage must lie between 0 and 1, got 90"):
        model.predict_interval(X, coverage=90)
    for cv, message in (
        ("loo", "Give a cv of folds"),
        (TimeSeriesSplit(3), "does not hold out every row once: 8 rows never, 0 more"),
        (ShuffleSplit(30, random_state=0), "rows never, .* more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_params(cv=cv).fit(X, Y).predict_interval(X)
    with pytest.raises(ValueError, match="different weight are not exchangeable"):
        HypergradRidge().fit(X, Y, sample_weight=np.arange(N)).predict_interval(X)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
def test_coverage_on_draws_of_the_rows():
    """Heavy tails, n = 60, d = 10. Promised is 1 - 2 a; five folds are wide by little."""
    rng, inside, coef = np.random.default_rng(5), [], np.append([2.0, -1.0, 1.0], np.zeros(7))
    for _ in range(150):
        A, B = rng.normal(size=(60, 10)), rng.normal(size=(200, 10))
        y, truth = A @ coef + rng.standard_t(4, 60), B @ coef + rng.standard_t(4, 200)
        low, high = HypergradRidge().fit(A, y).predict_interval(B, coverage=0.9)
        inside.append(np.mean((low <= truth) & (truth <= high)))
    error = np.std(inside, ddof=1) / np.sqrt(len(inside))
    assert error < 0.005
    assert 0.9 - 4 * error < np.mean(inside) < 0.93 + 4 * error
