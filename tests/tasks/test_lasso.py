"""Lasso tasks against scikit-learn's Lasso and ElasticNet, dense solves, differences."""

from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest
from sklearn.linear_model import ElasticNet, ElasticNetCV, Lasso, LassoCV

import bilevel as bl
from tasks.base import Task
from tasks.judges.exact_sparse import external
from tasks.lasso import lasso
from tests.marks import quick_cases
from tests.tasks.lasso_cases import KINDS, at, design, folds, make

SCIKIT: dict[str, Any] = dict(fit_intercept=False, tol=1e-13, max_iter=100_000)
task = cache(make)


def random_hyper(made: Task) -> Any:
    """Around 0.3 of the penalty that keeps no column."""
    rng, shift = np.random.default_rng(0), np.log(0.3 / 0.5)
    near = [h + shift + rng.normal(0, 0.3, np.shape(h)) for h in jax.tree.leaves(made.hyper)]
    return jax.tree.unflatten(jax.tree.structure(made.hyper), near)


def moved(hyper: Any, way: Any, size: float) -> Any:
    return jax.tree.map(lambda h, w: np.asarray(h) + size * w, hyper, way)


def strengths(hyper: Any, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the absolute values and of the squares of each column; three entries are by degree."""
    both = [hyper["l1"], hyper["l2"]] if isinstance(hyper, dict) else [hyper, -np.inf]
    values = [np.exp(np.asarray(part, float)) for part in both]
    a, b = (part[degrees()] if part.shape == (3,) else part for part in values)
    return np.broadcast_to(a, (d,)), np.broadcast_to(b, (d,))


def fitted(X: np.ndarray, y: np.ndarray, hyper: Any) -> np.ndarray:
    """Signs by scikit-learn, where it has such a penalty, then a dense solve on the support."""
    (n, d), (a, b) = X.shape, strengths(hyper, X.shape[1])
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        model = ElasticNet(a[0] + b[0], l1_ratio=a[0] / (a[0] + b[0]), **SCIKIT)
        signs = np.sign(model.fit(X, y).coef_)
    else:  # columns divided by their penalty have the penalty 1, squares are rows
        rows = np.concatenate([X, np.diag(np.sqrt(n * b))]) / a
        model = Lasso(n / (n + d), **SCIKIT)
        signs = np.sign(model.fit(rows, np.concatenate([y, np.zeros(d)])).coef_)
    on, w = signs != 0, np.zeros(d)
    H, c = X.T @ X / n + np.diag(b), X.T @ y / n
    w[on] = np.linalg.solve(H[np.ix_(on, on)], (c - a * signs)[on])
    pull = (c - H @ w) / a
    assert np.all(np.sign(w) == signs)
    assert np.all(np.abs(pull) <= 1 + 1e-9)
    np.testing.assert_allclose(pull[on], signs[on], rtol=1e-9)
    return w


def degrees() -> np.ndarray:
    """Of each column: 0 a column as it came, 1 a square, 2 a product; in order of appearance."""
    names = design().features.names
    words = ["^2" if "^2" in name else "*" if " " in name else "" for name in names]
    return np.array([list(dict.fromkeys(words)).index(word) for word in words])


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
@pytest.mark.parametrize(("kind", "penalty"), KINDS[:4])
def test_exact_value_and_slope_are_those_of_scikit_learn(kind, penalty, outer) -> None:
    made = task(kind, penalty, outer)
    assert made.exact is not None

    def value(hyper: Any) -> float:
        found = [(fitted(X, y, hyper), Z, t) for X, y, Z, t in folds(outer)]
        return float(np.mean([np.mean((Z @ w - t) ** 2) / 2 for w, Z, t in found]))

    hyper = random_hyper(made)
    rng = np.random.default_rng(1)
    way, step = jax.tree.map(lambda h: rng.normal(size=np.shape(h)), hyper), 1e-5
    found, grad = made.exact(hyper)
    assert found == pytest.approx(value(hyper), rel=1e-7)
    slope = (value(moved(hyper, way, step)) - value(moved(hyper, way, -step))) / (2 * step)
    along = sum(map(np.sum, jax.tree.leaves(jax.tree.map(np.multiply, grad, way))))
    assert along == pytest.approx(slope, rel=1e-5)


@quick_cases(1, "kind", ["lasso", "elastic_net"])
def test_value_and_support_are_scikit_learns(kind: str, x64) -> None:
    """For the lasso at the penalty that tuning finds, the minimum of its curve."""
    made = make(kind)
    assert made.exact is not None
    ((X, y, Z, t),) = folds("holdout")
    hyper = random_hyper(made)
    if kind == "lasso":
        estimator = bl.Implicit(bl.FISTA(0.07), steps=300)
        hyper = np.asarray(tuned(made, estimator).hyper)
        curve = [made.exact(hyper + shift)[0] for shift in (-0.1, 0, 0.1)]
        assert int(np.argmin(curve)) == 1
    estimate, state = at(made, hyper)
    w = fitted(X, y, hyper)
    assert 3 < np.count_nonzero(w) < 60
    np.testing.assert_array_equal(np.asarray(state.params) != 0, w != 0)
    assert estimate.value == pytest.approx(np.mean((Z @ w - t) ** 2) / 2, rel=1e-8)
    slopes = jax.tree.map(np.asarray, made.exact(hyper)[1])
    for found, slope in zip(*map(jax.tree.leaves, (estimate.grad, slopes)), strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-7)


def tuned(made: Task, estimator: Any) -> bl.Result:
    outer = bl.transform(optax.sgd, learning_rate=3.0)
    return bl.tune(
        made.problem,
        estimator,
        outer,
        made.hyper,
        made.params,
        made.data,
        steps=30,
        key=jax.random.key(0),
    )


def test_metrics_are_those_of_scikit_learn_on_development_rows() -> None:
    made, parts = task("lasso", outer="kfold"), design("kfold")
    X, y = parts.development
    hyper = np.log(0.05)
    model = Lasso(0.05 * y.std(), tol=1e-13, max_iter=100_000).fit(X, y)
    residual = model.predict(parts.test[0]) - parts.test[1]
    metrics = made.metrics(hyper, None)
    assert next(iter(metrics)) == "test_mse"
    assert metrics["test_mse"] == pytest.approx(np.mean(residual**2), rel=1e-8)
    described = made.describe(hyper)
    assert described == {"penalty": pytest.approx(0.05), "columns kept": np.sum(model.coef_ != 0)}


@pytest.mark.extended
def test_baselines_are_what_they_say() -> None:
    made, parts = task("lasso", outer="kfold"), design("kfold")
    assert made.exact is not None
    X, y = parts.development
    baselines = made.baselines()
    for name, model in (("LassoCV", LassoCV(cv=5)), ("ElasticNetCV", ElasticNetCV(cv=5))):
        (row,) = (row for key, row in baselines.items() if key.startswith(name))
        model.set_params(max_iter=100_000, tol=1e-3)
        if name == "ElasticNetCV":
            model.set_params(l1_ratio=[0.1, 0.5, 0.9])
        residual = model.fit(X, y).predict(parts.test[0]) - parts.test[1]
        assert row["test_mse"] == pytest.approx(np.mean(residual**2))
    largest = max(np.abs(X.T @ y).max() / len(y) for X, y, _, _ in folds("kfold"))
    grid = np.log(largest) + np.linspace(-2, 0, 60) * np.log(10)
    best = min(grid, key=lambda hyper: made.exact(hyper)[0])
    one = baselines["one lasso penalty (best of 60, same folds)"]
    assert one == pytest.approx(made.metrics(best, None))


@pytest.mark.parametrize("kind", ["lasso", "elastic_net"])
def test_coordinate_descent_gives_the_minimiser_of_each_fold(kind: str) -> None:
    made = task(kind, outer="kfold")
    hyper = random_hyper(made)
    found = external(np.zeros(made.params.shape), hyper, made.data.inner)
    for w, (X, y, *_) in zip(found, folds("kfold"), strict=True):
        np.testing.assert_allclose(w, fitted(X, y, hyper), atol=1e-5)
    with pytest.raises(ValueError, match="one penalty, or one for each column"):
        external(found, np.zeros(3), made.data.inner)


def test_equal_problems_are_equal() -> None:
    for kind, penalty in KINDS:
        a, b = (make(kind, penalty, seed=seed) for seed in (0, 1))
        assert a.problem == b.problem
        assert hash(a.problem) == hash(b.problem)


def test_two_classes_are_signs() -> None:
    made = lasso({"data": "breast_cancer", "degree": 1})
    assert made.exact is not None
    assert set(np.sign(made.data.inner[1]).tolist()) == {-1.0, 1.0}
    metrics = made.metrics(np.log(0.01), None)
    assert metrics["test_accuracy"] > 0.9
    with pytest.raises(ValueError, match=r"'wine' has 3 classes: the lasso predicts a number"):
        lasso("wine")


def test_columns_that_say_nothing_are_left_out_and_gaps_filled(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    rows = [f"{a:.3f},{a:.3f},7,{b:.3f},{a - b:.3f}" for a, b in rng.normal(size=(40, 2))]
    path.write_text("\n".join(["a,again,same,b,y", *rows]))
    made = lasso({"data": str(path), "degree": 1}, penalty="per_feature")
    assert made.notes["column_names"] == ["a", "b"]
    assert made.notes["dropped_columns"] == ["again", "same"]
    path.write_text("\n".join(["a,again,same,b,y", *rows, "1,,7,0,1"]))
    remarks = lasso(str(path)).notes["remarks"]
    assert any("column 'again': 1 of 41 missing, filled with the median" in r for r in remarks)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='ridge' must be one of lasso, elastic_net, group"):
        lasso(kind="ridge")
    with pytest.raises(ValueError, match="start=1 must lie between 0 and 1"):
        lasso(start=1)
