"""Monte-Carlo SURE against exact degrees of freedom, the true risk and finite differences."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Lasso

from bilevel.sklearn import HypergradElasticNet, HypergradLasso, HypergradRidge
from bilevel.sklearn.losses import ElasticNetLoss, make_probes
from tests.sklearn.derivatives import differences

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
N, D = 100, 12
X = RNG.normal(size=(N, D)) + 1.0
SIGNAL = X[:, 0] - 2 * X[:, 1] + 0.5 * X[:, 2]
Y = SIGNAL + RNG.normal(size=N)
WEIGHT = RNG.uniform(0.3, 2, N)


def loss_of(kinds, variance, seed, rows=X, y=Y, weight=None):
    weight = np.ones(len(y)) if weight is None else weight
    random = np.random.RandomState(seed)
    return ElasticNetLoss(make_probes(rows, y, weight, True, variance, random)(None), kinds)


@pytest.mark.parametrize("kinds", [1, 2])
def test_degrees_of_freedom_are_the_exact_ones_on_average(kinds):
    """A probe so small that no column joins: df is 1 + tr X_S (X_S'X_S + n l2)^{-1} X_S'."""
    theta, variance = np.log(np.repeat([0.2, 0.1][:kinds], D)), 1e-8
    free = []
    for seed in range(100):
        at = loss_of(kinds, variance, seed)(theta)
        w = at.params[-1, :-1, 0]
        r = Y - Y.mean() - (X - X.mean(0)) @ w
        free.append((at.value - np.mean(r**2) + variance) * N / (2 * variance))
    S = (X - X.mean(0))[:, w != 0]
    l2 = 0.1 * (kinds - 1)
    exact = 1 + np.trace(S @ np.linalg.solve(S.T @ S + N * l2 * np.eye(S.shape[1]), S.T))
    error = np.std(free, ddof=1) / np.sqrt(len(free))
    assert 0 < S.shape[1] < D
    assert abs(np.mean(free) - exact) <= 4 * error
    assert error < 0.1 * exact


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["alike", "weighted"])
def test_it_estimates_the_true_error_of_the_fitted_values_without_bias(weight):
    rng, theta, gaps = np.random.default_rng(1), np.log(np.full(D, 0.1)), []
    s = np.ones(N) if weight is None else weight
    for seed in range(100):
        y = SIGNAL + rng.normal(size=N) / np.sqrt(s)
        at = loss_of(1, 1.0, seed, y=y, weight=s)(theta)
        w = at.params[-1, :-1, 0]
        fitted = np.average(y, weights=s) + (X - np.average(X, axis=0, weights=s)) @ w
        gaps.append(at.value - np.average((fitted - SIGNAL) ** 2, weights=s))
    error = np.std(gaps, ddof=1) / np.sqrt(len(gaps))
    assert abs(np.mean(gaps)) <= 4 * error
    assert error < 0.02


@pytest.mark.parametrize(("kinds", "rows", "step"), [(1, sparse.csr_array(X), 1e-4), (2, X, 1e-3)])
def test_gradient_is_its_own(kinds, rows, step):
    theta = np.log(np.repeat([0.1, 0.2][:kinds], D)) + 0.1 * np.sin(np.arange(kinds * D))
    loss = loss_of(kinds, 1.0, 0, rows, weight=WEIGHT)
    np.testing.assert_allclose(*differences(loss, theta, step), rtol=1e-4, atol=1e-6)


def test_the_choice_is_nearly_the_best_and_the_fit_scikit_learns():
    model = HypergradLasso(cv="sure", noise_variance=1.0, random_state=0).fit(X, Y)
    other = Lasso(model.alpha_, tol=1e-12, max_iter=10**5).fit(X, Y)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-7)
    risks = [
        np.mean((Lasso(alpha).fit(X, Y).predict(X) - SIGNAL) ** 2)
        for alpha in np.logspace(-3, 0, 30)
    ]
    assert np.mean((model.predict(X) - SIGNAL) ** 2) < 2 * np.min(risks)
    again = HypergradLasso(cv="sure", noise_variance=1.0, random_state=0)
    assert again.fit(X, Y, sample_weight=np.ones(N)).alpha_ == pytest.approx(model.alpha_)
    # Rows without weight do not count, y in another unit is another unit.
    more = np.vstack([X, 9 + X[:5]]), np.append(Y, np.full(5, 99.0))
    again.fit(*more, sample_weight=np.append(np.ones(N), np.zeros(5)))
    assert again.cv_loss_ == pytest.approx(model.cv_loss_, rel=0.2)
    many = HypergradElasticNet("per_feature", cv="sure", noise_variance=1.0).fit(X, Y)
    assert many.cv_loss_ <= HypergradElasticNet(cv="sure", noise_variance=1.0).fit(X, Y).cv_loss_


def test_an_estimate_below_zero():
    """With noise beyond the spread of the targets the estimate is negative: nothing is fitted."""
    for model in (HypergradLasso, HypergradRidge):
        found = model(cv="sure", noise_variance=100.0).fit(X, Y)
        assert found.cv_loss_ < 0
        np.testing.assert_allclose(found.predict(X), Y.mean(), atol=0.05)


def test_refusals():
    for kind in (HypergradLasso, HypergradElasticNet):
        with pytest.raises(ValueError, match="noise_variance, the known variance"):
            kind(cv="sure").fit(X, Y)
        with pytest.raises(ValueError, match="noise_variance, the known variance"):
            kind(noise_variance=1.0).fit(X, Y)
    with pytest.raises(ValueError, match="need fits that have not seen all rows, and cv='sure'"):
        HypergradLasso(cv="sure", noise_variance=1.0, refit=False).fit(X, Y)
