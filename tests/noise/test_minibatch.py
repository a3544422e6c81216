"""Minibatch noise: limits and covariances against dense second-moment maps of real minibatches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise import batch_factor
from bilevel.noise.quadratic import gaussian_inputs, minibatch, steady_state
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


def examples(seed, n=7, d=3):
    """Per-example Hessians `x x^T` and gradients `x r` at the minimum of a linear regression."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(0.5, 1.2, d)
    y = x @ rng.normal(size=d) + 0.5 * rng.normal(size=n)
    residuals = x @ np.linalg.lstsq(x, y)[0] - y
    return x[:, :, None] * x[:, None, :], x * residuals[:, None]


def batches(n, size, replace):
    """Every batch that can be drawn, all equally likely."""
    if replace:
        return list(itertools.product(range(n), repeat=size))
    return list(itertools.combinations(range(n), size))


def second_moment_map(H, g, rate, mu, drawn):
    """`E[M (x) M]` of the pair `(w, m)`, and `E[v v^T]` of the noise at the minimum, by listing."""
    d = H.shape[1]
    maps, noise = 0.0, 0.0
    for batch in drawn:
        A, B = q.lifted(H[list(batch)].mean(0), rate, mu)
        v = B @ g[list(batch)].mean(0)
        maps = maps + np.kron(A, A) / len(drawn)
        noise = noise + np.outer(v, v) / len(drawn)
    assert maps.shape == (4 * d * d, 4 * d * d)
    return maps, noise


def radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


def factor(n, size, replace):
    return 1 / size if replace else (n - size) / (size * (n - 1))


CASES = [(1, True, 0.0), (2, True, 0.5), (3, False, 0.0), (3, False, 0.9), (1, False, 0.9)]


@pytest.mark.parametrize(("size", "replace", "mu"), CASES)
def test_limit_and_covariance_by_listing_all_batches(size, replace, mu):
    H, g = examples(seed=size)
    n, d = g.shape
    p, drawn = factor(n, size, replace), batches(n, size, replace)
    limit = float(minibatch.step_limit(H, p, mu))
    radii = [radius(second_moment_map(H, g, s * limit, mu, drawn)[0]) for s in (0.999, 1, 1.001)]
    assert radii[0] < 1 < radii[2]
    assert abs(radii[1] - 1) < 1e-6
    rate = 0.8 * limit
    maps, noise = second_moment_map(H, g, rate, mu, drawn)
    dense = np.linalg.solve(np.eye(4 * d * d) - maps, noise.reshape(-1)).reshape(2 * d, 2 * d)
    found = minibatch.covariance(H, g.T @ g / n, rate, p, mu)
    np.testing.assert_allclose(found, dense[:d, :d], rtol=0, atol=1e-10 * np.abs(found).max())


def test_full_batch_has_the_additive_limit():
    H, g = examples(seed=4)
    for mu in q.MOMENTA:
        found = minibatch.step_limit(H, 0.0, mu)
        assert float(found) == pytest.approx(float(steady_state.step_limit(H.mean(0), mu)))
    np.testing.assert_allclose(minibatch.covariance(H, g.T @ g, 0.1, 0.0), 0)


@pytest.mark.parametrize("seed", range(12))
def test_certificate_is_below_the_limit(seed):
    H, _ = examples(seed, n=11, d=4)
    size = 1 + seed % 4
    p = factor(11, size, replace=bool(seed % 2))
    largest = np.linalg.eigvalsh(H).max()
    low = minibatch.certificate(np.linalg.eigvalsh(H.mean(0))[-1], largest, p)
    assert 0.2 * float(minibatch.step_limit(H, p)) < float(low) <= float(minibatch.step_limit(H, p))


def test_directions_that_no_example_sees_are_left_out():
    H, _ = examples(seed=5, d=2)
    wide = np.zeros((7, 4, 4))
    wide[:, 1:3, 1:3] = H
    turn = q.rotation(np.random.default_rng(1), 4)
    found = minibatch.step_limit(turn @ wide @ turn.T, 0.5, 0.3)
    assert float(found) == pytest.approx(float(minibatch.step_limit(H, 0.5, 0.3)), rel=1e-10)


def simulate_gaussian(A, variance, rate, size, mu, key, *, chains, burn, steps):
    root = jnp.linalg.cholesky(A)

    def step(state, key):
        w, m = state
        inputs, labels = jax.random.split(key)
        x = jax.random.normal(inputs, (chains, size, A.shape[0])) @ root.T
        r = jnp.einsum("cbi,ci->cb", x, w)
        r = r - jnp.sqrt(variance) * jax.random.normal(labels, (chains, size))
        m = mu * m + jnp.einsum("cbi,cb->ci", x, r) / size
        return (w - rate * m, m)

    def measure(carry, key):
        state = step(carry[0], key)
        return (state, carry[1] + jnp.einsum("ci,cj->cij", state[0], state[0])), None

    zero = jnp.zeros((chains, A.shape[0]))
    keys = jax.random.split(key, burn + steps)
    state, _ = jax.lax.scan(lambda s, k: (step(s, k), None), (zero, zero), keys[:burn])
    start = (state, jnp.zeros((chains, *A.shape)))
    return jax.lax.scan(measure, start, keys[burn:])[0][1] / steps


@pytest.mark.extended
@pytest.mark.parametrize(("size", "mu"), [(2, 0.0), (5, 0.8)])
def test_gaussian_inputs_match_simulation(size, mu):
    """Within 4 standard errors over chains, at 0.4 of the limit (fourth moments must exist)."""
    A = jnp.array(q.hessian(np.random.default_rng(2)))
    rate = 0.4 * float(gaussian_inputs.step_limit(A, size, mu))
    key = jax.random.key(size)
    setting = {"chains": 400, "burn": 300, "steps": 800}
    samples = simulate_gaussian(A, 0.5, rate, size, mu, key, **setting)
    S = gaussian_inputs.covariance(A, 0.5, rate, size, mu)
    assert np.abs(q.z_scores(samples, S)).max() < 4  # false alarm: 6e-5 each


@pytest.mark.parametrize("mu", q.MOMENTA)
@pytest.mark.parametrize("size", [1, 6])
def test_gaussian_inputs_solve_their_equation(size, mu):
    """`S` solves the covariance equation with the noise that `S` itself makes."""
    A = q.hessian(np.random.default_rng(3))
    rate = 0.9 * float(gaussian_inputs.step_limit(A, size, mu))
    S = np.asarray(gaussian_inputs.covariance(A, 0.5, rate, size, mu))
    noise = (A @ S @ A + np.trace(A @ S) * A + 0.5 * A) / size
    assert float(steady_state.residual(S, A, noise, rate, mu)) < 1e-10


@pytest.mark.parametrize("mu", q.MOMENTA)
@pytest.mark.parametrize("size", [1, 4, 32])
def test_gaussian_limit_is_the_second_moment_threshold(size, mu):
    """`E[M (x) M]` of Gaussian minibatches, restricted to matrices diagonal in the eigenbasis."""
    a = np.array(q.CURVATURES)
    limit = float(gaussian_inputs.step_limit(np.diag(a), size, mu))

    def largest(rate):
        maps = np.zeros((12, 12))  # three modes, each (ww, wm, mw, mm)
        for i in range(3):
            A, B = q.lifted(a[i : i + 1, None], rate, mu)
            maps[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] += np.kron(A, A)
            kick = np.kron(B, B)[:, 0] / size
            for j in range(3):
                maps[4 * i : 4 * i + 4, 4 * j] += kick * a[i] * a[j] * (2 if i == j else 1)
        return radius(maps)

    assert largest(limit * (1 - 1e-4)) < 1 < largest(limit * (1 + 1e-4))
    if mu == 0:  # the tail index reaches 2 where the variance ends
        one = float(gaussian_inputs.step_limit(np.eye(1), size))
        assert float(gaussian_inputs.tail_index(1.0, one, size)) == pytest.approx(2)
    effective = float(gaussian_inputs.step_limit(np.eye(1), size, mu)) / (1 - mu)
    assert effective * ((1 - mu) / (1 + mu) + 2 / size) == pytest.approx(2)


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_noise_proportional_to_the_hessian(mu):
    K, _ = q.pair(seed=4)
    rate = 0.99 * float(steady_state.step_limit(K, mu))
    found = gaussian_inputs.hessian_noise_covariance(K, 0.6, rate, 3, mu)
    expected = steady_state.covariance(K, 0.6 * K / 3, rate, mu)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


H1, _ = examples(seed=0)
A1 = q.hessian(np.random.default_rng(0))


def beyond(p):
    return 1.001 * float(minibatch.step_limit(H1, p))


REFUSALS = [
    (lambda: minibatch.covariance(H1, np.eye(3), beyond(1.0), 1.0), "no stationary state"),
    (lambda: minibatch.covariance(H1, np.eye(3), beyond(0.0), 0.0), "no stationary state"),
    (lambda: minibatch.step_limit(H1, batch_factor(7, 2, "epoch")), "depend on one another"),
    (lambda: minibatch.step_limit(-H1, 0.5), "falling"),
    (lambda: minibatch.step_limit(np.stack([np.eye(2), -np.eye(2)]), 0.5), "flat on average"),
    (lambda: minibatch.step_limit(H1, 4), "noise fraction"),
    (lambda: minibatch.step_limit(H1.mean(0), 0.5), "one per example"),
    (lambda: minibatch.covariance(H1, np.eye(2), 0.1, 0.5), "noise must be"),
    (lambda: gaussian_inputs.covariance(A1, 1.0, 0.9, 1), "no stationary state"),
    (lambda: gaussian_inputs.hessian_noise_covariance(A1, 1.0, 2.1, 1), "no stationary state"),
    (lambda: gaussian_inputs.step_limit(-A1, 1), "indefinite"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
