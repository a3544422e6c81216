"""The field's simulated quadratics: what each kind of method reaches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import single_loop
from bilevel.estimators.base import init_filled
from tests.single_loop.quadratics import PROBLEM, Quadratics, make

pytestmark = pytest.mark.usefixtures("x64")


def reached(case: Quadratics, estimator: Any, outer: Any, steps: int) -> float:
    """``|grad h|^2``, from its closed form, at the end of a run."""
    lam, w = case.start
    key = jax.random.key(0)
    result = bl.tune(
        PROBLEM, estimator, outer, lam, w, case.data, steps=steps, key=key, hooks=[bl.Blocks(steps)]
    )
    assert not bool(result.diverged)
    return case.error(result.hyper)


def saba(case: Quadratics, batch_size: int, steps: int) -> float:
    estimator, outer = single_loop.preset("saba", 0.1, ratio=0.3, batch_size=batch_size)
    return reached(case, estimator, outer, steps)


def implicit(case: Quadratics, steps: int) -> float:
    solver = bl.GradientDescent(step_size=0.8)
    estimator = bl.Implicit(solver, steps=30, linear=bl.CG(tol=1e-10))
    outer = bl.transform(optax.sgd, learning_rate=0.7, momentum=0.8)
    return reached(case, estimator, outer, steps)


@pytest.mark.extended
def test_saba_converges_geometrically_on_a_small_case() -> None:
    assert saba(make(64, 10), 8, 4000) <= 1e-6


@pytest.mark.extended
def test_implicit_reaches_the_solution_of_a_small_case() -> None:
    assert implicit(make(64, 10), 300) <= 1e-10


@pytest.mark.slow
def test_saba_at_full_size() -> None:
    assert saba(make(1024, 100), 64, 8000) <= 1e-6


@pytest.mark.slow
def test_implicit_at_full_size() -> None:
    assert implicit(make(1024, 100), 1000) <= 1e-10


def soba(case: Quadratics, rate: Any, steps: int = 2**13, seeds: int = 8) -> np.ndarray:
    """Mean of ``|grad h|^2`` over seeds and over the second half of runs that double in length."""
    lam, w = (jnp.asarray(x) for x in case.start)
    estimator = bl.SingleLoop(rate, 8, check_every=2**20)
    begun = init_filled(PROBLEM, estimator, lam, w, case.data, jax.random.key(0))

    def run(key: jax.Array) -> jax.Array:
        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            lam, lower = carry
            key_t = jax.random.fold_in(key, t)
            estimate, lower = estimator.step(PROBLEM, lam, lower, case.data, key_t)
            return (lam - rate(t) * estimate.grad, lower), lam

        path = jax.lax.scan(step, (lam, begun), jnp.arange(steps))[1]
        return path[:: steps // 256]

    paths = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))
    errors = np.array([[case.error(lam) for lam in path] for path in paths])
    return np.array([errors[:, n // 2 : n].mean() for n in (32, 64, 128, 256)])


@pytest.mark.slow
def test_soba_falls_as_one_over_t_with_such_steps_and_stays_with_constant_ones() -> None:
    """Steps ``c / (t + t0)``, with ``c`` times the smallest curvature above 1, as the rate needs.

    In log-log the slope is -1; eight seeds leave it uncertain by about .1.
    """
    case, lengths = make(64, 10), np.log([1, 2, 4, 8])
    falling = np.polyfit(lengths, np.log(soba(case, lambda t: 40 / (t + 200))), 1)[0]
    assert abs(falling + 1) < 0.4
    constant = np.polyfit(lengths, np.log(soba(case, lambda t: 0.1 + 0 * t)), 1)[0]
    assert constant > -0.4
