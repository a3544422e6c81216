"""Ridge on wide rows, by their products: against scikit-learn's fits fold by fold."""

import jax
import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, ShuffleSplit, TimeSeriesSplit

from bilevel.sklearn import HypergradRidge, compute_gcv, compute_sure, leave_one_out
from bilevel.sklearn.losses.criterion_loss import make_product_criterion
from bilevel.sklearn.losses.folds import make_folds, make_splits
from bilevel.sklearn.losses.row_products import make_product_path
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 90)) * (RNG.uniform(size=(40, 90)) < 0.4) + 0.5
Y = X[:, :2] + RNG.normal(size=(40, 2)) + 3.0
WEIGHT = RNG.uniform(0.1, 2, 40) * (RNG.uniform(size=40) > 0.2)
CVS = {
    "kfold": KFold(4),
    "overlapping": ShuffleSplit(4, test_size=0.3, random_state=0),
    "time": TimeSeriesSplit(3),
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("cv", CVS.values(), ids=CVS)
def test_losses_and_fits_are_those_of_fits_fold_by_fold(cv, kind, centred):
    splits = make_splits(cv, X, Y, None, classifier=False, random_state=None)
    folds = make_folds(*splits, WEIGHT)
    made = make_product_path(kind(X), Y, WEIGHT, folds, centred)
    assert made is not None
    path, back = made
    for theta in (-3.0, 1.0, 6.0):
        at = path.evaluate_exactly(np.array([theta]))
        pairs = list(cv.split(X, Y))
        for k, (train, held) in enumerate(pairs):
            fit = Ridge(np.exp(theta), fit_intercept=centred, solver="svd")
            fit.fit(X[train], Y[train], sample_weight=WEIGHT[train])
            error = np.average((fit.predict(X[held]) - Y[held]) ** 2, 0, WEIGHT[held])
            np.testing.assert_allclose(at.losses[k], error.mean(), rtol=1e-9)
            np.testing.assert_allclose(back(at.params[k]), fit.coef_.T, atol=1e-10)
        grid = path.evaluate_grid(np.array([[theta]]))[0]
        np.testing.assert_allclose(grid, at.losses[:-1], rtol=1e-12)
        np.testing.assert_allclose(*differences(path, np.array([theta])), rtol=1e-6)


@pytest.mark.parametrize("kind", ["sizes", "rows twice"])
def test_where_products_are_not_exact_the_rows_are_decomposed(kind):
    """Columns of two sizes, or rows that occur twice: products have lost the small directions."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(40, 90)) * np.where(np.arange(90) < 10, 1e6, 1.0)
    if kind == "rows twice":
        A = np.repeat(rng.normal(size=(20, 90)), 2, axis=0)
    y = A[:, 20:24].sum(1) + 0.1 * rng.normal(size=40)
    splits = make_splits(5, A, y, None, classifier=False, random_state=None)
    folds = make_folds(*splits, np.ones(40))
    assert make_product_path(A, y[:, None], np.ones(40), folds, True) is None
    best = np.inf
    for alpha in np.logspace(-4, 9, 60):
        ridge, losses = Ridge(alpha, solver="svd"), []
        for train, held in KFold(5).split(A):
            losses.append(np.mean((ridge.fit(A[train], y[train]).predict(A[held]) - y[held]) ** 2))
        best = min(best, float(np.mean(losses)))
    assert HypergradRidge(cv=KFold(5)).fit(A, y).cv_loss_ <= best * (1 + 1e-6)


def test_a_constant_far_from_zero_changes_nothing():
    one, far = (HypergradRidge(cv=4).fit(X + shift, Y) for shift in (0.0, 1e5))
    np.testing.assert_allclose(far.cv_loss_, one.cv_loss_, rtol=1e-8)
    np.testing.assert_allclose(far.coef_, one.coef_, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_folds_of_one_row_and_few(n, intercept):
    A, y = X[:n, :5], Y[:n, 0]
    model = HypergradRidge(cv=2, fit_intercept=intercept).fit(A, y)
    fit = Ridge(model.alpha_, fit_intercept=intercept, solver="svd").fit(A, y)
    np.testing.assert_allclose(model.coef_, fit.coef_, atol=1e-12)
    losses = []
    for train, held in KFold(2).split(A):
        fit.fit(A[train], y[train])
        losses.append(np.mean((fit.predict(A[held]) - y[held]) ** 2))
    np.testing.assert_allclose(model.cv_losses_, losses, rtol=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("cv", ["loo", "gcv", "sure"])
def test_criteria_are_those_of_the_closed_forms(cv, centred, kind):
    criterion = {"loo": leave_one_out, "gcv": compute_gcv, "sure": compute_sure}[cv]
    noise = {"noise_variance": 0.5} if cv == "sure" else {}
    made = make_product_criterion(cv, kind(X), Y, WEIGHT, centred, 0.5)
    assert made is not None
    path, back = made
    for theta in (-3.0, 1.0, 6.0):
        at = path(np.array([theta]))
        with jax.enable_x64(True):
            log = np.full(90, theta)
            expected = float(criterion(log, X, Y, WEIGHT, float(centred), **noise))
        np.testing.assert_allclose(at.value, expected, rtol=1e-8)
        fit = Ridge(np.exp(theta), fit_intercept=centred, solver="svd")
        fit.fit(X, Y, sample_weight=WEIGHT)
        np.testing.assert_allclose(back(at.params[0]), fit.coef_.T, atol=1e-10)
        np.testing.assert_allclose(*differences(path, np.array([theta])), rtol=1e-5)
