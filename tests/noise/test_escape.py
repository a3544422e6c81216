"""Escape times: closed forms, simulated chains, and the exact discrete first-passage solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise.continuous_time import escape, sde
from bilevel.noise.continuous_time.modified_equation import HA_SME, Coefficients, coefficients
from bilevel.noise.quadratic import steady_state

pytestmark = pytest.mark.usefixtures("x64")


def trap(lam, ratio):
    """Mean steps out of `|w| <= ratio sd` of a quadratic with `k = s = 1`, from its minimum."""
    sd = float(jnp.sqrt(escape.effective_temperature(1.0, 1.0, lam)))
    interval = (-ratio * sd, ratio * sd)
    return sd, float(escape.first_passage_steps(lambda x: (1 - lam) * x, lam, interval, 0.0))


@pytest.mark.parametrize(("ratio", "independent", "exact"), [(2.5, 80.5, 80.8), (3.5, 2149, 2150)])
def test_published_exit_times_near_one(ratio, independent, exact):
    """The theory sheet's numbers, to the digits that it prints."""
    sd, found = trap(0.9, ratio)
    digits = 1 if independent < 100 else 0
    assert round(found, digits) == exact
    formula = float(escape.independent_exit_steps(1.0, 1.0, 0.9, ratio * sd))
    assert round(formula, digits) == independent


def test_first_passage_of_independent_draws():
    """`mean(x) = 0`: one over the probability of leaving, from any start."""
    start = jnp.array([[-1.5, 0.0], [0.3, 2.0]])
    found = escape.first_passage_steps(lambda x: 0 * x, 0.7, (-1.5, 2.0), start)
    tails = [float(jax.scipy.stats.norm.cdf(x / 0.7)) for x in (-1.5, -2.0)]
    np.testing.assert_allclose(found, np.full((2, 2), 1 / sum(tails)), rtol=1e-12)


def test_first_passage_matches_simulation():
    """A double well with noise that depends on the place; 4 standard errors of 4000 chains."""

    def mean(x):
        return x - 0.3 * (x**3 - x)

    def spread(x):
        return 0.25 * jnp.sqrt(1 + x**2)

    expected = float(escape.first_passage_steps(mean, spread, (0.0, 2.5), 1.0))

    def step(carry, key):
        x, alive, count = carry
        x = mean(x) + spread(x) * jax.random.normal(key, x.shape)
        count = count + alive
        return (x, alive & (x > 0) & (x < 2.5), count), None

    start = (jnp.ones(4000), jnp.ones(4000, bool), jnp.zeros(4000))
    keys = jax.random.split(jax.random.key(1), int(40 * expected))
    (_, alive, count), _ = jax.lax.scan(step, start, keys)
    assert not alive.any()
    error = float(count.std(ddof=1)) / np.sqrt(4000)
    assert abs(float(count.mean()) - expected) < 4 * error  # false alarm: 6e-5


def test_first_passage_converges_with_nodes():
    found = [
        float(escape.first_passage_steps(lambda x: x - 0.1 * jnp.sin(x), 0.2, (-2, 2), 0.0, nodes))
        for nodes in (100, None)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-11)


@pytest.mark.parametrize("growth", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("radius", [20.0, 100.0])
def test_leaving_a_saddle(growth, radius):
    ends = (-radius, radius)
    exact = escape.first_passage_steps(lambda x: (1 + growth) * x, 1.0, ends, 0.0, 700)
    formula = float(escape.saddle_exit_steps(growth, 1.0, 1.0, radius))
    assert abs(formula - float(exact)) < 0.07
    if (growth, radius) == (0.5, 100.0):  # the theory sheet's example
        assert round(float(exact), 1) == 13.7
        sme1 = (np.log(radius) + 0.635) / growth  # sd = s sqrt(eta / (2 g)) = 1
        assert round(sme1, 1) == 10.5


def test_quasi_potential_is_the_gaussian_of_a_quadratic():
    k, s2, eta, w = 0.7, 1.3, 1.1, np.linspace(-2, 2, 5)
    variance = float(steady_state.covariance(k * np.eye(1), s2 * np.eye(1), eta)[0, 0])
    found = escape.quasi_potential(k * w**2 / 2, k * w, s2, eta)
    np.testing.assert_allclose(found, w**2 / (2 * variance), rtol=1e-12)
    temperature = float(escape.effective_temperature(k, s2, eta))
    assert temperature == pytest.approx(k * variance, rel=1e-12)


def exponent(lam, gradient, interval, heights, height):
    """Slope of `log(steps)` over `2 dL / (lam s^2)`, between the last two noises."""
    times = [
        float(
            escape.first_passage_steps(
                lambda x: x - lam * gradient(x), np.sqrt(2 * lam * height / x), interval, 0.0, 200
            )
        )
        for x in heights
    ]
    return np.diff(np.log(times))[-1] / np.diff(heights)[-1]


@pytest.mark.parametrize(("lam", "published"), [(0.1, 0.997), (0.5, 0.982), (0.9, 0.930)])
def test_exponent_at_a_smooth_barrier_is_not_that_of_the_temperature(lam, published):
    """f = 1 - cos x, exit at the maxima; the sheet's potential is not given, hence 0.01."""
    found = exponent(lam, jnp.sin, (-np.pi, np.pi), (10.0, 12.0), 2.0)
    plug_in = 1 - lam / 2
    assert found == pytest.approx(published, abs=0.01)
    assert abs(found - published) < abs(found - plug_in) / 3


@pytest.mark.parametrize("lam", [0.5, 0.9])
def test_exponent_of_a_quadratic_trap_is_that_of_the_temperature(lam):
    """Exit on a slope: up to the factor in front, a power of the height."""
    found = exponent(lam, lambda x: x, (-1.0, 1.0), (24.0, 28.0), 0.5)
    assert found == pytest.approx(1 - lam / 2, abs=0.03)


@pytest.mark.parametrize(("radius", "error"), [(3.0, 1e-12), (5.0, 1e-9), (7.0, 1e-3)])
def test_long_times_lose_no_more_than_their_rounding(radius, error):
    """Independent draws, up to 4e11 steps."""
    found = escape.first_passage_steps(lambda x: 0 * x, 1.0, (-radius, radius), 0.0, 100)
    exact = 0.5 / float(jax.scipy.special.ndtr(-radius))
    assert float(found) == pytest.approx(exact, rel=error)


def test_a_time_that_the_precision_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="beyond what float64 can hold"):
        escape.first_passage_steps(lambda x: 0 * x, 1.0, (-9.0, 9.0), 0.0)


REFUSALS = [
    (lambda: escape.effective_temperature(1.0, 1.0, 2.0), "no stationary state"),
    (lambda: escape.effective_temperature(-1.0, 1.0, 0.1), "curvature must be"),
    (lambda: escape.saddle_exit_steps(0.5, 1.0, 1.0, 2.0), "first_passage_steps"),
    (lambda: escape.independent_exit_steps(1.0, 1.0, 0.5, 3.0), "correlation"),
    (lambda: escape.first_passage_steps(lambda x: x, 1.0, (0.0, 1.0), 2.0), "inside"),
    (lambda: escape.first_passage_steps(lambda x: x, -1.0, (0.0, 1.0), 0.5), "spread must be"),
    (lambda: escape.first_passage_steps(lambda x: x, 0.1, (0.0, 9.0), 0.5, 20), "too few"),
    (lambda: escape.first_passage_steps(lambda x: x, 1e-5, (0.0, 9.0), 0.5), "nodes are needed"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_exit_of_a_diffusion_is_scipy_s_double_integral():
    """Drift `-x`, unit noise, from 0.4 out of (-1, 2): inner and outer integrals by quad."""
    from scipy.integrate import quad

    def local(x):
        return Coefficients(-x, jnp.eye(1))

    def scale(a, b):
        return quad(lambda y: np.exp(y**2), a, b)[0]

    def speed(y):
        return 2 * np.exp(-(y**2))

    a, b, x, eta = -1.0, 2.0, 0.4, 0.3
    reached = scale(a, x) / scale(a, b)
    right = quad(lambda y: scale(y, b) * speed(y), x, b)[0]
    left = quad(lambda y: scale(a, y) * speed(y), a, x)[0]
    expected = (reached * right + (1 - reached) * left) / eta
    found = sde.exit_steps(local, (a, b), jnp.array([x]), eta)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
def test_the_differential_equation_leaves_earlier(eta):
    """HA-SME has the law of SGD at every step, and exits a quadratic trap before it."""
    sd, steps = trap(eta, 2.5)

    def local(x):
        return coefficients(HA_SME, jnp.eye(1), x, jnp.eye(1), eta)

    ends = (-2.5 * sd, 2.5 * sd)
    assert float(sde.exit_steps(local, ends, 0.0, eta)) < 0.8 * steps


def test_refused_exits():
    def local(x):
        return coefficients(HA_SME, jnp.eye(1), x, jnp.eye(1), 1.1)

    with pytest.raises(ValueError, match="does not exist everywhere"):
        sde.exit_steps(local, (-1.0, 1.0), 0.0, 1.1)
    with pytest.raises(ValueError, match="inside the interval"):
        sde.exit_steps(local, (-1.0, 1.0), 1.2, 1.1)
