"""Presets with inner loops against their published updates, transcribed to numpy."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from bilevel import single_loop
from tests.single_loop.model import (
    LAMBDAS,
    START,
    B,
    P,
    assert_equal,
    cross,
    f_lam,
    f_w,
    g_w,
    hvp,
    neumann,
    rows_inner,
    rows_outer,
    run,
)

pytestmark = pytest.mark.usefixtures("x64")
S, CALLS, K = 0.1, 3, 4


class Keys(NamedTuple):
    """Those of the call with key t."""

    inner: jax.Array
    outer: jax.Array
    adjoint: jax.Array
    cross: jax.Array
    again: jax.Array


def keys(t: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(t), 5))


def rows(key, k):
    return rows_inner(jax.random.fold_in(key, k))


def descend(w, lam, key, rate, steps):
    for k in range(steps):
        w = w - rate * g_w(w, lam, rows(key, k))
    return w


def total(w, v, lam, inner, outer):
    return cross(w, v, lam, rows_inner(inner)) + f_lam(w, lam, rows_outer(outer))


def fsla():
    w, v, d, past = START, np.zeros(P), np.zeros(P), (np.zeros(P),) * 3
    for t in range(CALLS):
        lam, key, rate = LAMBDAS[t], keys(t), S / (t + 1) ** 0.5
        w = descend(w, lam, key.inner, rate, 1)
        outer = rows_outer(key.outer)
        v = v - rate * (hvp(w, v, lam, rows(key.adjoint, 0)) + f_w(w, lam, outer))
        new = total(w, v, lam, key.cross, key.again)
        d = (
            new
            if t == 0
            else new + (1 - rate) * (d - total(past[0], past[1], past[2], key.cross, key.again))
        )
        past = (w, v, lam)
        yield w, v, d


def ttsa():
    w = START
    for t in range(CALLS):
        lam, key = LAMBDAS[t], keys(t)
        w = descend(w, lam, key.inner, S / (t + 1) ** 0.4, 1)
        v = neumann(w, lam, f_w(w, lam, rows_outer(key.outer)), key.adjoint, S, randomised=True)
        yield w, v, total(w, v, lam, key.cross, key.outer)


def bsa():
    """Published as: hypergradient, move lambda, then K steps on w at the new lambda."""
    w, lam = START, LAMBDAS[0]
    for t in range(CALLS):
        key = keys(t)
        v = neumann(w, lam, f_w(w, lam, rows_outer(key.outer)), key.adjoint, S, randomised=True)
        yield w, v, total(w, v, lam, key.cross, key.outer)
        lam = LAMBDAS[t + 1]
        w = descend(w, lam, keys(t + 1).inner, S / (t + 1) ** 0.5, K)


def stocbio():
    w = START
    for t in range(CALLS):
        lam, key = LAMBDAS[t], keys(t)
        w = descend(w, lam, key.inner, S, K)
        v = neumann(w, lam, f_w(w, lam, rows_outer(key.outer)), key.adjoint, S, randomised=False)
        yield w, v, total(w, v, lam, key.cross, key.outer)


def amigo():
    w, v = START, np.zeros(P)
    for t in range(CALLS):
        lam, key = LAMBDAS[t], keys(t)
        w = descend(w, lam, key.inner, S, K)
        b = f_w(w, lam, rows_outer(key.outer))
        for k in range(K):
            v = v - S * (hvp(w, v, lam, rows(key.adjoint, k)) + b)
        yield w, v, total(w, v, lam, key.cross, key.outer)


SETTINGS = {"bsa": {"inner_steps": K}, "stocbio": {"inner_steps": K}, "amigo": {"inner_steps": K}}


@pytest.mark.parametrize("published", [fsla, ttsa, bsa, stocbio, amigo])
def test_preset_is_the_published_update(published) -> None:
    name = published.__name__
    settings = SETTINGS.get(name, {})
    estimator, _ = single_loop.preset(name, step_size=S, batch_size=B, **settings)
    assert_equal(run(estimator, CALLS), list(published()))
