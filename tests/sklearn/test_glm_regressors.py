"""Poisson, Gamma, Tweedie and Huber regression against scikit-learn's, differences and grids."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import GammaRegressor, HuberRegressor, PoissonRegressor, TweedieRegressor
from sklearn.linear_model._huber import _huber_loss_and_gradient
from sklearn.metrics import mean_tweedie_deviance
from sklearn.model_selection import KFold

from bilevel.sklearn import (
    HypergradGammaRegressor,
    HypergradHuberRegressor,
    HypergradPoissonRegressor,
    HypergradTweedieRegressor,
)
from bilevel.sklearn.losses import (
    LOGISTIC,
    MULTINOMIAL,
    SQUARED,
    GlmFolds,
    GlmLoss,
    make_folds,
    make_huber,
    make_splits,
    make_tweedie,
)
from tests.sklearn.derivatives import differences

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 5)) * [1.0, 10.0, 0.1, 1.0, 1.0] + 1.0
SCORE = X @ [0.5, -0.05, 2.0, 0.0, 0.0] - 0.3
COUNTS = RNG.poisson(np.exp(SCORE)).astype(float)
WEIGHT = RNG.uniform(0.1, 2, 90)
ROBUST = SCORE + 0.3 * RNG.standard_t(1.5, 90)
FOLDS = KFold(4)
TIGHT = {"tol": 1e-8, "max_iter": 100, "solver": "newton-cholesky"}
CASES = {  # the model, its targets, scikit-learn's at a penalty, power of the deviance
    "poisson": (
        HypergradPoissonRegressor(cv=FOLDS),
        COUNTS,
        lambda alpha: PoissonRegressor(alpha=alpha, **TIGHT),
        1,
    ),
    "gamma": (
        HypergradGammaRegressor(cv=FOLDS),
        RNG.gamma(3.0, np.exp(SCORE) / 3),
        lambda alpha: GammaRegressor(alpha=alpha, **TIGHT),
        2,
    ),
    "tweedie": (
        HypergradTweedieRegressor(power=1.5, cv=FOLDS),
        COUNTS * RNG.gamma(2.0, size=90),
        lambda alpha: TweedieRegressor(alpha=alpha, power=1.5, **TIGHT),
        1.5,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fit_and_loss_are_scikit_learns_and_no_penalty_of_a_fine_grid_is_better(name):
    model, y, other_of, power = CASES[name]
    model = clone(model).fit(X, y)
    other = other_of(model.alpha_).fit(X, y)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, other.intercept_, atol=1e-6)
    np.testing.assert_allclose(model.predict(X), other.predict(X), rtol=1e-6)
    np.testing.assert_allclose(model.score(X, y), other.score(X, y), rtol=1e-6)

    def losses(alpha):
        fits = [(other_of(alpha).fit(X[i], y[i]), o) for i, o in FOLDS.split(X)]
        return [mean_tweedie_deviance(y[o], fit.predict(X[o]), power=power) / 2 for fit, o in fits]

    np.testing.assert_allclose(losses(model.alpha_), model.cv_losses_, rtol=1e-6)
    grid = [np.mean(losses(alpha)) for alpha in model.alpha_ * np.logspace(-3, 3, 13)]
    assert model.cv_loss_ <= np.min(grid) * (1 + model.tol)


@pytest.mark.parametrize("name", CASES)
def test_weights_sparse_rows_no_intercept_and_wide_rows(name):
    model, y, other_of, _ = CASES[name]
    wide = np.hstack([X, RNG.normal(size=(90, 120))])
    for A, intercept in ((sparse.csr_array(X), True), (X, False), (wide, True)):
        own = clone(model).set_params(fit_intercept=intercept).fit(A, y, sample_weight=WEIGHT)
        other = other_of(own.alpha_).set_params(fit_intercept=intercept)
        other.fit(X if sparse.issparse(A) else A, y, sample_weight=WEIGHT)
        np.testing.assert_allclose(own.coef_, other.coef_, atol=1e-6)
        np.testing.assert_allclose(own.intercept_, other.intercept_, atol=1e-6)
    assert clone(model).fit(X.astype(np.float32), y).predict(X.astype(np.float32)).dtype == "f4"


def solve_huber(A, y, weight, alpha, intercept):
    """Minimise scikit-learn's own loss to the end, which its estimator stops short of."""
    options = {"alpha": alpha, "fit_intercept": intercept, "max_iter": 10**4}
    other = HuberRegressor(**options).fit(A, y, sample_weight=weight)
    shift = [other.intercept_] if intercept else []
    start = np.concatenate([other.coef_, shift, [other.scale_]])
    found = minimize(
        *(_huber_loss_and_gradient, start, (A, y, 1.35, alpha, weight)),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 1000},
    )
    return found.x


def huber_loss(fit, A, y):
    """Mean loss of rows by the formula of Owen (2007), of coefficients, intercept and scale."""
    r, s = np.abs(y - A @ fit[:5] - fit[5]), fit[-1]
    return np.mean(np.where(r > 1.35 * s, s + 2 * 1.35 * r - s * 1.35**2, s + r**2 / s))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_huber_regression_is_scikit_learns_and_no_penalty_of_a_fine_grid_is_better(unit, intercept):
    y = unit * ROBUST
    model = HypergradHuberRegressor(cv=FOLDS, fit_intercept=intercept)
    model.fit(X, y, sample_weight=WEIGHT)
    other = solve_huber(X, ROBUST, WEIGHT, model.alpha_ * unit, intercept)
    np.testing.assert_allclose(model.coef_ / unit, other[:5], atol=1e-6)
    np.testing.assert_allclose(model.scale_ / unit, other[-1], atol=1e-6)
    if intercept:
        np.testing.assert_allclose(model.intercept_ / unit, other[5], atol=1e-6)
    if unit == 1 and intercept:
        plain, ones = clone(model).fit(X, y), np.ones(90)
        losses = []
        for alpha in plain.alpha_ * np.logspace(-3, 3, 13):
            fits = [(solve_huber(X[i], y[i], ones[i], alpha, True), o) for i, o in FOLDS.split(X)]
            losses.append(np.mean([huber_loss(fit, X[o], y[o]) for fit, o in fits]))
        np.testing.assert_allclose(plain.cv_loss_, losses[6], rtol=1e-6)
        assert plain.cv_loss_ <= np.min(losses) * (1 + plain.tol)


@pytest.mark.filterwarnings("error")
def test_huber_regression_without_noise_has_a_scale_next_to_nothing():
    for y in (X @ np.arange(5.0), np.full(90, 3.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = HypergradHuberRegressor(alphas=[1e-12], max_iter=1).fit(X, y)
        np.testing.assert_allclose(model.predict(X), y, atol=1e-5)
        assert 0 <= model.scale_ < 1e-4


LINKS = {
    "logistic": (LOGISTIC, (SCORE[:, None] > 0.5) * 1.0),
    "multinomial": (MULTINOMIAL, np.eye(3)[np.digitize(SCORE, [0, 1])]),
    "squared": (SQUARED, SCORE[:, None]),
    "poisson": (make_tweedie(1), COUNTS[:, None]),
    "gamma": (make_tweedie(2), COUNTS[:, None] + 0.5),
    "tweedie": (make_tweedie(1.7), COUNTS[:, None]),
    "huber": (make_huber(1.35), np.stack([ROBUST, np.zeros(90)], 1)),
}


@pytest.mark.parametrize("name", LINKS)
def test_derivatives_of_every_loss_are_its_own(name):
    link, y = LINKS[name]
    y, rng = y[:6], np.random.default_rng(1)
    outputs = y.shape[1]
    z = rng.normal(size=(6, outputs)) + 2.0 * link.plain
    N = rng.normal(size=(6, outputs, outputs))
    N += np.swapaxes(N, 1, 2)
    step = 1e-5 * np.eye(outputs)

    def slope(z):
        return link.derive(z[:, None], y[:, None])[0][:, 0]

    def hessian(z):
        c = link.derive(z[:, None], y[:, None])[1]
        each = [link.curved(c, unit * np.ones((6, 1, outputs)))[:, 0] for unit in np.eye(outputs)]
        return np.stack(each, 2)

    def central(fn):
        return np.stack([(fn(z + s) - fn(z - s)) / 2e-5 for s in step], -1)

    value = central(lambda z: link.value(z[:, None], y[:, None])[:, 0])
    np.testing.assert_allclose(slope(z), value, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(hessian(z), central(slope), rtol=1e-6, atol=1e-8)
    weighted = central(lambda z: np.sum(N * hessian(z), (1, 2)))
    np.testing.assert_allclose(link.third(z, y, N), weighted, rtol=1e-6, atol=1e-7)
    c = link.derive(z[:, None], y[:, None])[1]
    mean = np.einsum("naa->n", hessian(z)) / outputs
    np.testing.assert_allclose(link.diagonal(c)[:, 0], mean, rtol=1e-12)


@pytest.mark.parametrize("name", ["poisson", "gamma", "tweedie", "huber"])
def test_hypergradient_is_its_own(name):
    link, y = LINKS[name]
    train, held = make_splits(4, X, y, None, classifier=False, random_state=None)
    folds = make_folds(train, held, WEIGHT)
    loss = GlmLoss(link, GlmFolds(X, y, WEIGHT, folds, True, link.plain))
    theta = np.log([1.0, 30.0, 0.01, 1.0, 5.0])
    found, reference = differences(loss.evaluate_to_rounding, theta, 1e-4)
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-8)


def test_many_penalties_names_and_scores():
    model = HypergradPoissonRegressor({0: 0, 1: "far"}, scoring="neg_mean_absolute_error")
    model.fit(X, COUNTS)
    assert model.alpha_[0] == 0
    assert model.alpha_.shape == (5,)
    scale = np.sqrt(np.maximum(model.alpha_, 1e-12))
    options = {**TIGHT, "tol": 1e-6, "max_iter": 100}
    other = PoissonRegressor(alpha=1.0, **options).fit(X / scale, COUNTS)
    np.testing.assert_allclose(model.coef_, other.coef_ / scale, rtol=1e-4, atol=1e-6)
    assert model.best_score_ == np.max(model.cv_results_["mean_score"])


def test_targets_out_of_range_are_refused():
    with pytest.raises(ValueError, match="HypergradPoissonRegressor must be not negative"):
        HypergradPoissonRegressor().fit(X, COUNTS - 3)
    with pytest.raises(ValueError, match="not 0 in every row"):
        HypergradPoissonRegressor().fit(X, 0 * COUNTS)
    with pytest.raises(ValueError, match="HypergradGammaRegressor must be positive"):
        HypergradGammaRegressor().fit(X, COUNTS - np.min(COUNTS))
    with pytest.raises(ValueError, match="power"):
        HypergradTweedieRegressor(power=0.5).fit(X, COUNTS)


@pytest.mark.parametrize("of_y", [1e-6, 1e9])
def test_units_of_x_and_y(of_y):
    """Gamma's deviance has no unit; Huber's loss has that of y."""
    y = RNG.gamma(3.0, np.exp(SCORE) / 3)
    one = HypergradGammaRegressor(cv=FOLDS).fit(X, y)
    other = HypergradGammaRegressor(cv=FOLDS).fit(1000 * X, of_y * y)
    np.testing.assert_allclose(other.cv_loss_, one.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(other.predict(1000 * X) / of_y, one.predict(X), rtol=1e-3)
    one = HypergradHuberRegressor(cv=FOLDS).fit(X, ROBUST)
    other = HypergradHuberRegressor(cv=FOLDS).fit(1000 * X, of_y * ROBUST)
    np.testing.assert_allclose(other.cv_loss_ / of_y, one.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(other.predict(1000 * X) / of_y, one.predict(X), atol=1e-3)


def test_counts_that_are_large_and_rows_that_are_far():
    """Scores whose exponential has no double are held out, and nothing is lost but that fold."""
    rng = np.random.default_rng(2)
    A = rng.normal(size=(60, 2))
    y = rng.poisson(1e6 * expit(A[:, 0])).astype(float)
    model = HypergradPoissonRegressor().fit(A, y)
    other = PoissonRegressor(alpha=model.alpha_, solver="newton-cholesky").fit(A, y)
    np.testing.assert_allclose(model.predict(A), other.predict(A), rtol=1e-6)
    A[0, 0] = 1e6
    assert np.isfinite(HypergradPoissonRegressor().fit(A, y).cv_loss_)
