"""The rules of `bl.outer` in a space: the run with the map written into the losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.spaces import Log

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 4))
Y = X[:, 0] + 0.5 * rng.normal(size=40)
DATA = bl.Data(inner=(X[:20], Y[:20]), outer=(X[20:], Y[20:]))


def loss(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def in_log_space(w: Any, h: Any, batch: Any) -> Any:
    return loss(w, h, batch) + jnp.sum(h * w**2) / 2


def by_hand(w: Any, h: Any, batch: Any) -> Any:
    return in_log_space(w, jnp.exp(h), batch)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "rule", [bl.outer.Auto(), pytest.param(bl.outer.DoG(), marks=pytest.mark.slow)]
)
def test_rules_move_coordinates(rule: Any) -> None:
    def run(inner: Any, hyper: Any, space: Any) -> Any:
        problem = bl.Problem(inner, loss, quadratic=True, space=space)
        arguments = problem, bl.ClosedForm(), rule, hyper, np.zeros(4), DATA
        return bl.tune(*arguments, steps=15, key=jax.random.key(0))

    run_in_space = run(in_log_space, np.full(4, 0.1), Log())
    other = run(by_hand, np.log(np.full(4, 0.1)), None)
    np.testing.assert_allclose(run_in_space.hyper, np.exp(other.hyper), rtol=1e-8)
    np.testing.assert_allclose(run_in_space.history["best"], other.history["best"], rtol=1e-9)
