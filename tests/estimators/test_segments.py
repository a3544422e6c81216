"""Segments within segments: the derivative of the loop itself, and few states at many steps."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.estimators.segments import choose_levels, run_in_segments
from tests.checks.test_cost import bytes_of

KEY = jax.random.key(0)


@pytest.mark.parametrize(("n", "levels"), [(1, 2), (7, 2), (60, 1), (60, 3), (97, 2), (1009, 4)])
def test_it_is_the_loop_and_its_derivative(n: int, levels: int, x64: None) -> None:
    """Lengths that divide, primes, and a loop shorter than its levels: the product rule by hand."""
    rates = jnp.asarray(np.random.default_rng(n).uniform(0.9, 1.1, n))

    def run(x: Any) -> Any:
        def steps(length: int, loop: tuple) -> tuple:
            step = lambda loop, _: ((loop[0] + 1, jnp.sin(rates[loop[0]] * loop[1])), None)  # noqa: E731
            return jax.lax.scan(step, loop, length=length)[0]

        return run_in_segments(steps, (0, x), n, levels)

    (taken, end), derivative = run(jnp.array(0.3)), jax.grad(lambda x: run(x)[1])(jnp.array(0.3))
    assert taken == n
    x, slope = 0.3, 1.0
    for rate in np.asarray(rates):
        slope *= rate * math.cos(rate * x)
        x = math.sin(rate * x)
    assert end == pytest.approx(x, rel=1e-12)
    assert derivative == pytest.approx(slope, rel=1e-11)


def test_levels_are_the_fewest_that_keep_so_few() -> None:
    """Two levels keep 2 sqrt(n), three 3 cbrt(n)."""
    assert [choose_levels(10**6, most) for most in (1e9, 2000, 1999, 300, 299)] == [2, 2, 3, 3, 4]
    assert [choose_levels(n) for n in (1, 2, 3, 4096)] == [2, 2, 2, 2]
    assert choose_levels(4097) > 2


@pytest.mark.extended
@pytest.mark.parametrize(("n", "rest"), [(100_000, 0), (99_991, 3)])
def test_a_hundred_thousand_steps_keep_few_states(n: int, rest: int) -> None:
    """Fewer than ``3 log2(n)`` copies of the params, all of XLA's scratch memory counted.

    A prime has a rest beside its segments, a loop of its own with its own carries.
    """
    d = 4000
    X = jnp.asarray(np.random.default_rng(0).normal(size=(20, d)), jnp.float32) / d**0.5

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return outer(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2

    data = bl.Data((X, X[:, 0]), (X, X[:, 0]))
    case = bl.Problem(inner, outer), jnp.array(-3.0), jnp.zeros(d), data
    make = lambda k: bl.Reverse(bl.SGD(0.1, 2), k, memory="checkpoint")  # noqa: E731
    assert bytes_of(case, make, n) / (4 * d) < 3 * math.log2(n) + rest


def test_many_levels_give_the_hypergradient_of_none(x64: None) -> None:
    """5 003 steps, a prime: the same rows, the same derivative, and an honest count of steps."""
    data = bl.Data(jnp.arange(8.0), jnp.arange(3.0))

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((w - batch) ** 2) / 2 + jnp.exp(h) * jnp.sum(jnp.cosh(w))

    problem = bl.Problem(inner, lambda w, h, batch: jnp.mean((w - batch) ** 2) / 2)
    made = {}
    for memory in ("full", "checkpoint"):
        estimator = bl.Reverse(bl.SGD(1e-3, 2), 5_003, memory=memory)
        made[memory], _ = bl.hypergradient(
            problem, estimator, jnp.array(0.1), jnp.zeros(()), data, KEY, evidence="off"
        )
    full, few = made["full"], made["checkpoint"]
    assert float(few.grad) == pytest.approx(float(full.grad), rel=1e-12)
    more = int(few.evidence.counts.gradients) - int(full.evidence.counts.gradients)
    assert more == (choose_levels(5_003) - 1) * 5_003
