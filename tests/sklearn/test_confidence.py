"""Standard errors of tuned penalties: against refits with other weights, and other draws."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import brentq
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold

from bilevel.sklearn import (
    HypergradGammaRegressor,
    HypergradHuberRegressor,
    HypergradLogisticRegression,
    HypergradPoissonRegressor,
    HypergradRidge,
    PenaltyConfidence,
)

RNG = np.random.default_rng(17)
N = 36
X = RNG.normal(size=(N, 4)) + 1.0
Z = X @ [0.6, -0.4, 0.3, 0.0] - 0.5
Y = Z + RNG.normal(size=N)
BOTH = np.stack([Y, Z + RNG.normal(size=N)], 1)
WIDE = np.hstack([X, RNG.normal(size=(N, 40))])
COUNTS = RNG.poisson(np.exp(Z)).astype(float)
AMOUNTS = RNG.gamma(3.0, np.exp(Z) / 3)
WEIGHT = RNG.uniform(0.5, 2, N)


def jackknife(u):
    return np.sqrt(len(u) / (len(u) - 1) * np.sum((u - u.mean()) ** 2))


def shift(fit, step=1e-2):
    """Derivatives of the logarithm of a penalty in those of the weights, by differences."""
    u = np.zeros(N)
    for i in range(N):
        ends = []
        for sign in (1, -1):
            weight = WEIGHT.copy()
            weight[i] *= 1 + sign * step
            ends.append(np.log(fit(weight)))
        u[i] = (ends[0] - ends[1]) / (2 * step)
    return u


CASES = {
    "folds": (HypergradRidge(), X, Y),
    "targets": (HypergradRidge(fit_intercept=False), X, BOTH),
    "wide": (HypergradRidge(cv=3), WIDE, Y),
    "gcv": (HypergradRidge(cv="gcv"), X, BOTH),
    "sure": (HypergradRidge(cv="sure", noise_variance=1.0), WIDE, Y),
    "logistic": (HypergradLogisticRegression(cv=3), X, Y > 0),
    "multinomial": (HypergradLogisticRegression(cv=3), X, np.digitize(Y, [-0.7, 0.7])),
    "poisson": (HypergradPoissonRegressor(cv=3), X, COUNTS),
    "gamma": (HypergradGammaRegressor(cv=3), X, AMOUNTS),
    "huber": (HypergradHuberRegressor(cv=3), X, Y),
}


LONG = {"multinomial": pytest.mark.extended, "gamma": pytest.mark.extended}
LONG |= {"poisson": pytest.mark.extended, "huber": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name, ())) for name in CASES])
def test_error_is_the_jackknife_of_refits_with_other_weights(name):
    model, rows, y = CASES[name]
    model.set_params(tol=1e-14, confidence=True)
    error = model.fit(rows, y, WEIGHT).confidence_.error
    model.set_params(confidence=False)
    ridge = isinstance(model, HypergradRidge)
    u = shift(lambda weight: model.fit(rows, y, weight).alpha_, 1e-3 if ridge else 1e-2)
    # Losses whose solver iterates are minimised to 1e-10, so the refits end up to 1e-4 from their
    # minimum, beside a step of 1e-2; the second derivatives of Huber's loss jump.
    limit = {"huber": 2e-2}.get(name, 5e-4 if ridge else 5e-3)
    np.testing.assert_allclose(error, jackknife(u), rtol=limit)


@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_is_the_jackknife_of_copies_that_are_left_out_alone(intercept):
    model = HypergradRidge(cv="loo", confidence=True, fit_intercept=intercept, tol=1e-14)
    model.fit(X, Y, WEIGHT)
    A = np.column_stack([X, np.ones(N)]) if intercept else X
    unit = np.ones(A.shape[1])
    unit[4:] = 0

    def slope(theta, copies, step=1e-4):
        values = []
        for t in (theta + step, theta - step):
            s = copies * WEIGHT
            inverse = np.linalg.inv(A.T @ (s[:, None] * A) + np.exp(t) * np.diag(unit))
            e = Y - A @ (inverse @ (A.T @ (s * Y)))
            own = WEIGHT * np.sum((A @ inverse) * A, 1)
            values.append(s @ (e / (1 - own)) ** 2 / s.sum())
        return (values[0] - values[1]) / (2 * step)

    at, u = np.log(model.alpha_), np.zeros(N)
    for i, one in enumerate(np.eye(N)):
        ends: list = [
            brentq(slope, at - 0.5, at + 0.5, args=(1 + c * one,), xtol=1e-12)
            for c in (1e-3, -1e-3)
        ]
        u[i] = (ends[0] - ends[1]) / 2e-3
    np.testing.assert_allclose(model.confidence_.error, jackknife(u), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored by KFold")
def test_sparse_rows_rows_of_weight_0_and_groups_of_one_row_change_nothing():
    model = HypergradRidge(confidence=True)
    error = model.fit(X, Y).confidence_.error
    folds = [(np.setdiff1d(np.arange(N), held), held) for held in np.array_split(np.arange(N), 5)]
    folds[0] = np.append(folds[0][0], N), folds[0][1]
    more, weight = np.vstack([X, X[:1] + 5]), np.append(np.ones(N), 0)
    absent = HypergradRidge(confidence=True, cv=folds).fit(more, np.append(Y, 9.0), weight)
    np.testing.assert_allclose(
        model.fit(sparse.csr_array(X), Y).confidence_.error, error, rtol=1e-5
    )
    np.testing.assert_allclose(absent.confidence_.error, error, rtol=1e-5)
    np.testing.assert_allclose(
        model.fit(X, Y, groups=np.arange(N)).confidence_.error, error, rtol=1e-12
    )


def test_rows_that_are_drawn_together_count_as_one():
    groups = np.arange(N) // 3
    model = HypergradRidge(cv=GroupKFold(4), tol=1e-14).fit(X, Y, WEIGHT, groups)
    u = shift(lambda weight: model.fit(X, Y, weight, groups).alpha_)
    error = model.set_params(confidence=True).fit(X, Y, WEIGHT, groups).confidence_.error
    np.testing.assert_allclose(error, jackknife(np.bincount(groups, u)), rtol=2e-3)


@pytest.mark.parametrize(
    "model",
    [
        HypergradRidge("per_feature"),
        HypergradRidge(choose="one_standard_error"),
        HypergradRidge(scoring="r2"),
        HypergradPoissonRegressor(cv="alo"),
        HypergradLogisticRegression(class_weight="balanced"),
    ],
)
def test_penalties_that_are_no_minimum_are_refused(model):
    with pytest.raises(ValueError, match="confidence=True is for one penalty"):
        model.set_params(confidence=True).fit(X, COUNTS > 1 if "Log" in str(model) else COUNTS)


@pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
def test_at_a_bound_there_is_none():
    with pytest.warns(ConvergenceWarning, match="No confidence in the penalty"):
        model = HypergradRidge(confidence=True).fit(X, Z)
    assert model.confidence_.interval() == (0.0, np.inf)


def test_interval_is_that_of_a_normal_logarithm():
    low, high = PenaltyConfidence(2.0, 0.3).interval()
    np.testing.assert_allclose(
        np.log([low, high]), np.log(2) + np.array([-1, 1]) * 1.959964 * 0.3, rtol=1e-6
    )
    with pytest.raises(ValueError, match="between 0 and 1"):
        PenaltyConfidence(2.0, 0.3).interval(95)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cv", "least", "most"),
    [("gcv", 0.85, 1.15), ("loo", 0.85, 1.15), (None, 1.0, 1.8)],
    ids=["gcv", "loo", "folds"],
)
def test_other_draws_differ_by_the_error(cv, least, most):
    # Standard deviation over 300 draws, known to 4 %. A jackknife counts what pairs of held-out and
    # training rows do together twice, so that of folds is above it.
    rng, d = np.random.default_rng(0), 20
    truth, logs, errors, inside = 0.3 * np.cos(1.7 * np.arange(d)), [], [], []
    for _ in range(300):
        rows = rng.normal(size=(1000, d))
        model = HypergradRidge(cv=cv, confidence=True)
        model.fit(rows, rows @ truth + rng.normal(size=1000))
        logs.append(np.log(model.alpha_))
        errors.append(model.confidence_.error)
        inside.append(model.confidence_.interval())
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std(logs)
    middle = np.exp(np.mean(logs))
    covered = np.mean([low <= middle <= high for low, high in inside])
    print(f"error / deviation {ratio:.2f}, covered {covered:.3f}")
    assert least < ratio < most
    assert covered > 0.91  # 95 % but for 3 of its standard errors
