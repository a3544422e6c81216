"""Logistic regression: against scikit-learn's fits, finite differences, LogisticRegressionCV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

import bilevel as bl
from bilevel.sklearn import HypergradLogisticRegression
from bilevel.sklearn.losses import glm as glm_module
from bilevel.sklearn.losses.folds import make_folds, make_splits
from bilevel.sklearn.losses.glm import (
    LOGISTIC,
    MULTINOMIAL,
    init_fits,
    logistic_loss,
    multinomial_loss,
    solve_fold,
)
from bilevel.sklearn.losses.rows import make_rows, set_folds
from bilevel.sklearn.search.descent import OuterLoss, to_host
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 8)) + 1.0
WEIGHT = RNG.uniform(0.1, 2, 60)
LABELS = {2: (X[:, 0] + RNG.normal(size=60) > 1) * 1, 3: np.digitize(X[:, 0] + X[:, 1], [1, 3])}
LOSSES = {2: logistic_loss, 3: multinomial_loss}
LINKS = {2: LOGISTIC, 3: MULTINOMIAL}


def batch_of(kind, classes):
    y = LABELS[classes]
    target = np.eye(classes)[y][:, 1 if classes == 2 else 0 :]
    train, held = make_splits(4, X, y, None, classifier=True, random_state=None)
    base, _ = make_rows(kind(X), target, WEIGHT, True)
    return set_folds(base, make_folds(train, held, WEIGHT), WEIGHT), train, held


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("classes", [2, 3])
def test_loss_is_that_of_fits_fold_by_fold_and_gradient_is_its_own(classes, kind):
    batch, train, held = batch_of(kind, classes)
    theta = np.full(8 * batch.target.shape[1], np.log(0.7))
    with jax.enable_x64(True):
        found = to_host(OuterLoss(LOSSES[classes], batch, init_fits(batch))(theta))
    losses, y = [], LABELS[classes]
    for inside, outside in zip(train, held, strict=True):
        fit = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=10**4)
        fit.fit(X[inside], y[inside], sample_weight=WEIGHT[inside])
        p = fit.predict_proba(X[outside])
        losses.append(log_loss(y[outside], p, sample_weight=WEIGHT[outside]))
    np.testing.assert_allclose(found.value, np.mean(losses), rtol=1e-6)
    assert found.inner_residual < 1e-8
    theta = theta + np.random.default_rng(1).normal(size=len(theta))
    gradient, reference = differences(LOSSES[classes], batch, theta, init_fits(batch))
    np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-9)


def negative_log_likelihood(w, batch):
    """Of ``w [d + 1, T]``, its last row the intercepts; the weighted mean over the rows."""
    rows, target, weight = batch
    z = rows @ w[:-1] + w[-1]
    if target.shape[1] == 1:
        z, target = jnp.pad(z, [(0, 0), (1, 0)]), jnp.concatenate([1 - target, target], 1)
    return -weight @ jnp.sum(target * jax.nn.log_softmax(z), 1) / jnp.sum(weight)


def penalised(w, theta, batch):
    squared = jnp.sum(jnp.exp(theta) * w[:-1] ** 2) / jnp.sum(batch[-1])
    return negative_log_likelihood(w, batch) + squared / 2 + 1e-8 * jnp.sum(w[-1] ** 2) / 2


GENERIC = bl.Problem(penalised, lambda w, theta, batch: negative_log_likelihood(w, batch))


@pytest.mark.extended
@pytest.mark.parametrize("classes", [2, 3])
def test_every_fold_is_what_implicit_differentiation_of_newton_gives(classes):
    """Value, fit and hypergradient of the loop written out, against the generic estimator."""
    batch, *_ = batch_of(np.asarray, classes)
    theta = np.random.default_rng(2).normal(size=(8, batch.target.shape[1]))
    squares, estimator = batch.squares(), bl.Implicit(bl.Newton(), 12, linear=bl.CG(tol=1e-12))

    @jax.jit
    def both(train, held, squares, start):
        own = solve_fold(LINKS[classes], batch, jnp.exp(theta), train, held, squares, start)
        data = bl.Data(*((batch.X, batch.target, side) for side in (train, held)))
        return own, bl.hypergradient(GENERIC, estimator, theta, start.w, data, jax.random.key(0))

    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: x[0], init_fits(batch))
        for fold in range(4):
            (loss, grad, fit, *_), (found, lower) = both(
                batch.train[fold], batch.held[fold], squares[fold], start
            )
            np.testing.assert_allclose(loss, found.value, rtol=1e-8)
            np.testing.assert_allclose(fit.w, lower.params, rtol=0, atol=1e-8)
            np.testing.assert_allclose(grad, found.grad, rtol=0, atol=1e-8)
            assert np.linalg.norm(grad) > 1e-3


def test_large_systems_take_conjugate_gradients_to_the_same_answer(monkeypatch):
    batch, *_ = batch_of(sparse.csr_array, 3)
    theta = np.linspace(-2, 2, 24)

    def other(theta, rows, lower):
        return multinomial_loss(theta, rows, lower)

    with jax.enable_x64(True):
        direct = to_host(OuterLoss(multinomial_loss, batch, init_fits(batch))(theta))
        monkeypatch.setattr(glm_module, "_DENSE", 0)
        iterated = to_host(OuterLoss(other, batch, init_fits(batch))(theta))
    np.testing.assert_allclose(iterated.value, direct.value, rtol=1e-8)
    np.testing.assert_allclose(iterated.grad, direct.grad, rtol=1e-6, atol=1e-10)


def test_never_above_logistic_regression_cv_on_the_same_folds():
    A, y = load_breast_cancer(return_X_y=True)
    A, folds = StandardScaler().fit_transform(A), StratifiedKFold(5)
    other = LogisticRegressionCV(
        Cs=10, cv=folds, scoring="neg_log_loss", use_legacy_attributes=False, l1_ratios=(0,)
    ).fit(A, y)
    best = np.mean(np.asarray(other.scores_).reshape(5, -1), 0).max()
    model = HypergradLogisticRegression(cv=folds).fit(A, y)
    assert model.cv_loss_ <= -best * (1 + 1e-4)  # the tolerance of LogisticRegressionCV
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


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        HypergradLogisticRegression().fit(X, np.zeros(60, int))


def test_separable_folds_do_not_take_all_penalty_away():
    A = np.vstack([RNG.normal(size=(30, 2)) - 9, RNG.normal(size=(30, 2)) + 9])
    with pytest.warns(ConvergenceWarning, match="smallest that the search may reach"):
        model = HypergradLogisticRegression(cv=4).fit(A, np.arange(60) // 30)
    assert model.alpha_ >= 1e-4
