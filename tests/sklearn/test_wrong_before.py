"""What was wrong once: folds over time, missing classes, far columns, bounds, dependent columns."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNetCV, LassoCV, LogisticRegression, Ridge
from sklearn.model_selection import KFold, ShuffleSplit, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel.sklearn import (
    DataCleaner,
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)
from tests.marks import quick_cases

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6))
Y = X[:, 0] - 2 * X[:, 1] + RNG.normal(size=60)
MANY = [
    HypergradRidge("per_feature"),
    HypergradLasso("per_feature"),
    HypergradElasticNet("per_feature"),
]


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@pytest.mark.parametrize("model", MANY, ids=lambda model: type(model).__name__)
def test_many_penalties_on_folds_over_time(model):
    found = model.set_params(cv=TimeSeriesSplit(5)).fit(X, Y)
    assert found.guard_loss_.shape == (6,)
    single = model.set_params(cv=ShuffleSplit(1, test_size=0.3, random_state=0))
    with pytest.warns(UserWarning, match="cv has 1 split"):
        assert single.fit(X, Y).guard_loss_ is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        single.set_params(guard=False).fit(X, Y)


def test_a_class_that_a_training_fold_lacks_is_named():
    labels = np.repeat(["a", "b", "c"], 20)
    with pytest.warns(UserWarning, match="fold 0 of class a, fold 1 of class b"):
        HypergradLogisticRegression(cv=KFold(3)).fit(X, labels)


def ridge_losses(A, y, alphas, folds):
    """Of scikit-learn's fits by SVD, which no size of a column spoils."""
    losses = []
    for alpha in alphas:
        fits = [(Ridge(alpha, solver="svd").fit(A[i], y[i]), o) for i, o in folds.split(A)]
        losses.append(np.mean([np.mean((fit.predict(A[o]) - y[o]) ** 2) for fit, o in fits]))
    return np.array(losses)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@quick_cases(4, "seed", range(20))
def test_ridge_is_never_above_a_fine_grid_whatever_the_size_of_the_columns(seed):
    """Of 20 rows with columns from 1e-3 to 1e3: all penalties from 1e-12 to 1e12."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 40))
    A = rng.normal(size=(20, d)) * 10.0 ** rng.uniform(-3, 3, d) + rng.normal(size=d)
    y = A @ (rng.normal(size=d) / np.sqrt(np.mean(A**2, 0))) + rng.normal(size=20)
    best = np.min(ridge_losses(A, y, np.logspace(-12, 12, 121), KFold(5)))
    model = HypergradRidge(cv=KFold(5)).fit(A, y)
    assert model.cv_loss_ <= best * (1 + model.tol)
    many = HypergradRidge("per_feature", cv=KFold(5), guard=False).fit(A, y)
    assert many.cv_loss_ <= model.cv_loss_ * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@quick_cases(1, "seed", range(2))
def test_leave_one_out_is_never_above_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    A = rng.integers(-5, 6, (24, 4)) * 10.0 ** rng.uniform(-3, 3, 4)
    y = rng.integers(-9, 10, 24).astype(float)
    best = np.min(ridge_losses(A, y, np.logspace(-9, 12, 85), KFold(24)))
    model = HypergradRidge(cv="loo").fit(A, y)
    assert model.cv_loss_ <= best * (1 + model.tol)
    np.testing.assert_allclose(
        model.cv_loss_, ridge_losses(A, y, [model.alpha_], KFold(24))[0], rtol=1e-6
    )


def test_a_penalty_at_its_bound_says_so():
    rows = np.tile(RNG.normal(size=(8, 20)), (3, 1))  # every fold has seen all rows
    with pytest.warns(ConvergenceWarning, match="the smallest that the search may reach"):
        HypergradRidge(cv=3).fit(rows, np.tile(RNG.normal(size=8), 3))
    A = np.tile(RNG.normal(size=(20, 1)), (2, 1))
    with pytest.warns(ConvergenceWarning, match="no column helps to predict"):
        HypergradRidge(cv=KFold(2)).fit(A, A[:, 0] * np.repeat([1.0, -1.0], 20))


def test_kernel_ridge_far_from_zero():
    one = HypergradKernelRidge(cv=3).fit(X, Y)
    far = HypergradKernelRidge(cv=3).fit(X + 1e7, Y)
    np.testing.assert_allclose(far.predict(X + 1e7), one.predict(X), atol=1e-3)
    other = KernelRidge(alpha=one.alpha_, kernel="rbf", gamma=one.gamma_).fit(X, Y)
    np.testing.assert_allclose(one.predict(X), other.predict(X), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@pytest.mark.parametrize("noise", [0.0, 1e-10, 1e-6])
@pytest.mark.parametrize("kind", [HypergradLasso, HypergradElasticNet])
def test_columns_that_occur_twice(kind, noise):
    A = np.hstack([X, X + noise * RNG.normal(size=X.shape)])
    one = kind().fit(A, Y)
    np.testing.assert_allclose(one.cv_loss_, kind().fit(X, Y).cv_loss_, rtol=1e-2)
    many = kind("per_feature", guard=False).fit(A, Y)
    assert many.cv_loss_ <= one.cv_loss_
    assert np.max(np.abs(many.hypergradient_)) < one.cv_loss_
    if kind is HypergradLasso and noise == 0:
        np.testing.assert_allclose(one.predict(A), kind().fit(X, Y).predict(X), atol=1e-2)


def test_what_dependent_columns_leave_undetermined_is_counted():
    assert HypergradLasso().fit(X, Y).undetermined_ == 0
    twice = HypergradLasso(alphas=[0.05]).fit(np.hstack([X, X]), Y)
    pairs = (twice.coef_[:6] != 0) & (twice.coef_[6:] != 0)
    assert twice.undetermined_ == np.sum(pairs)


@quick_cases(3, "seed", range(8))
def test_lasso_is_never_above_a_finer_grid(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(30, 12)) * 10.0 ** rng.uniform(-1, 1, 12)
    y = A[:, 0] / np.std(A[:, 0]) + rng.standard_t(2, 30)
    grid = LassoCV(alphas=400, cv=KFold(5), eps=1e-4, tol=1e-7, max_iter=10**5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = grid.fit(A, y).mse_path_.mean(1).min()
        model = HypergradLasso(cv=KFold(5)).fit(A, y)
    assert model.cv_loss_ <= best * (1 + model.tol)


def test_cleaner_in_a_pipeline_scores_and_gives_probabilities():
    labels = (np.median(Y) < Y).astype(int)
    wrong = np.where(np.arange(60) % 5 == 0, 1 - labels, labels)
    trusted = np.arange(60) % 3 == 0
    wrong[trusted] = labels[trusted]
    pipeline = make_pipeline(StandardScaler(), DataCleaner(LogisticRegression()))
    pipeline.fit(X, wrong, datacleaner__trusted=trusted)
    cleaner, scaled = pipeline[-1], StandardScaler().fit_transform(X)
    apart = DataCleaner(LogisticRegression()).fit(
        scaled[~trusted], wrong[~trusted], scaled[trusted], labels[trusted]
    )
    np.testing.assert_allclose(cleaner.trust_[~trusted], apart.trust_)
    assert np.all(cleaner.trust_[trusted] == 1)
    fit = LogisticRegression().fit(scaled, wrong, sample_weight=cleaner.trust_)
    np.testing.assert_allclose(pipeline.predict_proba(X), fit.predict_proba(scaled))
    np.testing.assert_allclose(pipeline.score(X, labels), fit.score(scaled, labels))
    assert list(pipeline.classes_) == [0, 1]
    assert not hasattr(DataCleaner(Ridge()), "predict_proba")
    with pytest.raises(ValueError, match="give X_trusted and y_trusted, or trusted"):
        DataCleaner(LogisticRegression()).fit(X, labels)


@pytest.mark.parametrize("reach", [2.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_grids_of_lasso_and_elastic_net_reach_the_small_columns(seed, reach):
    """They ended four decades below the largest: 3.59 and not 0.0117, or 0.49 and not 0.0068."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(80, 10)) * 10.0 ** np.linspace(-reach, reach, 10)
    signal = (A / A.std(0))[:, [0, 1, 2, 7, 8, 9]] @ [1, -1, 1, 1, -1, 1]
    y = signal + 0.1 * rng.normal(size=80)
    other = LassoCV(alphas=np.geomspace(1e-8, 1e2, 150), cv=KFold(4), tol=1e-8, max_iter=10**5)
    best = other.fit(A, y).mse_path_.mean(1).min()
    for model in (HypergradLasso(cv=KFold(4)), HypergradElasticNet(cv=KFold(4))):
        assert model.fit(A, y).cv_loss_ <= best * 1.0005


def test_elastic_net_with_many_columns_in_use_tries_every_ratio():
    """Its grid ended where the path of the lasso had risen: 12 % above the best of 0.1."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(600, 450))
    y = A @ rng.normal(size=450)
    y += 0.5 * y.std() * rng.normal(size=600)
    other = ElasticNetCV(l1_ratio=0.1, alphas=12, eps=1e-2, cv=KFold(3), tol=1e-6).fit(A, y)
    model = HypergradElasticNet(cv=KFold(3)).fit(A, y)
    assert model.cv_loss_ <= other.mse_path_.mean(1).min()
    assert np.sum(model.coef_ != 0) > 300
