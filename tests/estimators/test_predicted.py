"""Predicted: theory's standard error and bias against thousands of runs and the dense oracle."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.noise.hypergradients import prediction
from bilevel.testing import Case, dense_hypergradient, logistic, ridge

pytestmark = pytest.mark.usefixtures("x64")

RUNS = 4000
SGD = bl.SGD(0.15, batch_size=2)
HEAVY = bl.SGD(0.05, batch_size=2, momentum=0.6)
APART = "without_replacement"
# Ridge: standard deviations are exact to first order in the noise. Logistic: O(step size).
MADE = {
    "ridge, last iterate": (ridge, bl.Reverse(bl.SGD(0.05, batch_size=4), 600), 0.15),
    "ridge, without replacement": (ridge, bl.Reverse(bl.SGD(0.1, 16, sampling=APART), 400), 0.15),
    "logistic, last iterate": (logistic, bl.Reverse(SGD, 150), 0.3),
    "logistic, averaged": (logistic, bl.Forward(SGD, 220, average=100), 0.3),
    "logistic, momentum": (logistic, bl.Forward(HEAVY, 150), 0.3),
    "logistic, Nesterov without replacement": (
        logistic,
        bl.Forward(bl.SGD(0.05, 2, 0.6, nesterov=True, sampling=APART), 150),
        0.3,
    ),
    "logistic, implicit": (logistic, bl.Implicit(SGD, 150), 0.3),
    "logistic, implicit averaged": (logistic, bl.Implicit(SGD, 220, average=100), 0.3),
}
QUICK = ("ridge, last iterate", "ridge, without replacement", "logistic, averaged")
QUICK += ("logistic, Nesterov without replacement", "logistic, implicit")


def run(case: Case, estimator: Any, seed: int = 0) -> bl.Estimate:
    arguments = (case.problem, estimator, case.hyper, case.params, case.data)
    return bl.hypergradient(*arguments, jax.random.key(seed))[0]


def wide() -> Case:
    """Ridge with one penalty and 25 features: beyond the dense route."""
    rng = np.random.default_rng(3)
    X, w = rng.standard_normal((120, 25)), rng.standard_normal(25)
    y = X @ w + 2 * rng.standard_normal(120)
    data = bl.Data(inner=(X[:60], y[:60]), outer=(X[60:], y[60:]))
    return replace(ridge(seed=0), hyper=np.asarray(-1.0), params=np.zeros(25), data=data)


def assert_spread(predicted: Any, measured: Any, tolerance: float) -> None:
    """The standard deviation of ``RUNS`` runs has a standard error near 1 / sqrt(2 RUNS)."""
    within = tolerance + 4 / np.sqrt(2 * RUNS)
    np.testing.assert_allclose(predicted, measured, rtol=within)


@pytest.mark.extended
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MADE]
)
def test_standard_error_and_bias_are_those_of_many_runs(name: str) -> None:
    make, one, tolerance = MADE[name]
    case = make(seed=0)
    found, many = run(case, bl.Predicted(one)), run(case, bl.Replicated(one, RUNS))
    error = many.evidence.standard_error
    assert_spread(found.evidence.standard_error, error * np.sqrt(RUNS), tolerance)
    _, grad = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    bias = np.asarray(many.grad) - grad
    allowed = 4 * np.asarray(error) + (0 if make is ridge else tolerance * np.abs(bias))
    assert np.all(np.abs(bias - found.evidence.bias) <= allowed)
    if make is logistic:  # where 0 would not do for a prediction
        assert np.all(np.abs(bias) > 6 * np.asarray(error))


@pytest.mark.extended
def test_above_the_dense_size_averages_have_influence_values() -> None:
    case, one = wide(), bl.Forward(bl.SGD(0.02, batch_size=4), 900, average=600)
    found, many = run(case, bl.Predicted(one)), run(case, bl.Replicated(one, RUNS))
    assert found.evidence.bias is None
    measured = many.evidence.standard_error * np.sqrt(RUNS)
    assert_spread(found.evidence.standard_error, measured, 0.15)
    assert found.evidence.counts.hvps > 0
    apart = replace(one, solver=replace(one.solver, sampling=APART))
    at = case.problem, case.hyper, case.params, case.data
    errors = [float(bl.Predicted(each).theory(*at).standard_error) for each in (apart, one)]
    assert errors[0] / errors[1] == pytest.approx(np.sqrt((60 - 4) / (60 - 1)), rel=1e-9)


@pytest.mark.extended
def test_the_estimate_is_the_estimators_own() -> None:
    case, one = logistic(seed=1), bl.Forward(SGD, 20, average=10)
    found, plain = run(case, bl.Predicted(one)), run(case, one)
    np.testing.assert_array_equal(found.grad, plain.grad)
    np.testing.assert_array_equal(found.value, plain.value)
    assert found.evidence.counts.gradients > plain.evidence.counts.gradients


def test_the_mean_of_consecutive_iterates_is_the_double_sum() -> None:
    rng = np.random.default_rng(0)
    A, P, n = 0.4 * rng.standard_normal((3, 3)), rng.standard_normal((3, 3)), 7
    P = P @ P.T
    lags = [np.linalg.matrix_power(A, j) @ P for j in range(n)]
    total = sum(lags[s - t] if s >= t else lags[t - s].T for s in range(n) for t in range(n))
    found = prediction.average_covariance(jnp.asarray(A), jnp.asarray(P), n)
    np.testing.assert_allclose(found, total / n**2, rtol=1e-12)


def listed_deviation(case: Case, rate: float, mu: float, size: int) -> np.ndarray:
    """That of a hypergradient of ``ridge`` to first order, over all subsets of the rows, [p].

    Of Nesterov's momentum, read at a stationary iterate; the recursion of ``(x, D)`` spelt out.
    """
    (X, y), (V, t) = case.data.inner, case.data.outer
    penalty = np.exp(case.hyper)
    n, d = X.shape
    k = d * (1 + d)  # x, and D_j = dx / dh_j after it

    def gradient(rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """``C, q`` with the joint gradient ``C z - q``."""
        H = X[rows].T @ X[rows] / len(rows) + np.diag(penalty)
        C = np.kron(np.eye(1 + d), H)
        for j in range(d):
            C[d * (1 + j) + j, j] = penalty[j]
        return C, np.concatenate([X[rows].T @ y[rows] / len(rows), np.zeros(d * d)])

    C, q = gradient(np.arange(n))
    z, eye = np.linalg.solve(C, q), np.eye(k)
    lifted, source = 0.0, 0.0
    subsets = list(combinations(range(n), size))
    for rows in map(list, subsets):
        C, q = gradient(rows)
        velocity = np.hstack([C, mu * eye])
        A = np.vstack([np.hstack([eye - rate * C, 0 * eye]) - rate * mu * velocity, velocity])
        added = np.concatenate([-rate * (1 + mu) * (C @ z - q), C @ z - q])
        lifted = lifted + np.kron(A, A) / len(subsets)
        source = source + np.outer(added, added) / len(subsets)
    P = np.linalg.solve(np.eye(len(lifted)) - lifted, source.ravel()).reshape(2 * k, 2 * k)
    x, D = z[:d], z[d:].reshape(d, d)
    slope, curvature = V.T @ (V @ x - t) / len(t), V.T @ V / len(t)
    reads = np.hstack([D @ curvature, np.kron(np.eye(d), slope)])
    return np.sqrt(np.diag(reads @ P[:k, :k] @ reads.T))


def test_of_batches_without_replacement_it_is_that_over_all_subsets() -> None:
    whole = ridge(seed=0)
    data = jax.tree.map(lambda leaf: leaf[:6, :2] if leaf.ndim == 2 else leaf[:6], whole.data)
    case = replace(whole, data=data, hyper=whole.hyper[:2], params=whole.params[:2])
    solver = bl.SGD(0.05, 4, 0.5, nesterov=True, sampling=APART)
    theory = jax.jit(partial(bl.Predicted(bl.Reverse(solver, 1)).theory, case.problem))
    found = theory(case.hyper, case.params, case.data).standard_error
    np.testing.assert_allclose(found, listed_deviation(case, 0.05, 0.5, 4), rtol=1e-8)


def test_without_minibatches_there_is_no_noise() -> None:
    for solver in (bl.GradientDescent(0.2), bl.SGD(0.2)):
        evidence = run(ridge(seed=0), bl.Predicted(bl.Reverse(solver, 3))).evidence
        np.testing.assert_array_equal(evidence.standard_error, np.zeros(4))
        np.testing.assert_array_equal(evidence.bias, np.zeros(4))


def test_beyond_the_mean_square_limit_there_is_no_error_bar() -> None:
    """The logistic loss saturates, so the runs stay bounded; the linear theory does not."""
    evidence = run(logistic(seed=0), bl.Predicted(bl.Reverse(replace(SGD, step_size=3.0), 5)))
    assert np.isinf(evidence.evidence.standard_error)
    assert np.isinf(evidence.evidence.bias)


@pytest.mark.extended
@pytest.mark.parametrize("case", [ridge(seed=0), logistic(seed=0)], ids=["ridge", "logistic"])
def test_it_is_trusted_up_to_where_plan_is(case: Case) -> None:
    """Just below the largest step size of a plan there is an error bar, just above none."""
    plan = bl.plan(case.problem, case.hyper, case.params, case.data, 0.5, batch_sizes=(2,))
    trusted = prediction.trusted_share(case.exact is not None) * plan.limit
    for rate, finite in ((0.98 * trusted, True), (1.02 * trusted, False)):
        one = bl.Predicted(bl.Reverse(bl.SGD(rate, batch_size=2), 1))
        theory = one.theory(case.problem, case.hyper, plan.params, case.data)
        assert np.isfinite(theory.standard_error).all() == finite


@pytest.mark.parametrize("momentum", [None, 0.8])
def test_above_the_dense_size_it_is_trusted_up_to_a_share_of_the_relative_limit(
    momentum: float | None,
) -> None:
    """Half of it on a quadratic loss, whether it is declared to be one or not."""
    case = wide()
    relative = bl.SGD(bl.Relative(1.0), 4, momentum)
    inner = case.problem.inner
    state = relative.init(case.params, case.data.inner)
    state = relative.measure(inner, case.params, case.hyper, case.data.inner, state)
    slowed = 2 * (1 + (momentum or 0.0))
    limit = slowed / float(relative.max_curvature(case.hyper, state))
    for share, finite in ((0.48, True), (0.52, False)):
        one = bl.Forward(replace(relative, step_size=share * limit), 9, average=9)
        theory = bl.Predicted(one).theory(case.problem, case.hyper, case.params, case.data)
        assert np.isfinite(theory.standard_error) == finite


ESTIMATORS = {
    "not UORO": bl.UORO(SGD, 5),
    "directions=None": bl.Forward(SGD, 5, directions=2),
    "cross=False": bl.Forward(SGD, 5, cross=True),
    "truncate=None": bl.Reverse(SGD, 5, truncate=2),
    "damping=None": bl.Implicit(SGD, 5, damping=0.1),
    "correct=False": bl.Implicit(SGD, 5, correct=True),
    "not Replicated": bl.Replicated(bl.Forward(SGD, 5), 2),
}


@pytest.mark.parametrize("message", ESTIMATORS)
def test_refuses_an_estimator_that_it_has_no_theory_for(message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*measures the noise of any"):
        bl.Predicted(ESTIMATORS[message])


SOLVERS = {
    "got Optax": bl.Optax(optax.sgd(0.1), batch_size=2),
    "a schedule never comes to rest": bl.SGD(bl.Decay(0.1, 0.5), batch_size=2),
    "schedule never comes to rest": bl.SGD(bl.InverseTime(mu=0.5, L=2.0), batch_size=2),
}


@pytest.mark.parametrize("message", SOLVERS)
def test_refuses_a_solver_that_it_has_no_theory_for(message: str) -> None:
    with pytest.raises(ValueError, match=f"Predicted has no theory for this solver.*{message}"):
        run(ridge(seed=0), bl.Predicted(bl.Reverse(SOLVERS[message], 3)))


def test_refuses_problems_and_sizes_that_it_has_no_theory_for() -> None:
    with pytest.raises(ValueError, match=r"size 50.*up to 40.*average="):
        run(wide(), bl.Predicted(bl.Reverse(SGD, 3)))
    case = ridge(seed=0)
    started = replace(case.problem, start=lambda h, w: w * jnp.sum(h))
    with pytest.raises(ValueError, match="start"):
        run(replace(case, problem=started), bl.Predicted(bl.Forward(SGD, 3)))
