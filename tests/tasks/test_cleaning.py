"""Data cleaning against scikit-learn, a plain loop, and the published protocol."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

import bilevel as bl
from tasks.cleaning import cleaning, corrupt
from tasks.judges.cleaning_judge import f1
from tasks.solvers.from_rest import FromRest
from tests.tasks.experiment import run_experiment


@pytest.mark.parametrize("noise", ["uniform", "other", "pair"])
def test_noise_is_what_it_says(noise: str) -> None:
    n, classes = 5000, 10
    y = np.random.RandomState(0).randint(0, classes, n)
    before = y.copy()
    noisy = corrupt(y, classes, noise, 0.5, np.random.RandomState(1))
    np.testing.assert_array_equal(y, before)
    wrong = noisy != y
    if noise == "uniform":  # one redraw in ten is right
        assert abs(np.mean(wrong) - 0.45) < 4 * np.sqrt(0.5 * 0.09 / n)  # false alarm: 6e-5
    else:
        assert np.sum(wrong) == n // 2
    steps = set(((noisy - y) % classes)[wrong])
    assert steps == ({1} if noise == "pair" else set(range(1, classes)))


def test_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.RandomState(0)
    flagged, wrong = rng.rand(50) < 0.3, rng.rand(50) < 0.5
    assert f1(flagged, wrong) == pytest.approx(f1_score(wrong, flagged))


def test_hypergradient_is_the_central_difference(x64) -> None:
    """Of the validation loss where scikit-learn puts the weighted fit."""
    decay = 0.02
    task = cleaning(train=60, validation=40, test=20, decay=decay)
    X, y, _ = map(np.asarray, task.data.inner)
    X = np.concatenate([X, np.ones((len(X), 1))], axis=1)  # the intercept is decayed as the rest
    held, labels = map(np.asarray, task.data.outer)
    held = np.concatenate([held, np.ones((len(held), 1))], axis=1)

    def value(hyper: np.ndarray) -> float:
        model = LogisticRegression(
            C=1 / (2 * decay * len(y)),
            fit_intercept=False,
            tol=1e-12,
            max_iter=1000,
            solver="newton-cholesky",
        )
        model.fit(X, y, sample_weight=1 / (1 + np.exp(-hyper)))
        return log_loss(labels, model.predict_proba(held), labels=model.classes_)

    rng = np.random.default_rng(0)
    hyper, direction = rng.normal(size=len(y)), rng.normal(size=len(y))
    slope = (value(hyper + 1e-4 * direction) - value(hyper - 1e-4 * direction)) / 2e-4
    estimator = bl.Implicit(bl.SGD(0.5, momentum=0.9), steps=600, linear=bl.CG(tol=1e-10))
    estimate, _ = bl.hypergradient(
        task.problem, estimator, jnp.asarray(hyper), task.params, task.data, jax.random.key(0)
    )
    assert estimate.value == pytest.approx(value(hyper), rel=1e-6)
    assert estimate.grad @ direction == pytest.approx(slope, rel=1e-4)


def test_refit_is_heavy_ball_on_weighted_rows() -> None:
    task = cleaning(train=80, validation=20, test=200, refit_steps=40)
    hyper = np.random.RandomState(0).normal(size=80).astype(np.float32)
    weights = np.concatenate([1 / (1 + np.exp(-hyper)), np.ones(20)])
    weights /= weights.sum()
    inner, outer = task.data.inner, task.data.outer
    X = np.concatenate([np.asarray(inner[0], float), np.asarray(outer[0], float)])
    X = np.concatenate([X, np.ones((100, 1))], axis=1)
    Y = np.eye(10)[np.concatenate([inner[1], outer[1]])]
    w = velocity = np.zeros((65, 10))
    for _ in range(40):
        odds = np.exp(X @ w)
        slope = X.T @ (weights[:, None] * (odds / odds.sum(1, keepdims=True) - Y)) + 2e-4 * w
        velocity = 0.9 * velocity + slope
        w = w - 0.1 * velocity
    params = {"W": jnp.asarray(w[:-1]), "b": jnp.asarray(w[-1])}
    metrics = task.metrics(hyper, params)  # the same model as the inner one: both accuracies agree
    assert metrics["test_accuracy"] == pytest.approx(metrics["inner_accuracy"], abs=1e-6)
    assert 0.3 < metrics["test_accuracy"] < 1


def test_baselines_stand_in_their_order() -> None:
    """Known wrong labels help, wrong labels hurt: on 480 of 800 pair flips nobody doubts it."""
    task = cleaning(train=800, validation=100, noise="pair", fraction=0.6, refit_steps=300)
    rows = task.baselines()
    oracle, noisy = (
        rows[name]["test_error"]
        for name in ("oracle: wrong labels known and dropped", "training rows as they are, alone")
    )
    assert oracle < 0.1 < 0.5 < noisy
    assert all(
        row["test_error"] == pytest.approx(1 - row["test_accuracy"]) for row in rows.values()
    )


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"noise='flip' must be one of uniform, other, pair"):
        cleaning(noise="flip")
    with pytest.raises(ValueError, match=r"fraction=45 must be a share"):
        cleaning(fraction=45)


@pytest.mark.extended
def test_heavy_ball_starts_from_rest(x64) -> None:
    """Two calls of three steps are two loops of three steps, each without velocity at first."""
    task = cleaning(train=50, validation=20, test=20)
    estimator = bl.Implicit(FromRest(bl.SGD(0.1, momentum=0.9)), steps=3, linear=bl.CG())
    result = bl.tune(
        task.problem,
        estimator,
        optax.sgd(0.0),
        task.hyper,
        task.params,
        task.data,
        steps=2,
        hooks=[bl.Blocks(2)],
        key=jax.random.key(0),
    )
    X, y, _ = map(np.asarray, task.data.inner)
    X, w = np.concatenate([X, np.ones((50, 1))], axis=1), np.zeros((65, 10))
    for _ in range(2):
        velocity = np.zeros_like(w)
        for _ in range(3):
            odds = np.exp(X @ w)
            slope = X.T @ (odds / odds.sum(1, keepdims=True) - np.eye(10)[y]) / 100 + 2e-4 * w
            velocity = 0.9 * velocity + slope
            w = w - 0.1 * velocity
    np.testing.assert_allclose(result.params["W"], w[:-1], atol=1e-7)


@pytest.mark.slow
def test_cleaning_of_mnist(shared_data: Path) -> None:
    """Accuracy of the inner model, F1, and the retrained accuracy of the published protocol."""
    metrics = run_experiment("cleaning_paper").metrics
    assert metrics["inner_accuracy"] >= 0.893
    assert metrics["f1"] >= 0.895
    assert metrics["test_accuracy"] >= 0.897
