"""Lasso, elastic net, kernel ridge, search and cleaner, against scikit-learn and differences."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, Lasso, LassoCV, LogisticRegression, Ridge
from sklearn.model_selection import KFold, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bilevel as bl
import bilevel.sklearn
from bilevel.sklearn import (
    BilevelSearchCV,
    DataCleaner,
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradRidge,
)
from bilevel.sklearn.cleaner import TrustLoss
from bilevel.sklearn.losses.active_set import minimise_on_columns
from bilevel.sklearn.losses.fold_quadratics import make_quadratics
from bilevel.sklearn.losses.folds import Folds, make_folds, make_splits
from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.kernel import KernelLoss
from bilevel.sklearn.losses.lasso import ElasticNetLoss
from bilevel.sklearn.losses.links import LOGISTIC, SQUARED
from bilevel.sklearn.losses.working_set import WorkingSet
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8))
Y = X[:, 0] - 2 * X[:, 1] + RNG.normal(size=40)
WEIGHT = RNG.uniform(0.1, 2, 40)


def folds_of_four():
    return make_splits(4, X, Y, None, classifier=False, random_state=None)


@pytest.mark.parametrize("wide", [False, True], ids=["by moments", "by rows"])
def test_elastic_net_gradient_is_its_own(wide):
    train, held = folds_of_four()
    A = np.hstack([X, 0.1 * np.random.default_rng(9).normal(size=(40, 40))]) if wide else X
    d = A.shape[1]
    problem = make_quadratics(A, Y, WEIGHT, (train, held), True)(None)
    rng = np.random.default_rng(5)
    theta = np.log(np.append(rng.uniform(0.1, 1.5, d), rng.uniform(0.05, 0.3, d)))
    found, reference = differences(ElasticNetLoss(problem, 2), theta)
    assert 0 < np.sum(found[:d] == 0) < d  # some columns are out
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-7)


def test_lasso_and_elastic_net_fits():
    lasso = HypergradLasso().fit(X, Y, sample_weight=WEIGHT)
    other = Lasso(lasso.alpha_, tol=1e-12, max_iter=10**5).fit(X, Y, sample_weight=WEIGHT)
    np.testing.assert_allclose(lasso.coef_, other.coef_, atol=1e-7)
    net = HypergradElasticNet().fit(X, Y)
    other = ElasticNet(net.alpha_, l1_ratio=net.l1_ratio_, tol=1e-12, max_iter=10**5).fit(X, Y)
    np.testing.assert_allclose(net.coef_, other.coef_, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.005])
def test_lasso_is_scikit_learns_where_columns_are_correlated(alpha):
    """The first twelve have correlations of 0.98; two are the same, so the minimiser is not one."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(50, 1)) + 0.15 * rng.normal(size=(50, 12))
    A = np.hstack([base, base[:, :1], rng.normal(size=(50, 6))])
    y = base[:, 0] - base[:, 1] + A[:, 14] + rng.normal(size=50)
    other = Lasso(alpha, tol=1e-12, max_iter=10**6, fit_intercept=False).fit(A, y)
    cross, working = A.T @ y / 50, WorkingSet(A.T @ A / 50)
    w = minimise_on_columns(working, cross, np.full(19, alpha), np.zeros(19), tol=1e-12)
    np.testing.assert_allclose(A @ w, A @ other.coef_, atol=1e-6)
    slope = cross - A.T @ (A @ w) / 50
    np.testing.assert_allclose(slope[w != 0], alpha * np.sign(w[w != 0]), atol=1e-7)
    assert np.max(np.abs(slope)) <= alpha + 1e-7


def test_lasso_never_above_lasso_cv_on_the_same_folds():
    A, y = load_diabetes(return_X_y=True)
    other = LassoCV(cv=KFold(5), tol=1e-8, max_iter=10**5).fit(A, y)
    assert HypergradLasso(cv=KFold(5)).fit(A, y).cv_loss_ <= other.mse_path_.mean(1).min() * 1.0005


def test_kernel_ridge_is_scikit_learns_and_its_gradient_its_own():
    model = HypergradKernelRidge().fit(X, Y, sample_weight=WEIGHT)
    other = KernelRidge(alpha=model.alpha_, kernel="rbf", gamma=model.gamma_)
    other.fit(X, Y, sample_weight=WEIGHT)
    np.testing.assert_allclose(model.predict(X), other.predict(X), rtol=1e-6)
    train, held = folds_of_four()
    loss = KernelLoss(X, np.stack([Y, Y**2], 1), WEIGHT, make_folds(train, held, WEIGHT))
    theta = np.append(-1.0, np.linspace(-4, -1, 8))
    np.testing.assert_allclose(*differences(loss, theta), rtol=1e-6)


def loss(w, log_penalty, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def inner(w, log_penalty, batch):
    return loss(w, log_penalty, batch) + jnp.exp(log_penalty) * jnp.sum(w**2)


RIDGE = bl.Problem(inner, loss, quadratic=True)


@pytest.mark.extended
def test_search_finds_what_a_grid_finds_and_refits():
    search = BilevelSearchCV(
        RIDGE,
        2.0,
        jnp.zeros(8),
        predict_fn=lambda w, X: X @ w,
        steps=40,
        cv=KFold(4),
        outer=optax.adam(0.3),
    ).fit(X, Y)
    # A mean over the rows of a fold: the penalty of the sum is n times as large.
    grid = np.linspace(-5, 2, 60)
    scores = [
        cross_val_score(
            Ridge(30 * np.exp(g), fit_intercept=False),
            X,
            Y,
            cv=KFold(4),
            scoring="neg_mean_squared_error",
        ).mean()
        for g in grid
    ]
    np.testing.assert_allclose(search.best_score_, max(scores), rtol=1e-3)
    assert len(search.cv_results_["params"]) == 40
    assert search.cv_results_["rank_test_score"][search.best_index_] == 1
    reference = Ridge(40 * np.exp(search.best_params_), fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(search.predict(X), reference.predict(X), rtol=1e-6)
    np.testing.assert_allclose(search.score(X, Y), -np.mean((search.predict(X) - Y) ** 2))


def test_search_without_a_prediction_says_so():
    search = BilevelSearchCV(RIDGE, 2.0, jnp.zeros(8), steps=2, cv=KFold(4)).fit(X, Y)
    with pytest.raises(ValueError, match="Pass predict_fn="):
        search.predict(X)


@pytest.mark.parametrize("link", [LOGISTIC, SQUARED], ids=["logistic", "squared"])
def test_trust_gradient_is_its_own(link):
    y = (Y > 0) * 1.0
    trained = (np.arange(40) < 30) * 1.0
    folds = Folds(trained[None] > 0, trained[None] == 0, np.ones(1))
    rows = GlmFolds(X, y[:, None], np.ones(40), folds, True)
    loss = TrustLoss(link, rows, trained, 0.5)
    theta = np.random.default_rng(1).normal(size=40)
    found, reference = differences(loss, theta, 1e-3)
    np.testing.assert_allclose(found, reference, rtol=1e-3, atol=1e-6)


def test_cleaner_distrusts_flipped_labels():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(240, 8))
    truth = (A[:, 0] + A[:, 1] > 0) * 1
    flipped = rng.uniform(size=240) < 0.3
    y = np.where(flipped, 1 - truth, truth)
    cleaner = DataCleaner(LogisticRegression())
    trust = cleaner.fit_transform(A[:200], y[:200], A[200:], truth[200:])
    bad = flipped[:200]
    order = (trust[bad][:, None] < trust[~bad]).mean()  # the probability of the right order
    assert order > 0.8
    assert cleaner.trusted_loss_path_[-1] < cleaner.trusted_loss_path_[0]


def test_inside_pipelines_and_column_transformers():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdefgh"))
    columns = ColumnTransformer([("scaled", StandardScaler(), list("abcd"))], remainder="drop")
    model = make_pipeline(columns.set_output(transform="pandas"), HypergradRidge()).fit(frame, Y)
    assert list(model[-1].feature_names_in_) == [f"scaled__{c}" for c in "abcd"]
    assert cross_val_score(model, frame, Y, cv=3).mean() > 0
    assert "HypergradRidge" in model._repr_html_()
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("name", [n for n in vars(bilevel.sklearn) if n[0].isupper()])
def test_every_estimator_explains_itself(name):
    text = inspect.getdoc(getattr(bilevel.sklearn, name))
    assert text.splitlines()[0].endswith(".")
    assert ">>> " in text


@pytest.mark.parametrize("kind", [HypergradLasso, HypergradElasticNet])
def test_of_several_targets_the_error_says_how_to_fit_each(kind):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3))
    both = rows @ rng.normal(size=(3, 2)) + rng.normal(size=(40, 2))
    with pytest.raises(ValueError, match=r"one target, \[n\], got \[40, 2\].*MultiOutputRegressor"):
        kind().fit(rows, both)
    found = MultiOutputRegressor(kind()).fit(rows, both).predict(rows)
    each = np.stack([kind().fit(rows, y).predict(rows) for y in both.T], 1)
    np.testing.assert_array_equal(found, each)
