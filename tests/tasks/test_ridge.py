"""Ridge tasks against scikit-learn's Ridge, dense solves and central differences."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV

import bilevel as bl
from tasks.base import Task
from tasks.datasets.design import Design, prepare
from tasks.datasets.tabular import Tabular
from tasks.ridge import GRID, ridge
from tests.compiling import compilations
from tests.marks import quick_cases

PENALTIES = ["global", "per_feature", "per_input", "by_degree"]


def table(outer: str, degree: int = 2, folds: int = 3, seed: int = 1) -> Tabular:
    return Tabular("diabetes", outer, degree=degree, folds=folds, seed=seed)


@cache
def task(outer: str, penalty: str = "per_input", degree: int = 2, folds: int = 3) -> Task:
    return ridge(table(outer, degree, folds), penalty)


@cache
def design(outer: str, degree: int = 2, folds: int = 3) -> Design:
    return prepare(table(outer, degree, folds), "regression")


def random_hyper(made: Task, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-2.0, 1.0, np.shape(made.hyper))


def call(made: Task, estimator: Any, hyper: jax.Array) -> tuple[bl.Estimate, Any]:
    key = jax.random.key(0)
    return bl.hypergradient(made.problem, estimator, hyper, made.params, made.data, key)


def fitted(X: np.ndarray, y: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, float]:
    """Scikit-learn's ridge has one penalty for all columns: rescaled columns give each its own."""
    scales = np.sqrt(strengths)
    model = Ridge(alpha=len(y), solver="cholesky").fit(X / scales, y)
    return model.coef_ / scales, model.intercept_


def strengths_of(made: Task, hyper: np.ndarray, outer: str, degree: int = 2) -> np.ndarray:
    """One strength per column, from the columns' names."""
    values = dict(zip(made.notes["penalties"], np.exp(np.atleast_1d(hyper)), strict=True))
    strengths = []
    for name in design(outer, degree).features.names:
        word = "squares" if name.endswith("^2") else "products" if " " in name else name
        coarse = word if word in ("squares", "products") else "columns"
        keys = [key for key in (name, word, coarse, "all") if key in values]
        strengths.append(values[keys[0]])
    return np.array(strengths)


def value_by_hand(outer: str, strengths: np.ndarray) -> float:
    """The outer loss with scikit-learn, fold by fold, rows chosen by index."""
    made, values = design(outer), []
    X, y, train = (np.atleast_2d(a.T).T for a in (made.X, made.y, made.train))
    unit = made.y[made.train].std()
    for f in range(train.shape[1]):
        columns = X if outer == "holdout" else made.X[:, f]
        used, target = train[:, f], y[:, f] / unit
        w, b = fitted(columns[used], target[used], strengths)
        values.append(np.mean((columns[~used] @ w + b - target[~used]) ** 2) / 2)
    return float(np.mean(values))


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_exact_value_is_that_of_explicit_fits(penalty: str, outer: str) -> None:
    made = task(outer, penalty)
    assert made.exact is not None
    hyper = random_hyper(made)
    expected = value_by_hand(outer, strengths_of(made, hyper, outer))
    assert made.exact(hyper)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_exact_hypergradient_is_the_central_difference(penalty: str, outer: str) -> None:
    made = task(outer, penalty)
    assert made.exact is not None
    hyper, step = random_hyper(made), 1e-5
    _, grad = made.exact(hyper)
    assert grad.dtype == np.float64
    direction = np.random.default_rng(1).normal(size=hyper.shape)
    up, down = (made.exact(hyper + s * direction)[0] for s in (step, -step))
    assert np.sum(grad * direction) == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
@quick_cases(1, "penalty", ["global", "per_input"])
def test_losses_and_their_hypergradient_agree_with_the_closed_form(outer, penalty, x64) -> None:
    """The closed form knows moments only, the estimator the losses only."""
    made = ridge(table(outer), penalty)
    assert made.exact is not None
    assert made.params.dtype == jnp.float64
    hyper = jnp.asarray(random_hyper(made))
    estimator = bl.Implicit(bl.GradientDescent(0.08), steps=3000, linear=bl.CG(tol=1e-12))
    estimate, _ = call(made, estimator, hyper)
    value, grad = made.exact(hyper)
    np.testing.assert_allclose(estimate.value, value, rtol=1e-9)
    np.testing.assert_allclose(estimate.grad, grad, rtol=1e-6, atol=1e-9)


@quick_cases(1, "outer", ["holdout", "kfold"])
def test_single_precision_is_close(outer: str) -> None:
    made = task(outer, degree=1)
    assert made.exact is not None
    assert made.params.dtype == made.hyper.dtype == jnp.float32
    estimator = bl.Implicit(bl.GradientDescent(0.2), steps=1000)
    estimate, _ = call(made, estimator, made.hyper)
    value, grad = made.exact(made.hyper)
    np.testing.assert_allclose(estimate.value, value, rtol=1e-5)
    np.testing.assert_allclose(estimate.grad, grad, rtol=1e-3, atol=1e-5 * np.linalg.norm(grad))


def test_folds_are_explicit_fits_of_their_rows(x64) -> None:
    """Masks and weights against each fold's own rows, losses and gradients, at any params."""
    made = ridge(table("kfold"))
    X, y, weight = (np.asarray(a) for a in made.data.inner)
    X_held, y_held, weight_held = (np.asarray(a) for a in made.data.outer)
    hyper = random_hyper(made)
    strengths = strengths_of(made, hyper, "kfold")
    params = np.random.default_rng(2).normal(size=made.params.shape)
    inner, outer, slopes = [], [], []
    for f in range(3):
        rows, held = weight[:, f] > 0, weight_held[:, f] > 0
        assert not np.any(rows & held)
        assert np.all(rows | held)
        residual = X[rows, f] @ params[f] - y[rows, f]
        slopes.append(X[rows, f].T @ residual / rows.sum() + strengths * params[f])
        inner.append(np.mean(residual**2) / 2 + np.sum(strengths * params[f] ** 2) / 2)
        outer.append(np.mean((X_held[held, f] @ params[f] - y_held[held, f]) ** 2) / 2)
    value, grad = jax.value_and_grad(made.problem.inner)(params, hyper, made.data.inner)
    assert value == pytest.approx(sum(inner))
    np.testing.assert_allclose(grad, slopes, rtol=1e-9)
    assert made.problem.outer(params, hyper, made.data.outer) == pytest.approx(np.mean(outer))


@quick_cases(1, "outer", ["holdout", "kfold"])
def test_minibatch_loss_is_unbiased(outer: str, x64) -> None:
    """The mean over all batches of one row is the full loss, and so is that over a partition."""
    made = ridge(table(outer))
    params = jnp.asarray(np.random.default_rng(3).normal(size=made.params.shape))
    full = made.problem.inner(params, made.hyper, made.data.inner)
    n = len(made.data.inner[0])
    for size in (1, 7):
        count = n - n % size
        batches = jax.tree.map(
            lambda a, b=size, c=count: a[:c].reshape(-1, b, *a.shape[1:]), made.data.inner
        )
        losses = jax.vmap(lambda batch: made.problem.inner(params, made.hyper, batch))(batches)
        part = jax.tree.map(lambda a, c=count: a[:c], made.data.inner)
        np.testing.assert_allclose(losses.mean(), made.problem.inner(params, made.hyper, part))
        if size == 1:
            np.testing.assert_allclose(losses.mean(), full)


def test_hyperparameters_batch_under_vmap() -> None:
    made = task("kfold", degree=1)
    hypers = jnp.stack([made.hyper + s for s in (-1.0, 0.0, 1.0)])
    values = jax.vmap(made.problem.inner, (None, 0, None))(
        made.params + 0.1, hypers, made.data.inner
    )
    one_by_one = [made.problem.inner(made.params + 0.1, h, made.data.inner) for h in hypers]
    np.testing.assert_allclose(values, one_by_one, rtol=1e-6)


def test_equal_problems_share_their_compilation() -> None:
    a, b = (ridge(table("kfold", seed=seed), "by_degree") for seed in (0, 1))
    assert a.problem == b.problem
    assert hash(a.problem) == hash(b.problem)
    assert a.problem != ridge(table("kfold")).problem
    assert a.problem.quadratic
    assert a.exact is not None
    assert b.exact is not None
    a.exact(a.hyper)  # else that is most of what a run of a sweep costs
    with compilations() as count:
        b.exact(b.hyper)
        assert int(count) == 0


def test_metrics_are_those_of_a_refit_on_development_rows() -> None:
    made, parts = task("kfold"), design("kfold")
    hyper = random_hyper(made)
    X, y = parts.development
    w, b = fitted(X, y, strengths_of(made, hyper, "kfold"))
    residual = parts.test[0] @ w + b - parts.test[1]
    metrics = made.metrics(hyper, made.params)
    assert next(iter(metrics)) == "test_mse"
    assert metrics["test_mse"] == pytest.approx(np.mean(residual**2), rel=1e-9)
    assert metrics["test_r2"] == pytest.approx(1 - np.mean(residual**2) / np.var(parts.test[1]))


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
def test_baselines_are_what_they_say(outer: str) -> None:
    made, parts = task(outer), design(outer)
    X, y = parts.development
    baselines = made.baselines()
    cv, one, none, least = baselines.values()
    assert list(baselines)[2] == "no tuning (penalty 0.1)"
    start = np.full(made.hyper.shape, np.log(0.1))
    assert none == made.metrics(start, None)
    for row, model in ((cv, RidgeCV(alphas=GRID * len(y))), (least, LinearRegression())):
        residual = model.fit(X, y).predict(parts.test[0]) - parts.test[1]
        assert row["test_mse"] == pytest.approx(np.mean(residual**2), rel=1e-9)
    # The grid's best has the least outer loss of all that have one penalty, up to its spacing.
    flat = task(outer, "global")
    assert flat.exact is not None
    values = [flat.exact(np.log(g))[0] for g in GRID]
    best = np.log(GRID[int(np.argmin(values))])
    assert one == pytest.approx(flat.metrics(best, None))


@pytest.mark.extended
def test_tuning_gets_below_the_best_single_penalty() -> None:
    """Penalties can grow by e^4 in 40 steps of Adam: 0.1 e^4 + curvature stays below 2 / 0.1."""
    made, flat = task("kfold", degree=1), task("kfold", "global", degree=1)
    assert made.exact is not None
    assert flat.exact is not None
    single = min(float(flat.exact(np.log(g))[0]) for g in GRID)
    estimator = bl.Implicit(bl.GradientDescent(0.1), steps=100)
    outer = bl.transform(optax.adam, learning_rate=0.1)
    start, settings = (made.hyper, made.params, made.data), {"steps": 40, "key": jax.random.key(0)}
    result = bl.tune(made.problem, estimator, outer, *start, **settings)
    assert float(made.exact(result.hyper)[0]) < single


def test_notes_are_plain_and_complete() -> None:
    import json

    notes = task("kfold").notes
    assert json.loads(json.dumps(dict(notes))) == dict(notes)
    assert notes["rows"] == {"train": 176, "validation": 133, "test": 133}
    assert notes["dropped_columns"] == ["sex^2"]
    assert (notes["columns"], notes["folds"]) == (64, 3)
