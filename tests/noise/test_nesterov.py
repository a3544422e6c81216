"""Nesterov's momentum: divisor, limits and covariances against dense maps and listed batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.noise import LeastSquares
from bilevel.noise.moments import feedback, limits, rules, stability
from bilevel.noise.quadratic import minibatch, steady_state
from bilevel.solvers import steps as solver_steps
from tests.marks import quick_cases
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")
MOMENTA = (0.0, 0.5, 0.9, 0.99)


def lifted(K, rate, mu):
    """The map of `(w, v)`, `[2d, 2d]`, and how noise enters, from the two lines of the method."""
    d = len(K)
    eye = np.eye(d)
    after_v = np.block([[K, mu * eye]])  # v' = mu v + K w + noise
    after_w = np.block([[eye - rate @ K, 0 * eye]]) - mu * rate @ after_v
    return np.vstack([after_w, after_v]), np.vstack([-(1 + mu) * rate, eye])


def dense(K, C, rate, mu):
    A, B = lifted(K, rate, mu)
    return q.discrete_lyapunov(A, B @ C @ B.T)


@pytest.mark.parametrize("mu", MOMENTA)
@pytest.mark.parametrize("matrix", [False, True])
def test_covariance_solves_the_dense_problem_up_to_the_limit(mu, matrix):
    K, C = q.pair(seed=1, curvatures=(1e-5, 0.7, 1.0))
    shape = q.hessian(np.random.default_rng(2), (0.4, 1.0, 3.0)) if matrix else np.eye(3)
    for fraction in (0.02, 0.5, 0.99):
        rate = fraction * float(steady_state.step_limit(K, mu, shape, nesterov=True)) * shape
        found = steady_state.covariance(K, C, jnp.asarray(rate), mu, nesterov=True)
        expected = dense(K, C, rate, mu)[:3, :3]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    if mu == 0:
        np.testing.assert_allclose(found, steady_state.covariance(K, C, rate), rtol=1e-10)


@pytest.mark.parametrize("mu", MOMENTA)
@pytest.mark.parametrize("matrix", [False, True])
def test_loss_floor_is_that_of_the_dense_problem(mu, matrix):
    K, C = q.pair(seed=9)
    shape = q.hessian(np.random.default_rng(2), (0.4, 1.0, 3.0)) if matrix else np.eye(3)
    for fraction in (0.02, 0.7):
        rate = fraction * float(steady_state.step_limit(K, mu, shape, nesterov=True)) * shape
        floor = steady_state.loss_floor(K, C, jnp.asarray(rate), mu, nesterov=True)
        expected = np.trace(K @ dense(K, C, rate, mu)[:3, :3]) / 2
        np.testing.assert_allclose(floor, expected, rtol=1e-8)
    if mu:  # at 0.7 of its limit the heavy ball has another
        assert abs(steady_state.loss_floor(K, C, jnp.asarray(rate), mu) / expected - 1) > 0.1
    with pytest.raises(ValueError, match="no stationary state"):
        steady_state.loss_floor(K, C, jnp.asarray(2 * rate), mu, nesterov=True)


@pytest.mark.parametrize("mu", MOMENTA)
def test_limit_is_where_the_spectral_radius_reaches_one(mu):
    K, C = q.pair(seed=6)
    limit = float(steady_state.step_limit(K, mu, nesterov=True))
    radii = [
        np.abs(np.linalg.eigvals(lifted(K, s * limit * np.eye(3), mu)[0])).max()
        for s in (1 - 1e-6, 1 + 1e-6)
    ]
    assert radii[0] < 1 < radii[1]
    with pytest.raises(ValueError, match="no stationary state"):
        steady_state.covariance(K, C, 1.001 * limit, mu, nesterov=True)


def listed(H, g, rate, mu, size):
    """`E[M (x) M]` and the source of second moments, over all subsets of ``size`` rows."""
    drawn = list(itertools.combinations(range(len(g)), size))
    maps, source = 0.0, 0.0
    for batch in map(list, drawn):
        A, B = lifted(H[batch].mean(0), rate * np.eye(H.shape[1]), mu)
        v = B @ g[batch].mean(0)
        maps, source = maps + np.kron(A, A) / len(drawn), source + np.outer(v, v) / len(drawn)
    return maps, source


def rows_of(seed, n=7, d=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(0.5, 1.2, d)
    return x, x @ rng.normal(size=d) + 0.5 * rng.normal(size=n)


def singles(x, y):
    """Hessians and gradients of the rows at the solution, and the solution."""
    w = np.linalg.lstsq(x, y)[0]
    return x[:, :, None] * x[:, None, :], x * (x @ w - y)[:, None], w


# Compiled as a whole: op by op each of them would compile dozens of small programs.
stationary = jax.jit(limits.stationary)
step_limit = jax.jit(stability.step_limit, static_argnames="nesterov")
strength = jax.jit(feedback.strength)


@quick_cases(1, ("size", "mu"), [(3, 0.5), (1, 0.9), (3, 0.0), (6, 0.99)])
def test_limit_and_covariance_by_listing_all_batches_without_replacement(size, mu):
    x, y = rows_of(seed=size)
    H, g, _ = singles(x, y)
    n, d = g.shape
    p = (n - size) / (size * (n - 1))
    limit = float(minibatch.step_limit(H, p, mu, nesterov=True))
    below, above = (
        np.abs(np.linalg.eigvals(listed(H, g, s * limit, mu, size)[0])).max()
        for s in (1 - 1e-6, 1 + 1e-6)
    )
    assert below < 1 < above
    maps, source = listed(H, g, 0.7 * limit, mu, size)
    joint = np.linalg.solve(np.eye(len(maps)) - maps, source.ravel()).reshape(2 * d, 2 * d)
    found = minibatch.covariance(H, g.T @ g / n, 0.7 * limit, p, mu, nesterov=True)
    np.testing.assert_allclose(found, joint[:d, :d], rtol=1e-8)

    process = LeastSquares.from_data(x, y, size, "without_replacement")
    by_products = step_limit(process, mu, nesterov=True)
    assert float(by_products.value) == pytest.approx(limit, rel=1e-9)
    assert float(by_products.error) < 1e-6 * limit
    rule = rules.sgd(0.7 * limit, mu, nesterov=True)
    assert float(strength(process, rule).value) < 1
    settled = stationary(process, rule).second[0, :, 0]
    np.testing.assert_allclose(settled, joint[:d, :d], rtol=1e-8)


def test_without_momentum_the_limit_is_the_plain_one():
    H, _, _ = singles(*rows_of(seed=4))
    plain = float(minibatch.step_limit(H, 0.5))
    assert float(minibatch.step_limit(H, 0.5, 0.0, nesterov=True)) == pytest.approx(plain, rel=1e-9)
    full = float(minibatch.step_limit(H, 0.0, 0.5, nesterov=True))
    assert full == pytest.approx(float(steady_state.step_limit(H.mean(0), 0.5, nesterov=True)))


def squares(w, hyper, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


@pytest.mark.parametrize(("size", "mu"), [(1, 0.3), (3, 0.9), (6, 0.99)])
def test_the_limit_of_a_relative_step_size_is_below_the_exact_one(size, mu):
    x, y = rows_of(seed=8, n=40)
    solver, theta = bl.SGD(bl.Relative(1.0), size, mu, nesterov=True), jnp.zeros(())
    state = solver.measure(squares, jnp.zeros(3), theta, (x, y), solver.init(jnp.zeros(3), (x, y)))
    measured = float(solver_steps.evaluate_step_size(solver.step_size, state[0], theta))
    for p in (1 / size, (40 - size) / (size * 39)):
        assert measured < float(minibatch.step_limit(singles(x, y)[0], p, mu, nesterov=True))


@pytest.mark.parametrize(("mu", "nesterov"), [(None, False), (0.6, True)])
def test_the_solver_without_replacement_has_that_covariance(mu, nesterov):
    """6000 runs of the library's own SGD, three of five rows a batch, from the solution on."""
    x, y = rows_of(seed=5, n=5, d=2)
    H, g, w = singles(x, y)
    step = 0.5 * float(minibatch.step_limit(H, 1 / 6, mu or 0.0, nesterov))
    expected = minibatch.covariance(H, g.T @ g / 5, step, 1 / 6, mu or 0.0, nesterov)
    problem = bl.Problem(squares, squares)
    solver = bl.SGD(step, 3, mu, nesterov, "without_replacement")
    data = bl.Data(inner=(x, y), outer=(x, y))

    @jax.jit
    @jax.vmap
    def run(key):
        return bl.solve(problem, solver, jnp.zeros(()), w, data, key, steps=60)

    off = np.asarray(run(jax.random.split(jax.random.key(2), 6000))) - w
    samples = off[:, :, None] * off[:, None, :]
    assert np.abs(q.z_scores(samples, expected)).max() < 4  # false alarm: 6e-5 each
    with_replacement = minibatch.covariance(H, g.T @ g / 5, step, 1 / 3, mu or 0.0, nesterov)
    assert np.abs(q.z_scores(samples, with_replacement)).max() > 20
