"""F2SA, BOME and PZOBO against their published updates, transcribed to numpy."""

from typing import Any

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel import single_loop
from tests.single_loop.model import (
    ALL,
    ALL_OUTER,
    DATA,
    LAMBDAS,
    PROBLEM,
    START,
    B,
    P,
    f_lam,
    f_w,
    g_lam,
    g_w,
    rows_inner,
    rows_outer,
)

pytestmark = pytest.mark.usefixtures("x64")
S, CALLS, K = 0.1, 3, 4


def gradient_descent(w, lam):
    for _ in range(K):
        w = w - S * g_w(w, lam, ALL)
    return w


def bome():
    w = START
    for t in range(CALLS):
        lam = LAMBDAS[t]
        y = gradient_descent(w, lam)
        q_w, q_lam = g_w(w, lam, ALL), g_lam(w, lam, ALL) - g_lam(y, lam, ALL)
        d_w, d_lam = f_w(w, lam, ALL_OUTER), f_lam(w, lam, ALL_OUTER)
        size = q_w @ q_w + q_lam @ q_lam
        multiplier = max(0.5 * size - d_w @ q_w - d_lam @ q_lam, 0) / size
        w = w - S * (d_w + multiplier * q_w)
        yield w, d_lam + multiplier * q_lam


def pzobo():
    w, mu, pairs = START, 0.1, 3
    for t in range(CALLS):
        lam, end = LAMBDAS[t], gradient_descent(w, LAMBDAS[t])
        grad = f_lam(end, lam, ALL_OUTER)
        for key in jax.random.split(jax.random.key(t), pairs):
            u = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], (P,)))
            delta = (gradient_descent(w, lam + mu * u) - end) / mu
            grad = grad + (delta @ f_w(end, lam, ALL_OUTER)) * u / pairs
        w = end
        yield w, grad


def f2sa():
    w, y, gamma = START, START, 1.0
    for t in range(CALLS):
        lam, (steps, outer, one, two) = LAMBDAS[t], jax.random.split(jax.random.key(t), 4)
        for k in range(K):
            a, b, c = jax.random.split(jax.random.fold_in(steps, k), 3)
            d_w = gamma * g_w(w, lam, rows_inner(a)) + f_w(w, lam, rows_outer(c))
            d_y = g_w(y, lam, rows_inner(b))
            w, y = w - S / (t + 1) ** (5 / 7) * d_w, y - S / (t + 1) ** (4 / 7) * d_y
        direct = f_lam(w, lam, rows_outer(outer))
        penalty = g_lam(w, lam, rows_inner(one)) - g_lam(y, lam, rows_inner(two))
        yield w, direct + gamma * penalty
        gamma += 0.1 / (t + 1) ** (1 / 7)


SETTINGS = {"bome": {}, "pzobo": {"pairs": 3}, "f2sa": {}}


@pytest.mark.parametrize("published", [bome, pzobo, f2sa])
def test_preset_is_the_published_update(published: Any) -> None:
    name = published.__name__
    estimator, _ = single_loop.preset(
        name, step_size=S, batch_size=B, inner_steps=K, **SETTINGS[name]
    )
    state = None
    for t, (w, grad) in enumerate(published()):
        estimate, state = bl.hypergradient(
            PROBLEM, estimator, LAMBDAS[t], START, DATA, jax.random.key(t), state=state
        )
        np.testing.assert_allclose(state.params, w, rtol=0, atol=1e-10)
        np.testing.assert_allclose(estimate.grad, grad, rtol=0, atol=1e-10)
