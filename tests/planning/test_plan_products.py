"""Products of noise, which theory knows as if they were normal, are not what a plan rests on."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.planning import search
from tests.planning.plans import RIDGE, measured, planned


def ill_conditioned() -> bl.testing.Case:
    """Columns of size 1 to 0.1, targets to which all matter alike, one small penalty."""
    X = np.random.default_rng(100).standard_normal((90, 4)) * 10 ** -np.linspace(0, 1, 4)
    rng = np.random.default_rng(1000)
    y = X @ (rng.standard_normal(4) / np.sqrt(np.mean(X**2, 0))) + rng.standard_normal(90)

    def squares(w, h, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    def inner(w, h, batch):
        return squares(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2

    problem = bl.Problem(inner, squares, quadratic=True)
    data = bl.Data(inner=(X[:50], y[:50]), outer=(X[50:], y[50:]))
    return replace(RIDGE, problem=problem, hyper=-4.0, params=np.zeros(4), data=data, exact=None)


def test_where_products_of_noise_are_most_of_the_error_a_window_is_longer():
    """A last iterate alone would do for the tolerance, by a law that need not hold."""
    plan = planned(RIDGE, tolerance=0.9, batch_sizes=(1,))
    run = plan.planner._run(plan.chosen.step_size, 1)
    assert run.product_share(plan.chosen.window) <= 0.5
    noise = {window: np.sum(run.stationary_error(window)[1]) for window in (1, 64)}
    assert run.product_share(1) > 4 * run.product_share(64)
    assert noise[1] > noise[64]


@pytest.mark.extended
def test_a_plan_that_rests_on_products_is_not_right_and_not_made(monkeypatch):
    case = ill_conditioned()
    plan = planned(case, tolerance=0.9, batch_sizes=(1, 4))
    size, error = measured(case, plan, runs=400)
    assert abs(size - plan.error.total) < 0.25 * plan.error.total + 4 * error  # false alarm: 6e-5
    monkeypatch.setattr(search, "MOST_PRODUCTS", 1.0)
    unchecked = plan.at(0.9)
    run = unchecked.planner._run(unchecked.chosen.step_size, unchecked.chosen.batch_size)
    assert unchecked.chosen.window < plan.chosen.window
    assert run.product_share(unchecked.chosen.window) > 0.8
    size, error = measured(case, unchecked, runs=400)
    assert size < 0.75 * unchecked.error.total - error


def test_a_last_iterate_is_refused_where_they_are_most_of_its_error():
    plan = planned(ill_conditioned(), tolerance=0.9, batch_sizes=(1,))
    run = plan.planner._run(plan.chosen.step_size, 1)
    demand = plan.planner.demand(0.9)._replace(window=1)
    found = search.find_cheapest(run, demand, 1, search.Candidate(1, plan.chosen.step_size))
    assert "products of noise are most of the error" in found.verdict
