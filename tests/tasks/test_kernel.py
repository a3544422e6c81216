"""Kernel tasks against scikit-learn's KernelRidge and Gaussian process, central differences."""

import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

import bilevel as bl
from tasks.base import Task
from tasks.datasets.design import Design, prepare
from tasks.datasets.tabular import Tabular
from tasks.kernel import FLOOR, NOISES, SCALES, kernel, kernel_ridge
from tests.compiling import compilations
from tests.tasks.experiment import run_experiment

ROWS = 150


def table(seed: int = 1) -> Tabular:
    return Tabular("diabetes", "holdout", rows=ROWS, seed=seed)


@cache
def task(seed: int = 1) -> Task:
    return kernel_ridge(table(seed))


@cache
def design() -> Design:
    return prepare(table(), "regression")


def random_hyper() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"length_scales": rng.normal(1.2, 0.5, 10), "noise": np.log(0.2)}


def fitted(X: np.ndarray, y: np.ndarray, Z: np.ndarray, hyper: Any) -> np.ndarray:
    """Predictions for the rows Z by scikit-learn, whose kernel has one length-scale."""
    scales = np.exp(np.asarray(hyper["length_scales"], float))
    alpha = np.exp(float(hyper["noise"])) + FLOOR
    model = KernelRidge(alpha=alpha, kernel="rbf", gamma=0.5)
    return model.fit(X / scales, y - y.mean()).predict(Z / scales) + y.mean()


def value(hyper: Any) -> float:
    """The outer loss: half the validation error in variances of the training target."""
    parts = design()
    used, y = parts.train, parts.y
    found = fitted(parts.X[used], y[used], parts.X[~used], hyper)
    return float(np.mean((found - y[~used]) ** 2) / y[used].var() / 2)


def test_value_and_hypergradient_are_those_of_scikit_learn(x64) -> None:
    made, hyper = kernel_ridge(table()), random_hyper()
    assert made.exact is not None
    rng, step = np.random.default_rng(1), 1e-5
    way = {"length_scales": rng.normal(size=10), "noise": rng.normal()}
    up, down = (value({n: hyper[n] + s * way[n] for n in hyper}) for s in (step, -step))
    start = jax.tree.map(jnp.asarray, hyper)
    estimate, state = bl.hypergradient(
        made.problem, bl.ClosedForm(), start, made.params, made.data, jax.random.key(0)
    )
    for found, grad in (made.exact(hyper), (estimate.value, estimate.grad)):
        assert found == pytest.approx(value(hyper), rel=1e-8)
        along = sum(np.sum(np.asarray(grad[n]) * way[n]) for n in way)
        assert along == pytest.approx((up - down) / (2 * step), rel=1e-6)
    # The inner loss is stationary there, and nowhere else: its Hessian is K (K + s I) / n.
    slope = jax.jit(jax.grad(made.problem.inner))(state.params, hyper, made.data.inner)
    np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_kernel_is_scikit_learns(x64) -> None:
    rng, hyper = np.random.default_rng(0), random_hyper()
    X, Z = rng.normal(size=(7, 10)), rng.normal(size=(4, 10))
    expected = RBF(np.exp(hyper["length_scales"]))(X, Z)
    np.testing.assert_allclose(jax.jit(kernel)(X, Z, hyper), expected, rtol=1e-12)


def test_metrics_are_those_of_scikit_learn_on_development_rows() -> None:
    made, parts, hyper = task(), design(), random_hyper()
    residual = fitted(*parts.development, parts.test[0], hyper) - parts.test[1]
    metrics = made.metrics(hyper, None)
    assert list(metrics) == ["test_mse", "test_r2", "validation_mse"]
    assert metrics["test_mse"] == pytest.approx(np.mean(residual**2), rel=1e-8)
    assert metrics["test_r2"] == pytest.approx(1 - np.mean(residual**2) / np.var(parts.test[1]))
    unit = parts.y[parts.train].var()
    assert metrics["validation_mse"] == pytest.approx(2 * value(hyper) * unit, rel=1e-8)


def test_baselines_are_what_they_say() -> None:
    made, parts = task(), design()
    X, y = parts.development
    baselines = made.baselines()
    one, process, none, linear = baselines.values()
    assert next(iter(baselines)).startswith("one length-scale (best of 104 on the grid")
    grid = [
        {"length_scales": np.full(10, np.log(scale)), "noise": np.log(noise)}
        for scale in SCALES
        for noise in NOISES
    ]
    assert one == pytest.approx(made.metrics(min(grid, key=value), None))
    assert none == pytest.approx(made.metrics(made.hyper, None), rel=1e-5)
    residual = RidgeCV(np.logspace(-5, 3, 60) * len(y)).fit(X, y).predict(parts.test[0])
    assert linear["test_mse"] == pytest.approx(np.mean((residual - parts.test[1]) ** 2))
    ard: Any = RBF(np.full(10, 3.0), (1e-2, 1e3)) + WhiteKernel(0.1, (1e-4, 10.0))
    centred = (y - y.mean()) / y.std()
    model = GaussianProcessRegressor(ard, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length-scale at its bound
        found = model.fit(X, centred).predict(parts.test[0]) * y.std() + y.mean()
    assert process["test_mse"] == pytest.approx(np.mean((found - parts.test[1]) ** 2), rel=1e-6)


def test_a_length_scale_for_each_column_wins_where_one_column_matters(tmp_path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    y = np.sin(2 * X[:, :1]) + 0.1 * rng.normal(size=(120, 1))
    path = tmp_path / "t.csv"
    np.savetxt(path, np.hstack([X, y]), delimiter=",", header="a,b,c,d,y", comments="")
    made = kernel_ridge(str(path))
    exact = made.exact
    assert exact is not None

    def flat(h: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = exact({"length_scales": h[:4], "noise": h[4]})
        return float(value), np.append(grad["length_scales"], grad["noise"])

    start = np.append(made.hyper["length_scales"], made.hyper["noise"])
    h = minimize(flat, start, jac=True, method="L-BFGS-B", bounds=[(-5.0, 5.0)] * 5).x
    metrics = made.metrics({"length_scales": h[:4], "noise": h[4]}, None)
    one = next(iter(made.baselines().values()))
    assert metrics["validation_mse"] < one["validation_mse"] / 3
    assert metrics["test_mse"] < one["test_mse"] / 3
    assert np.argmin(h[:4]) == 0


@pytest.mark.slow
def test_yacht_is_far_below_the_best_single_length_scale(shared_data) -> None:
    outcome = run_experiment("kernel", "task=kernel_yacht")
    one = next(iter(outcome.job.task.baselines().values()))
    assert outcome.metrics["validation_mse"] < one["validation_mse"] / 2
    assert outcome.metrics["test_mse"] < one["test_mse"] / 2


def test_equal_problems_share_their_compilation() -> None:
    a, b = task(0), task(1)
    assert a.problem == b.problem
    assert a.exact is not None
    assert b.exact is not None
    a.exact(a.hyper)
    a.metrics(a.hyper, None)
    with compilations() as count:
        b.exact(b.hyper)
        b.metrics(b.hyper, None)
        assert int(count) == 0


def test_columns_that_say_nothing_are_left_out_and_gaps_filled(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    rows = [f"{a:.3f},{a:.3f},7,{b:.3f},{a - b:.3f}" for a, b in rng.normal(size=(40, 2))]
    path.write_text("\n".join(["a,again,same,b,y", *rows]))
    made = kernel_ridge(str(path))
    assert made.hyper["length_scales"].shape == (2,)
    assert made.notes["dropped_columns"] == ["again", "same"]
    assert made.notes["penalties"] == ["length-scale of a", "length-scale of b", "noise"]
    path.write_text("\n".join(["a,again,same,b,y", *rows, "1,,7,0,1"]))
    remarks = kernel_ridge(str(path)).notes["remarks"]
    assert any("column 'again': 1 of 41 missing, filled with the median" in r for r in remarks)
    with pytest.raises(ValueError, match=r"start=0 and noise=0.1 must be positive"):
        kernel_ridge(start=0)
    with pytest.raises(ValueError, match=r"outer='kfold': kernel_ridge has one validation set"):
        kernel_ridge({"outer": "kfold"})
