"""Logistic regression: against scikit-learn's fits, finite differences, LogisticRegressionCV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

import bilevel as bl
from bilevel.sklearn import HypergradLogisticRegression
from bilevel.sklearn.losses import glm_system, preconditioner
from bilevel.sklearn.losses.folds import make_folds, make_splits
from bilevel.sklearn.losses.glm import GlmLoss
from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.links import LOGISTIC, MULTINOMIAL
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 8)) + 1.0
WEIGHT = RNG.uniform(0.1, 2, 60)
LABELS = {2: (X[:, 0] + RNG.normal(size=60) > 1) * 1, 3: np.digitize(X[:, 0] + X[:, 1], [1, 3])}
LINKS = {2: LOGISTIC, 3: MULTINOMIAL}


def loss_of(kind, classes):
    y = LABELS[classes]
    target = np.eye(classes)[y][:, 1 if classes == 2 else 0 :]
    train, held = make_splits(4, X, y, None, classifier=True, random_state=None)
    folds = GlmFolds(kind(X), target, WEIGHT, make_folds(train, held, WEIGHT), True)
    return GlmLoss(LINKS[classes], folds), train, held


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("classes", [2, 3])
def test_loss_is_that_of_fits_fold_by_fold_and_gradient_is_its_own(
    classes, kind, single, monkeypatch
):
    """Also where conjugate gradients are in single precision, as those of large tables are."""
    if single:
        monkeypatch.setattr(glm_system, "LARGE", 0)
    loss, train, held = loss_of(kind, classes)
    assert loss.system.large == single
    theta = np.full(8 * (1 if classes == 2 else classes), np.log(0.7))
    found = loss.evaluate_to_rounding(theta)
    losses, y = [], LABELS[classes]
    for inside, outside in zip(train, held, strict=True):
        fit = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=10**4)
        fit.fit(X[inside], y[inside], sample_weight=WEIGHT[inside])
        p = fit.predict_proba(X[outside])
        losses.append(log_loss(y[outside], p, sample_weight=WEIGHT[outside]))
    np.testing.assert_allclose(found.value, np.mean(losses), rtol=1e-6)
    assert found.inner_residual < 1e-8
    theta = theta + np.random.default_rng(1).normal(size=len(theta))
    gradient, reference = differences(loss.evaluate_to_rounding, theta)
    np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-9)
    # What a descent sees is less exact, but the value's error is of the second order.
    along = loss_of(kind, classes)[0](theta)
    np.testing.assert_allclose(along.value, loss.evaluate_to_rounding(theta).value, rtol=1e-6)
    np.testing.assert_allclose(along.grad, gradient, rtol=1e-3, atol=1e-5)


def negative_log_likelihood(w, batch):
    """Of ``w [d + 1, T]``, its last row the intercepts; the weighted mean over the rows."""
    rows, target, weight = batch
    z = rows @ w[:-1] + w[-1]
    if target.shape[1] == 1:
        z, target = jnp.pad(z, [(0, 0), (1, 0)]), jnp.concatenate([1 - target, target], 1)
    return -weight @ jnp.sum(target * jax.nn.log_softmax(z), 1) / jnp.sum(weight)


def penalised(w, theta, batch):
    squared = jnp.sum(jnp.exp(theta) * w[:-1] ** 2) / jnp.sum(batch[-1])
    return negative_log_likelihood(w, batch) + squared / 2 + 1e-12 * jnp.sum(w[-1] ** 2) / 2


GENERIC = bl.Problem(penalised, lambda w, theta, batch: negative_log_likelihood(w, batch))


@pytest.mark.extended
@pytest.mark.parametrize("classes", [2, 3])
def test_every_fold_is_what_implicit_differentiation_of_newton_gives(classes):
    """Value, fits and hypergradient of all folds at once, against the generic estimator."""
    loss, train, held = loss_of(np.asarray, classes)
    outputs = 1 if classes == 2 else classes
    theta = np.random.default_rng(2).normal(size=(8, outputs))
    estimator = bl.Implicit(bl.Newton(), 12, linear=bl.CG(tol=1e-12))
    own = loss.evaluate_to_rounding(theta.ravel())
    target = np.eye(classes)[LABELS[classes]][:, 1 if classes == 2 else 0 :]
    A, grads = X - WEIGHT @ X / WEIGHT.sum(), []  # intercepts are of rows about their mean
    with jax.enable_x64(True):
        for fold in range(4):
            data = bl.Data(*((A, target, side[fold] * WEIGHT) for side in (train, held)))
            found, lower = bl.hypergradient(
                GENERIC, estimator, theta, jnp.zeros((9, outputs)), data, jax.random.key(0)
            )
            np.testing.assert_allclose(own.losses[fold], found.value, rtol=1e-8)
            gap = own.params[fold] - np.asarray(lower.params)
            if classes > 2:  # one number for all intercepts changes no probability
                gap[-1] -= gap[-1].mean()
            np.testing.assert_allclose(gap, 0, atol=1e-7)
            grads.append(found.grad)
    np.testing.assert_allclose(own.grad, np.ravel(np.mean(grads, 0)), rtol=0, atol=1e-8)
    assert np.linalg.norm(own.grad) > 1e-3


def test_many_columns_take_the_diagonal_to_the_same_answer(monkeypatch):
    theta = np.linspace(-2, 2, 24)
    factorised = loss_of(np.asarray, 3)[0].evaluate_to_rounding(theta)
    monkeypatch.setattr(preconditioner, "_DENSE", 0)
    iterated = loss_of(np.asarray, 3)[0].evaluate_to_rounding(theta)
    np.testing.assert_allclose(iterated.value, factorised.value, rtol=1e-8)
    np.testing.assert_allclose(iterated.grad, factorised.grad, rtol=1e-6, atol=1e-10)


def test_single_precision_gives_way_where_it_does_not_do(monkeypatch):
    """Columns of 1e-3 to 1e3, two of which are all but the same, and next to no penalty."""
    monkeypatch.setattr(glm_system, "LARGE", 0)
    rng = np.random.default_rng(3)
    A = rng.normal(size=(80, 5)) * np.logspace(-3, 3, 5)
    A = np.column_stack([A, A[:, 4] + 1e-3 * rng.normal(size=80)])
    y = (A[:, 0] * 1e3 + A[:, 4] / 1e3 + rng.logistic(size=80) > 0) * 1
    model = HypergradLogisticRegression(alphas=[1e-8, 1e-9], cv=3, max_iter=1, tol=1e-6).fit(A, y)
    other = LogisticRegression(C=model.C_, tol=1e-12, solver="newton-cholesky").fit(A, y)
    np.testing.assert_allclose(model.predict_proba(A), other.predict_proba(A), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_more_columns_than_rows_are_rotated_to_the_same_answer(classes):
    rng = np.random.default_rng(4)
    A = rng.normal(size=(40, 300)) + 2.0
    y = LABELS[classes][:40]
    A[:, 0] += 2 * y
    for rows in (A, sparse.csr_array(A)):
        model = HypergradLogisticRegression(cv=4).fit(rows, y)
        other = LogisticRegression(C=model.C_, tol=1e-10, max_iter=10**4).fit(A, y)
        np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-5)
        np.testing.assert_allclose(model.predict_proba(rows), other.predict_proba(A), atol=1e-5)


def test_never_above_logistic_regression_cv_on_the_same_folds():
    A, y = load_breast_cancer(return_X_y=True)
    A, folds = StandardScaler().fit_transform(A), StratifiedKFold(5)
    other = LogisticRegressionCV(
        Cs=10, cv=folds, scoring="neg_log_loss", use_legacy_attributes=False, l1_ratios=(0,)
    ).fit(A, y)
    best = np.mean(np.asarray(other.scores_).reshape(5, -1), 0).max()
    model = HypergradLogisticRegression(cv=folds).fit(A, y)
    assert model.cv_loss_ <= -best * (1 + model.tol)
    reference = LogisticRegression(C=model.C_, tol=1e-9, max_iter=10**4).fit(A, y)
    np.testing.assert_allclose(model.predict_proba(A), reference.predict_proba(A), atol=1e-5)


SHAPES = {"per_class": (3,), "per_feature": (8,), "per_feature_and_class": (3, 8)}


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@pytest.mark.parametrize("penalty", SHAPES)
def test_penalties_by_class_and_feature(penalty):
    model = HypergradLogisticRegression(penalty, guard=False, cv=4, max_iter=3)
    model.fit(X, LABELS[3], sample_weight=WEIGHT)
    assert model.alpha_.shape == SHAPES[penalty]
    assert model.cv_loss_path_[-1] < model.cv_loss_path_[0]
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


def test_intercepts_of_several_classes_add_up_to_nothing():
    """As in LogisticRegression: one number for all of them changes no probability."""
    X, y = load_iris(return_X_y=True)
    for kind in ("global", "per_class"):
        model = HypergradLogisticRegression(kind).fit(X + 100, y)
        assert abs(model.intercept_.sum()) <= 1e-12 * np.abs(model.intercept_).max()
    model = HypergradLogisticRegression().fit(X, y)
    other = LogisticRegression(C=model.C_, tol=1e-12, solver="newton-cholesky").fit(X, y)
    np.testing.assert_allclose(model.intercept_, other.intercept_, rtol=1e-4)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        HypergradLogisticRegression().fit(X, np.zeros(60, int))


def test_separable_folds_do_not_take_all_penalty_away():
    A = np.vstack([RNG.normal(size=(30, 2)) - 9, RNG.normal(size=(30, 2)) + 9])
    with pytest.warns(ConvergenceWarning, match="smallest that the search may reach"):
        model = HypergradLogisticRegression(cv=4).fit(A, np.arange(60) // 30)
    assert model.alpha_ >= 1e-4


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
def test_fits_are_exact_where_the_loss_is_tiny():
    """Folds that are all but separable: nothing may pull at the intercepts."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    A = rng.normal(size=(60, 4)) + 6.0 * np.eye(4)[y] + 3.0
    model = HypergradLogisticRegression(alphas=[1e-3, 2e-3], cv=3, max_iter=1).fit(A, y)
    other = LogisticRegression(C=model.C_, tol=1e-12, solver="newton-cholesky")
    np.testing.assert_allclose(model.coef_, other.fit(A, y).coef_, rtol=1e-3, atol=1e-3)
    gap = (model.intercept_ - other.intercept_) - np.mean(model.intercept_ - other.intercept_)
    np.testing.assert_allclose(gap, 0, atol=1e-3)
