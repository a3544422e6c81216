"""Multinomial regression with l1 and elastic-net penalties: against saga, and the conditions."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from bilevel.sklearn import HypergradSparseLogisticRegression
from bilevel.sklearn.losses import MULTINOMIAL, ClassLoss, make_class_folds, make_splits
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6)) + 1.0
SCORES = X @ np.where(RNG.uniform(size=(6, 3)) < 0.6, RNG.normal(size=(6, 3)), 0)
Y = (SCORES - SCORES.mean(0) + RNG.gumbel(size=(90, 3))).argmax(1)
WEIGHT = RNG.uniform(0.1, 2, 90)
FOLDS = StratifiedKFold(4)


def fit_saga(A, y, C, ratio, weight=None, intercept=True):
    other = LogisticRegression(
        C=C, l1_ratio=ratio, solver="saga", tol=1e-9, max_iter=10**6, fit_intercept=intercept
    )
    return other.fit(A, y, sample_weight=weight)


def check_conditions(model, A, y, weight):
    """Slopes are at most alpha, and alpha where the coefficient is not 0, of which the number."""
    p = softmax(A @ model.coef_.T + model.intercept_, axis=1)
    np.testing.assert_allclose(model.predict_proba(A), p, rtol=1e-9)
    error = weight[:, None] * ((model.classes_ == y[:, None]) - p)
    np.testing.assert_allclose(error.sum(0), 0, atol=1e-8)
    slope, used = error.T @ A / model.alpha_, model.coef_ != 0
    assert np.abs(slope).max() <= 1 + 1e-7
    np.testing.assert_allclose(slope[used], np.sign(model.coef_[used]), rtol=1e-7)
    return used.sum()


CASES = ["l1", "elastic net", "fixed ratio", "sparse", "no intercept"]


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_its_own(case):
    splits = make_splits(4, X, Y, None, classifier=True, random_state=None)
    kinds = 2 if case == "elastic net" else 1
    A = sparse.csr_array(X) if case == "sparse" else X
    problem = make_class_folds(
        MULTINOMIAL, A, np.eye(3)[Y], WEIGHT, splits, case != "no intercept"
    )(None)
    loss = ClassLoss(problem, kinds, ratio=0.6 if case == "fixed ratio" else 1.0)
    rng = np.random.default_rng(1)
    theta = np.log(np.append(rng.uniform(1, 5, 6), rng.uniform(0.5, 3, 6))[: 6 * kinds])
    found, reference = differences(loss, theta)
    out = loss(theta).params[-1, :18] == 0
    assert 0 < out.sum() < 18  # some coefficients are out
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-7)
    assert loss(theta).inner_residual < 1e-10


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
    grid = [np.mean(losses(C)) for C in model.C_ * np.logspace(-1.2, 1.2, 7)]
    assert model.cv_loss_ <= np.min(grid) * (1 + model.tol)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_more_columns_than_rows_meet_the_conditions(kind):
    rng = np.random.default_rng(2)
    A, y = rng.normal(size=(40, 120)), np.arange(40) % 4
    A[:, :4] += 2.0 * np.eye(4)[y]
    A[:, 119] = A[:, 0]  # a column that occurs twice
    names = np.array(list("dcba"))[y]
    model = HypergradSparseLogisticRegression(cv=4).fit(kind(A), names)
    assert model.coef_.shape == (4, 120)
    assert 0 < check_conditions(model, A, names, np.ones(40)) < 100


def test_weights_factors_scorer_and_dtypes():
    model = HypergradSparseLogisticRegression("per_feature", guard=False, cv=FOLDS)
    model.fit(X, Y, sample_weight=WEIGHT)
    assert model.alpha_.shape == (6,)
    assert 0 < check_conditions(model, X, Y, WEIGHT) < 18
    free = HypergradSparseLogisticRegression({3: 0}, cv=FOLDS).fit(X, Y)
    assert free.alpha_[3] == 0
    assert np.sum(free.coef_[:, 3] != 0) >= 2
    ranked = HypergradSparseLogisticRegression(scoring="accuracy", refit=False).fit(X, Y)
    assert ranked.best_score_ == pytest.approx(np.max(ranked.cv_results_["mean_score"]))
    assert HypergradSparseLogisticRegression().fit(X.astype("f4"), Y).coef_.dtype == "f4"
