"""Newton, natural gradient and Adam: fixed points of the covariance equation, and real Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.noise.quadratic import gaussian_inputs, preconditioned, steady_state
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("mu", q.MOMENTA)
@pytest.mark.parametrize("fraction", q.FRACTIONS)
def test_newton_is_the_matrix_rate(mu, fraction):
    K, C = q.pair(seed=1)
    step = fraction * 2 * (1 + mu)
    found = preconditioned.newton(K, C, step, mu)
    rate = np.linalg.inv(K)
    assert float(steady_state.residual(found, K, C, step * rate, mu)) < 1e-10
    np.testing.assert_allclose(
        found, steady_state.covariance(K, C, step * (rate + rate.T) / 2, mu), rtol=1e-9
    )


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_newton_on_minibatches_solves_its_equation(mu):
    """With the noise of Gaussian regression that the covariance itself makes."""
    A, size = q.hessian(np.random.default_rng(2)), 5
    step = 0.9 * float(gaussian_inputs.step_limit(np.eye(3), size, mu))
    S = np.asarray(preconditioned.newton_minibatch(A, 0.4, step, size, mu))
    noise = (A @ S @ A + np.trace(A @ S) * A + 0.4 * A) / size
    rate = np.linalg.inv(A)
    assert float(steady_state.residual(S, A, noise, step * (rate + rate.T) / 2, mu)) < 1e-10
    g = 2 * (1 - mu) - ((1 - mu) / (1 + mu) + 1 / size) * step  # the formula as printed
    np.testing.assert_allclose(S, step * 0.4 / (g * size - step * 3) * rate, rtol=1e-10)


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_natural_gradient_is_self_consistent(mu):
    K, size, step = q.pair(seed=3)[0], 4, 0.2
    S = np.asarray(preconditioned.natural_gradient(K, step, size, mu))
    fisher = K @ S @ K
    fisher = (fisher + fisher.T) / 2
    rate = step * np.linalg.inv(fisher)
    assert float(steady_state.residual(S, K, fisher / size, rate, mu)) < 1e-10
    S = np.asarray(preconditioned.natural_gradient_minibatch(K, step, size, mu))
    noise = K @ S @ K + np.trace(K @ S) * K  # covariance of one example of Gaussian regression
    rate = step * np.linalg.inv((noise + noise.T) / 2)
    assert float(steady_state.residual(S, K, noise / size, rate, mu)) < 1e-10


@pytest.mark.parametrize("mu", q.MOMENTA)
def test_root_fisher_is_self_consistent(mu):
    k, size, step = np.diag(q.CURVATURES), 4, 0.2
    S = np.asarray(preconditioned.root_fisher(3, step, size, mu))
    fisher = k @ S @ k
    rate = step * np.diag(np.diag(fisher) ** -0.5)
    assert float(steady_state.residual(S, k, fisher / size, rate, mu)) < 1e-10


@pytest.mark.parametrize("step", [1e-3, 0.05, 0.5, 2.0, 30.0])
@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adam_is_self_consistent(step, b1):
    K, C = q.pair(seed=4)
    S, v = (np.asarray(x) for x in preconditioned.adam(K, C, step, b1))
    np.testing.assert_allclose(v, np.diag(K @ S @ K + C), rtol=1e-9)
    rate = step * (1 - b1) * np.diag(v**-0.5)
    assert float(steady_state.residual(S, K, C, rate, b1)) < 1e-10


@pytest.mark.extended
@pytest.mark.parametrize(("step", "b1"), [(0.02, 0.9), (0.3, 0.0)])
def test_adam_matches_real_adam(step, b1):
    """The theory holds its denominator fixed; 3 % of the largest entry, and 4 standard errors."""
    K, C = (jnp.array(x) for x in q.pair(seed=5))
    S, _ = preconditioned.adam(K, C, step, b1)
    tx, root, chains = optax.adam(step, b1=b1, b2=0.999, eps=0.0), jnp.linalg.cholesky(C), 200

    def advance(state, key):
        w, memory = state
        g = w @ K + jax.random.normal(key, w.shape) @ root.T
        updates, memory = tx.update(g, memory, w)
        return optax.apply_updates(w, updates), memory

    def measure(carry, key):
        state, total = carry
        state = advance(state, key)
        return (state, total + jnp.einsum("ci,cj->cij", state[0], state[0])), None

    @jax.jit
    def run(key):
        w = jnp.zeros((chains, 3))
        keys = jax.random.split(key, 8000)
        state, _ = jax.lax.scan(lambda s, k: (advance(s, k), None), (w, tx.init(w)), keys[:5000])
        return jax.lax.scan(measure, (state, jnp.zeros((chains, 3, 3))), keys[5000:])[0][1] / 3000

    samples = np.asarray(run(jax.random.key(6)))
    error = samples.std(0, ddof=1) / np.sqrt(chains)
    gap = np.abs(samples.mean(0) - S)
    assert (gap < 0.03 * np.abs(S).max() + 4 * error).all()  # false alarm: 6e-5 each


K3, C3 = q.pair()
REFUSALS = [
    (lambda: preconditioned.newton(K3, C3, 2.0), "no stationary state"),
    (lambda: preconditioned.newton(K3, C3, 3.9, 0.9), "no stationary state"),
    (lambda: preconditioned.newton(-K3, C3, 0.1), "indefinite"),
    (lambda: preconditioned.newton_minibatch(K3, 1.0, 0.7, 1), "no stationary state"),
    (lambda: preconditioned.natural_gradient(np.diag([1.0, 0]), 0.1, 2), "singular"),
    (lambda: preconditioned.adam(K3, np.diag([1.0, 1, 0]), 0.1), "needs noise"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
