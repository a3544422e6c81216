"""Logistic tasks against scikit-learn's LogisticRegression, explicit folds, central differences."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import accuracy_score, log_loss

import bilevel as bl
from tasks.base import Task
from tasks.datasets.design import Design, prepare
from tasks.datasets.tabular import Tabular
from tasks.logistic import GRID, logistic
from tests.compiling import compilations
from tests.marks import quick_cases


def table(data: str, outer: str = "holdout", seed: int = 1) -> Tabular:
    return Tabular(data, outer, folds=3, seed=seed)


@cache
def task(data: str, penalty: str = "per_feature", outer: str = "holdout") -> Task:
    return logistic(table(data, outer), penalty)


@cache
def design(data: str, outer: str = "holdout") -> Design:
    return prepare(table(data, outer), "classification")


def scikit(C: float, **settings: Any) -> LogisticRegression:
    return LogisticRegression(C=C, tol=1e-10, max_iter=10_000, **settings)


def random_hyper(made: Task, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-4.0, 1.0, np.shape(made.hyper))


@pytest.mark.parametrize("data", ["breast_cancer", "wine"])
@pytest.mark.parametrize("penalty", ["global", "per_feature"])
def test_metrics_are_those_of_scikit_learn(data: str, penalty: str) -> None:
    """One penalty per column is one for all on columns divided by its root."""
    made, parts = task(data, penalty), design(data)
    hyper = random_hyper(made)
    X, y = parts.development
    scales = np.exp(hyper / 2)
    model = scikit(1 / len(y)).fit(X / scales, y)
    expected = model.predict_proba(parts.test[0] / scales)
    metrics = made.metrics(hyper, made.params)
    assert list(metrics) == ["test_log_loss", "test_accuracy"]
    assert metrics["test_log_loss"] == pytest.approx(log_loss(parts.test[1], expected), rel=1e-4)
    accuracy = accuracy_score(parts.test[1], np.argmax(expected, axis=1))
    assert metrics["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("data", ["breast_cancer", "wine"])
def test_losses_are_log_losses(data: str, x64) -> None:
    made = logistic(table(data), "global")
    parts = design(data)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), made.params)
    X, y = parts.X[~parts.train], parts.y[~parts.train]
    scores = X @ np.asarray(params["weights"]) + np.asarray(params["intercept"])
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    expected = log_loss(y, odds / odds.sum(1, keepdims=True))
    value, loss = jax.jit(made.problem.outer), jax.jit(made.problem.inner)
    assert value(params, made.hyper, made.data.outer) == pytest.approx(expected)
    none = jnp.full_like(made.hyper, -jnp.inf)
    inner = [loss(params, h, made.data.inner) for h in (made.hyper, none)]
    assert inner[0] - inner[1] == pytest.approx(0.01 * np.sum(np.square(params["weights"])) / 2)


@pytest.mark.parametrize("data", ["breast_cancer", "wine"])
@quick_cases(1, "outer", ["holdout", "kfold"])
def test_hypergradient_is_the_central_difference(data: str, outer: str, x64) -> None:
    """Of the outer loss where scikit-learn puts the inner minimisers, fold by fold."""
    made = logistic(table(data, outer), "per_feature")
    parts = design(data, outer)
    X = parts.X if parts.folds else parts.X[:, None]
    train = parts.train if parts.folds else parts.train[:, None]
    y = parts.development[1]

    def value(hyper: np.ndarray) -> float:
        scales, losses = np.exp(hyper / 2), []
        for f in range(train.shape[1]):
            used, Z = train[:, f], X[:, f] / scales
            # Newton's method: a difference of 1e-5 needs minimisers of 1e-10.
            model = scikit(1 / used.sum(), solver="newton-cholesky").fit(Z[used], y[used])
            losses.append(log_loss(y[~used], model.predict_proba(Z[~used])))
        return float(np.mean(losses))

    hyper = np.full(made.hyper.shape, np.log(0.05))
    direction = np.random.default_rng(1).normal(size=hyper.shape)
    estimator = bl.Implicit(bl.GradientDescent(0.3), steps=4000, linear=bl.CG(tol=1e-10))
    estimate, _ = bl.hypergradient(
        made.problem, estimator, jnp.asarray(hyper), made.params, made.data, jax.random.key(0)
    )
    step = 1e-4
    slope = (value(hyper + step * direction) - value(hyper - step * direction)) / (2 * step)
    assert estimate.value == pytest.approx(value(hyper), rel=1e-6)
    assert np.sum(np.asarray(estimate.grad) * direction) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("data", ["breast_cancer", "wine"])
def test_folds_are_explicit_sums_over_their_rows(data: str, x64) -> None:
    folds = logistic(table(data, "kfold"), "global")
    single = logistic(table(data), "global").problem
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), folds.params)
    losses = jax.jit(single.inner), jax.jit(single.outer)
    inner, outer = [], []
    for f in range(3):
        own = jax.tree.map(lambda a, f=f: a[f], params)
        for batch, loss, values in (
            (folds.data.inner, losses[0], inner),
            (folds.data.outer, losses[1], outer),
        ):
            X, y, weight = (np.asarray(a)[:, f] for a in batch)
            rows = weight > 0
            values.append(float(loss(own, folds.hyper, (X[rows], y[rows]))))
    whole = jax.jit(folds.problem.inner), jax.jit(folds.problem.outer)
    assert whole[0](params, folds.hyper, folds.data.inner) == pytest.approx(sum(inner))
    assert whole[1](params, folds.hyper, folds.data.outer) == pytest.approx(np.mean(outer))


@pytest.mark.parametrize("penalty", ["per_class", "per_weight", "per_feature"])
def test_equal_penalties_are_one(penalty: str) -> None:
    many, one = task("wine", penalty), task("wine", "global")
    params = jax.tree.map(lambda a: a + 0.1, one.params)
    losses = [jax.jit(t.problem.inner)(params, t.hyper, t.data.inner) for t in (many, one)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    shapes = {"per_class": (3,), "per_weight": (39,), "per_feature": (13,)}
    assert many.hyper.shape == shapes[penalty]
    assert len(many.notes["penalties"]) == many.hyper.size


def test_penalties_belong_to_their_class_and_column() -> None:
    params = jax.tree.map(jnp.ones_like, task("wine").params)

    def change(penalty: str, index: int) -> np.ndarray:
        made = task("wine", penalty)
        hyper = made.hyper.at[index].set(jnp.log(2.0))
        slope = jax.jit(jax.grad(made.problem.inner))
        grad, base = (slope(params, h, made.data.inner)["weights"] for h in (hyper, made.hyper))
        return np.argwhere(np.abs(np.asarray(grad - base)) > 1)

    np.testing.assert_array_equal(np.unique(change("per_class", 2)[:, 1]), [2])
    np.testing.assert_array_equal(np.unique(change("per_feature", 4)[:, 0]), [4])
    np.testing.assert_array_equal(change("per_weight", 3 * 5 + 1), [[5, 1]])
    assert task("wine", "per_weight").notes["penalties"][3 * 5 + 1].endswith("for class_1")


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
def test_baselines_are_what_they_say(outer: str) -> None:
    made, parts = task("wine", "global", outer), design("wine", outer)
    X, y = parts.development
    baselines = made.baselines()
    names = list(baselines)
    assert all(np.isfinite(list(row.values())).all() for row in baselines.values())
    assert baselines["no tuning (penalty 0.01)"]["test_log_loss"] == pytest.approx(
        made.metrics(made.hyper, None)["test_log_loss"], rel=1e-3
    )
    train = parts.train if outer == "kfold" else parts.train[:, None]
    cv = [(np.flatnonzero(used), np.flatnonzero(~used)) for used in train.T]
    search = LogisticRegressionCV(
        Cs=(1 / (GRID * len(y))).tolist(),
        cv=cv,
        scoring="neg_log_loss",
        max_iter=10_000,
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
    ).fit(X, y)
    name = next(n for n in names if "same" in n)
    expected = log_loss(parts.test[1], search.predict_proba(parts.test[0]))
    assert baselines[name]["test_log_loss"] == pytest.approx(expected)


def test_minibatch_loss_is_unbiased(x64) -> None:
    made = logistic(table("wine", "kfold"), "per_class")
    params = jax.tree.map(lambda a: a + 0.3, made.params)
    single = jax.tree.map(lambda a: a[:, None], made.data.inner)
    inner = jax.jit(made.problem.inner)
    losses = jax.jit(jax.vmap(inner, in_axes=(None, None, 0)))(params, made.hyper, single)
    full = inner(params, made.hyper, made.data.inner)
    np.testing.assert_allclose(losses.mean(), full)


def test_labels_stay_whole_numbers() -> None:
    for data in ("breast_cancer", "wine"):
        made = task(data, "global", "kfold")
        assert [a.dtype for a in made.data.inner] == [jnp.float32, jnp.int32, jnp.float32]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"penalty='per_class' needs more than two classes"):
        logistic("breast_cancer", "per_class")
    with pytest.raises(ValueError, match=r"penalty='per_pixel' must be one of"):
        logistic("digits", "per_pixel")
    with pytest.raises(ValueError, match=r"start=-1 must be a positive penalty"):
        logistic(start=-1)
    with pytest.raises(ValueError, match=r"'diabetes' is a regression set, but classification"):
        logistic("diabetes")


def test_equal_problems_share_their_compilation() -> None:
    a, b = (logistic(table("wine", seed=seed), "per_class") for seed in (1, 2))
    assert a.problem == b.problem
    a.metrics(a.hyper, None)
    with compilations() as count:
        b.metrics(b.hyper, None)
        assert int(count) == 0
