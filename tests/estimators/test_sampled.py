"""Sampled: means over tasks in closed form, an honest standard error, refusals, divergence.

One task: inner |w - b|_a^2 / 2, outer |w - c|^2 / 2, one gradient step from the shared start ``s``:
w = s - r a (s - b), d outer / d s = (1 - r a) (w - c), d outer / d r = -a (s - b) (w - c).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

POOL = 40


def inner(w: Any, hyper: Any, batch: Any) -> Any:
    a, b = batch
    return jnp.mean(jnp.sum(a * (w - b) ** 2, -1)) / 2


def outer(w: Any, hyper: Any, batch: Any) -> Any:
    return jnp.mean(jnp.sum((w - batch) ** 2, -1)) / 2


def begin(hyper: Any, params: Any) -> Any:
    return hyper["start"]


def rates(count: Any, hyper: Any) -> Any:
    return hyper["rates"]


PROBLEM = bl.Problem(inner, outer, start=begin)
ONE = bl.Reverse(bl.GradientDescent(step_size=rates), steps=1)
HYPER = {"start": np.array([0.5, -1.0]), "rates": np.array([0.3, 0.1])}


def pool(size: int = POOL, seed: int = 0) -> bl.Data:
    rng = np.random.default_rng(seed)
    a, b, c = (rng.normal(size=(size, 1, 2)) for _ in range(3))
    return bl.Data(inner=(np.exp(a), b), outer=c)


def by_hand(data: bl.Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Value and gradient of every task, ``[pool]`` and ``[pool, 2]``."""
    (a, b), c = (leaf[:, 0] for leaf in data.inner), data.outer[:, 0]
    s, r = HYPER["start"], HYPER["rates"]
    w = s - r * a * (s - b)
    grad = {"start": (1 - r * a) * (w - c), "rates": -a * (s - b) * (w - c)}
    return np.sum((w - c) ** 2, -1) / 2, grad


@pytest.fixture(scope="module")
def many() -> tuple[Any, int, int]:
    """300 calls of 8 tasks each."""
    calls, tasks = 300, 8
    estimator = bl.Sampled(ONE, tasks=tasks)
    keys = jax.random.split(jax.random.key(0), calls)
    with jax.enable_x64(True):
        data = pool()
        run = partial(bl.hypergradient, PROBLEM, estimator, HYPER, HYPER["start"], data)
        estimates = jax.jit(jax.vmap(lambda key: run(key)[0]))(keys)
        return jax.tree.map(np.asarray, estimates), calls, tasks


def test_a_pool_of_one_task_is_that_task(x64) -> None:
    data = pool(size=1)
    value, grad = by_hand(data)
    for estimator in (bl.Sampled(ONE, 1), bl.Sampled(ONE, 3, chunk=1)):
        estimate, state = bl.hypergradient(
            PROBLEM, estimator, HYPER, np.zeros(2), data, jax.random.key(1)
        )
        assert estimate.value == pytest.approx(value[0], rel=1e-12)
        for name in HYPER:
            np.testing.assert_allclose(estimate.grad[name], grad[name][0], rtol=1e-12)
        if estimator.tasks > 1:
            np.testing.assert_allclose(estimate.evidence.standard_error["start"], 0, atol=1e-12)
        else:
            assert estimate.evidence.standard_error is None
        a = data.inner[0][0, 0]
        begun = a * (HYPER["start"] - data.inner[1][0, 0])
        left = np.linalg.norm((1 - HYPER["rates"] * a) * begun) / np.linalg.norm(begun)
        assert estimate.evidence.inner_residual == pytest.approx(left, rel=1e-12)
        assert state.params.shape == (2,)


def test_mean_over_calls_is_that_of_the_pool(many) -> None:
    estimates, calls, tasks = many
    value, grad = by_hand(pool())
    error = value.std() / (calls * tasks) ** 0.5
    assert abs(estimates.value.mean() - value.mean()) < 4 * error  # false alarm: 6e-5
    for name in HYPER:
        error = grad[name].std(0) / (calls * tasks) ** 0.5
        # false alarm: 6e-5 each
        assert np.all(np.abs(estimates.grad[name].mean(0) - grad[name].mean(0)) < 4 * error)


def test_standard_error_is_the_spread_over_calls(many) -> None:
    """E of its square is the variance of a call; both are means over 300 calls."""
    estimates, calls, tasks = many
    _, grad = by_hand(pool())
    for name in HYPER:
        squares = estimates.evidence.standard_error[name] ** 2
        noise = squares.std(0) / calls**0.5
        # false alarm: 6e-5 each
        assert np.all(np.abs(squares.mean(0) - grad[name].var(0) / tasks) < 4 * noise)


def test_chunks_change_no_number(x64) -> None:
    found = [
        bl.hypergradient(
            PROBLEM, bl.Sampled(ONE, 5, chunk=chunk), HYPER, np.zeros(2), pool(), jax.random.key(2)
        )
        for chunk in (None, 2)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), *found)


def numbered(data: bl.Data, key: Any) -> bl.Data:
    """A task that the key makes: inner target, outer target and curvature from the pool's row 0."""
    shift = jax.random.normal(key, (1, 2))
    (a, b), c = (leaf[0] for leaf in data.inner), data.outer[0]
    return bl.Data(inner=(a, b + shift), outer=c + shift)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    ("one", "true"),
    [
        (bl.Implicit(bl.Direct(), 1, damping=9.0), 0.9),
        (bl.Reverse(bl.GradientDescent(0.2), 80, truncate=1), 0.8),
    ],
    ids=["damped", "truncated"],
)
def test_an_error_of_every_task_is_one_of_the_mean(copies, one, true, x64) -> None:
    """Curvature 1: the adjoint is 1 / (1 + 9) of what it should be, or a step of size 0.2 of it."""
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - h * x) ** 2) / 2,
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
        quadratic=True,
    )
    rows = np.arange(1.0, 9.0)[:, None]
    estimator = bl.Sampled(one, tasks=16)
    if copies > 1:
        estimator = bl.Replicated(bl.Richardson(estimator) if true == 0.8 else estimator, copies)
    with pytest.warns(bl.EvidenceWarning):
        estimate, _ = bl.hypergradient(
            problem, estimator, 0.5, 0.0, bl.Data(rows, 2 * rows), jax.random.key(0)
        )
    assert estimate.relative_error > true - 0.1


def test_tasks_may_be_made_by_a_function(x64) -> None:
    """Of the tasks of one key, redone one by one; implicit, each with its own linear solve."""
    lam = 0.5

    def near(w: Any, start: Any, batch: Any) -> Any:
        return inner(w, start, batch) + lam * jnp.sum((w - start) ** 2) / 2

    problem = bl.Problem(near, outer, quadratic=True)
    data, start = pool(size=1), HYPER["start"]
    implicit = bl.Implicit(bl.Direct(), steps=1, linear=bl.CG(tol=1e-12))
    estimator = bl.Sampled(implicit, tasks=400, draw=numbered)
    estimate, _ = bl.hypergradient(problem, estimator, start, start, data, jax.random.key(3))
    # w* = (a b + lam s) / (a + lam): the gradient is linear in the shift, whose mean is 0.
    a, b, c = data.inner[0][0, 0], data.inner[1][0, 0], data.outer[0, 0]
    slope = lam / (a + lam)
    expected = slope * ((a * b + lam * start) / (a + lam) - c)
    spread = slope * np.abs(a / (a + lam) - 1) / 400**0.5
    assert np.all(np.abs(estimate.grad - expected) < 4 * spread)  # false alarm: 6e-5 each
    np.testing.assert_allclose(estimate.evidence.standard_error, spread, rtol=4 / 800**0.5)
    assert estimate.evidence.linear_residual < 1e-12


@pytest.mark.extended
def test_tune_learns_the_best_start() -> None:
    """The optimum over the whole pool is a linear system; 4 standard errors of the last steps."""
    data = pool()
    a, b, c = data.inner[0][:, 0], data.inner[1][:, 0], data.outer[:, 0]
    shrink = 1 - 0.2 * a
    best = np.mean(shrink * (c - 0.2 * a * b), 0) / np.mean(shrink**2, 0)
    problem = bl.Problem(inner, outer, start=lambda start, params: start)
    estimator = bl.Sampled(bl.Reverse(bl.GradientDescent(0.2), steps=1), tasks=20)
    result = bl.tune(
        problem,
        estimator,
        optax.sgd(lambda count: 1 / (count + 4)),
        np.zeros(2),
        np.zeros(2),
        data,
        steps=400,
        key=jax.random.key(0),
    )
    assert not result.diverged
    spread = np.std(shrink * (shrink * best + 0.2 * a * b - c), 0) / np.mean(shrink**2, 0)
    # A step of 1/t averages the noise of 400 x 20 tasks, up to the factor of 1/t steps.
    # false alarm: 6e-5 each
    assert np.all(np.abs(result.hyper - best) < 4 * 2 * spread / (400 * 20) ** 0.5)


def test_divergence_is_reported() -> None:
    problem = bl.Problem(inner, outer, start=lambda start, params: start)
    estimator = bl.Sampled(bl.Reverse(bl.GradientDescent(50.0), steps=10), tasks=4)
    with pytest.warns(bl.DivergenceWarning, match="Use a smaller step size"):
        result = bl.tune(
            problem,
            estimator,
            optax.sgd(0.1),
            np.ones(2),
            np.ones(2),
            pool(),
            steps=3,
            key=jax.random.key(0),
        )
    assert result.diverged


def test_bad_input_is_refused() -> None:
    run = partial(bl.hypergradient, PROBLEM, key=jax.random.key(0))
    short = bl.Data(inner=pool().inner, outer=pool(3).outer)
    with pytest.raises(ValueError, match=r"data.inner has 40 tasks and data.outer 3"):
        run(bl.Sampled(ONE, 2), HYPER, np.zeros(2), short)
    with pytest.raises(TypeError, match=r"draw must return the bl.Data of one task, got tuple"):
        run(bl.Sampled(ONE, 2, draw=lambda data, key: data.inner), HYPER, np.zeros(2), pool())
    with pytest.raises(TypeError, match=r"draw must be a function"):
        bl.Sampled(ONE, 2, draw=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"tasks must be at least 1"):
        bl.Sampled(ONE, 0)
    flat = bl.Data(inner=jnp.ones(4), outer=jnp.ones(4))
    with pytest.raises(ValueError, match=r"every data leaf needs a leading axis"):
        run(bl.Sampled(ONE, 2), HYPER, np.zeros(2), flat)
