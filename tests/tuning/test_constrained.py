"""Constraints on the outer level: SciPy on dense solves, and shadow prices by differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import bilevel as bl
from tests.tuning.test_front import Populations, first, inner, second

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)


def solve_by_scipy(case: Populations, limits: np.ndarray) -> tuple[np.ndarray, float]:
    """The best first loss with the second, and the first log penalty, at most ``limits``."""
    constraints = [
        {"type": "ineq", "fun": lambda h: limits[0] - case.losses(h)[1]},
        {"type": "ineq", "fun": lambda h: limits[1] - h[0]},
    ]
    starts = [np.zeros(2), np.array([-2.0, -2.0]), np.array([1.0, -4.0])]
    runs = [
        minimize(
            lambda h: case.losses(h)[0],
            start,
            method="SLSQP",
            constraints=constraints,
            options={"ftol": 1e-14, "maxiter": 500},
        )
        for start in starts
    ]
    best = min((run for run in runs if run.success), key=lambda run: run.fun)
    return best.x, best.fun


@pytest.mark.parametrize("seed", [1, 4])
@pytest.mark.parametrize("cap", [10.0, -1.5])
def test_it_is_the_optimum_under_both_constraints(seed: int, cap: float) -> None:
    """Binding or not; the multiplier is the slope of the best value in the limit."""
    case = Populations(seed)
    problem = bl.Problem(inner, first, quadratic=True)
    free = minimize(lambda h: case.losses(h)[0], np.zeros(2)).x
    limits = np.array([0.6 * case.losses(free)[1], cap])

    def constraints(w: Any, h: Any, batch: Any) -> Any:
        return jnp.stack([second(w, h, batch) - limits[0], h[0] - limits[1]])

    found = bl.tune_constrained(
        problem,
        constraints,
        bl.ClosedForm(),
        bl.outer.Auto(),
        jnp.zeros(2),
        jnp.zeros(5),
        case.data,
        steps=60,
        key=KEY,
        tol=1e-6,
    )
    expected, value = solve_by_scipy(case, limits)
    assert bool(found.converged)
    assert np.all(np.asarray(found.constraints) <= 1e-6)
    assert float(found.value) == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(found.hyper, expected, atol=0.02)
    if cap > 5:
        assert found.multipliers[1] == 0
    for i, step in enumerate([1e-3, 1e-3]):
        ends = [solve_by_scipy(case, limits + sign * step * np.eye(2)[i])[1] for sign in (1, -1)]
        price = (ends[1] - ends[0]) / (2 * step)
        assert float(found.multipliers[i]) == pytest.approx(price, rel=0.02, abs=1e-4)


def test_a_constraint_that_holds_anyway_costs_one_round() -> None:
    case = Populations(1)
    problem = bl.Problem(inner, first, quadratic=True)
    start = jnp.zeros(2), jnp.zeros(5), case.data
    rule = bl.ClosedForm(), bl.outer.Auto()

    def loose(w: Any, h: Any, batch: Any) -> Any:
        return second(w, h, batch) - 100

    found = bl.tune_constrained(problem, loose, *rule, *start, steps=20, key=KEY)
    assert (found.rounds, float(found.multipliers[0])) == (1, 0.0)
    alone = bl.tune(problem, *rule, *start, steps=20, key=KEY)
    np.testing.assert_allclose(found.hyper, alone.hyper, rtol=1e-6)


def test_what_cannot_hold_is_said_and_mistakes_are_named() -> None:
    case = Populations(1)
    problem = bl.Problem(inner, first, quadratic=True)
    arguments = bl.ClosedForm(), bl.outer.Auto(), jnp.zeros(2), jnp.zeros(5), case.data

    def impossible(w: Any, h: Any, batch: Any) -> Any:
        return second(w, h, batch) + 1

    found = bl.tune_constrained(problem, impossible, *arguments, steps=10, key=KEY, rounds=3)
    assert isinstance(found, bl.Constrained)
    assert (bool(found.converged), found.rounds) == (False, 3)
    assert found.constraints[0] > 1
    with pytest.raises(TypeError, match="constraints must be a function"):
        bl.tune_constrained(problem, 3.0, *arguments, steps=3, key=KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number or a vector"):
        bl.tune_constrained(problem, lambda w, h, b: jnp.ones((2, 2)), *arguments, steps=3, key=KEY)
    noisy = bl.Problem(lambda *x: inner(*x[:3]), lambda *x: first(*x[:3]), stochastic=True)
    with pytest.raises(ValueError, match="without a key"):
        bl.tune_constrained(noisy, impossible, *arguments, steps=3, key=KEY)
