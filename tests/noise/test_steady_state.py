"""The covariance equation against dense Lyapunov solves and simulated SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise.quadratic import heavy_ball, steady_state, transient
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


def preconditioner(seed):
    rng = np.random.default_rng(seed)
    return q.hessian(rng, (0.4, 1.0, 3.0))


@pytest.mark.parametrize("mu", q.MOMENTA)
@pytest.mark.parametrize("fraction", q.FRACTIONS)
@pytest.mark.parametrize("matrix", [False, True])
def test_covariance_solves_the_equation_and_the_dense_problem(mu, fraction, matrix):
    K, C = q.pair(seed=1)
    shape = preconditioner(seed=2) if matrix else 1.0
    rate = float(fraction * steady_state.step_limit(K, mu, shape)) * shape
    S = steady_state.covariance(K, C, rate, mu)
    assert float(steady_state.residual(S, K, C, rate, mu)) < 1e-10
    dense = q.joint(K, C, rate, mu)[:3, :3]
    np.testing.assert_allclose(S, dense, rtol=0, atol=1e-10 * np.abs(dense).max())


@pytest.mark.extended
@pytest.mark.parametrize("mu", q.MOMENTA)
def test_covariance_matches_simulation_up_to_the_limit(mu):
    """Chains are independent: the spread of their time averages is the standard error."""
    K, C = q.pair(seed=3)
    limit = float(steady_state.step_limit(K, mu))
    for i, fraction in enumerate(q.FRACTIONS):
        rate = fraction * limit
        key = jax.random.key(i)
        rates = rate * jnp.eye(3)
        samples = q.simulate(K, C, rates, mu, key, chains=300, burn=800, steps=1200)
        S = steady_state.covariance(K, C, rate, mu)
        assert np.abs(q.z_scores(samples, S)).max() < 4  # false alarm: 6e-5 each
    # At 0.99 of the limit continuous time is far outside the error.
    wrong = steady_state.continuous_covariance(K, C, rate, mu)
    assert np.abs(q.z_scores(samples, wrong)).max() > 40


def test_matrix_rate_matches_simulation():
    K, C = q.pair(seed=4)
    rate = preconditioner(seed=5) * 0.9 * steady_state.step_limit(K, 0.5, preconditioner(seed=5))
    key = jax.random.key(7)
    samples = q.simulate(K, C, rate, 0.5, key, chains=300, burn=800, steps=1200)
    S = steady_state.covariance(K, C, rate, 0.5)
    assert np.abs(q.z_scores(samples, S)).max() < 4  # false alarm: 6e-5 each


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_limit_is_where_the_spectral_radius_reaches_one(mu):
    K, _ = q.pair(seed=6)
    limit = float(steady_state.step_limit(K, mu, preconditioner(3)))
    radii = [
        np.abs(np.linalg.eigvals(q.lifted(K, s * limit * preconditioner(3), mu)[0])).max()
        for s in (1 - 1e-6, 1, 1 + 1e-6)
    ]
    assert radii[0] < 1 < radii[2]
    assert abs(radii[1] - 1) < 1e-7


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_commuting_form(mu):
    K, C = q.pair(seed=8)
    commuting = K @ K + 0.3 * K
    rate = 0.8 * float(steady_state.step_limit(K, mu))
    closed = steady_state.commuting_covariance(K, commuting, rate, mu)
    np.testing.assert_allclose(closed, steady_state.covariance(K, commuting, rate, mu), rtol=1e-11)
    with pytest.raises(ValueError, match="commute"):
        steady_state.commuting_covariance(K, C, rate, mu)


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_loss_floor_and_its_bracket(mu):
    K, C = q.pair(seed=9)
    rate = 0.7 * float(steady_state.step_limit(K, mu))
    floor = float(steady_state.loss_floor(K, C, rate, mu))
    inverse = np.linalg.inv(np.eye(3) - rate * K / (2 * (1 + mu)))
    assert floor == pytest.approx(rate / (4 * (1 - mu)) * np.trace(inverse @ C), rel=1e-13)
    low, high = steady_state.floor_bracket(np.trace(C), q.CURVATURES[-1], rate, mu)
    assert float(low) < floor < float(high)
    # Isotropic curvature: the upper bound is attained.
    flat = steady_state.floor_bracket(np.trace(C), 1.0, rate, mu)[1]
    assert float(steady_state.loss_floor(np.eye(3), C, rate, mu)) == pytest.approx(float(flat))


def test_continuous_time_is_the_limit_of_small_steps():
    K, C = q.pair(seed=10)
    gaps = []
    for rate in (1e-3, 1e-4):
        exact = steady_state.covariance(K, C, rate, 0.9)
        continuous = steady_state.continuous_covariance(K, C, rate, 0.9)
        gaps.append(float(jnp.abs(exact - continuous).max() / jnp.abs(exact).max()))
    assert gaps[0] < 0.05
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1)


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_joint_covariance_of_iterate_and_velocity(mu):
    K, C = q.pair(seed=11)
    rate = 0.9 * float(steady_state.step_limit(K, mu))
    dense = q.joint(K, C, rate, mu)
    found = heavy_ball.joint_covariance(K, C, rate, mu)
    np.testing.assert_allclose(found.params, dense[:3, :3], atol=1e-11 * np.abs(dense).max())
    np.testing.assert_allclose(found.cross, dense[:3, 3:], atol=1e-11 * np.abs(dense).max())
    np.testing.assert_allclose(found.velocity, dense[3:, 3:], atol=1e-11 * np.abs(dense).max())


def test_transient_follows_any_schedule():
    """Step size, momentum and batch size change at every step; one curvature is negative."""
    K, C = q.pair(seed=12, curvatures=(-0.3, 0.4, 1.0))
    rng = np.random.default_rng(13)
    steps, mus, scale = rng.uniform(0.1, 1.5, 17), rng.uniform(0, 0.9, 17), rng.uniform(1, 3, 17)
    mean0, cov0 = rng.normal(size=3), q.covariance(rng)
    start = transient.MeanAndCovariance(jnp.array(mean0), jnp.array(cov0))
    found = transient.path(K, C / scale[:, None, None], steps, mus, start)
    mean = np.concatenate([mean0, np.zeros(3)])
    cov = np.zeros((6, 6))
    cov[:3, :3] = cov0
    for t in range(18):
        np.testing.assert_allclose(found.mean[t], mean[:3], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.covariance[t], cov[:3, :3], rtol=1e-10, atol=1e-12)
        if t < 17:
            A, B = q.lifted(K, steps[t], mus[t])
            mean, cov = A @ mean, A @ cov @ A.T + B @ C @ B.T / scale[t]


def test_transient_ends_in_the_steady_state():
    K, C = q.pair(seed=14)
    found = transient.path(K, C, 0.8 * jnp.ones(400), 0.5).covariance[-1]
    np.testing.assert_allclose(found, steady_state.covariance(K, C, 0.8, 0.5), rtol=1e-10)


def test_functions_can_be_traced():
    K, C = q.pair(seed=15)
    rates = jnp.array([0.1, 0.7, 1.9])
    batched = jax.jit(jax.vmap(lambda rate: steady_state.loss_floor(K, C, rate)))(rates)
    single = [steady_state.loss_floor(K, C, float(rate)) for rate in rates]
    np.testing.assert_allclose(batched, single, rtol=1e-12)
    slope = jax.grad(lambda rate: steady_state.loss_floor(K, C, rate))(0.7)
    step = 1e-6
    ends = [steady_state.loss_floor(K, C, 0.7 + s) for s in (-step, step)]
    assert float(slope) == pytest.approx(float(ends[1] - ends[0]) / (2 * step), rel=1e-7)


K3, C3 = q.pair()
REFUSALS = [
    (lambda: steady_state.covariance(K3, C3, 2.001), "no stationary state"),
    (lambda: steady_state.covariance(K3, C3, 2.001 * np.eye(3)), "no stationary state"),
    (lambda: steady_state.floor_bracket(1.0, 1.0, 2.0), "no stationary state"),
    (lambda: heavy_ball.joint_covariance(K3, C3, 3.81, 0.9), "no stationary state"),
    (lambda: steady_state.covariance(-K3, C3, 0.1), "hessian is indefinite"),
    (lambda: steady_state.covariance(np.diag([1.0, 0, 1]), C3, 0.1), "hessian is singular"),
    (lambda: steady_state.covariance(K3, -C3, 0.1), "positive semi-definite"),
    (lambda: steady_state.covariance(K3, C3[:2, :2], 0.1), "one size"),
    (lambda: steady_state.covariance(K3 + np.eye(3, k=1), C3, 0.1), "symmetric"),
    (lambda: steady_state.covariance(K3[:2], C3, 0.1), "square"),
    (lambda: steady_state.covariance(K3 * np.nan, C3, 0.1), "NaN"),
    (lambda: steady_state.covariance(K3, C3, 0.1, 1.0), "momentum"),
    (lambda: steady_state.covariance(K3, C3, -0.1), "rate must be"),
    (lambda: steady_state.covariance(K3, C3, -np.eye(3)), "rate is indefinite"),
    (lambda: transient.path(K3, C3, 0.1), "step_sizes must be"),
    (lambda: transient.path(K3, np.ones((4, 3, 3)), np.ones(5)), "noise must be"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
