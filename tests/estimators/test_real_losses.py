"""Losses with keys, a model state, side results and a running loss, against hand-written JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.estimators.by_hand import (
    HYPER,
    KEY,
    RATE,
    STEPS,
    UNROLLED,
    assert_close,
    by_hand,
    data,
    inner,
    inner_and_state,
    outer,
    solver,
    tiny,
    tiny_by_hand,
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", [name for name in UNROLLED if name != "last"])
def test_state_keys_and_a_running_loss_equal_hand_written_jax(name):
    problem, params, state = tiny()
    estimate, after = bl.hypergradient(
        problem, UNROLLED[name], HYPER, params, data(), KEY, model_state=state, max_error=np.inf
    )
    hand = jax.value_and_grad(tiny_by_hand, has_aux=True)
    (value, (end, last)), grad = hand(HYPER, params, state, KEY)
    assert_close((estimate.value, estimate.grad), (value, grad))
    assert_close(after.params, end)
    assert_close(after.model_state["mean"], last["mean"])
    assert after.model_state["count"] == STEPS
    assert jax.random.key_data(after.model_state["key"]).tolist() == (
        jax.random.key_data(last["key"]).tolist()
    )
    x, y = data().outer
    error = outer(end, HYPER, (x, y), last, bl.loss_key(KEY, "outer"))[1]["error"]
    assert_close(estimate.aux["outer"]["error"], error)
    assert estimate.aux["inner"]["count"] == STEPS - 1


def test_derivative_through_the_state_is_stopped_where_the_loss_says_so():
    problem, params, state = tiny()

    def stopped(w, hyper, batch, state, key):
        return outer(w, hyper, batch, jax.lax.stop_gradient(state), key)

    problem = dataclasses.replace(problem, outer=stopped, running=None)
    at = HYPER, params, data(), KEY
    estimate, _ = bl.hypergradient(
        problem, UNROLLED["forward"], *at, model_state=state, max_error=np.inf
    )

    def hand(hyper):
        alone = inner_and_state, lambda *args: stopped(*args)[0], None
        return by_hand(*alone, params, state, data(), hyper, KEY)[0]

    value, grad = jax.value_and_grad(hand)(HYPER)
    assert_close((estimate.value, estimate.grad), (value, grad))


def test_implicit_holds_the_last_state():
    problem, params, state = tiny()
    problem = dataclasses.replace(problem, running=None)
    estimator = bl.Implicit(solver(), STEPS, linear=bl.CG(tol=1e-14))
    estimate, after = bl.hypergradient(
        problem, estimator, HYPER, params, data(), KEY, model_state=state, max_error=np.inf
    )
    last, key, of_outer = after.model_state, bl.loss_key(KEY, "inner"), bl.loss_key(KEY, "outer")
    x = [jax.tree.map(jnp.asarray, level) for level in (data().inner, data().outer)]
    at = after.params, HYPER

    def slope(w, h):
        return jax.grad(lambda w: inner(w, h, x[0], last, key)[0])(w)

    b, direct = jax.grad(lambda w, h: outer(w, h, x[1], last, of_outer)[0], (0, 1))(*at)
    adjoint = jnp.linalg.solve(jax.jacobian(slope)(*at), b)
    through = jax.vjp(lambda h: slope(after.params, h), HYPER)[1](adjoint)[0]
    assert_close(estimate.grad, jax.tree.map(jnp.subtract, direct, through), tol=1e-9)


def test_tune_goes_on_bit_for_bit_and_has_the_side_results():
    problem, params, state = tiny()

    def tune(steps, **more):
        return bl.tune(
            problem,
            UNROLLED["full"],
            optax.sgd(0.01),
            HYPER,
            params,
            data(),
            steps=steps,
            key=KEY,
            max_error=np.inf,
            **more,
        )

    whole, part = tune(4, model_state=state), tune(2, model_state=state)
    rest = tune(2, state=part.state)
    assert_close(rest.hyper, whole.hyper, tol=0)
    assert whole.state.lower.model_state["count"] == 4 * STEPS
    assert {"spread", "error", "count"} <= set(whole.history)
    assert whole.history["count"].tolist() == [STEPS * (k + 1) - 1 for k in range(4)]


def test_names_that_both_losses_return_have_their_level_before_them():
    def loss(w, h, x):
        return jnp.mean((w - x) ** 2) + h * w**2, {"size": w, "value": w}

    problem = bl.Problem(loss, loss, has_aux=True)
    numbers = bl.Data(inner=np.ones(2), outer=np.ones(2))
    estimator = bl.Reverse(bl.GradientDescent(0.1), 3)
    result = bl.tune(
        problem, estimator, optax.sgd(0.1), 1.0, 0.0, numbers, steps=2, key=KEY, max_error=np.inf
    )
    names = {"inner_size", "outer_size", "inner_value", "outer_value", "value"}
    assert names <= set(result.history)
    assert_close(result.history["value"].shape, (2,))


def test_check_holds_key_and_state():
    problem, params, state = tiny()
    problem = dataclasses.replace(problem, running=None)
    assert bl.check(problem, HYPER, params, data(), model_state=state, directions=2).agrees


def test_copies_have_keys_of_their_own():
    def loss(w, h, x, key):
        return (w - h) ** 2 / 2 + w * jax.random.normal(key)

    problem = bl.Problem(loss, loss, stochastic=True)
    numbers = bl.Data(inner=np.ones(1), outer=np.ones(1))
    estimator = bl.Replicated(bl.Reverse(bl.GradientDescent(1.0), 1), 4)
    estimate, after = bl.hypergradient(
        problem, estimator, 1.0, 0.0, numbers, KEY, evidence="off", max_error=np.inf
    )
    keys = jax.random.split(KEY, 4)
    ends = [1 - jax.random.normal(bl.loss_key(jax.random.fold_in(k, 0), "inner")) for k in keys]
    assert_close(after.memory.params, jnp.stack(ends))
    noise = [jax.random.normal(bl.loss_key(k, "outer")) for k in keys]
    values = [(w - 1) ** 2 / 2 + w * e for w, e in zip(ends, noise, strict=True)]
    assert_close(estimate.value, jnp.mean(jnp.stack(values)))


@pytest.mark.parametrize(
    ("changes", "model_state", "words"),
    [
        ({"stochastic": False}, True, "stochastic=True for a key"),
        ({"has_state": False}, False, "has_state=True for a model state"),
        ({"has_aux": False}, True, r"must return \(loss, new model state\)"),
        ({}, False, "model_state is missing"),
        ({"inner": "other structure"}, True, "must match"),
        ({"running": lambda *args: jnp.zeros(2)}, True, "running must return"),
    ],
)
def test_bad_input_gets_a_sentence(changes, model_state, words):
    problem, params, state = tiny()

    def other(*args):
        loss, new, aux = inner(*args)
        return loss, {**new, "more": 0.0}, aux

    changes = {
        name: other if value == "other structure" else value for name, value in changes.items()
    }
    problem = dataclasses.replace(problem, **changes)
    with pytest.raises(ValueError, match=words):
        bl.hypergradient(
            problem,
            UNROLLED["full"],
            HYPER,
            params,
            data(),
            KEY,
            model_state=state if model_state else None,
        )


@pytest.mark.parametrize(
    ("part", "estimator"),
    [
        ("has_state", bl.SingleLoop(0.1, 4)),
        ("has_state", bl.ClosedForm()),
        ("running", bl.Implicit(solver(), STEPS)),
        ("running", bl.Predicted(bl.Implicit(bl.SGD(RATE, batch_size=4), STEPS, average=2))),
    ],
)
def test_what_an_estimator_does_not_handle_is_refused_by_name(part, estimator):
    problem, params, state = tiny()
    name = "Implicit" if part == "running" else type(estimator).__name__
    with pytest.raises(ValueError, match=rf"{name} does not handle Problem\({part}"):
        bl.hypergradient(problem, estimator, HYPER, params, data(), KEY, model_state=state)
