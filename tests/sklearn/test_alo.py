"""Approximate leave-one-out against refits without each row, closed forms and differences."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import GammaRegressor, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import log_loss, mean_tweedie_deviance
from sklearn.model_selection import LeaveOneOut

from bilevel.sklearn import (
    HypergradGammaRegressor,
    HypergradHuberRegressor,
    HypergradLogisticRegression,
    HypergradPoissonRegressor,
)
from bilevel.sklearn.losses import (
    LOGISTIC,
    MULTINOMIAL,
    SQUARED,
    AloLoss,
    Folds,
    GlmFolds,
    make_huber,
    make_tweedie,
)
from tests.sklearn.derivatives import differences

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)) * [1.0, 3.0, 0.3, 1.0, 1.0] + 1.0
SCORE = X @ [0.6, -0.1, 1.0, 0.0, 0.0] - 0.4
WEIGHT = RNG.uniform(0.5, 2, 80)
THREE = np.digitize(SCORE + RNG.normal(size=80), [-0.5, 0.5])
COUNTS = RNG.poisson(np.exp(SCORE)).astype(float)
NOISY = SCORE + 0.3 * RNG.standard_t(2, 80)
LINKS = {
    "squared": (SQUARED, SCORE[:, None]),
    "logistic": (LOGISTIC, (THREE > 0)[:, None] * 1.0),
    "multinomial": (MULTINOMIAL, np.eye(3)[THREE]),
    "poisson": (make_tweedie(1), COUNTS[:, None]),
    "tweedie": (make_tweedie(1.5), COUNTS[:, None]),
    "huber": (make_huber(1.35), np.stack([NOISY, np.zeros(80)], 1)),
}


def loss_of(name, intercept=True, weight=WEIGHT):
    link, y = LINKS[name]
    everything = Folds(*np.ones((2, 1, 80), bool), np.ones(1))
    return AloLoss(link, GlmFolds(X, y, weight, everything, intercept, link.plain))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("name", LINKS)
def test_gradient_is_its_own(name, intercept):
    rng = np.random.default_rng(1)
    for size in (1, 5 * loss_of(name).rows.sloped):
        loss, theta = loss_of(name, intercept), rng.normal(size=size) + 1.0
        found, reference = differences(loss, theta, 1e-4)
        np.testing.assert_allclose(found, reference, rtol=2e-5, atol=1e-8)


def test_of_a_quadratic_loss_it_is_exact_leave_one_out():
    found = loss_of("squared")(np.log([3.0])).value
    fits = [
        (Ridge(3.0).fit(X[i], SCORE[i], sample_weight=WEIGHT[i]), o)
        for i, o in LeaveOneOut().split(X)
    ]
    errors = [(fit.predict(X[o]) - SCORE[o])[0] ** 2 / 2 for fit, o in fits]
    np.testing.assert_allclose(found, np.average(errors, weights=WEIGHT), rtol=1e-10)


def test_it_is_one_newton_step_without_each_row():
    loss, alpha = loss_of("poisson", weight=np.ones(80)), 3.0
    found = loss(np.log([alpha]))
    A, y = loss.design, COUNTS
    w, penalty = found.params[0, :, 0], np.append(np.full(5, alpha), 0)
    losses = []
    for i in range(80):
        rest = np.arange(80) != i
        m = np.exp(A[rest] @ w)
        gradient = A[rest].T @ (m - y[rest]) + penalty * w
        step = np.linalg.solve((A[rest].T * m) @ A[rest] + np.diag(penalty), gradient)
        moved = np.exp(A[i] @ (w - step))
        losses.append(mean_tweedie_deviance(y[i : i + 1], [moved], power=1) / 2)
    np.testing.assert_allclose(found.value, np.mean(losses), rtol=1e-8)


TIGHT = {"tol": 1e-10, "max_iter": 10**4}
N = len(X)
REFITS = {  # the estimator; scikit-learn's at its penalty without a row; loss of the row; targets
    "logistic": (
        HypergradLogisticRegression(cv="alo"),
        lambda alpha: LogisticRegression(C=1 / alpha, **TIGHT),
        lambda fit, A, y: log_loss(y, fit.predict_proba(A), labels=[0, 1]),
        (THREE > 0) * 1,
    ),
    "multinomial": (
        HypergradLogisticRegression(cv="alo"),
        lambda alpha: LogisticRegression(C=1 / alpha, **TIGHT),
        lambda fit, A, y: log_loss(y, fit.predict_proba(A), labels=[0, 1, 2]),
        THREE,
    ),
    "poisson": (
        HypergradPoissonRegressor(cv="alo"),
        lambda alpha: PoissonRegressor(alpha=alpha * N / (N - 1), solver="newton-cholesky"),
        lambda fit, A, y: mean_tweedie_deviance(y, fit.predict(A), power=1) / 2,
        COUNTS,
    ),
    "gamma": (
        HypergradGammaRegressor(cv="alo"),
        lambda alpha: GammaRegressor(alpha=alpha * N / (N - 1), solver="newton-cholesky"),
        lambda fit, A, y: mean_tweedie_deviance(y, fit.predict(A), power=2) / 2,
        RNG.gamma(3.0, np.exp(SCORE) / 3),
    ),
}


@pytest.mark.parametrize("name", REFITS)
def test_loss_and_choice_are_nearly_those_of_refits_without_each_row(name):
    model, other_of, loss, y = REFITS[name]
    model = clone(model).fit(X, y)

    def exact(alpha):
        other = other_of(alpha)
        return np.mean([loss(other.fit(X[i], y[i]), X[o], y[o]) for i, o in LeaveOneOut().split(X)])

    chosen = exact(model.alpha_)
    # One Newton step: its error is of the second order in what one row of 80 moves.
    np.testing.assert_allclose(model.cv_loss_, chosen, rtol=0.02)
    others = [exact(model.alpha_ * factor) for factor in (0.2, 5.0)]
    assert chosen <= np.min(others) * (1 + 1e-3)
    fit = other_of(model.alpha_).fit(X, y)
    if "C" not in fit.get_params():
        fit = clone(fit).set_params(alpha=model.alpha_).fit(X, y)
    np.testing.assert_allclose(model.coef_, fit.coef_, atol=1e-5)


def test_wide_rows_many_penalties_and_weights_of_zero():
    wide = np.hstack([X, RNG.normal(size=(80, 100))])
    y = (THREE > 0) * 1
    one = HypergradLogisticRegression(cv="alo").fit(wide, y)
    other = LogisticRegression(C=one.C_, **TIGHT).fit(wide, y)
    np.testing.assert_allclose(one.coef_, other.coef_, atol=1e-5)
    many = HypergradLogisticRegression("per_feature", cv="alo").fit(X, y)
    assert many.cv_loss_ < HypergradLogisticRegression(cv="alo").fit(X, y).cv_loss_
    weight = (np.arange(80) < 60) * 1.0
    some = HypergradPoissonRegressor(cv="alo").fit(X, COUNTS, sample_weight=weight)
    few = HypergradPoissonRegressor(cv="alo").fit(X[:60], COUNTS[:60])
    np.testing.assert_allclose(some.cv_loss_, few.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(some.alpha_, few.alpha_, rtol=1e-3)


def test_an_unpenalised_column_of_several_classes():
    model = HypergradLogisticRegression({0: 0}, cv="alo").fit(X, THREE)
    folds = clone(model).set_params(cv=LeaveOneOut(), guard=False)
    np.testing.assert_allclose(model.cv_loss_, folds.fit(X, THREE).cv_loss_, rtol=0.02)


def test_huber_regression_leaves_rows_out():
    model = HypergradHuberRegressor(cv="alo").fit(X, NOISY)
    folds = HypergradHuberRegressor(cv=LeaveOneOut(), alphas=[model.alpha_], max_iter=1)
    np.testing.assert_allclose(model.cv_loss_, folds.fit(X, NOISY).cv_results_["mean_loss"][0],
                               rtol=3e-3)  # fmt: skip


@pytest.mark.parametrize("penalty", ["global", "per_feature"])
@pytest.mark.parametrize("wide", [False, True])
def test_sparse_rows_are_as_dense_ones(wide, penalty):
    rng = np.random.default_rng(3)
    A = np.hstack([X, rng.normal(size=(len(X), len(X)))]) if wide else X
    A = A * (rng.uniform(size=A.shape) < 0.5)
    for model, y in ((HypergradPoissonRegressor, COUNTS), (HypergradLogisticRegression, THREE)):
        if wide and penalty == "per_feature":
            continue
        dense, stored = (
            model(penalty, cv="alo", alphas=[3.0], max_iter=1, tol=1.0).fit(B, y)
            for B in (A, sparse.csr_array(A))
        )
        np.testing.assert_allclose(stored.cv_loss_, dense.cv_loss_, rtol=1e-10)
        np.testing.assert_allclose(stored.alpha_, dense.alpha_, rtol=1e-8)
        np.testing.assert_allclose(stored.coef_, dense.coef_, atol=1e-10)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="need fits that have not seen all rows, and cv='alo'"):
        HypergradPoissonRegressor(cv="alo", scoring="r2").fit(X, COUNTS)
    with pytest.raises(ValueError, match="the losses of at least two folds"):
        HypergradPoissonRegressor(cv="alo", choose="one_standard_error").fit(X, COUNTS)
    monkeypatch.setattr("bilevel.sklearn.losses.alo._ROOM", 3)
    with pytest.raises(ValueError, match="factorises the Hessian of all 6 coefficients"):
        HypergradPoissonRegressor(cv="alo").fit(X, COUNTS)
