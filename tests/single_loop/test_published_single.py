"""Presets with simultaneous moves against their published updates, transcribed to numpy."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from bilevel import single_loop
from tests.single_loop.model import (
    ALL,
    ALL_OUTER,
    LAMBDAS,
    START,
    B,
    M,
    N,
    P,
    assert_equal,
    cross,
    drawn,
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
S, CALLS = 0.1, 4


def keys(t, move=0):
    """Those of a move of the call with key t: inner, outer, coin, series."""
    return [jax.random.fold_in(jax.random.key(t), 4 * move + part) for part in range(4)]


def directions(w, v, lam, inner, outer):
    """The three sums, on one pair of minibatches."""
    return (
        g_w(w, lam, inner),
        hvp(w, v, lam, inner) + f_w(w, lam, outer),
        cross(w, v, lam, inner) + f_lam(w, lam, outer),
    )


def soba():
    w, v = START, np.zeros(P)
    for t in range(CALLS):
        inner, outer, *_ = keys(t)
        rate = S / (t + 1) ** 0.5
        D = directions(w, v, LAMBDAS[t], rows_inner(inner), rows_outer(outer))
        w, v = w - rate * D[0], v - rate * D[1]
        yield w, v, D[2]


def ma_soba():
    average = None
    for t, (w, v, D) in enumerate(soba()):
        weight = 1 / (t + 1) ** 0.5
        average = D if average is None else (1 - weight) * average + weight * D
        yield w, v, average


def saba():
    """SAGA on blocks of different sizes: block j has probability 1 / blocks."""
    w, v = START, np.zeros(P)
    splits = [np.split(np.arange(n), range(B, n, B)) for n in (N, M)]
    tables = [np.zeros((len(splits[level]), P)) for level in (0, 0, 0, 1, 1)]
    for t in range(CALLS):
        lam, (inner, outer, *_) = LAMBDAS[t], keys(t)
        j = drawn(inner, 1, len(splits[0]))[0]
        k = drawn(outer, 1, len(splits[1]))[0]
        a, b = splits[0][j], splits[1][k]
        new = [g_w(w, lam, a), hvp(w, v, lam, a), cross(w, v, lam, a)]
        new = [x * len(a) * len(splits[0]) / N for x in new]
        extra = [f_w(w, lam, b), f_lam(w, lam, b)]
        new += [x * len(b) * len(splits[1]) / M for x in extra]
        d = []
        for x, table, i in zip(new, tables, (j, j, j, k, k), strict=True):
            d.append(x - table[i] + table.mean(axis=0))
            table[i] = x
        w, v = w - S * d[0], v - S * (d[1] + d[3])
        yield w, v, d[2] + d[4]


def recursive(due: Callable):
    w, v, D = START, np.zeros(P), (np.zeros(P),) * 3
    past = (w, v, LAMBDAS[0])
    for t in range(CALLS):
        inner, outer, coin, _ = keys(t)
        now = (w, v, LAMBDAS[t])
        if due(t, coin):
            D = directions(*now, ALL, ALL_OUTER)
        else:
            rows = rows_inner(inner), rows_outer(outer)
            pairs = zip(directions(*now, *rows), directions(*past, *rows), D, strict=True)
            D = tuple(a - b + d for a, b, d in pairs)
        past = now
        w, v = w - S * D[0], v - S * D[1]
        yield w, v, D[2]


def srba():
    """Period of half a pass over both levels: (3 + 2) // 2 minibatches."""
    return recursive(lambda t, coin: t % 2 == 0)


def spaba():
    return recursive(lambda t, coin: t == 0 or float(jax.random.uniform(coin)) < 0.5)


def storm(randomised: bool):
    w, D, eta, past = START, [START, START], 0.5, (START, START)
    for t in range(CALLS):
        inner, outer, _, series = keys(t)
        a, b, lam = rows_inner(inner), rows_outer(outer), LAMBDAS[t]

        def estimate(w, lam, a=a, b=b, series=series):
            v = neumann(w, lam, f_w(w, lam, b), series, S, randomised)
            return v, g_w(w, lam, a), cross(w, v, lam, a) + f_lam(w, lam, b)

        v, *new = estimate(w, lam)
        keep = 1 - eta / (t + 1) ** (2 / 3)
        if t == 0:
            D = new
        else:
            _, *old = estimate(*past)
            D = [n + keep * (d - o) for n, d, o in zip(new, D, old, strict=True)]
        past = (w, lam)
        w = w - S / (t + 1) ** (1 / 3) * D[0]
        yield w, v, D[1]


def sustain():
    return storm(randomised=True)


def mrbo():
    return storm(randomised=False)


SLOW = S / 4  # with S some minibatches make three moves diverge


def vrbo():
    """Three moves of w per call; every second move starts again from all data."""
    w, D, past, moves = START, (START, START), (START, START), 0
    v = START
    for t in range(CALLS):
        for k in range(3):
            inner, outer, _, series = keys(t, k)

            def estimate(w, lam, inner=inner, outer=outer, series=series):
                a, b = rows_inner(inner), rows_outer(outer)
                v = neumann(w, lam, f_w(w, lam, b), series, SLOW, randomised=False)
                return v, g_w(w, lam, a), cross(w, v, lam, a) + f_lam(w, lam, b)

            lam = LAMBDAS[t]
            v, *new = estimate(w, lam)
            if moves % 2 == 0:
                x = [f_w(w, lam, ALL_OUTER)]
                for _ in range(10):
                    x.append(x[-1] - SLOW * hvp(w, x[-1], lam, ALL))
                exact = -SLOW * sum(x)
                D = g_w(w, lam, ALL), cross(w, exact, lam, ALL) + f_lam(w, lam, ALL_OUTER)
            else:
                D = [d + n - o for d, n, o in zip(D, new, estimate(*past)[1:], strict=True)]
            past, w, moves = (w, lam), w - SLOW * D[0], moves + 1
        yield w, v, D[1]


SETTINGS = {"vrbo": {"inner_steps": 3, "step_size": SLOW}}


@pytest.mark.parametrize("published", [soba, ma_soba, saba, srba, spaba, sustain, mrbo, vrbo])
def test_preset_is_the_published_update(published) -> None:
    name = published.__name__
    settings = {"step_size": S, "batch_size": B, **SETTINGS.get(name, {})}
    estimator, _ = single_loop.preset(name, **settings)
    assert_equal(run(estimator, CALLS), list(published()))
