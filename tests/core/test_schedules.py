"""Settings that change: functions, the library's schedules, and a pytree of the user's own."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.core import Schedule, as_setting, evaluate

COUNT = jnp.array(3, jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Halving:
    """A user's schedule: its start is a leaf, and ``hyper`` scales it."""

    start: Any

    @property
    def sees_hyper(self) -> bool:
        return True

    def __call__(self, count: Any, hyper: Any) -> Any:
        return hyper * self.start / 2**count


SETTINGS: dict[str, tuple[Any, float]] = {
    "number": (0.25, 0.25),
    "function": (lambda count: 0.5 / (count + 1), 0.125),
    "function of hyper": (lambda count, hyper: hyper / (count + 1), 0.5),
    "Decay": (bl.Decay(0.5, 0.5), 0.25),
    "InverseTime": (bl.InverseTime(1.0, 1.0), 2 / 11),
    "user's": (Halving(4.0), 1.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_evaluated(name: str) -> None:
    given, expected = SETTINGS[name]
    setting = as_setting("test", "step_size", given)
    assert isinstance(setting, Schedule) == (name != "number")
    np.testing.assert_allclose(evaluate(setting, COUNT, jnp.array(2.0)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["function", "Decay", "InverseTime", "user's"])
def test_every_schedule_may_set_an_optax_transformation(name: str) -> None:
    given, expected = SETTINGS[name]
    tx = bl.transform(optax.sgd, learning_rate=given)
    params = jnp.array(1.0)
    state = tx.init(params)
    if name != "user's":  # optax counts by itself
        state = jax.tree.map(lambda x: jnp.full_like(x, 3), state)
    updates, _ = tx.at(COUNT, jnp.array(2.0)).update(params, state, params)
    np.testing.assert_allclose(updates, -expected, rtol=1e-6)


def test_numbers_of_a_user_schedule_compile_nothing_and_have_a_derivative() -> None:
    problem = bl.Problem(lambda w, h, x: jnp.mean((x - w) ** 2) / 2, lambda w, h, x: w)
    data = bl.Data(inner=jnp.array([1.0]), outer=jnp.zeros(1))
    traced = []

    @jax.jit
    def slope(start: Any) -> Any:
        traced.append(start)
        estimator = bl.Reverse(bl.GradientDescent(Halving(start)), 1)
        h, w, key = jnp.array(0.5), jnp.array(0.0), jax.random.key(0)
        return bl.hypergradient(problem, estimator, h, w, data, key)[0].grad

    # One step from 0 is `h start`, so its derivative is the start.
    assert [float(slope(start)) for start in (0.25, 0.5)] == [0.25, 0.5]
    assert len(traced) == 1
