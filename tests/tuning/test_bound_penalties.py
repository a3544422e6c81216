"""Ends of penalties follow the curvature, which NumPy's eigenvalues give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl


def loss(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w["w"] - y) ** 2) / 2


def inner(w, h, batch):
    return (
        loss(w, h, batch)
        + jnp.sum(h["each"] * w["w"] ** 2) / 2
        + 3 * h["all"] * jnp.sum(w["w"] ** 2)
    )


KEY = jax.random.key(0)
HYPER, PARAMS = {"all": 0.3, "each": np.full(5, 2.0)}, {"w": np.zeros(5)}


def make_data(unit=1.0):
    x = np.random.default_rng(0).normal(size=(40, 5)) * unit
    return bl.Data(inner=(x, x @ np.ones(5)), outer=(x, x @ np.ones(5)))


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e-3])
def test_ends_are_the_largest_curvature_per_unit_of_penalty(unit):
    data = make_data(unit)
    space = bl.bound_penalties(bl.Problem(inner, loss), HYPER, PARAMS, data, KEY, span=(1e-4, 10.0))
    x = data.inner[0]
    largest = np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    for name, per_unit in (("each", 1.0), ("all", 6.0)):
        assert space[name].low == pytest.approx(1e-4 * largest / per_unit, rel=0.02)
        assert space[name].high == pytest.approx(10 * largest / per_unit, rel=0.02)


def test_a_run_takes_the_space_as_it_comes():
    data = make_data()
    space = bl.bound_penalties(bl.Problem(inner, loss), HYPER, PARAMS, data, KEY)
    problem = bl.Problem(inner, loss, quadratic=True, space=space)
    arguments = (problem, bl.ClosedForm(), bl.outer.Auto(), HYPER, PARAMS, data)
    result = bl.tune(*arguments, steps=20, key=KEY, max_error=np.inf)
    assert space["all"].low < result.hyper["all"] < space["all"].high


def test_what_is_no_penalty_is_refused():
    data = make_data()

    def in_logs(w, h, batch):
        return loss(w, h, batch) + jnp.sum(jnp.exp(h["each"]) * w["w"] ** 2) + h["all"] * 0

    def unused(w, h, batch):
        return loss(w, h, batch) + jnp.sum(h["each"] * w["w"] ** 2)

    def negative(w, h, batch):
        return (
            loss(w, h, batch) - jnp.sum(h["each"] * w["w"] ** 2) + h["all"] * jnp.sum(w["w"] ** 2)
        )

    for unit in (1.0, 1e5):  # where the fit's curvature is 1e10 times that of the penalty
        with pytest.raises(ValueError, match="not linear in hyper"):
            bl.bound_penalties(bl.Problem(in_logs, loss), HYPER, PARAMS, make_data(unit), KEY)
    with pytest.raises(ValueError, match=r"leaf 1 of hyper .*: it adds no positive curvature"):
        bl.bound_penalties(bl.Problem(negative, loss), HYPER, PARAMS, data, KEY)
    with pytest.raises(ValueError, match=r"params.* has dtype int"):
        bl.bound_penalties(bl.Problem(inner, loss), HYPER, {"w": np.zeros(5, int)}, data, KEY)
    with pytest.raises(ValueError, match="span must be"):
        bl.bound_penalties(bl.Problem(inner, loss), HYPER, PARAMS, data, KEY, span=1e-3)
    with pytest.raises(ValueError, match="leaf 0 of hyper is no penalty"):
        bl.bound_penalties(bl.Problem(unused, loss), HYPER, PARAMS, data, KEY)
    with pytest.raises(ValueError, match="span must be"):
        bl.bound_penalties(bl.Problem(inner, loss), HYPER, PARAMS, data, KEY, span=(1.0, 0.1))
    with pytest.raises(ValueError, match="keys, a model state or side results"):
        bl.bound_penalties(bl.Problem(inner, loss, stochastic=True), HYPER, PARAMS, data, KEY)


def test_inside_jit_and_vmap_it_says_where_to_call_it():
    data, problem = make_data(), bl.Problem(inner, loss)

    def ends(h, rows=data):
        return bl.bound_penalties(problem, h, PARAMS, rows, KEY)["all"].low

    with pytest.raises(ValueError, match=r"bound_penalties: inside jax.jit .* Call it before"):
        jax.jit(ends)(HYPER)
    with pytest.raises(ValueError, match=r"bound_penalties: inside jax.jit"):
        jax.vmap(lambda rows: ends(HYPER, rows))(jax.tree.map(lambda x: np.stack([x, x]), data))
    with pytest.raises(ValueError, match=r"bound_penalties: inside jax.jit"):
        jax.jit(lambda: ends(HYPER))()
