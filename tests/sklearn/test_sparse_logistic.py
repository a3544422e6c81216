"""Sparse logistic regression against scikit-learn's saga, differences and a grid."""

import decimal
import itertools

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.sklearn import HypergradSparseLogisticRegression
from bilevel.sklearn.losses import (
    LOGISTIC,
    ElasticNetLoss,
    make_glm_folds,
    make_splits,
    make_tweedie,
)
from bilevel.sklearn.losses.sparse_classes import ClassQuadratic
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 10))
Y = (X[:, 0] - X[:, 1] + RNG.logistic(size=120) > 0).astype(int)
COUNTS = RNG.poisson(np.exp(0.5 * X[:, 0])).astype(float)
WEIGHT = RNG.uniform(0.1, 2, 120)
FOLDS = StratifiedKFold(4)


def fit_saga(A, y, C, ratio, weight=None, intercept=True):
    other = LogisticRegression(
        C=C, l1_ratio=ratio, solver="saga", tol=1e-10, max_iter=10**6, fit_intercept=intercept
    )
    return other.fit(A, y, sample_weight=weight)


CASES = ["l1", "elastic net", "fixed ratio", "sparse", "no intercept"]


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_its_own(case):
    splits = make_splits(4, X, Y, None, classifier=True, random_state=None)
    kinds = 2 if case == "elastic net" else 1
    A = sparse.csr_array(X) if case == "sparse" else X
    problem = make_glm_folds(LOGISTIC, A, Y * 1.0, WEIGHT, splits, case != "no intercept")(None)
    loss = ElasticNetLoss(problem, kinds, ratio=0.6 if case == "fixed ratio" else 1.0)
    rng = np.random.default_rng(1)
    theta = np.log(np.append(rng.uniform(1, 8, 10), rng.uniform(0.5, 3, 10))[: 10 * kinds])
    found, reference = differences(loss, theta)
    assert 0 < np.sum(loss(theta).params[-1, :-1] == 0) < 10  # some columns are out
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-7)
    assert loss(theta).inner_residual < 1e-10


def test_gradient_of_counts_is_its_own():
    splits = make_splits(4, X, COUNTS, None, classifier=False, random_state=None)
    problem = make_glm_folds(make_tweedie(1), X, COUNTS, WEIGHT, splits, True)(None)
    theta = np.log(np.random.default_rng(2).uniform(1, 12, 10))

    loss = ElasticNetLoss(problem, 1)
    np.testing.assert_allclose(*differences(loss, theta), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", [1.0, 0.5, "tuned"])
def test_fit_and_loss_are_scikit_learns_and_no_penalty_of_a_grid_is_better(ratio):
    model = HypergradSparseLogisticRegression(l1_ratio=ratio, cv=FOLDS).fit(X, Y)
    other = fit_saga(X, Y, model.C_, model.l1_ratio_)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, other.intercept_, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), atol=1e-6)

    def losses(C):
        fits = [(fit_saga(X[i], Y[i], C, model.l1_ratio_), o) for i, o in FOLDS.split(X, Y)]
        return [log_loss(Y[o], fit.predict_proba(X[o])) for fit, o in fits]

    np.testing.assert_allclose(losses(model.C_), model.cv_losses_, rtol=1e-6)
    grid = [np.mean(losses(C)) for C in model.C_ * np.logspace(-1.5, 1.5, 13)]
    assert model.cv_loss_ <= np.min(grid) * (1 + model.tol)


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
@pytest.mark.parametrize("scaled", [True, False])
def test_not_above_logistic_regression_cv_on_the_same_folds(scaled):
    A, y = load_breast_cancer(return_X_y=True)
    A = A / A.std(0) if scaled else A
    own = HypergradSparseLogisticRegression(cv=FOLDS).fit(A, y)
    # Its solver that is fast enough here; the intercept is penalised, a little.
    options = {"l1_ratios": (1,), "solver": "liblinear", "scoring": "neg_log_loss"}
    options |= {"cv": FOLDS, "random_state": 0, "use_legacy_attributes": False}
    other = LogisticRegressionCV(**options).fit(A, y)
    assert own.cv_loss_ <= -np.mean(other.scores_, 0).max() * 1.0001


def test_weights_sparse_rows_no_intercept_dtypes_and_labels():
    names = np.array(["no", "yes"])[Y]
    for A, intercept in ((sparse.csr_array(X), True), (X, False)):
        own = HypergradSparseLogisticRegression(cv=FOLDS, fit_intercept=intercept)
        own.fit(A, names, sample_weight=WEIGHT)
        other = fit_saga(X, names, own.C_, 1.0, WEIGHT, intercept)
        np.testing.assert_allclose(own.coef_, other.coef_, atol=1e-6)
        np.testing.assert_allclose(own.intercept_, other.intercept_, atol=1e-6)
        assert set(own.predict(A)) == {"no", "yes"}
    balanced = HypergradSparseLogisticRegression(class_weight="balanced").fit(X, Y)
    counted = HypergradSparseLogisticRegression()
    counted.fit(X, Y, sample_weight=120 / (2 * np.bincount(Y))[Y])
    np.testing.assert_allclose(balanced.coef_, counted.coef_, rtol=1e-9)
    assert HypergradSparseLogisticRegression().fit(X.astype("f4"), Y).coef_.dtype == "f4"


def test_a_penalty_for_each_column_factors_and_scorer():
    own = HypergradSparseLogisticRegression("per_feature", guard=False, cv=FOLDS).fit(X, Y)
    one = clone(own).set_params(penalty="global").fit(X, Y)
    assert own.alpha_.shape == (10,)
    assert own.cv_loss_ < one.cv_loss_
    # Columns in units of their penalty: scikit-learn has one for all.
    unit = own.alpha_ / own.alpha_.mean()
    other = fit_saga(X / unit, Y, 1 / own.alpha_.mean(), 1.0)
    np.testing.assert_allclose(own.coef_, other.coef_ / unit, atol=1e-6)
    free = HypergradSparseLogisticRegression({3: 0}, cv=FOLDS).fit(X, Y)
    assert free.alpha_[3] == 0
    assert free.coef_[0, 3] != 0
    ranked = HypergradSparseLogisticRegression(scoring="roc_auc", refit=False).fit(X, Y)
    assert ranked.best_score_ == pytest.approx(np.max(ranked.cv_results_["mean_score"]))


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@parametrize_with_checks(
    [HypergradSparseLogisticRegression(), HypergradSparseLogisticRegression(l1_ratio="tuned")]
)
def test_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_curvature_of_classes_that_are_certain_has_all_digits(kind):
    """Against 40 digits; ``m - m^2`` as it stands keeps four of them here."""
    rng = np.random.default_rng(0)
    rows, z, weight = rng.normal(size=(6, 2)), rng.normal(size=(6, 3)), rng.uniform(1, 2, 6)
    z[np.arange(6), rng.integers(0, 3, 6)] += 27
    with decimal.localcontext(prec=40):
        powers = [[decimal.Decimal(float(t)).exp() for t in row] for row in z]
        m = [[e / sum(row) for e in row] for row in powers]
        exact = np.zeros((6, 6))
        for j, k, h, c in itertools.product(range(2), range(3), range(2), range(3)):
            terms = (
                decimal.Decimal(float(s * x[j] * x[h])) * p[k] * ((k == c) - p[c])
                for s, x, p in zip(weight, rows, m, strict=True)
            )
            exact[3 * j + k, 3 * h + c] = sum(terms)
    at = ClassQuadratic(kind(rows), sparse.csc_array(rows) if kind is sparse.csr_array else rows,
                        weight, np.array(m, float))  # fmt: skip
    every, w = np.arange(6), rng.normal(size=6)
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.max(np.abs(at.block(every) - exact) / size) < 1e-13
    np.testing.assert_allclose(at.diagonal, np.diag(exact), rtol=1e-13)
    assert np.max(np.abs(-at.slope(every, w) - exact @ w) / np.diag(exact)) < 1e-12
