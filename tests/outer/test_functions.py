"""Rules on functions with known minima: they get there, and no accepted value rises on the way."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import bilevel as bl
from tests.outer.playing import Run, exact, play

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 150
MINIMUM = np.array([-3.0, 0.5, 2.0, 1.0])
SEARCHES = {"Auto": bl.outer.Auto(), "LineSearch": bl.outer.LineSearch(tolerance=0.0)}
NAMES = pytest.mark.parametrize("name", SEARCHES)


def ill(x: Any) -> Any:
    """A quadratic of condition number 1e4."""
    return jnp.sum(jnp.asarray([1e-2, 0.3, 5.0, 1e2]) * (x - MINIMUM) ** 2) / 2


def well(x: Any) -> Any:
    return jnp.sum(jnp.asarray([1.0, 2.0, 4.0, 7.0]) * (x - MINIMUM) ** 2) / 2


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def saturating(x: Any) -> Any:
    """Flat far out on both sides, like a log-penalty; minimum at log 2, value 0."""
    return jnp.sum((1 / (1 + jnp.exp(x)) - 1 / 3) ** 2)


def cliff(x: Any) -> Any:
    """Nothing beyond 1, where the slope points to."""
    return jnp.where(jnp.all(x < 1), jnp.sum(jnp.exp(-x)), jnp.nan)


def constant(x: Any) -> Any:
    return 0 * jnp.sum(x) + 2


FUNCTIONS: list[Callable[[Any], Any]] = [ill, well, rosenbrock, saturating, cliff, constant]


@cache
def compiled(name: str) -> Any:
    """One program per rule: which function, and in which unit, are arguments."""

    def run(which: Any, unit: Any, start: Any) -> Run:
        def value(x: Any) -> Any:
            return unit * jax.lax.switch(which, FUNCTIONS, x)

        return play(SEARCHES[name], exact(value), start, STEPS, jax.random.key(0))

    return jax.jit(run)


def run(name: str, function: Callable[[Any], Any], start: Any, unit: float = 1.0) -> Run:
    return compiled(name)(FUNCTIONS.index(function), unit, jnp.asarray(start))


@pytest.mark.parametrize(
    ("name", "function"), [("Auto", ill), ("Auto", well), ("LineSearch", well)]
)
def test_quadratics(name: str, function: Any) -> None:
    result = run(name, function, np.zeros(4))
    np.testing.assert_allclose(result.final, MINIMUM, atol=1e-6)
    rounding = 1e-14 * result.values[0]
    assert np.all(np.diff(result.best) <= rounding)
    assert result.best[-1] <= np.min(result.values) + rounding


def test_rosenbrock_takes_at_most_as_many_evaluations_as_scipy_twice() -> None:
    start = np.tile([-1.2, 1.0], 2)
    function = jax.jit(jax.value_and_grad(rosenbrock))
    theirs = minimize(
        lambda x: [np.asarray(part) for part in function(jnp.asarray(x))],
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": 1e-6},
    )
    result = run("Auto", rosenbrock, start)
    assert theirs.fun < 1e-9
    assert result.best[2 * theirs.nfev] < 1e-9
    np.testing.assert_allclose(result.final, 1, atol=1e-4)


@NAMES
@pytest.mark.parametrize("start", [8.0, -6.0])
def test_plateaus_and_cliffs(name: str, start: float) -> None:
    result = run(name, saturating, np.full(4, start))
    assert np.all(np.abs(result.points) < 2 * abs(start))
    np.testing.assert_allclose(result.final, np.log(2), atol=1e-2)


@NAMES
def test_the_unit_of_the_loss_does_not_matter(name: str) -> None:
    plain, large = (run(name, saturating, np.full(4, 2.0), unit) for unit in (1.0, 2.0**20))
    np.testing.assert_allclose(large.points[:10], plain.points[:10], rtol=1e-9)


@NAMES
def test_values_that_are_not_finite_are_never_accepted(name: str) -> None:
    result = run(name, cliff, np.full(4, -3.0))
    assert not np.isfinite(result.values).all()
    assert np.isfinite(result.best).all()
    np.testing.assert_allclose(result.final, 1, atol=0.05)


@NAMES
def test_where_nothing_is_to_be_gained_they_stay(name: str) -> None:
    np.testing.assert_array_equal(run(name, constant, np.ones(4)).points, np.ones((STEPS, 4)))
