"""The balance: exact on quadratics, within its error on a quartic, absent before stationarity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise.quadratic import equilibrium
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_balance_holds_exactly_on_quadratics(mu):
    K, C = q.pair(seed=1)
    rate = 0.95 * 2 * (1 + mu)
    joint = q.joint(K, C, rate, mu)
    work, heat = 2 * np.trace(K @ joint[:3, :3]), (1 + mu) * rate * np.trace(joint[3:, 3:])
    assert work == pytest.approx(heat, rel=1e-10)


def run(start, rate, mu, steps, seed):
    """SGD on `w^2/2 + w^4/4` per coordinate: `(params [T+1, d], gradients [T, d])`."""

    def step(state, key):
        w, m = state
        g = w + w**3 + 0.5 * jax.random.normal(key, w.shape)
        m = mu * m + g
        return (w - rate * m, m), (w, g)

    keys = jax.random.split(jax.random.key(seed), steps)
    (last, _), (w, g) = jax.lax.scan(step, (start, 0 * start), keys)
    return jnp.concatenate([w, last[None]]), g


@pytest.mark.parametrize(("rate", "mu"), [(0.5, 0.0), (0.05, 0.9)])
def test_balance_of_a_loss_that_is_not_quadratic(rate, mu):
    w, g = run(jnp.zeros(4), rate, mu, 8000, seed=2)
    found = equilibrium.balance(w, g, rate, mu)
    assert abs(float(found.z)) < 4  # false alarm: 6e-5
    assert float(found.ratio) == pytest.approx(1, abs=0.1)


def test_imbalance_before_stationarity():
    w, g = run(jnp.ones(4), 0.002, 0.5, 60, seed=3)
    found = equilibrium.balance(w, g, 0.002, 0.5, blocks=5)
    assert float(found.ratio) > 2
    assert float(found.z) > 3


REFUSALS = [
    (lambda: equilibrium.balance(np.ones((5, 2)), np.ones((5, 2)), 0.1), "params must be"),
    (lambda: equilibrium.balance(np.ones((6, 2)), np.ones((5, 2)), 0.1, blocks=3), "too few"),
    (lambda: equilibrium.balance(np.ones((6, 2)), np.ones((5, 2)), 0.1, 1.5, blocks=2), "momentum"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
