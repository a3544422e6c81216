"""Stationary solves, stability limits, rates and diagonals against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.linear import extremes
from bilevel.noise import Affine, Compressed, Diagonal, LeastSquares
from bilevel.noise.moments import feedback, limits, rules, stability
from bilevel.noise.quadratic import gaussian_inputs, minibatch
from tests.marks import quick_cases
from tests.noise.linear_models import dense, joint, last, model, relative

pytestmark = pytest.mark.usefixtures("x64")


# Compiled as a whole: op by op each of them would compile dozens of small programs.
stationary = jax.jit(limits.stationary)
dense_stationary = jax.jit(Affine.stationary)
step_limit = jax.jit(stability.step_limit)
strength = jax.jit(feedback.strength)


def hessians(case):
    return case.A[:, :, None] * case.A[:, None, :] + np.diag(case.penalty)


def repeated(rule, steps):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), rule)


@quick_cases(1, "momentum", [None, 0.6])
def test_stationary_solve_is_where_the_recursion_ends_and_the_dense_solve(momentum):
    case = model(seed=0)
    process = case.ridge(4, "without_replacement")
    oracle = dense(case, process.factor)
    eta = 0.6 * float(minibatch.step_limit(hessians(case), process.factor, momentum or 0.0))
    rule = rules.sgd(eta, momentum)
    found = stationary(process, rule)
    assert relative(found, joint(dense_stationary(oracle, rule).second, p=2)) < 1e-10
    start = process.start(np.ones(3), 0.0, rule.slots)
    end = last(process, start, repeated(rule, 3000))
    assert relative(end, (found.xx, found.xd, found.dd)) < 1e-10


def test_stationary_least_squares_solves_the_equation_of_the_theory():
    """``H P + P H - eta (H P H + p (K(P) - H P H)) = eta p W``, the sum over rows spelt out."""
    case, eta = model(seed=1), 0.3
    process = LeastSquares.from_data(case.A, case.J, batch_size=2)
    P = stationary(process, rules.sgd(eta)).second[0, :, 0]
    compressed = stationary(Compressed.from_least_squares(process), rules.sgd(eta)).second[0, :, 0]
    np.testing.assert_allclose(compressed, P, rtol=1e-12)
    H = case.A.T @ case.A / len(case.A)
    squares = case.A[:, :, None] * case.A[:, None, :]
    K = np.mean([(a @ P @ a) * S for a, S in zip(case.A, squares, strict=True)], axis=0)
    residuals = case.J - case.A @ np.linalg.lstsq(case.A, case.J)[0]
    W = np.mean((residuals**2).sum(1)[:, None, None] * squares, axis=0)
    left = H @ P + P @ H - eta * (H @ P @ H + (K - H @ P @ H) / 2)
    np.testing.assert_allclose(left, eta / 2 * W, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_step_limit_is_the_dense_one_and_feedback_is_one_there(momentum):
    case = model(seed=2)
    process = case.ridge(2)
    expected = float(minibatch.step_limit(hessians(case), process.factor, momentum))
    found = step_limit(process, momentum)
    assert float(found.value) == pytest.approx(expected, rel=1e-12)
    assert float(found.error) < 1e-12
    at_limit = strength(process, rules.sgd(expected, momentum or None))
    assert float(at_limit.value) == pytest.approx(1.0, abs=1e-10)


def test_contraction_is_the_radius_of_the_lifted_map():
    case, eta = model(seed=3), 0.4
    process = case.ridge(2)
    whole = np.eye(3) - eta * hessians(case).mean(0)
    single = [np.eye(3) - eta * H for H in hessians(case)]
    pairs = np.mean([np.kron(M, M) for M in single], axis=0)
    lifted = (1 - process.factor) * np.kron(whole, whole) + process.factor * pairs
    expected = np.abs(np.linalg.eigvals(lifted)).max()
    assert float(stability.contraction(process, eta).value) == pytest.approx(expected, rel=1e-12)


def test_the_derivative_is_stable_exactly_where_the_iterate_is():
    """Just below the common limit its error converges, just above it grows."""
    process = model(seed=4).ridge(1)
    limit = float(step_limit(process).value)
    start = process.start(np.ones(3))
    for share, converges in ((0.95, True), (1.05, False)):
        schedule = repeated(rules.sgd(share * limit), 2000)
        once = last(process, start, schedule)
        twice = last(process, once, schedule)
        before, after = (float(m.squared_errors()[1][0]) for m in (once, twice))
        assert after == pytest.approx(before, rel=1e-6) if converges else after > 1e3 * before


def test_one_over_k_limit_is_where_a_long_recursion_ends():
    """Joint process of ridge, ``C`` not symmetric; t E|z|^2 at 2e4 is within a few 1e-3."""
    case = model(seed=5)
    process = case.ridge(1)
    gamma = 2.5 / np.linalg.eigvalsh(process.curvature)[0]
    limit = limits.inverse_time(dense(case, 1.0), gamma)
    t = jnp.arange(20_000) + 4 * gamma
    end = last(process, process.start(process.solution, process.derivative), rules.sgd(gamma / t))
    x, D = end.squared_errors()
    assert float(t[-1] * x) == pytest.approx(float(jnp.trace(limit[:3, :3])), rel=0.01)
    assert float(t[-1] * D.sum()) == pytest.approx(float(jnp.trace(limit[3:, 3:])), rel=0.01)


def test_gaussian_diagonal_is_the_closed_form_of_the_full_covariance():
    rng = np.random.default_rng(6)
    A = rng.standard_normal((11, 3)) * np.linspace(0.5, 1.5, 3)
    H, s2, eta = A.T @ A / 11, 0.3, 0.2
    h = jnp.linalg.eigvalsh(H)
    process = Diagonal(h, s2 * h, 1 / 3, gaussian=True)
    expected = np.trace(gaussian_inputs.covariance(H, s2, eta, 3))
    assert float(process.stationary(eta).sum()) == pytest.approx(expected, rel=1e-12)
    end = last(process, process.start(jnp.ones(3)), repeated(rules.sgd(eta), 2000))
    assert float(end.squared_error()) == pytest.approx(expected, rel=1e-12)


def test_diagonals_approach_the_exact_moments_as_the_step_shrinks():
    """Additive noise leaves out a relative O(step size): ten times less at a tenth of the step."""
    case = model(seed=7)
    process = LeastSquares.from_data(case.A, case.J, batch_size=2)
    exact = {eta: stationary(process, rules.sgd(eta)).squared_error() for eta in (0.05, 0.005)}
    for gaussian in (False, True):
        form, _ = Diagonal.from_least_squares(process, gaussian)
        gaps = [abs(float(form.stationary(eta).sum() / exact[eta]) - 1) for eta in exact]
        assert gaps[1] < gaps[0] / 8
        assert gaps[0] < 0.05


def test_extremes_of_a_spectrum_and_their_errors():
    rng = np.random.default_rng(8)
    values = np.sort(rng.uniform(0.1, 5.0, 60))
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    matrix = jnp.asarray(basis @ np.diag(values) @ basis.T)
    for steps in (5, 15, 60):
        smallest, largest = extremes(lambda v: matrix @ v, jnp.asarray(basis.sum(1)), steps)
        assert (
            values[0] - 1e-12 <= smallest.value <= values[0] + smallest.error + 1e-12 or steps < 15
        )
        for found in (smallest, largest):
            assert np.abs(values - found.value).min() <= found.error + 1e-12
    assert float(smallest.value) == pytest.approx(values[0], rel=1e-10)
    assert float(largest.value) == pytest.approx(values[-1], rel=1e-10)


def test_extremes_of_an_exhausted_space_hold_no_spurious_zero():
    smallest, largest = extremes(lambda v: jnp.array([2.0, 3.0, 3.0]) * v, jnp.ones(3), 3)
    assert float(smallest.value) == pytest.approx(2.0)
    assert float(largest.value) == pytest.approx(3.0)


def test_refusals():
    case = model(seed=9)
    process = case.ridge(1)
    limit = float(step_limit(process).value)
    with pytest.raises(ValueError, match="beyond the mean-square limit"):
        limits.stationary(process, rules.sgd(1.01 * limit))
    with pytest.raises(ValueError, match="beyond the mean-square limit"):
        dense(case, process.factor).stationary(rules.sgd(1.01 * limit))
    with pytest.raises(ValueError, match="the mean itself grows"):
        limits.stationary(process, rules.sgd(50.0))
    with pytest.raises(ValueError, match="must be above 1/2"):
        limits.inverse_time(dense(case, 1.0), 0.1)
    rule = rules.averaged(rules.sgd(jnp.full(1, 0.1)), jnp.ones(1))
    with pytest.raises(ValueError, match="no stationary state"):
        limits.stationary(process, jax.tree.map(lambda x: x[0], rule))
    with pytest.raises(ValueError, match="must be below"):
        Diagonal(jnp.ones(2), jnp.ones(2), 1.0, gaussian=True).stationary(0.9)
    with pytest.raises(ValueError, match=r"Affine.matrices has shape \(2, 3, 2\)"):
        Affine(jnp.ones((2, 3, 2)), jnp.ones((2, 2)), 1.0)
    flat = process.curvature - jnp.linalg.eigvalsh(process.curvature)[-1] * jnp.eye(3)
    for call in (stability.step_limit, lambda p: stability.contraction(p, 0.1)):
        with pytest.raises(ValueError, match="indefinite"):
            call(type(process)(**{**vars(process), "curvature": flat}))
