"""Averaged iterates and shuffled epochs, against sums over all lags and over all permutations."""

import itertools

import numpy as np
import pytest

from bilevel.noise.quadratic import averaging, epochs, posterior, steady_state
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("mu", q.MOMENTA)
@pytest.mark.parametrize("window", [1, 2, 13])
def test_average_is_the_sum_over_all_pairs(mu, window):
    K, C = q.pair(seed=1)
    rate = 0.9 * float(steady_state.step_limit(K, mu))
    P, (A, _) = q.joint(K, C, rate, mu), q.lifted(K, rate, mu)
    total = np.zeros((3, 3))
    for s, t in itertools.product(range(window), repeat=2):
        lag = np.linalg.matrix_power(A, abs(t - s)) @ P
        total += (lag if t >= s else lag.T)[:3, :3]
    found = averaging.covariance(K, C, rate, window, mu)
    np.testing.assert_allclose(found, total / window**2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_average_of_a_long_window_forgets_the_step_size(mu):
    K, C = q.pair(seed=2)
    for rate in (0.2, 0.8):
        gaps = []
        for window in (10**4, 10**5):
            law = averaging.limit(K, C, window)
            found = averaging.covariance(K, C, rate, window, mu)
            gaps.append(np.abs(found - law).max() / np.abs(law).max())
        assert gaps[0] < 0.02
        assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.05)


def test_average_is_accurate_along_flat_directions():
    """Where `lam k` is 1e-9 the window sees one frozen value: no cancellation may spoil it."""
    K, C = np.diag([1e-9, 1.0]), np.eye(2)
    found = averaging.covariance(K, C, 1.0, 5)[0, 0]
    single = steady_state.covariance(K, C, 1.0)[0, 0]
    assert float(found / single) == pytest.approx(1 - 1e-9 * (5 - 1 / 5) / 3, rel=1e-7)


def epoch_oracle(K, noises, rate):
    """`(mean over positions, epoch end)` covariances, by listing all orders of the batches."""
    batches, d = noises.shape
    A = np.eye(d) - rate * K
    orders = list(itertools.permutations(range(batches)))

    def fresh(done):
        total = np.zeros((d, d))
        for order in orders:
            s = sum(np.linalg.matrix_power(A, done - 1 - t) @ noises[order[t]] for t in range(done))
            total += rate**2 * np.outer(s, s) / len(orders)
        return total

    end = q.discrete_lyapunov(np.linalg.matrix_power(A, batches), fresh(batches))
    inside = np.zeros((d, d))
    for done in range(1, batches + 1):
        power = np.linalg.matrix_power(A, done)
        inside += (power @ end @ power.T + fresh(done)) / batches
    return inside, end


@pytest.mark.parametrize("batches", [2, 3, 5])
@pytest.mark.parametrize("rate", [0.1, 1.0, 1.9])
def test_epochs_by_listing_all_orders(batches, rate):
    K, _ = q.pair(seed=3)
    noises = np.random.default_rng(4).normal(size=(batches, 3))
    noises -= noises.mean(0)
    C = noises.T @ noises / batches
    inside, end = epoch_oracle(K, noises, rate)
    np.testing.assert_allclose(epochs.covariance(K, C, rate, batches), inside, atol=1e-12)
    np.testing.assert_allclose(epochs.end_covariance(K, C, rate, batches), end, atol=1e-12)


def test_epochs_along_flat_directions():
    """The limits of small `lam k`: `lam^2 C (M+1)/6`, and at epoch ends far below it."""
    K, C = 1e-7 * np.eye(1), np.eye(1)
    inside = float(epochs.covariance(K, C, 0.1, 10)[0, 0])
    assert inside == pytest.approx(0.1**2 * 11 / 6, rel=1e-6)
    # At an end only differences of powers are left: var -> lam^3 k C M (M+1) / 24.
    end = float(epochs.end_covariance(K, C, 0.1, 10)[0, 0])
    assert end == pytest.approx(0.1**3 * 1e-7 * 10 * 11 / 24, rel=1e-6)


def test_epochs_with_many_batches_are_independent_along_steep_directions():
    K, C = q.pair(seed=5)
    found = epochs.covariance(K, C, 0.5, 4000)
    iid = np.asarray(steady_state.covariance(K, C, 0.5))
    np.testing.assert_allclose(found, iid, atol=0.01 * np.abs(iid).max())


def test_posterior_matrix_rate_is_exact():
    K, C = q.pair(seed=6)
    rate = posterior.matrix_rate(K, C, 50)
    S = np.asarray(steady_state.covariance(K, C, rate))
    np.testing.assert_allclose(S, np.linalg.inv(K) / 50, rtol=1e-11, atol=1e-13)


def kl(K, S, n):
    """`KL(N(0, S) || N(0, K^-1/n))`, by determinants."""
    ratio = n * K @ S
    return (np.trace(ratio) - len(K) - np.linalg.slogdet(ratio)[1]) / 2


@pytest.mark.parametrize("observations", [5])
def test_posterior_scalar_rate_minimises_the_divergence(observations):
    K, C = q.pair(seed=7)
    best = float(posterior.scalar_rate(K, C, observations))
    limit = float(steady_state.step_limit(K))

    def objective(rate):
        return kl(K, q.joint(K, C, rate, 0.0)[:3, :3], observations)

    at_best = objective(best)
    assert float(posterior.divergence(K, C, observations, best)) == pytest.approx(at_best, abs=1e-9)
    assert all(at_best <= objective(r) for r in np.geomspace(1e-4 * limit, 0.999 * limit, 200))
    slope = (objective(best * (1 + 1e-5)) - objective(best * (1 - 1e-5))) / 2e-5
    assert abs(slope) < 1e-7


def test_posterior_scalar_rate_of_commuting_noise_is_the_root():
    k, c = np.array(q.CURVATURES), np.array([0.5, 2.0, 1.0])
    turn = q.rotation(np.random.default_rng(8), 3)
    K, C = turn @ np.diag(k) @ turn.T, turn @ np.diag(c) @ turn.T
    best = float(posterior.scalar_rate(K, C, 5))
    terms = (5 * best * c / (2 - best * k) - 1) / (2 - best * k)
    assert abs(terms.sum()) < 1e-10
    # Small steps: continuous time is right.
    tiny = float(posterior.scalar_rate(K, C, 1e6))
    assert tiny == pytest.approx(2 * 3 / (1e6 * c.sum()), rel=1e-5)


K3, C3 = q.pair()
FLAT = np.diag([1.0, 1.0, 0.0])
REFUSALS = [
    (lambda: averaging.covariance(K3, C3, 2.1, 5), "no stationary state"),
    (lambda: averaging.covariance(FLAT, C3, 0.1, 5), "singular"),
    (lambda: averaging.limit(K3, C3, 0), "window must be at least 1"),
    (lambda: epochs.covariance(K3, C3, 0.1, 1), "at least 2 batches"),
    (lambda: epochs.end_covariance(K3, C3, 2.1, 3), "no stationary state"),
    (lambda: epochs.covariance(-K3, C3, 0.1, 3), "indefinite"),
    (lambda: posterior.scalar_rate(K3, FLAT, 9), "noise is singular"),
    (lambda: posterior.matrix_rate(K3, FLAT, 9), "noise is singular"),
    (lambda: posterior.divergence(K3, FLAT, 9, 0.1), "noise is singular"),
    (lambda: posterior.divergence(K3, C3, 9, 2.1), "no stationary state"),
    (lambda: posterior.matrix_rate(K3, C3, -1), "observations must be"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
