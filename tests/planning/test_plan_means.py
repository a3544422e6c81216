"""The planner needs a loss that is a mean over its batch, and does not mistake another for one."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.planning.plans import RIDGE, planned


def _of_batch(reduce):
    """Ridge regression whose data term is reduced over the batch in another way than by a mean."""
    outer = RIDGE.problem.outer

    def inner(w, h, batch):
        return reduce((batch[0] @ w - batch[1]) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2

    return replace(RIDGE, problem=bl.Problem(inner, outer, quadratic=True))


def _normalised(squares):
    weights = 1 / (1 + jnp.arange(len(squares)))
    return jnp.sum(weights * squares) / jnp.sum(weights)


@pytest.mark.parametrize("route", ["dense", "influence"])
def test_refuses_losses_that_are_no_mean_over_the_batch(route):
    for reduce in (jnp.sum, _normalised):
        with pytest.raises(ValueError, match=r"no mean over the examples of its batch.*jnp\.mean"):
            planned(_of_batch(reduce), route=route)
    bare = bl.Problem(
        lambda w, h, x: jnp.sum((w - x - h) ** 2), lambda w, h, x: jnp.mean((w - x) ** 2)
    )  # without a penalty gradients of single examples have the mean 0; curvatures have another one
    with pytest.raises(ValueError, match=r"no mean over the examples"):
        bl.plan(
            bare, 1.0, 0.0, bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.ones(1)), route=route
        )


def test_interpolated_targets_are_no_reason_to_refuse():
    """All gradients are 0 at the solution, to rounding; there is no noise, and a run is cheap."""
    X = np.random.default_rng(0).normal(size=(9, 3))
    data = bl.Data(inner=(X, X @ np.ones(3)), outer=(X[:3], X[:3] @ np.ones(3) + 1))
    problem = bl.Problem(
        lambda w, h, b: jnp.mean((b[0] @ w - b[1] * h) ** 2),
        lambda w, h, b: jnp.mean((b[0] @ w - b[1]) ** 2),
    )
    plan = bl.plan(problem, 1.0, np.zeros(3), data, 0.1, batch_sizes=(1, 3))
    assert plan.error.noise < 1e-6
