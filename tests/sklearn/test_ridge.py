"""Ridge: against scikit-learn's fits fold by fold, finite differences, and RidgeCV."""

import pickle

import jax
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold, ShuffleSplit

from bilevel.sklearn import HypergradRidge, compute_gcv, compute_sure, leave_one_out
from bilevel.sklearn.losses.fold_sums import (
    compute_fold_sums,
    compute_group_sums,
    label_groups,
)
from bilevel.sklearn.losses.folds import make_folds, make_splits
from bilevel.sklearn.losses.ridge import RidgeLoss
from tests.sklearn.derivatives import differences

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8)) + 3.0
Y = X @ RNG.normal(size=(8, 2)) + RNG.normal(size=(40, 2))
WEIGHT = RNG.uniform(0, 2, 40) * (RNG.uniform(size=40) > 0.2)
THETA = RNG.normal(size=8)
CVS = {"kfold": KFold(4), "overlapping": ShuffleSplit(4, test_size=0.3, random_state=0)}


def by_hand(cv, theta):
    """Mean over folds of scikit-learn's weighted squared error; penalties by scaling columns."""
    scale, losses = np.exp(-theta / 2), []
    for train, held in cv.split(X):
        fit = Ridge(alpha=1.0).fit(X[train] * scale, Y[train], sample_weight=WEIGHT[train])
        errors = (fit.predict(X[held] * scale) - Y[held]) ** 2
        losses.append(np.average(errors.mean(1), weights=WEIGHT[held]))
    return np.mean(losses)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("cv", CVS.values(), ids=CVS)
def test_loss_is_that_of_fits_fold_by_fold_and_gradient_is_its_own(cv, kind):
    train, held = make_splits(cv, X, Y, None, classifier=False, random_state=None)
    parts = compute_group_sums(kind(X), Y, WEIGHT, label_groups(train, held)[0], True)
    loss = RidgeLoss(compute_fold_sums(parts, make_folds(train, held, WEIGHT))[0])
    np.testing.assert_allclose(loss(THETA).value, by_hand(cv, THETA), rtol=1e-9)
    np.testing.assert_allclose(*differences(loss, THETA), rtol=1e-6)


def test_a_problem_without_a_fold_never_sees_it():
    train, held = make_splits(4, X, Y, None, classifier=False, random_state=None)

    def losses(y):
        parts = compute_group_sums(X, y, np.ones(40), label_groups(train, held)[0], False)
        folds = make_folds(train, held, np.ones(40), without=1)
        return RidgeLoss(compute_fold_sums(parts, folds)[0])(THETA)

    first, second = losses(Y), losses(np.where(held[1][:, None], 100.0, Y))
    np.testing.assert_allclose(first.value, second.value, rtol=1e-9)
    assert second.losses[-1] > 10 * first.losses[-1]


@pytest.mark.parametrize("shape", [(40, 8), (30, 60)], ids=["tall", "wide"])
def test_fit_is_that_of_ridge_with_the_penalty_found(shape):
    A = RNG.normal(size=shape)
    y = A[:, 0] + RNG.normal(size=len(A))
    model = HypergradRidge().fit(A, y)
    reference = Ridge(alpha=model.alpha_).fit(A, y)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, reference.intercept_, rtol=1e-6)
    assert model.evidence_.linear_residual < 1e-10


def test_never_above_ridge_cv_on_the_same_folds():
    A, y = load_diabetes(return_X_y=True)
    folds = KFold(5)
    for alphas in ((0.1, 1.0, 10.0), np.logspace(-6, 2, 50)):
        other = RidgeCV(alphas, cv=folds, scoring="neg_mean_squared_error").fit(A, y)
        for penalty in ("global", "per_feature"):
            model = HypergradRidge(penalty, cv=folds).fit(A, y)
            assert model.cv_loss_ <= -other.best_score_ * (1 + 1e-6)


TABLES = ["ames_housing", "california_housing", "uci_energy", "uci_kin8nm", "uci_naval"]
TABLES += ["uci_power", "uci_yacht"]


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
@pytest.mark.parametrize("name", TABLES)
def test_never_above_ridge_cv_on_real_data(name, shared_data):
    table = np.load(shared_data / f"{name}.npz")
    A = table["X_num" if "X_num" in table else "X"]
    A, y = (A - A.mean(0)) / np.where(A.std(0) > 0, A.std(0), 1), table["y"]
    other = RidgeCV(cv=KFold(5), scoring="neg_mean_squared_error").fit(A, y)
    assert HypergradRidge().fit(A, y).cv_loss_ <= -other.best_score_ * (1 + 1e-9)


def test_per_feature_beats_one_penalty_where_most_columns_are_noise():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(240, 40))
    y = A[:, :3] @ [3.0, -2.0, 2.0] + rng.normal(size=240)
    truth = np.append([3.0, -2.0, 2.0], np.zeros(37))
    one, own = (HypergradRidge(p).fit(A[:80], y[:80]) for p in ("global", "per_feature"))
    assert own.shrinkage_ > 0
    assert np.sum((own.coef_ - truth) ** 2) < 0.7 * np.sum((one.coef_ - truth) ** 2)


def test_the_guard_stays_at_one_penalty_where_there_is_nothing_to_find():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(60, 30))
    y = A @ rng.normal(size=30) + 5 * rng.normal(size=60)
    free = HypergradRidge("per_feature", guard=False).fit(A, y)
    held_back = HypergradRidge("per_feature").fit(A, y)
    assert free.cv_loss_ < held_back.cv_loss_
    assert held_back.shrinkage_ < 0.5


def test_groups_share_their_penalty():
    labels = np.array(list("aabbabba"))
    model = HypergradRidge(labels, guard=False).fit(X, Y[:, 0])
    assert len(set(model.alpha_[labels == "a"])) == 1
    assert model.hypergradient_.shape == (2,)


def test_float32_stays_and_two_fits_are_equal_bit_for_bit():
    first = HypergradRidge(random_state=3).fit(X.astype(np.float32), Y[:, 0])
    again = clone(first).fit(X.astype(np.float32), Y[:, 0])
    assert first.coef_.dtype == first.predict(X.astype(np.float32)).dtype == np.float32
    assert first.coef_.tobytes() == again.coef_.tobytes()
    assert first.alpha_ == again.alpha_
    copied = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(copied.predict(X), first.predict(X))


def test_criteria_against_their_definitions(x64):
    weight, penalty = np.ones(40), np.exp(THETA)
    root, errors = np.sqrt(penalty), []
    for i in range(40):
        rest = np.arange(40) != i
        fit = Ridge(alpha=1.0).fit(X[rest] / root, Y[rest])
        errors.append(np.mean((fit.predict(X[[i]] / root) - Y[i]) ** 2))
    np.testing.assert_allclose(leave_one_out(THETA, X, Y, weight), np.mean(errors), rtol=1e-9)
    centred, target = X - X.mean(0), Y - Y.mean(0)
    hat = centred @ np.linalg.solve(centred.T @ centred + np.diag(penalty), centred.T)
    freedom, rss = 1 + np.trace(hat), np.sum((target - hat @ target) ** 2) / 2
    np.testing.assert_allclose(
        compute_gcv(THETA, X, Y, weight), 40 * rss / (40 - freedom) ** 2, rtol=1e-9
    )


def test_sure_is_unbiased(x64):
    mean, sigma = X @ np.ones(8), 2.0
    draws = mean[:, None] + sigma * np.random.default_rng(3).normal(size=(40, 400))
    estimate = jax.vmap(
        lambda y: compute_sure(THETA, X, y[:, None], np.ones(40), noise_variance=sigma**2), 1
    )(draws)
    fits = Ridge(alpha=1.0).fit(X / np.exp(THETA / 2), draws).predict(X / np.exp(THETA / 2))
    gap = np.asarray(estimate) - np.mean((fits - mean[:, None]) ** 2, 0)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size)  # false alarm: 6e-5


@pytest.mark.parametrize("cv", ["loo", "gcv", "sure"])
def test_tuned_by_a_criterion(cv):
    noise = 1.0 if cv == "sure" else None
    model = HypergradRidge(cv=cv, noise_variance=noise, tol=1e-10).fit(X, Y[:, 0])
    fine = model.alpha_ * np.logspace(-0.5, 0.5, 5)
    criterion = {"loo": leave_one_out, "gcv": compute_gcv, "sure": compute_sure}[cv]
    extra = {"noise_variance": noise} if noise else {}
    with jax.enable_x64(True):
        values = [criterion(np.full(8, np.log(a)), X, Y[:, :1], np.ones(40), **extra) for a in fine]
    assert np.argmin(values) == 2
    np.testing.assert_allclose(model.cv_loss_, values[2], rtol=1e-9)


REFUSALS = {
    "group label per column": {"penalty": [0, 1]},
    "positive and finite": {"alphas": [0.0]},
    "belongs to cv='sure'": {"cv": "sure"},
    "'max_iter' parameter of HypergradRidge must be an int": {"max_iter": 0},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_bad_parameters_are_refused(message):
    with pytest.raises(ValueError, match=message):
        HypergradRidge(**REFUSALS[message]).fit(X, Y[:, 0])


@pytest.mark.parametrize("cv", ["loo", "gcv", "sure"])
@pytest.mark.parametrize("penalty", ["global", "per_feature"])
@pytest.mark.parametrize("d", [8, 90], ids=["tall", "wide"])
def test_sparse_rows_without_folds_are_as_dense_ones(d, penalty, cv):
    rng = np.random.default_rng(11)
    A = rng.normal(size=(40, d)) * (rng.uniform(size=(40, d)) < 0.3)
    y = A[:, :3].sum(1) + 0.5 * rng.normal(size=40)
    weight = rng.integers(0, 3, 40) * 0.7
    options = {"cv": cv, "noise_variance": 0.25 if cv == "sure" else None}
    for intercept in (True, False):
        # One point: a descent ends where it may, to 1e-4, and not at the same bits.
        model = HypergradRidge(penalty, alphas=[2.0], max_iter=1, tol=1.0, **options)
        model.set_params(fit_intercept=intercept)
        dense = clone(model).fit(A, y, sample_weight=weight)
        stored = clone(model).fit(sparse.csr_array(A), y, sample_weight=weight)
        np.testing.assert_allclose(stored.cv_loss_, dense.cv_loss_, rtol=1e-10)
        np.testing.assert_allclose(stored.alpha_, dense.alpha_, rtol=1e-10)
        np.testing.assert_allclose(stored.coef_, dense.coef_, atol=1e-10)
        np.testing.assert_allclose(stored.intercept_, dense.intercept_, atol=1e-10)


def test_leave_one_out_of_sparse_rows_is_that_of_refits():
    A = sparse.random_array((25, 60), density=0.2, rng=np.random.default_rng(2), format="csr")
    y = A[:, :5].sum(1) + np.random.default_rng(3).normal(size=25)
    model = HypergradRidge(cv="loo").fit(A, y)
    others = [np.arange(25) != i for i in range(25)]
    fits = [Ridge(model.alpha_, solver="cholesky").fit(A.toarray()[o], y[o]) for o in others]
    errors = [(fit.predict(A[[i]].toarray()) - y[i]) ** 2 for i, fit in enumerate(fits)]
    np.testing.assert_allclose(model.cv_loss_, np.mean(errors), rtol=1e-9)
    own = HypergradRidge(cv="loo", confidence=True).fit(A[:, :8], y).confidence_
    other = HypergradRidge(cv="loo", confidence=True).fit(A[:, :8].toarray(), y).confidence_
    np.testing.assert_allclose(own.error, other.error, rtol=1e-6)
