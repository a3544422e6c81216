"""The rules of `bl.outer` in a space: as with the map written into the losses; a closed box."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import bilevel as bl
from bilevel.outer.coordinates import in_coordinates, unwrap_rule, update_hyper
from bilevel.spaces import Box, Log
from bilevel.spaces.base import Spaces

pytestmark = pytest.mark.usefixtures("x64")

rng = np.random.default_rng(1)
ROOT = rng.normal(size=(6, 6))
HESSIAN = ROOT @ ROOT.T / 6 + 1e-2 * np.eye(6)
CENTRE = 2 * rng.normal(size=6)


def bowl(h: Any) -> Any:
    return (h - CENTRE) @ HESSIAN @ (h - CENTRE) / 2


def play(rule: Any, space: Any, value: Any, start: Any, steps: int) -> Any:
    """The points that are evaluated, and the best values."""
    tx = in_coordinates(None if space is None else Spaces.of(space), rule)

    def advance(carry: Any, _: Any) -> Any:
        hyper, state = carry
        seen = bl.Estimate(*jax.value_and_grad(value)(hyper), bl.Evidence())
        best = (
            tx.best(state, hyper, seen.value)[1] if hasattr(unwrap_rule(tx), "best") else seen.value
        )
        return update_hyper(tx, seen, state, hyper), (hyper, best)

    return jax.lax.scan(advance, (start, tx.init(start)), None, steps)[1]


@pytest.mark.parametrize(
    "rule",
    [
        bl.outer.LBFGS(),
        bl.outer.DoG(),
        bl.outer.LineSearch(0.0),
        bl.outer.Polyak(),
        bl.outer.AdaGradNorm(),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_move_coordinates(rule: Any) -> None:
    x = np.full(6, -1.0)
    points, best = jax.jit(lambda h: play(rule, Log(), lambda h: bowl(jnp.log(h)), h, 12))(
        np.exp(x)
    )
    expected, expected_best = jax.jit(lambda x: play(rule, None, bowl, x, 12))(x)
    np.testing.assert_allclose(points, np.exp(expected), rtol=1e-8)
    np.testing.assert_allclose(best, expected_best, rtol=1e-8)


# A projected quasi-Newton step is no descent unless coordinates on an end are left out of it.
@pytest.mark.parametrize(("rule", "steps"), [(bl.outer.Auto(), 25), (bl.outer.LineSearch(0.0), 80)])
def test_closed_ends_are_found_and_held(rule: Any, steps: int) -> None:
    bounds = [(0.0, 1.0)] * 6
    start, options = np.full(6, 0.5), {"ftol": 1e-16, "gtol": 1e-12}
    slope = jax.grad(bowl)
    exact = minimize(bowl, start, jac=slope, bounds=bounds, method="L-BFGS-B", options=options)
    space = Box(0.0, 1.0, closed=True)
    points, best = jax.jit(lambda h: play(rule, space, bowl, h, steps))(start)
    assert 0 < np.sum((exact.x == 0) | (exact.x == 1)) < 6
    assert points.min() >= 0
    assert points.max() <= 1
    np.testing.assert_allclose(best[-1], exact.fun, atol=1e-10)


def test_tune_moves_coordinates() -> None:
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
        quadratic=True,
        space=Log(high=1e3),
    )
    data = bl.Data(inner=np.array([2.0]), outer=np.array([1.5]))
    arguments = (
        problem,
        bl.ClosedForm(),
        bl.outer.LineSearch(0.0),
        np.array(50.0),
        np.array(0.0),
        data,
    )
    result = bl.tune(*arguments, steps=32, key=jax.random.key(0))
    np.testing.assert_allclose(result.hyper, 1 / 3, rtol=1e-3)  # w* = 2 / (1 + h) = 1.5
    assert result.history["best"][-1] == np.nanmin(result.history["value"])
