"""Generalised linear models on units and outliers that tables have, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_tweedie_deviance
from sklearn.model_selection import KFold

from bilevel.sklearn import HypergradHuberRegressor, HypergradPoissonRegressor

pytestmark = pytest.mark.filterwarnings("ignore:The loss on the folds still falls")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 5)) * [1.0, 10.0, 0.1, 1.0, 1.0] + 1.0
COUNTS = RNG.poisson(np.exp(X @ [0.5, -0.05, 2.0, 0.0, 0.0] - 0.3)).astype(float)


def test_grid_reaches_the_columns_of_small_units():
    """Columns of noise in large units first: the loss rises, and falls again with the others."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(60, 12)) * np.repeat([100.0, 0.01], [10, 2])
    y = rng.poisson(np.exp(1 + 100 * A[:, 10])).astype(float)
    folds = list(KFold(5).split(A))

    def loss(alpha: float) -> float:
        peer = PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-10, max_iter=1000)
        fits = [(peer.fit(A[a], y[a]).predict(A[b]), y[b]) for a, b in folds]
        return float(np.mean([mean_tweedie_deviance(t, m, power=1) / 2 for m, t in fits]))

    model = HypergradPoissonRegressor(cv=folds).fit(A, y)
    reach = model.cv_results_["alpha"]
    best = min(loss(alpha) for alpha in np.geomspace(min(reach), max(reach), 37))
    assert model.cv_loss_ <= best * (1 + 1e-4)


@pytest.mark.filterwarnings("ignore:Line search of Newton solver")
@pytest.mark.parametrize("large", [0, 10**9])
def test_step_that_goes_far_too_far_without_an_intercept(large, monkeypatch):
    """The exponential's slope there is astronomical, and its secant would lead back to 0."""
    monkeypatch.setattr("bilevel.sklearn.losses.glm_system.LARGE", large)
    rng = np.random.default_rng(0)
    A = rng.uniform(0.5, 3, size=(40, 1))
    y = 1e9 * rng.poisson(np.exp(A[:, 0]))
    model = HypergradPoissonRegressor(cv=KFold(5), fit_intercept=False).fit(A, y)
    options = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
    peer = PoissonRegressor(alpha=model.alpha_, fit_intercept=False, **options).fit(A, y)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-6)
    assert model.cv_loss_ > 0


@pytest.mark.parametrize("unit", [1e-40, 1e-15, 1e15, 1e40])
def test_units_that_single_precision_does_not_hold(unit, monkeypatch):
    """Before, the search did not end."""
    one = HypergradPoissonRegressor().fit(X, COUNTS)
    monkeypatch.setattr("bilevel.sklearn.losses.glm_system.LARGE", 0)
    other = HypergradPoissonRegressor().fit(X * unit, COUNTS)
    np.testing.assert_allclose(other.cv_loss_, one.cv_loss_, rtol=1e-5)
    np.testing.assert_allclose(other.coef_ * unit, one.coef_, rtol=1e-2, atol=1e-3)


def test_held_out_scores_that_single_precision_does_not_hold(monkeypatch):
    """An outlier, whose mean without it is beyond 1e38, has no part in the fit of its fold."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(60, 3))
    y = rng.poisson(np.exp(A[:, 0])).astype(float)
    A[0], y[0] = [150, 0, 0], 1
    folds = {"cv": KFold(5), "alphas": [1.0], "refit": False}
    one = HypergradPoissonRegressor(**folds).fit(A, y)
    monkeypatch.setattr("bilevel.sklearn.losses.glm_system.LARGE", 0)
    other = HypergradPoissonRegressor(**folds).fit(A, y)
    np.testing.assert_allclose(other.alpha_, one.alpha_, rtol=1e-2)
    np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-2)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_huber_where_columns_explain_everything(seed):
    """No row is inside on the way, so that the loss has no curvature there; a plane fits all."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(60, 40))
    truth = 1e-9 * rng.normal(size=40)
    model = HypergradHuberRegressor().fit(A, A @ truth)
    assert np.all(model.cv_losses_ > 0)
    assert np.all(model.cv_losses_ < 1e-5 * np.std(A @ truth))
    np.testing.assert_allclose(model.coef_, truth, atol=1e-14)


def test_fits_that_have_not_converged_are_said(monkeypatch):
    monkeypatch.setattr("bilevel.sklearn.losses.glm_fits._STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="The fits of the folds have not converged: 0"):
        HypergradPoissonRegressor(alphas=[1e-6], max_iter=1).fit(10 * X, COUNTS)
