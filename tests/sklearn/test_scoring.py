"""The choice by a scorer, the mean of the folds' fits and weights of classes, by exact refits."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6)) + 1.0
Y = 2 * X[:, 0] - X[:, 1] + RNG.standard_t(2, 60)
LABELS = np.array(["no", "yes"])[(np.quantile(Y, 0.75) < Y).astype(int)]
WEIGHT = RNG.uniform(0.1, 2, 60)
FOLDS = KFold(4)
TIGHT = {"tol": 1e-12, "max_iter": 10**5}


def logistic(model):
    return LogisticRegression(C=model.C_, class_weight=model.class_weight, **TIGHT)


CASES = {  # the model, scikit-learn's at the penalty that it chose, a scorer
    "ridge": (
        HypergradRidge(cv=FOLDS),
        lambda model: Ridge(model.alpha_),
        "neg_mean_absolute_error",
    ),
    "ridge, wide": (
        HypergradRidge(cv=FOLDS),
        lambda model: Ridge(model.alpha_),
        "neg_median_absolute_error",
    ),
    "lasso": (
        HypergradLasso(cv=FOLDS),
        lambda model: Lasso(model.alpha_, **TIGHT),
        "neg_median_absolute_error",
    ),
    "elastic net": (
        HypergradElasticNet(cv=FOLDS),
        lambda model: ElasticNet(model.alpha_, l1_ratio=model.l1_ratio_, **TIGHT),
        "r2",
    ),
    "kernel": (
        HypergradKernelRidge(cv=FOLDS),
        lambda model: KernelRidge(alpha=model.alpha_, kernel="rbf", gamma=model.gamma_),
        "neg_mean_absolute_error",
    ),
    "logistic": (HypergradLogisticRegression(cv=StratifiedKFold(4)), logistic, "roc_auc"),
}


def of_case(name):
    model, other_of, scoring = CASES[name]
    A = np.hstack([X, RNG.normal(size=(60, 80))]) if "wide" in name else X
    return clone(model).set_params(scoring=scoring), other_of, A, LABELS if "log" in name else Y


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_exact_refits_and_the_choice_is_the_best_of_its_table(name):
    model, other_of, A, y = of_case(name)
    model.fit(A, y)
    expected = cross_val_score(other_of(model), A, y, scoring=model.scoring, cv=model.cv)
    np.testing.assert_allclose(model.cv_scores_, expected, rtol=1e-5)
    np.testing.assert_allclose(model.best_score_, np.mean(expected), rtol=1e-5)
    table = model.cv_results_
    np.testing.assert_allclose(table["fold_scores"].mean(1), table["mean_score"])
    assert model.best_score_ == pytest.approx(np.max(table["mean_score"]), rel=1e-11)
    smooth = clone(model).set_params(scoring=None).fit(A, y)
    own = cross_val_score(other_of(smooth), A, y, scoring=model.scoring, cv=model.cv)
    assert model.best_score_ >= np.mean(own) - 1e-6 * abs(np.mean(own))
    assert model.cv_loss_ >= smooth.cv_loss_ * (1 - 1e-6)


def test_never_below_the_grid_of_logistic_regression_cv():
    A, y = load_breast_cancer(return_X_y=True)
    A, folds = StandardScaler().fit_transform(A)[::4], StratifiedKFold(4)
    y = y[::4]
    other = LogisticRegressionCV(
        Cs=8, cv=folds, scoring="accuracy", l1_ratios=(0,), use_legacy_attributes=False, tol=1e-8,
        max_iter=10**4,
    ).fit(A, y)  # fmt: skip
    best = np.mean(np.asarray(other.scores_).reshape(4, -1), 0).max()
    model = HypergradLogisticRegression(alphas=1 / other.Cs_, cv=folds, scoring="accuracy")
    assert model.fit(A, y).best_score_ >= best


def test_of_equal_scores_the_strongest_penalty_and_one_standard_error():
    model = HypergradLogisticRegression(cv=StratifiedKFold(4), scoring="accuracy").fit(X, LABELS)
    table = model.cv_results_
    equal = table["alpha"][table["mean_score"] >= model.best_score_ - 1e-12]
    assert model.alpha_ == pytest.approx(np.max(equal))
    model.set_params(choose="one_standard_error").fit(X, LABELS)
    table = model.cv_results_
    best = np.argmax(table["mean_score"])
    error = np.std(table["fold_scores"][best], ddof=1) / 2
    equal = table["alpha"][table["mean_score"] >= table["mean_score"][best] - error]
    assert model.alpha_ == pytest.approx(np.max(equal))


def test_a_scorer_sees_names_weights_and_no_name_of_a_column():
    def score(model, A, y, sample_weight):
        assert list(model.classes_) == ["no", "yes"]
        return -log_loss(y, model.predict_proba(A), sample_weight=sample_weight)

    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    model = HypergradLogisticRegression(cv=StratifiedKFold(4), scoring=score)
    model.fit(frame, LABELS, sample_weight=WEIGHT)
    np.testing.assert_allclose(-model.best_score_, model.cv_loss_, rtol=1e-6)
    smooth = HypergradLogisticRegression(cv=StratifiedKFold(4)).fit(X, LABELS, WEIGHT)
    np.testing.assert_allclose(model.cv_loss_, smooth.cv_loss_, rtol=1e-4)
    assert list(model.feature_names_in_) == list("abcdef")


def test_several_targets_sparse_rows_and_many_penalties():
    both = np.stack([Y, Y**2], 1)
    for rows in (X, sparse.csr_array(X)):
        model = HypergradRidge("per_feature", alphas=[1.0], cv=FOLDS, scoring="r2")
        model.fit(rows, both)
        scale = np.sqrt(model.alpha_)
        expected = cross_val_score(Ridge(1.0), X / scale, both, scoring="r2", cv=FOLDS)
        np.testing.assert_allclose(model.cv_scores_, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if "wide" not in name])
def test_without_refit_it_is_the_mean_of_the_folds_fits(name):
    model, other_of, A, y = of_case(name)
    full = clone(model).set_params(scoring=None).fit(A, y)
    model.set_params(scoring=None, refit=False).fit(A, y)
    assert model.alpha_ == full.alpha_
    fits = [clone(other_of(full)).fit(A[i], y[i]) for i, _ in model.cv.split(A, y)]
    if name == "kernel":
        expected = np.mean([fit.predict(A) for fit in fits], 0)
        np.testing.assert_allclose(model.predict(A), expected, rtol=1e-6)
    else:
        np.testing.assert_allclose(model.coef_, np.mean([f.coef_ for f in fits], 0), rtol=1e-4)
        shift = np.mean([f.intercept_ for f in fits], 0)
        np.testing.assert_allclose(model.intercept_, shift, rtol=1e-4)


@pytest.mark.parametrize("weight", ["balanced", {"no": 0.5, "yes": 3.0}])
def test_weights_of_classes_are_those_of_logistic_regression(weight):
    model = HypergradLogisticRegression(cv=StratifiedKFold(4), class_weight=weight)
    model.fit(X, LABELS, sample_weight=WEIGHT)
    other = logistic(model).fit(X, LABELS, sample_weight=WEIGHT)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-6)
    plain = HypergradLogisticRegression(cv=StratifiedKFold(4)).fit(X, LABELS, WEIGHT)
    assert not np.allclose(model.coef_, plain.coef_)
    three = np.digitize(X[:, 0], [0.5, 2.0])
    several = HypergradLogisticRegression(cv=4, class_weight="balanced").fit(X, three)
    other = logistic(several).fit(X, three)
    np.testing.assert_allclose(several.coef_, other.coef_, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="need fits that have not seen all rows, and cv='loo'"):
        HypergradRidge(cv="loo", scoring="r2").fit(X, Y)
    with pytest.raises(ValueError, match="need fits that have not seen all rows, and cv='gcv'"):
        HypergradRidge(cv="gcv", refit=False).fit(X, Y)
    with pytest.raises(ValueError, match="takes no sample_weight, and fit was given one"):
        HypergradRidge(scoring="neg_max_error").fit(X, Y, sample_weight=WEIGHT)
    with pytest.raises(ValueError, match="is not finite on some fold at every penalty"):
        HypergradRidge(scoring=lambda model, A, y: np.nan).fit(X, Y)
    with pytest.raises(ValueError, match="scoring"):
        HypergradRidge(scoring="no such scorer").fit(X, Y)
