"""Structured moments against the dense oracle, by listing, and ridge's reference; the 1/k law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise import Compressed, LeastSquares
from bilevel.noise.moments import rules, run
from tests.marks import quick_cases
from tests.noise.linear_models import (
    RIDGE_MOMENTS,
    dense,
    joint,
    last,
    model,
    reference_ridge,
    relative,
)

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 30


def schedule(momentum, nesterov=False):
    return rules.sgd(0.2 / (1 + 0.1 * jnp.arange(STEPS)), momentum, nesterov)


@pytest.mark.parametrize("batching", [(1, "iid"), (4, "without_replacement")])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "averaged"),
    [(None, False, True), (0.7, False, False), (0.7, True, False), (0.7, False, True)],
)
def test_ridge_equals_the_dense_oracle(batching, momentum, nesterov, averaged):
    case, rule = model(seed=0), schedule(momentum, nesterov)
    if averaged:
        rule = rules.averaged(rule, rules.tail_weights(STEPS, 13))
    process = case.ridge(*batching)
    oracle = dense(case, process.factor)
    x, D = np.ones(3), np.full((2, 3), 0.3)
    z = np.concatenate([x - process.solution, np.ravel(D - process.derivative)])
    ours = last(process, process.start(x, D, rule.slots), rule)
    theirs = last(oracle, oracle.start(z, rule.slots), rule)
    assert relative(ours, joint(theirs.second, p=2)) < 1e-12
    means = np.concatenate([ours.mean_x[:, None], np.moveaxis(ours.mean_d, 0, 1)], 1)
    np.testing.assert_allclose(means.reshape(theirs.mean.shape), theirs.mean, atol=1e-13)


@quick_cases(1, "momentum", [None, 0.6])
def test_least_squares_sums_over_columns_what_ridge_keeps_apart(momentum):
    """x and D of least squares do not see one another: two processes, n x n whatever p."""
    case = model(seed=1, p=4)._replace(penalty=np.zeros(3), penalty_jacobian=np.zeros((3, 4)))
    rule, whole = schedule(momentum), case.ridge(2)
    both = last(whole, whole.start(np.ones(3), 0.0, rule.slots), rule)
    for targets, start, block in ((case.b, np.ones(3), both.xx), (case.J, 0.0, both.dd.sum(0))):
        process = LeastSquares.from_data(case.A, targets, batch_size=2)
        begin = process.start(jnp.broadcast_to(start, process.solution.shape), rule.slots)
        for form in (process, Compressed.from_least_squares(process)):
            second = last(form, begin, rule).second
            assert np.abs(second - block).max() < 1e-12 * np.abs(block).max()


@pytest.mark.parametrize("seed", [2])
def test_batches_enumerated(seed):
    """One step over every possible batch, drawn both ways: no formula involved."""
    case = model(seed, m=4)
    for sampling, batches in (
        ("iid", [(i, j) for i in range(4) for j in range(4)]),
        ("without_replacement", [(i, j) for i in range(4) for j in range(4) if i != j]),
    ):
        process = case.ridge(2, sampling)
        x, eta = np.ones(3), 0.3
        steps = []
        for rows in map(list, batches):
            A, b = case.A[rows], case.b[rows]
            gradient = A.T @ (A @ x - b) / 2 + case.penalty * x
            steps.append(x - eta * gradient - process.solution)
        expected = np.mean([np.outer(u, u) for u in steps], axis=0)
        ours = process.step(process.start(x), rules.sgd(eta)).xx[0, :, 0]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_full_batch_is_gradient_descent():
    case = model(seed=3)
    process = case.ridge(None)
    end = last(process, process.start(np.ones(3)), rules.sgd(jnp.full(5, 0.2)))
    u = np.ones(3) - process.solution
    for _ in range(5):
        u = u - 0.2 * process.curvature @ u
    np.testing.assert_allclose(end.xx[0, :, 0], np.outer(u, u), rtol=1e-12)


def test_late_start_keeps_the_iterate_and_begins_the_derivative():
    case, rule = model(seed=4), schedule(None)
    process = case.ridge(1)
    moved = last(process, process.start(np.ones(3)), rule)
    again = process.restart(moved)
    np.testing.assert_array_equal(again.xx, moved.xx)
    expected = np.einsum(
        "jai,jbk->jaibk", -process.derivative[:, None], -process.derivative[:, None]
    )
    np.testing.assert_allclose(again.dd, expected, rtol=1e-12)
    np.testing.assert_allclose(
        again.xd, np.einsum("ai,jbk->jaibk", moved.mean_x, again.mean_d), rtol=1e-12
    )


@jax.jit
def errors(process, start, rule):
    return run(process, start, rule, lambda now: now.squared_errors()[1][0])[1]


@pytest.mark.parametrize("kind", RIDGE_MOMENTS)
def test_reference_moments_of_ridge(kind):
    """The exact curve of the reference case, to every digit that it prints."""
    process, step_size = reference_ridge(kind)
    start = process.start(np.zeros(5))
    curve = errors(process, start, rules.sgd(step_size))
    for steps, printed in zip((100, 1000, 10000), RIDGE_MOMENTS[kind], strict=True):
        assert float(f"{curve[steps - 1]:.7g}") == pytest.approx(printed, rel=2e-7)
    if kind == "decreasing":
        assert np.log10(curve[9999] / curve[999]) == pytest.approx(-0.95, abs=0.005)


@pytest.mark.extended
def test_decreasing_steps_give_one_over_k():
    """Exactly 1/k, no logarithm, for the iterate and its derivative; unit rows as in the theory."""
    rng = np.random.default_rng(5)
    A = rng.standard_normal((50, 5))
    A = A / np.linalg.norm(A, axis=1, keepdims=True)
    mu = np.linalg.eigvalsh(A.T @ A / 50)[0]
    k = jnp.arange(100_000)
    step = rules.sgd(2 / (mu * (k + 8 / mu**2)))
    t = k + 8 / mu**2
    for targets in (rng.standard_normal(50), rng.standard_normal((50, 3))):
        process = Compressed.from_least_squares(LeastSquares.from_data(A, targets, batch_size=1))
        begin = process.start(jnp.zeros_like(process.solution))
        curve = run(process, begin, step, lambda now: now.squared_error())[1]
        slope = np.log(curve[-1] / curve[10_000]) / np.log(t[-1] / t[10_000])
        assert slope == pytest.approx(-1.0, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: LeastSquares.from_data(c.A, c.b, 1, "epoch"), "depend on one another"),
        (lambda c: LeastSquares.from_data(c.A, c.b[:-1], 1), "A has 11 rows"),
        (lambda c: LeastSquares.from_data(c.A[:2], c.b[:2], 1), "singular"),
        (lambda c: c._replace(penalty=-5.0).ridge(1), "indefinite"),
        (lambda c: c._replace(J=c.J[:, :1]).ridge(1), "2 hyperparameters"),
        (lambda c: c._replace(penalty_jacobian=np.ones((4, 2))).ridge(1), "A has 3 features"),
        (lambda c: c.ridge(12), "larger than the number"),
        (lambda c: c.ridge(2, "shuffled"), "sampling must be one of"),
        (lambda c: LeastSquares.from_data(c.b, c.b, 1), r"\[examples, features\]"),
        (lambda c: rules.sgd(-0.1), "must be positive"),
        (lambda c: rules.sgd(0.1, momentum=1.0), "momentum must lie in"),
        (lambda c: rules.tail_weights(10, 11), "window=11"),
        (lambda c: rules.averaged(rules.sgd(jnp.ones(4)), jnp.ones(3)), "one weight per step"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(model(seed=0))
