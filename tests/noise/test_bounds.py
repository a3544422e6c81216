"""The theorem's bounds: a plain loop, the limit of the proof, and the exact moments below them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise import LeastSquares
from bilevel.noise.moments import rules, run
from bilevel.noise.quadratic import bounds

pytestmark = pytest.mark.usefixtures("x64")


def test_path_is_the_recursion_written_out():
    rng = np.random.default_rng(0)
    steps, errors = rng.uniform(0.001, 0.02, 7), rng.uniform(0, 1, 7)
    found = bounds.path(steps, 0.4, 1.5, 2.5, 3.0, errors)
    square, expected = 3.0, []
    for eta, b in zip(steps, errors, strict=True):
        d = np.sqrt(square)
        square = (1 - 0.4 * eta) * square + 2 * eta**2 * (b**2 + 5.0) + 2 * eta * b * d
        expected.append(square)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("lipschitz", [0.0, 0.7])
def test_floor_is_above_where_the_recursion_ends(lipschitz):
    """With ``B^2 = M^2 (1+C)^2`` times the floor of x; without B the two are equal."""
    mu, L, noise, size = 0.4, 1.5, 2.5, 0.3
    eta = float(bounds.step_cap(mu, L))
    of_x = 4 * noise * eta / mu
    error = lipschitz * (1 + size) * np.sqrt(of_x)
    last = float(bounds.path(np.full(8000, eta), mu, L, noise, 1.0, error)[-1])
    limit = float(bounds.floor(eta, mu, noise, lipschitz, size))
    assert last <= limit * (1 + 1e-9)
    if not lipschitz:
        assert last == pytest.approx(limit, rel=1e-9)


@jax.jit
def errors(process, start, rule):
    return run(process, start, rule, lambda now: now.squared_error())[1]


@pytest.mark.parametrize("decreasing", [False, True])
def test_the_exact_moments_keep_to_the_bound(decreasing):
    rng = np.random.default_rng(1)
    A, J = rng.standard_normal((11, 3)), rng.standard_normal((11, 4))
    process = LeastSquares.from_data(A, J, batch_size=1)
    mu = np.linalg.eigvalsh(A.T @ A / 11)[0]
    L = (A**2).sum(1).max()
    k = np.arange(3000)
    cap = float(bounds.step_cap(mu, L))
    steps = 2 / (mu * (k + 8 * (L / mu) ** 2)) if decreasing else np.full(3000, cap)
    noise = ((np.asarray(process.residuals) ** 2).sum(1) * (A**2).sum(1)).mean()
    start = (np.asarray(process.solution) ** 2).sum()
    bound = bounds.path(steps, mu, L, noise, start)
    exact = errors(process, process.start(jnp.zeros((3, 4))), rules.sgd(steps))
    assert (exact <= bound).all()
    assert exact[-1] > 0.001 * bound[-1]  # and not by being nothing


@pytest.mark.parametrize(("error", "start", "least"), [(0, 0, 0.99), (0, 5, 0.03), (0.8, 0.1, 0.5)])
def test_one_over_k_holds_for_the_recursion_and_is_not_loose(error, start, least):
    """``t D^2 <= V`` in a plain loop with ``B_k^2 = b^2 / t``, and in the end not far below."""
    mu, L, noise, square = 0.5, 1.5, 0.3, float(start)
    k0 = 8 * (L / mu) ** 2
    constant, ratio = float(bounds.rate_constant(mu, L, noise, start, error)), 0.0
    for t in k0 + np.arange(30_000):
        eta, B = 2 / (mu * t), error / np.sqrt(t)
        square = (
            (1 - mu * eta) * square
            + 2 * eta**2 * (B**2 + 2 * noise)
            + 2 * eta * B * np.sqrt(square)
        )
        ratio = square * (t + 1) / constant
        assert ratio <= 1
    assert ratio > least


def test_steps_beyond_the_theorem_are_refused():
    with pytest.raises(ValueError, match=r"up to mu / \(4 L\^2\) = 0.25.*Beyond it use"):
        bounds.path(np.full(3, 0.3), 1.0, 1.0, 1.0, 1.0)
