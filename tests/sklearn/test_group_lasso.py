"""Group and sparse-group lasso against optimality conditions, differences and the lasso."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import Lasso
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.sklearn import HypergradGroupLasso, HypergradLasso
from bilevel.sklearn.losses import (
    LOGISTIC,
    GroupLassoLoss,
    make_glm_folds,
    make_quadratics,
    make_splits,
)
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
N, D = 60, 12
X = RNG.normal(size=(N, D))
X[:, 1] += 2 * X[:, 0]
Y = X[:, :4] @ [1, -1, 1, 0.5] + RNG.normal(size=N)
WIDE = np.hstack([X, 0.1 * RNG.normal(size=(N, 60))])
WEIGHT = RNG.uniform(0.1, 2, N)
GROUPS = np.repeat(["a", "b", "c", "d"], 3)
FOLDS = KFold(4)


def broken_conditions(A, y, weight, w, labels, norms, l1):
    """How far 0 is from the subdifferential of the objective, [d], by its definition."""
    total = weight.sum()
    B, r = A - weight @ A / total, y - weight @ y / total
    slope = B.T @ (weight * (r - B @ w)) / total
    worst = []
    for g in np.unique(labels):
        part = labels == g
        s, v = slope[part], w[part]
        if not v.any():
            # The nearest point to s of l1 times the cube and norms times the ball.
            soft = np.maximum(np.abs(s) - l1, 0)
            worst.append(max(np.linalg.norm(soft) - norms[g], 0))
            continue
        s = s - norms[g] * v / np.linalg.norm(v)
        at_zero = np.maximum(np.abs(s) - l1, 0)
        worst.append(np.max(np.where(v == 0, at_zero, np.abs(s - l1 * np.sign(v)))))
    return max(worst)


@pytest.mark.parametrize("ratio", [0.0, 0.3])
@pytest.mark.parametrize("rows", [X, WIDE, sparse.csr_array(WIDE)], ids=["tall", "wide", "sparse"])
def test_gradient_is_its_own(ratio, rows):
    splits = make_splits(4, X, Y, None, classifier=False, random_state=None)
    labels = np.arange(rows.shape[1]) // 3
    loss = GroupLassoLoss(make_quadratics(rows, Y, WEIGHT, splits, True)(None), labels, ratio)
    theta = np.log(np.random.default_rng(1).uniform(0.05, 0.6, rows.shape[1]))
    found, reference = differences(loss, theta)
    used = loss(theta).params[-1, :-1, 0].reshape(-1, 3) != 0
    assert 0 < used.any(1).sum() < len(used)
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-7)
    assert loss(theta).inner_residual < 1e-10


def test_gradient_of_logistic_regression_is_its_own():
    labels, y = np.arange(D) // 3, (Y > 0) * 1.0
    splits = make_splits(4, X, y, None, classifier=True, random_state=None)
    loss = GroupLassoLoss(make_glm_folds(LOGISTIC, X, y, WEIGHT, splits, True)(None), labels, 0.2)
    theta = np.log(np.random.default_rng(1).uniform(0.5, 3, D))
    np.testing.assert_allclose(*differences(loss, theta), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("penalty", ["global", "per_group"])
def test_fits_fulfil_the_optimality_conditions(penalty, ratio):
    model = HypergradGroupLasso(GROUPS, penalty, l1_ratio=ratio, cv=FOLDS, guard=False)
    model.fit(X, Y, sample_weight=WEIGHT)
    alpha = np.broadcast_to(model.alpha_, D)
    norms = dict(zip(GROUPS, (1 - ratio) * np.sqrt(3) * alpha, strict=True))
    l1 = ratio * alpha.reshape(4, 3)[:, :1]
    scale = np.abs((X - X.mean(0)).T @ Y / N).max()
    for g, name in enumerate("abcd"):  # the l1 part differs by group
        part = name == GROUPS
        rest = Y - X[:, ~part] @ model.coef_[~part]
        own = broken_conditions(
            X[:, part], rest, WEIGHT, model.coef_[part], GROUPS[part], norms, l1[g]
        )
        assert own < 1e-9 * scale
    if penalty == "per_group":
        one = clone(model).set_params(penalty="global").fit(X, Y, sample_weight=WEIGHT)
        assert model.cv_loss_ < one.cv_loss_


def test_groups_of_one_column_are_the_lasso():
    own, other = HypergradGroupLasso(cv=FOLDS).fit(X, Y), HypergradLasso(cv=FOLDS).fit(X, Y)
    np.testing.assert_allclose(own.alpha_, other.alpha_, rtol=1e-6)
    np.testing.assert_allclose(own.coef_, other.coef_, atol=1e-7)
    np.testing.assert_allclose(
        own.coef_, Lasso(own.alpha_, tol=1e-12, max_iter=10**5).fit(X, Y).coef_, atol=1e-7
    )


def test_no_penalty_of_a_grid_is_better_and_groups_go_whole():
    model = HypergradGroupLasso(GROUPS, cv=FOLDS).fit(X, Y)
    splits = make_splits(FOLDS, X, Y, None, classifier=False, random_state=None)
    problem = make_quadratics(X, Y, np.ones(N), splits, True)(None)
    loss = GroupLassoLoss(problem, np.arange(D) // 3, 0.0)
    grid = np.log(model.alpha_) + np.linspace(-4, 4, 41)
    assert model.cv_loss_ <= min(loss(np.full(D, t)).value for t in grid) * (1 + model.tol)
    strong = HypergradGroupLasso(GROUPS, alphas=[0.5], max_iter=1, cv=FOLDS).fit(X, Y)
    used = strong.coef_.reshape(4, 3) != 0
    assert np.all(used.all(1) == used.any(1))
    assert 0 < used.sum() < D


def test_units_dense_or_sparse_rows_and_columns_without_penalty():
    model = HypergradGroupLasso(GROUPS, cv=FOLDS).fit(X, Y)
    scaled = clone(model).fit(1000 * X, 100 * Y)
    np.testing.assert_allclose(scaled.alpha_, 1e5 * model.alpha_, rtol=1e-6)
    np.testing.assert_allclose(scaled.predict(1000 * X), 100 * model.predict(X), rtol=1e-6)
    stored = clone(model).fit(sparse.csr_array(X), Y)
    np.testing.assert_allclose(stored.coef_, model.coef_, atol=1e-8)
    free = HypergradGroupLasso(GROUPS, {9: 0, 10: 0, 11: 0}, alphas=[2.0], max_iter=1).fit(X, Y)
    assert np.all(free.coef_[9:] != 0)
    with pytest.raises(ValueError, match="column_groups must hold one group label per column"):
        HypergradGroupLasso([0, 1]).fit(X, Y)
    for nothing in (None, np.nan):
        with pytest.raises(ValueError, match="label of column 2 is missing"):
            HypergradGroupLasso([0, 1, nothing, *GROUPS[3:]]).fit(X, Y)


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@parametrize_with_checks([HypergradGroupLasso(), HypergradGroupLasso(l1_ratio=0.5)])
def test_check(estimator, check):
    check(estimator)
