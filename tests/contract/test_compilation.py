"""Compiled once: numbers are leaves, so changing one starts the same program again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import Case, ridge
from tests.compiling import compilations
from tests.marks import quick_cases

CASE = ridge(seed=1)


def sgd(step_size: float, momentum: float | None = None) -> bl.SGD:
    return bl.SGD(step_size, batch_size=5, momentum=momentum)


def run(estimator: Any, case: Case = CASE, state: Any = None) -> tuple[bl.Estimate, bl.InnerState]:
    arguments = (case.problem, estimator, case.hyper, case.params, case.data, jax.random.key(0))
    return bl.hypergradient(*arguments, state=state)


ESTIMATORS = {
    "forward": (lambda x: bl.Forward(sgd(x), 3), (0.1, 0.2)),
    "reverse": (lambda x: bl.Reverse(sgd(x), 3), (0.1, 0.2)),
    "momentum": (lambda x: bl.Reverse(sgd(0.1, x), 3), (0.5, 0.25)),
    "tolerance": (lambda x: bl.Implicit(sgd(0.1), 3, bl.CG(tol=x)), (1e-3, 1e-5)),
    "schedule": (
        lambda x: bl.Reverse(bl.SGD(bl.InverseTime(mu=x, L=2.0)), 3),
        (0.5, 0.25),
    ),
    "optax": (
        lambda x: bl.Reverse(bl.Optax(bl.transform(optax.sgd, learning_rate=x)), 3),
        (0.1, 0.2),
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_changed_setting_compiles_nothing(name: str) -> None:
    make, (first, second) = ESTIMATORS[name]
    before, lower = run(make(first))
    with compilations() as count:
        after, _ = run(make(second))
        run(make(first), state=lower)
    assert int(count) == 0
    if name != "tolerance":
        assert not np.allclose(before.grad, after.grad)


@pytest.mark.parametrize("part", ["hyper", "params", "data"])
def test_other_values_of_the_same_shape_compile_nothing(part: str) -> None:
    estimator, other = bl.Forward(sgd(0.1), 3), ridge(seed=2)
    run(estimator)
    with compilations() as count:
        run(estimator, dataclasses.replace(CASE, **{part: getattr(other, part)}))
    assert int(count) == 0


def test_another_shape_compiles_again() -> None:
    estimator = bl.Forward(sgd(0.1), 3)
    run(estimator)
    fewer = jax.tree.map(lambda leaf: leaf[:-1], CASE.data)
    with compilations() as count:
        run(estimator, dataclasses.replace(CASE, data=fewer))
    assert int(count) > 0


def test_python_floats_and_arrays_share_one_compilation() -> None:
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2, lambda w, h, x: w**2
    )
    data = bl.Data(inner=jnp.ones(3), outer=jnp.ones(1))
    estimator, key = bl.Reverse(bl.GradientDescent(0.5), 3), jax.random.key(0)
    bl.hypergradient(problem, estimator, 1.0, 0.0, data, key)
    with compilations() as count:
        bl.hypergradient(problem, estimator, 2.0, jnp.array(1.0), data, key)
        bl.hypergradient(problem, estimator, jnp.array(1.0), 3.0, data, key)
    assert int(count) == 0


@quick_cases(1, "warm_start", [True, False])
def test_tune_is_one_program_whatever_its_length(warm_start: bool) -> None:
    def tune(rate: float, step_size: float, steps: int, state: Any = None) -> bl.Result:
        return bl.tune(
            CASE.problem,
            bl.Implicit(sgd(step_size), 3),
            bl.transform(optax.adam, learning_rate=rate),
            CASE.hyper,
            CASE.params,
            CASE.data,
            steps=steps,
            key=jax.random.key(0),
            state=state,
            warm_start=warm_start,
            max_error=jnp.inf,  # a warning asks for the key of its step: three small programs
        )

    first = tune(0.1, 0.1, 7)
    tune(0.1, 0.1, 40)  # the small programs that join blocks of history
    with compilations() as count:
        other = tune(0.3, 0.05, 7)
        tune(0.1, 0.1, 7, state=first.state)
    assert int(count) == 0
    assert not np.allclose(first.hyper, other.hyper)


def _tilted(w: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2


def _seen(w: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    del h
    return jnp.mean((w - x) ** 2) / 2


DATA = bl.Data(inner=jnp.ones(3), outer=jnp.ones(1))


def test_what_is_made_in_the_call_compiles_once() -> None:
    """A problem around the same losses, and optax transformations with the same numbers."""

    def value(rate: float) -> jax.Array:
        problem = bl.Problem(_tilted, _seen, space=bl.spaces.Log(1e-9, 1e9))
        estimator = bl.Reverse(bl.Optax(optax.adam(rate, eps_root=1e-16), batch_size=2), 2)
        outer = optax.chain(optax.clip(1.0), optax.adam(rate))
        arguments = jnp.array(1.0), jnp.array(0.0), DATA
        result = bl.tune(problem, estimator, outer, *arguments, steps=2, key=jax.random.key(0))
        return result.history["value"]

    first = value(0.1)
    with compilations() as count:
        again = [value(0.1) for _ in range(5)]
    assert int(count) == 0
    np.testing.assert_array_equal(again, [first] * 5)
    assert not np.array_equal(value(0.2), first)
