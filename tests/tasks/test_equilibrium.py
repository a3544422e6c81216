"""Equilibria of digits against plain iteration, finite differences and scikit-learn's loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

import bilevel as bl
from tasks.networks.equilibrium import Layer, equilibrium, shorten_rows
from tests.tasks.experiment import run_experiment

IMPLICIT = bl.Implicit(bl.Anderson(tol=1e-13), 100, linear=bl.GMRES(tol=1e-12))
DECAY = 0.01


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    """A task in float64, and weights some of whose rows are longer than a contraction allows."""
    with jax.enable_x64(True):
        task = equilibrium(units=4, train=30, test=50, contraction=0.8, decay=DECAY)
        rng = np.random.default_rng(0)
        W = rng.normal(size=(4, 4)) * np.array([[0.05], [1.0], [0.1], [2.0]])
        return task, {**task.hyper, "W": jnp.asarray(W)}


def value(task: Any, hyper: Any) -> float:
    """The outer loss where plain iteration ends, by scikit-learn."""
    h = {name: np.asarray(leaf) for name, leaf in hyper.items()}
    X, y = map(np.asarray, task.data.outer)
    long = np.abs(h["W"]).sum(1, keepdims=True)
    W = np.where(long > 0.8, 0.8 * h["W"] / long, h["W"])
    z = np.zeros((30, 4))
    for _ in range(200):
        z = np.tanh(z @ W.T + X @ h["U"].T + h["b"])
    likely = softmax(z @ h["V"].T + h["c"], axis=1)
    return log_loss(y, likely, labels=range(10)) + DECAY * sum(np.sum(h[k] ** 2) for k in "WUV")


def test_hypergradient_is_the_central_difference(small: tuple[Any, Any], x64: None) -> None:
    task, hyper = small
    at = hyper, task.params, task.data, jax.random.key(0)
    found, _ = bl.hypergradient(task.problem, IMPLICIT, *at)
    unrolled, _ = bl.hypergradient(task.problem, bl.Reverse(bl.Picard(), 200), *at, evidence="off")
    assert found.value == pytest.approx(value(task, hyper), rel=1e-10)
    dense = task.picture.args[0].solve_densely(hyper).grad
    rng = np.random.default_rng(1)
    for name in hyper:
        way = rng.normal(size=hyper[name].shape)
        moved = [{**hyper, name: hyper[name] + e * way} for e in (1e-5, -1e-5)]
        slope = (value(task, moved[0]) - value(task, moved[1])) / 2e-5
        for grad in (found.grad, unrolled.grad, dense):
            assert np.sum(np.asarray(grad[name]) * way) == pytest.approx(slope, rel=1e-6), name


def test_no_step_of_the_layer_leaves_more_of_a_distance() -> None:
    rng = np.random.default_rng(0)
    hyper = {
        "W": 5 * rng.normal(size=(6, 6)),
        "U": rng.normal(size=(6, 3)),
        "b": rng.normal(size=6),
    }
    a, b, X = map(jnp.asarray, (rng.normal(size=(50, d)) for d in (6, 6, 3)))
    layer = Layer(0.7)
    after = np.abs(layer(a, hyper, X) - layer(b, hyper, X)).max(1)
    assert np.all(after <= 0.7 * np.abs(a - b).max(1) + 1e-6)
    short = rng.uniform(-0.1, 0.1, size=(6, 6))
    np.testing.assert_array_equal(shorten_rows(jnp.asarray(short), 0.7), jnp.asarray(short))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"contraction=1.0 must lie between 0 and 1"):
        equilibrium(contraction=1.0)
    with pytest.raises(ValueError, match=r"units=0 must be at least 1"):
        equilibrium(units=0)
    task = equilibrium(units=2, train=30, test=50)
    minibatches = bl.Reverse(bl.SGD(0.5, batch_size=8), 2)
    with pytest.raises(ValueError, match=r"batch_size=8\) sees some rows at a time"):
        bl.hypergradient(
            task.problem, minibatches, task.hyper, task.params, task.data, jax.random.key(0)
        )


@pytest.mark.extended
def test_memory_of_unrolled_steps_grows_and_that_of_the_implicit_solve_does_not() -> None:
    task: Any = equilibrium(units=8, train=200, test=50)
    costs = {(c.name, c.steps): c for c in task.picture.args[0].measure(task.hyper, (20, 80))}
    few, many = (costs["Implicit, Anderson", k] for k in (20, 80))
    assert few.error < 1e-5
    assert many.memory == few.memory
    few, many = (costs["Reverse, Picard", k] for k in (20, 80))
    assert many.error < 1e-5
    states = 200 * 8 * 4  # bytes that a step has to keep at least
    assert many.memory - few.memory >= 60 * states


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equilibrium", "equilibrium_unrolled"])
def test_a_trained_equilibrium_is_no_worse_than_logistic_regression(name: str) -> None:
    found = run_experiment(name)
    linear = found.job.task.baselines()["logistic regression"]
    error = np.sqrt(0.04 * 0.96 / found.job.task.notes["rows"]["test"])
    assert found.metrics["test_error"] < linear["test_error"] + 2 * error
