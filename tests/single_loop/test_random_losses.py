"""Losses with keys in methods that move all variables at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

KEY = jax.random.key(2)


def inner(w, h, x, key):
    return (w - h * jax.random.uniform(key)) ** 2 / 2


def outer(w, h, x, key):
    return w * jax.random.uniform(key) + 0 * h


PROBLEM = bl.Problem(inner, outer, stochastic=True)
DATA = bl.Data(inner=jnp.zeros(64), outer=jnp.zeros(64))


def uniform(key, level):
    return jax.random.uniform(bl.loss_key(key, level))


def test_every_move_has_a_key():
    estimator = bl.SingleLoop(0.5, batch_size=2, steps=3)
    at = PROBLEM, estimator, jnp.array(2.0), jnp.array(1.0), DATA, KEY
    _, after = bl.hypergradient(*at, evidence="off", max_error=np.inf)
    w = 1.0
    for k in range(3):
        w = w - 0.5 * (w - 2 * uniform(jax.random.fold_in(KEY, 4 * k), "inner"))
    np.testing.assert_allclose(after.params, w, rtol=1e-6)


def test_every_inner_step_has_a_key():
    estimator = bl.DoubleLoop(0.5, batch_size=2, inner_steps=3)
    at = PROBLEM, estimator, jnp.array(2.0), jnp.array(1.0), DATA, KEY
    estimate, after = bl.hypergradient(*at, evidence="off", max_error=np.inf)
    w, steps = 1.0, jax.random.split(KEY, 5)[0]
    for k in range(3):
        w = w - 0.5 * (w - 2 * uniform(jax.random.fold_in(steps, k), "inner"))
    np.testing.assert_allclose(after.params, w, rtol=1e-6)
    np.testing.assert_allclose(estimate.value, w * uniform(KEY, "outer"), rtol=1e-6)


@pytest.mark.parametrize("name", ["F2SA", "BOME", "PZOBO"])
def test_the_others_hold_the_key_of_the_call(name):
    estimator = getattr(bl.single_loop, name)(0.1)
    at = PROBLEM, estimator, jnp.array(2.0), jnp.array(1.0), DATA
    one, two = (
        bl.hypergradient(*at, key, evidence="off", max_error=np.inf)[0].value
        for key in (KEY, jax.random.key(3))
    )
    assert jnp.isfinite(one)
    assert one != two
