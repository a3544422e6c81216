"""Products with the outer Hessian against that of the closed form, and levels that nest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.draws import rows_by_hand

RNG = np.random.default_rng(0)
X, Y, XV = RNG.standard_normal((12, 3)), RNG.standard_normal(12), RNG.standard_normal((8, 3))
DATA = bl.Data(inner=(X, Y), outer=(XV, XV @ np.ones(3)))
HYPER, KEY = np.array([-1.0, -2.0, 0.5]), jax.random.key(0)


def outer(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def inner(w, h, batch):
    return outer(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2


PROBLEM = bl.Problem(inner, outer, quadratic=True)
SOLVER = bl.GradientDescent(0.3)
ESTIMATORS = {
    "ClosedForm": bl.ClosedForm(),
    "Reverse": bl.Reverse(SOLVER, 300),
    "Forward": bl.Forward(SOLVER, 300),
    "Implicit": bl.Implicit(bl.Newton(), 1, linear=bl.Dense()),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def value(h):
    w = jnp.linalg.solve(X.T @ X / len(X) + jnp.diag(jnp.exp(h)), X.T @ Y / len(X))
    return outer(w, h, DATA.outer)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_is_the_hessian_of_the_closed_form(name):
    want, at = jax.hessian(value)(HYPER), (PROBLEM, ESTIMATORS[name], HYPER, np.zeros(3), DATA, KEY)
    np.testing.assert_allclose(bl.curvature(*at), want, rtol=1e-6, atol=1e-9)
    along = np.array([1.0, -1.0, 2.0])
    np.testing.assert_allclose(bl.curvature(*at, along=along), want @ along, rtol=1e-6, atol=1e-9)


def test_of_random_losses_it_is_the_hessian_at_the_key():
    def noisy(w, h, batch, key):
        return inner(w + 0.1 * jax.random.normal(key, w.shape), h, batch)

    problem = bl.Problem(noisy, lambda w, h, batch, key: outer(w, h, batch), stochastic=True)
    estimator = bl.Forward(bl.SGD(0.1, batch_size=4), 4)
    got = bl.curvature(problem, estimator, HYPER, np.zeros(3), DATA, KEY)

    def hand(h):
        w = jnp.zeros(3)
        for k in range(4):
            step = jax.random.fold_in(KEY, k)
            rows = rows_by_hand(step, 4, 12)
            batch = jnp.asarray(X)[rows], jnp.asarray(Y)[rows]
            w = w - 0.1 * jax.grad(noisy)(w, h, batch, bl.loss_key(step, "inner"))
        return outer(w, h, DATA.outer)

    np.testing.assert_allclose(got, jax.hessian(hand)(HYPER), rtol=1e-10, atol=1e-13)


def test_three_levels():
    # The middle level tunes penalties by its own hypergradient; the top one its step size.
    def middle(rate):
        def step(h, _):
            estimator = bl.Reverse(SOLVER, 5)
            at = PROBLEM, estimator, h, np.zeros(3), DATA, KEY
            grad = bl.hypergradient(*at, evidence="off", max_error=np.inf)[0].grad
            return h - rate * grad, None

        h, _ = jax.lax.scan(step, jnp.asarray(HYPER), length=3)
        return outer(bl.solve(PROBLEM, SOLVER, h, np.zeros(3), DATA, KEY, steps=5), h, DATA.outer)

    slope, eps = jax.jit(jax.grad(middle))(1.0), 1e-5
    ahead, behind = (jax.jit(middle)(1.0 + e) for e in (eps, -eps))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * eps), rtol=1e-6)
