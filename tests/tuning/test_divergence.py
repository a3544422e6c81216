"""`tune` stops a run whose inner solver diverges, says why, and stops no other."""

import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes

import bilevel as bl
from tests.marks import quick_cases


def loss(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def ridge(w: Any, log_penalty: Any, batch: Any) -> Any:
    return loss(w, None, batch) + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


RIDGE = bl.Problem(ridge, loss)


@pytest.fixture(scope="module")
def diabetes() -> bl.Data:
    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    order = np.random.default_rng(0).permutation(len(y))
    train, val = order[:221], order[221:]
    return bl.Data(inner=(X[train], y[train]), outer=(X[val], y[val]))


def largest_curvature(hyper: Any, X: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(X.T @ X / len(X) + np.diag(np.exp(np.asarray(hyper))))[-1])


STEEP = bl.GradientDescent(step_size=0.4)
NOISY = bl.SGD(step_size=0.1, batch_size=32)
OUTGROWN = [
    (bl.Forward(NOISY, steps=100), True),
    (bl.Reverse(STEEP, steps=100), True),
    (bl.Implicit(STEEP, steps=100), False),
    (bl.Implicit(NOISY, steps=100), True),
]


def drive_up(estimator: Any, data: bl.Data, warm_start: bool) -> bl.Result:
    """Penalties of useless features grow without bound, towards curvature > 2 / step size."""
    arguments = (optax.adam(0.3), np.full(10, -3.0), np.zeros(10), data)
    run = {"steps": 200, "key": jax.random.key(0), "warm_start": warm_start}
    return bl.tune(RIDGE, estimator, *arguments, **run)


@quick_cases(1, ("estimator", "warm_start"), OUTGROWN)
def test_hyper_that_outgrows_the_step_size(
    diabetes: bl.Data, estimator: Any, warm_start: bool
) -> None:
    with pytest.warns(bl.DivergenceWarning) as caught:
        result = drive_up(estimator, diabetes, warm_start)
    assert result.diverged
    stopped, limit = int(result.state.step), 2 / estimator.solver.step_size
    X = diabetes.inner[0]
    # The last state is good, and one step of Adam further is where it stops being good.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.hyper, result.params)))
    assert largest_curvature(result.hyper, X) < 1.1 * limit
    assert largest_curvature(np.asarray(result.hyper) + 0.3, X) > limit
    values = np.asarray(result.history["value"])
    assert len(values) == stopped
    assert values.max() <= 1.2 * values[0]
    # The message: step, quantity, cure.
    assert result.message == str(caught[0].message)
    for part in (f"at outer step {stopped}", "inner residual", f"{limit:.4g}", "times smaller"):
        assert part in result.message, result.message


def test_unrolling_a_cold_start_keeps_away_from_divergence_by_itself(diabetes: bl.Data) -> None:
    # Its derivative sees what a curvature near 2 / step size does to the iterates.
    result = drive_up(bl.Reverse(STEEP, steps=100), diabetes, warm_start=False)
    assert not result.diverged
    assert 0.9 < largest_curvature(result.hyper, diabetes.inner[0]) / (2 / 0.4) < 1


def test_a_diverged_run_goes_on_from_its_state_with_a_smaller_step(diabetes: bl.Data) -> None:
    with pytest.warns(bl.DivergenceWarning):
        stopped = drive_up(bl.Reverse(STEEP, steps=100), diabetes, warm_start=True)
    estimator = bl.Reverse(bl.GradientDescent(step_size=0.2), steps=100)
    arguments = (RIDGE, estimator, optax.adam(0.3), stopped.hyper, stopped.params, diabetes)
    result = bl.tune(*arguments, steps=3, state=stopped.state)
    assert not result.diverged
    assert result.history["inner_residual"][-1] < 1e-4


def test_a_step_size_too_large_from_the_start(diabetes: bl.Data) -> None:
    estimator = bl.Reverse(bl.GradientDescent(step_size=3.0), steps=100)
    hyper = np.full(10, -3.0)
    arguments = (RIDGE, estimator, optax.adam(0.1), hyper, np.zeros(10), diabetes)
    with pytest.warns(bl.DivergenceWarning) as caught:
        result = bl.tune(*arguments, steps=9, key=jax.random.key(0))
    before, after = (str(warning.message) for warning in caught)
    L = largest_curvature(hyper, diabetes.inner[0])
    measured = re.search(r"the largest inner curvature is ([\d.]+)", before)
    assert measured is not None
    assert float(measured[1]) == pytest.approx(L, rel=0.01)
    assert f"steps contract up to {2 / 3.0:.4g}" in before
    assert re.search("at outer step 0.*times smaller", after)
    assert result.diverged
    assert len(result.history["value"]) == 0
    np.testing.assert_array_equal(result.hyper, np.asarray(hyper, np.float32))


@pytest.mark.extended
def test_slow_divergence_over_many_calls(diabetes: bl.Data) -> None:
    # One inner step per call, 10 % growth a step: no single call looks bad.
    X = diabetes.inner[0]
    step_size = 2.1 / largest_curvature(np.full(10, -3.0), X)
    estimator = bl.Reverse(bl.GradientDescent(step_size), steps=1)
    arguments = (RIDGE, estimator, optax.sgd(1e-3), np.full(10, -3.0), np.zeros(10), diabetes)
    with pytest.warns(bl.DivergenceWarning):
        result = bl.tune(*arguments, steps=500, key=jax.random.key(0))
    assert np.linalg.norm(result.params) < 10


def assert_never_flagged(
    problem: bl.Problem, estimator: Any, outer: Any, hyper: Any, params: Any, data: Any, **more: Any
) -> bl.Result:
    """Not one of 100 runs over different keys."""

    def one(key: Any) -> bl.Result:
        return bl.tune(problem, estimator, outer, hyper, params, data, key=key, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 100))
    assert not results.diverged.any(), f"{int(results.diverged.sum())} of 100 runs were flagged"
    assert np.isfinite(results.history["value"]).all()
    return results


def test_a_start_at_the_exact_optimum_is_no_divergence() -> None:
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((40, 3)), rng.standard_normal((20, 3))
    y, t = X @ np.ones(3) + rng.standard_normal(40), V @ np.ones(3)
    best = np.linalg.solve(X.T @ X / 40 + np.exp(-2) * np.eye(3), X.T @ y / 40)
    estimator = bl.Forward(bl.SGD(step_size=0.05, batch_size=4), steps=20)
    arguments = (optax.adam(0.05), np.full(3, -2.0), best, bl.Data((X, y), (V, t)))
    assert_never_flagged(RIDGE, estimator, *arguments, steps=40)


@quick_cases(1, ("steps", "batch_size"), [(1, 1), (10, 3)])
def test_one_dimensional_noise_is_no_divergence(steps: int, batch_size: int) -> None:
    # The full gradient of a scalar is often nearly 0: ratios of it are huge by chance.
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    )
    rng = np.random.default_rng(0)
    data = bl.Data(inner=1 + rng.standard_normal(9), outer=1 + rng.standard_normal(5))
    estimator = bl.Reverse(bl.SGD(step_size=0.3, batch_size=batch_size), steps=steps)
    arguments = (optax.sgd(0.1), np.array(-1.0), np.array(0.0), data)
    assert_never_flagged(problem, estimator, *arguments, steps=150)


@pytest.mark.extended
def test_interpolation_is_no_divergence() -> None:
    # More features than examples: the residual falls to rounding and fluctuates there.
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((8, 20)), rng.standard_normal((10, 20))
    estimator = bl.Implicit(bl.SGD(step_size=0.02, batch_size=2), steps=200)
    data = bl.Data((X, X @ np.ones(20)), (V, V @ np.ones(20)))
    arguments = (optax.sgd(0.01), np.full(20, -12.0), np.zeros(20), data)
    results = assert_never_flagged(RIDGE, estimator, *arguments, steps=20)
    assert np.median(results.history["inner_residual"][:, -1]) < 1e-3


@pytest.mark.extended
def test_momentum_transients_are_no_divergence(diabetes: bl.Data) -> None:
    # Heavy ball overshoots: within a few steps the gradient grows before it falls.
    estimator = bl.Reverse(bl.SGD(step_size=0.1, batch_size=32, momentum=0.95), steps=7)
    arguments = (optax.adam(0.05), np.full(10, -3.0), np.zeros(10), diabetes)
    assert_never_flagged(RIDGE, estimator, *arguments, steps=60)


@pytest.mark.extended
def test_learned_targets_that_start_at_zero_are_no_divergence() -> None:
    # At the start every gradient is exactly 0: any later one is infinitely larger.
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((6, 4)), rng.standard_normal((20, 4))
    problem = bl.Problem(
        lambda w, targets, b: jnp.mean((b[0] @ w - targets[b[1]]) ** 2) / 2 + 0.05 * jnp.sum(w**2),
        loss,
    )
    estimator = bl.Reverse(bl.SGD(step_size=0.1, batch_size=2), steps=20)
    data = bl.Data((X, np.arange(6)), (V, V @ np.ones(4)))
    arguments = (optax.adam(0.3), np.zeros(6), np.zeros(4), data)
    results = assert_never_flagged(problem, estimator, *arguments, steps=60)
    assert np.all(results.history["value"][:, -1] < results.history["value"][:, 0] / 4)


def test_a_start_of_the_problem_is_where_the_scale_is_taken() -> None:
    # Along a double well the gradient grows on the way to the minimum, where the placeholder is.
    def well(w: Any, hyper: Any, batch: Any) -> Any:
        return jnp.mean(batch) * (w**2 - 1) ** 2 / 4

    problem = bl.Problem(well, lambda w, h, x: (w - 0.7) ** 2, start=lambda h, w: h)
    data, key = bl.Data(np.ones(3), np.ones(1)), jax.random.key(0)
    estimator = bl.Reverse(bl.GradientDescent(0.3), steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", bl.DivergenceWarning)
        result = bl.tune(
            problem, estimator, optax.sgd(0.01), 0.1, 1.0, data, steps=5, key=key, evidence="off"
        )
    assert not result.diverged
    assert result.history["inner_residual"][0] > 1  # what the scale was asked about


def test_a_divergence_at_the_first_step_is_not_laid_to_a_proposal(diabetes: bl.Data) -> None:
    arguments = (RIDGE, bl.Reverse(bl.GradientDescent(5.0), steps=50), optax.sgd(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bl.DivergenceWarning)
        result = bl.tune(
            *arguments, np.zeros(10), np.zeros(10), diabetes, steps=5, key=jax.random.key(0)
        )
    assert "at the hyperparameters where it starts" in result.message


@pytest.mark.parametrize("evidence", ["off", "auto"])
def test_a_run_on_minibatches_needs_no_memory_for_all_rows_at_once(evidence: str) -> None:
    """Whoever takes minibatches may not have it: 16 MB here, for one layer of all rows."""
    n, width = 10_000, 400

    def inner(w: Any, h: Any, rows: Any) -> Any:
        hidden = jnp.tanh(rows @ w["in"])
        return jnp.mean((hidden @ w["out"] - 1) ** 2) / 2 + jnp.exp(h) * jnp.sum(w["in"] ** 2)

    params = {"in": jnp.ones((4, width)), "out": jnp.ones(width)}
    problem = bl.Problem(inner, lambda w, h, _: jnp.sum(w["out"] ** 2), evidence=evidence)
    estimator = bl.Reverse(bl.SGD(1e-3, batch_size=8), 20)

    def run(h: Any, rows: Any) -> Any:
        data, key = bl.Data(rows, jnp.ones(1)), jax.random.key(0)
        return bl.tune(problem, estimator, optax.sgd(0.1), h, params, data, steps=2, key=key).hyper

    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    compiled = jax.jit(run).lower(jnp.asarray(0.0), rows).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * width * 4
