"""Forward and Reverse: late start, truncation, averages, checkpoints, a twin; a learned start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import logistic, ridge
from tests.marks import quick_cases

CASE = ridge(seed=5)
KEY = jax.random.key(2)
SOLVER = bl.SGD(step_size=0.2, batch_size=4, momentum=0.6)


def run(estimator: Any, case: Any = CASE, state: Any = None, key: Any = KEY) -> Any:
    arguments = (case.problem, estimator, case.hyper, case.params, case.data, key)
    return bl.hypergradient(*arguments, state=state)


def outer(params: Any, hyper: Any) -> Any:
    return CASE.problem.outer(params, hyper, CASE.data.outer)


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_a_late_derivative_is_a_truncated_one() -> None:
    steps, late = 12, 7
    forward, _ = run(bl.Forward(SOLVER, steps, start=late))
    reverse, _ = run(bl.Reverse(SOLVER, steps, truncate=steps - late))
    np.testing.assert_allclose(forward.grad, reverse.grad, rtol=1e-11)
    np.testing.assert_allclose(forward.value, reverse.value, rtol=1e-13)
    assert not np.allclose(forward.grad, run(bl.Forward(SOLVER, steps))[0].grad, rtol=1e-3)


@pytest.mark.usefixtures("x64")
@quick_cases(1, "steps", [1, 7, 16])
def test_memory_changes_nothing_but_memory(steps: int) -> None:
    full, _ = run(bl.Reverse(SOLVER, steps, memory="full"))
    checkpointed, _ = run(bl.Reverse(SOLVER, steps, memory="checkpoint"))
    np.testing.assert_allclose(checkpointed.grad, full.grad, rtol=1e-12)
    assert int(checkpointed.evidence.counts.vjps) == int(full.evidence.counts.vjps) == steps
    assert checkpointed.evidence.counts.gradients > full.evidence.counts.gradients


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_the_average_is_the_derivative_of_the_averaged_iterate() -> None:
    steps, tail = 9, 4

    def value(hyper: Any) -> Any:
        arguments = (CASE.problem, SOLVER, hyper, CASE.params, CASE.data, KEY)
        iterates = [bl.solve(*arguments, steps=k) for k in range(steps - tail + 1, steps + 1)]
        return outer(sum(iterates) / tail, hyper)

    expected, gradient = jax.jit(jax.value_and_grad(value))(jnp.asarray(CASE.hyper))
    estimate, _ = run(bl.Forward(SOLVER, steps, average=tail))
    np.testing.assert_allclose(estimate.value, expected, rtol=1e-12)
    np.testing.assert_allclose(estimate.grad, gradient, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@quick_cases(1, "kind", [bl.Forward, bl.Reverse])
def test_a_warm_call_goes_on_where_the_last_one_ended(kind: Any) -> None:
    # Without minibatches, n and then n steps are 2n; Forward keeps the derivative, Reverse forgets.
    solver = bl.GradientDescent(0.2)
    _, state = run(kind(solver, 6))
    second, state = run(kind(solver, 6), state=state)
    whole, _ = run(kind(solver, 12) if kind is bl.Forward else bl.Reverse(solver, 12, truncate=6))
    np.testing.assert_allclose(second.value, whole.value, rtol=1e-13)
    np.testing.assert_allclose(second.grad, whole.grad, rtol=1e-11)
    assert second.evidence.inner_residual == pytest.approx(float(whole.evidence.inner_residual))


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_chunks_and_directions_of_the_tangents() -> None:
    whole, _ = run(bl.Forward(SOLVER, 6))
    chunked, _ = run(bl.Forward(SOLVER, 6, chunk=3))  # of 4 tangents
    np.testing.assert_allclose(chunked.grad, whole.grad, rtol=1e-11)
    U = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 2)))[0].T
    projected, _ = run(bl.Forward(SOLVER, 6, directions=U))
    np.testing.assert_allclose(projected.grad, U.T @ U @ whole.grad, rtol=1e-11)
    parts, _ = run(bl.Forward(SOLVER, 6, directions=np.vstack([U, 0 * U[:1]]), chunk=2))
    np.testing.assert_allclose(parts.grad, projected.grad, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_random_directions_are_unbiased_and_know_their_error() -> None:
    runs, solver = 4000, bl.GradientDescent(0.2)
    whole, _ = run(bl.Forward(solver, 5))
    estimator = bl.Forward(solver, 5, directions=3)
    keys = jax.random.split(KEY, runs)
    drawn = jax.jit(jax.vmap(lambda key: run(estimator, key=key)[0]))(keys)
    error = np.std(drawn.grad, axis=0, ddof=1) / np.sqrt(runs)
    # Four standard errors of the mean over the runs.
    # false alarm: 6e-5 each
    assert np.all(np.abs(np.mean(drawn.grad, axis=0) - whole.grad) < 4 * error)
    claimed = np.sqrt(np.mean(np.square(drawn.evidence.standard_error), axis=0))
    np.testing.assert_allclose(claimed, np.std(drawn.grad, axis=0), rtol=0.1)


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [0])
def test_a_twin_removes_the_bias_of_correlated_iterate_and_derivative(seed: int) -> None:
    runs = 4000
    keys = jax.random.split(jax.random.key(seed), runs)
    solver = bl.SGD(step_size=0.4, batch_size=1)
    assert CASE.exact is not None
    _, truth = CASE.exact(CASE.hyper)

    def bias(cross: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean error in units of its standard error."""
        estimator = bl.Forward(solver, steps=60, cross=cross)
        grads = np.asarray(jax.jit(jax.vmap(lambda k: run(estimator, key=k)[0].grad))(keys))
        return np.abs(grads.mean(0) - truth), grads.std(0, ddof=1) / np.sqrt(runs)

    (plain, plain_error), (crossed, crossed_error) = bias(cross=False), bias(cross=True)
    assert np.any(plain > 5 * plain_error)
    assert np.all(crossed < 4 * crossed_error)  # false alarm: 6e-5 each


def initialisation() -> tuple[bl.Problem, bl.Data, Any]:
    """A learned start: hyper is where a few steps of logistic regression begin."""
    case = logistic(seed=0)

    def inner(params: Any, hyper: Any, batch: Any) -> Any:
        return case.problem.inner(params, jnp.array(-2.0), batch)

    def outer(params: Any, hyper: Any, batch: Any) -> Any:
        return case.problem.outer(params, None, batch)

    hyper = {"w": np.array([0.3, -0.4, 0.1]), "b": np.array(0.2)}
    return bl.Problem(inner, outer, start=lambda hyper, params: hyper), case.data, hyper


@pytest.mark.usefixtures("x64")
def test_a_learned_start() -> None:
    problem, data, hyper = initialisation()
    zeros = jax.tree.map(np.zeros_like, hyper)

    def value(hyper: Any) -> Any:
        plain = bl.Problem(problem.inner, problem.outer)
        params = bl.solve(plain, SOLVER, hyper, hyper, data, KEY, steps=5)
        return plain.outer(params, hyper, data.outer)

    expected, gradient = jax.jit(jax.value_and_grad(value))(hyper)
    for kind in (bl.Forward, bl.Reverse):
        estimator = kind(SOLVER, steps=5)
        estimate, state = bl.hypergradient(problem, estimator, hyper, zeros, data, KEY)
        np.testing.assert_allclose(estimate.value, expected, rtol=1e-12)
        for name, leaf in gradient.items():
            np.testing.assert_allclose(estimate.grad[name], leaf, rtol=1e-10)
        # The next call starts at the learned start too, not where this one ended.
        again, _ = bl.hypergradient(problem, estimator, hyper, zeros, data, KEY, state=state)
        np.testing.assert_allclose(again.value, expected, rtol=1e-12)


def test_implicit_refuses_a_learned_start() -> None:
    problem, data, hyper = initialisation()
    estimator = bl.Implicit(bl.GradientDescent(0.1), steps=5)
    with pytest.raises(
        ValueError,
        match=r"Implicit's hypergradient does not depend on hyper\['b'\], hyper\['w'\].*start",
    ):
        bl.hypergradient(problem, estimator, hyper, hyper, data, KEY)


def quadratic() -> tuple[bl.Problem, bl.Data]:
    case = ridge(seed=2)

    def inner(params: Any, hyper: Any, batch: Any) -> Any:
        return case.problem.inner(params, hyper["penalty"], batch)

    def outer(params: Any, hyper: Any, batch: Any) -> Any:
        return case.problem.outer(params, None, batch)

    return bl.Problem(inner, outer), case.data


def rate(count: Any, hyper: Any) -> Any:
    return jnp.exp(hyper["rate"]) / (1 + 0.1 * count)


SOLVERS = {
    "sgd": bl.SGD(rate, batch_size=5, momentum=0.5),
    "momentum": bl.SGD(0.1, batch_size=5, momentum=lambda count, hyper: jnp.exp(hyper["rate"])),
    "gradient descent": bl.GradientDescent(rate),
    "adam": bl.Optax(bl.transform(optax.adam, learning_rate=rate, eps_root=1e-16), batch_size=5),
}


@pytest.mark.usefixtures("x64")
@quick_cases(1, "name", SOLVERS)
def test_a_step_size_as_hyperparameter_against_finite_differences(name: str) -> None:
    problem, data = quadratic()
    hyper, solver = {"penalty": np.array(-1.0), "rate": np.array(-2.0)}, SOLVERS[name]

    @jax.jit
    def value(penalty: Any, rate: Any) -> Any:
        hyper = {"penalty": penalty, "rate": rate}
        params = bl.solve(problem, solver, hyper, jnp.zeros(4), data, KEY, steps=8)
        return problem.outer(params, hyper, data.outer)

    e = 1e-5
    slopes = {
        "penalty": (value(-1.0 + e, -2.0) - value(-1.0 - e, -2.0)) / (2 * e),
        "rate": (value(-1.0, -2.0 + e) - value(-1.0, -2.0 - e)) / (2 * e),
    }
    for kind in (bl.Forward, bl.Reverse):
        estimate, _ = bl.hypergradient(problem, kind(solver, 8), hyper, np.zeros(4), data, KEY)
        for entry, slope in slopes.items():
            # Central differences: O(e^2) from the curve, O(1e-16 / e) from rounding.
            assert float(estimate.grad[entry]) == pytest.approx(float(slope), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["sgd", "gradient descent", "adam"])
def test_implicit_refuses_a_step_size(name: str) -> None:
    problem, data = quadratic()
    hyper = {"penalty": np.array(-1.0), "rate": np.array(-2.0)}
    estimator = bl.Implicit(SOLVERS[name], steps=5)
    with pytest.raises(
        ValueError,
        match=r"Implicit's hypergradient does not depend on hyper\['rate'\].*Use Forward or Rev",
    ):
        bl.hypergradient(problem, estimator, hyper, np.zeros(4), data, KEY)
