"""Schedules: the noisy quadratic in expectation, and central differences through a training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.outer import Auto
from tasks.parts import noisy_quadratic as known
from tasks.parts.learned_schedules import Momentum, Rate
from tasks.schedule import schedule
from tests.marks import quick_cases

# The schedule of the noisy quadratic, measured apart.
START, CONSTANT, GREEDY, OPTIMUM = 2.59369, 0.035217, 0.078402, 0.013520
KEY = jax.random.key(0)


def quadratic_solver(momentum: bool) -> bl.SGD:
    given = Momentum() if momentum else None
    return bl.SGD(step_size=Rate(), batch_size=1, sampling="epoch", momentum=given)


def test_baselines_are_those_of_the_case() -> None:
    found = known.baselines(100)
    assert known.expected_loss(np.zeros(0)) == pytest.approx(START, rel=1e-5)
    assert known.expected_loss(np.full(100, 1.2517)) == pytest.approx(CONSTANT, abs=1e-6)
    assert found["best constant rate (of 100)"]["expected_loss"] == pytest.approx(
        CONSTANT, abs=1e-5
    )
    greedy = found["greedy: each rate best for its own step"]["expected_loss"]
    assert greedy == pytest.approx(GREEDY, abs=1e-6)


@quick_cases(1, "momentum", [None, 0.7])
def test_expected_loss_and_its_derivative(momentum: float | None, x64) -> None:
    """Against the second moments, for any rates; the order of the noises does not matter."""
    task = schedule("quadratic", steps=12, momentum=momentum)
    rates = np.random.default_rng(0).uniform(0.1, 1.9, 12)
    estimator = bl.Reverse(quadratic_solver(momentum is not None), steps=12)
    hyper = task.hyper | {"rate": jnp.asarray(rates)}
    found, _ = bl.hypergradient(task.problem, estimator, hyper, task.params, task.data, KEY)
    assert found.value == pytest.approx(known.expected_loss(rates, momentum or 0.0), rel=1e-12)
    for k in (0, 7, 11):
        high, low = (
            known.expected_loss(rates + s * np.eye(12)[k], momentum or 0.0) for s in (1e-5, -1e-5)
        )
        assert found.grad["rate"][k] == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_moments_are_those_of_simulated_noise() -> None:
    """Heavy ball, 20 000 runs of 6 steps: within 4 standard errors."""
    rates, m = np.array([0.5, 1.0, 0.2, 1.5, 0.7, 0.3]), 0.6
    rng, i = np.random.default_rng(0), np.arange(1, 101)
    w, v = np.ones((20_000, 100)), np.zeros((20_000, 100))
    for rate in rates:
        v = m * v + (w - rng.normal(size=w.shape) * np.sqrt(i / 100)) / i
        w = w - rate * v
    losses = np.sum(w**2 / i, 1) / 2
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - known.expected_loss(rates, m)) < 4 * error  # false alarm: 6e-5


@pytest.mark.slow
@pytest.mark.parametrize("outer", [bl.transform(optax.adam, learning_rate=0.1), Auto()])
def test_the_whole_horizon(outer, x64) -> None:
    """100 evaluations from .1 on: <= .0140, far below what a horizon of one step finds."""
    task = schedule("quadratic", momentum=None, largest=1.99)
    result = bl.tune(
        task.problem,
        bl.Reverse(quadratic_solver(False), steps=100),
        outer,
        task.hyper,
        task.params,
        task.data,
        steps=100,
        key=KEY,
        warm_start=False,
    )
    value = float(np.min(result.history["value"]))
    print(value)
    assert OPTIMUM - 1e-6 <= value <= 0.0140
    assert task.metrics(result.hyper, None)["expected_loss"] <= value * (1 + 1e-10)
    assert np.max(result.hyper["rate"]) <= 1.99


@pytest.mark.extended
def test_hypergradient_of_a_training_is_the_central_difference(x64) -> None:
    """Of the training itself, in a direction of every rate and the momentum."""
    task, other = (schedule("digits", steps=15, rows=200, widths=(8,), seed=s) for s in (0, 1))
    assert task.problem == other.problem, "seeds share their compilation"
    assert not np.array_equal(task.data.inner[0], other.data.inner[0])
    solver = bl.SGD(step_size=Rate(), batch_size=16, momentum=Momentum(), sampling="epoch")

    estimator = bl.Reverse(solver, steps=15)

    def estimate(hyper):
        problem, data = task.problem, task.data
        return bl.hypergradient(problem, estimator, hyper, task.params, data, KEY)[0]

    rng, step = np.random.default_rng(0), 1e-5
    along = jax.tree.map(lambda h: 0.1 * rng.normal(size=h.shape), task.hyper)
    high, low = (
        estimate(jax.tree.map(lambda h, d, s=s: h + s * d, task.hyper, along)).value
        for s in (step, -step)
    )
    grad = estimate(task.hyper).grad
    found = sum(np.sum(np.asarray(grad[name]) * d) for name, d in along.items())
    assert float(found) == pytest.approx(float(high - low) / (2 * step), rel=1e-5)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=0 must be positive"):
        schedule(steps=0)
    with pytest.raises(ValueError, match=r"start=3.0 must lie below largest=2.0"):
        schedule(start=3.0, largest=2.0)
    with pytest.raises(ValueError, match=r"momentum=1.0 must lie between 0 and 1"):
        schedule(momentum=1.0)
    with pytest.raises(ValueError, match=r"runs=1 must be at least 2"):
        schedule(runs=1)
    with pytest.raises(ValueError, match=r"'diabetes' is a regression set"):
        schedule("diabetes")
