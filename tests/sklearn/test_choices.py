"""Columns by name, fixed factors, the one-standard-error choice, tables of losses, signs."""

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import KFold

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradKernelRidge,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)
from bilevel.sklearn.search import group_columns

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6))
Y = 2 * X[:, 0] - X[:, 1] + 0.5 * X[:, 2] + RNG.normal(size=60)
LABELS = (Y > 0).astype(int)
MODELS = [
    HypergradRidge(),
    HypergradLasso(),
    HypergradElasticNet(),
    HypergradLogisticRegression(),
    HypergradKernelRidge(),
]


def target_of(model):
    return LABELS if isinstance(model, HypergradLogisticRegression) else Y


def test_columns_by_name_pattern_and_number():
    names = np.array(["age", "gene1", "gene2", "height"])
    groups, offset = group_columns({"age": 0, "gene*": "genes", 3: 2.0}, 4, names)
    assert groups[1] == groups[2] != groups[3]
    assert np.exp(offset[0]) == 0
    np.testing.assert_allclose(np.exp(offset[1:]), [1, 1, 2])
    for wrong, message in (
        ({"ag": 0}, "which is no column of X: the columns are"),
        ({"age": -1}, "must be a group label, or a factor"),
        ({"*": 0}, "no column with a penalty"),
    ):
        with pytest.raises(ValueError, match=message):
            group_columns(wrong, 4, names)
    with pytest.raises(ValueError, match="X has no column names"):
        group_columns({"age": 0}, 4)


def projected(A, free, y=None):
    """Residuals of ``A`` or ``y`` on the free columns and the intercept."""
    target = A if y is None else y
    return target - LinearRegression().fit(A[:, free], target).predict(A[:, free])


def test_ridge_leaves_a_column_alone():
    """The coefficients of the others are those of the ridge of what the free column leaves."""
    model = HypergradRidge({0: 0}).fit(X, Y)
    assert model.alpha_[0] == 0
    assert len(set(model.alpha_[1:])) == 1
    rest = np.arange(6) > 0
    other = Ridge(alpha=model.alpha_[1], fit_intercept=False)
    other.fit(projected(X, [0])[:, rest], projected(X, [0], Y))
    np.testing.assert_allclose(model.coef_[rest], other.coef_, rtol=1e-8)


@pytest.mark.parametrize("kind", [HypergradLasso, HypergradElasticNet])
def test_lasso_leaves_a_column_alone_and_takes_factors(kind):
    model = kind({0: 0, 1: 2.0}).fit(X, Y)
    assert model.alpha_[0] == 0
    np.testing.assert_allclose(model.alpha_[1], 2 * model.alpha_[2])
    assert model.coef_[0] != 0
    # Columns divided by their factor, the free one projected out: scikit-learn's one penalty.
    if kind is HypergradLasso:
        scaled = projected(X, [0])[:, 1:] / [2.0, 1, 1, 1, 1]
        other = Lasso(model.alpha_[2], fit_intercept=False, tol=1e-12, max_iter=10**5)
        other.fit(scaled, projected(X, [0], Y))
        np.testing.assert_allclose(model.coef_[1:], other.coef_ / [2.0, 1, 1, 1, 1], atol=1e-8)


def test_logistic_regression_leaves_a_column_alone():
    model = HypergradLogisticRegression({0: 0, 1: 4.0}).fit(X, LABELS)
    scale = np.array([1e-6, 4.0, 1, 1, 1, 1]) ** 0.5
    other = LogisticRegression(C=1 / model.alpha_[2], tol=1e-12, max_iter=10**5)
    other.fit(X / scale, LABELS)
    np.testing.assert_allclose(model.coef_[0], other.coef_[0] / scale, rtol=1e-3, atol=1e-5)


def test_names_of_a_frame():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    by_name = HypergradRidge({"[ab]": "first"}, guard=False).fit(frame, Y)
    by_label = HypergradRidge(list("xxyyyy"), guard=False).fit(X, Y)
    np.testing.assert_allclose(by_name.coef_, by_label.coef_, rtol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_one_standard_error_is_the_strongest_that_folds_do_not_tell_from_the_best(model):
    y = target_of(model)
    best = model.set_params(choose="smallest_loss").fit(X, y)
    loss, losses = best.cv_loss_, best.cv_losses_
    np.testing.assert_allclose(losses.mean(), loss, rtol=1e-6)
    limit = loss + losses.std(ddof=1) / np.sqrt(len(losses))
    alpha = best.alpha_
    strong = model.set_params(choose="one_standard_error").fit(X, y)
    model.set_params(choose="smallest_loss")
    assert strong.alpha_ > alpha
    assert loss < strong.cv_loss_ <= limit * (1 + 1e-6)
    assert strong.cv_loss_ > limit - 0.05 * (limit - loss)


def test_one_standard_error_needs_folds():
    with pytest.raises(ValueError, match="the losses of at least two folds"):
        HypergradRidge(cv="loo", choose="one_standard_error").fit(X, Y)


def test_table_of_losses_is_that_of_fits_fold_by_fold():
    model = HypergradRidge(alphas=[0.1, 10.0], cv=KFold(4)).fit(X, Y)
    table = model.cv_results_
    for alpha, mean, losses in zip(
        table["alpha"], table["mean_loss"], table["fold_losses"], strict=True
    ):
        fits = [(Ridge(alpha).fit(X[i], Y[i]), o) for i, o in KFold(4).split(X)]
        expected = [np.mean((fit.predict(X[o]) - Y[o]) ** 2) for fit, o in fits]
        np.testing.assert_allclose(losses, expected, rtol=1e-8)
        np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-8)


@pytest.mark.parametrize("many", [False, True], ids=["one", "per feature"])
def test_coefficients_that_are_not_negative(many):
    penalty = "per_feature" if many else "global"
    model = HypergradLasso(penalty, positive=True, guard=False).fit(X, Y)
    assert np.all(model.coef_ >= 0)
    assert model.coef_[1] == 0
    if not many:
        other = Lasso(model.alpha_, positive=True, tol=1e-12, max_iter=10**5).fit(X, Y)
        np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-8)
        net = HypergradElasticNet(positive=True).fit(X, Y)
        options = {"l1_ratio": net.l1_ratio_, "positive": True, "tol": 1e-12, "max_iter": 10**5}
        other = ElasticNet(net.alpha_, **options).fit(X, Y)
        np.testing.assert_allclose(net.coef_, other.coef_, atol=1e-8)
