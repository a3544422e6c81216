"""Step sizes for parts of the params, and schedules that are hyperparameters, in every call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

DATA = bl.Data(inner=np.ones(1), outer=np.ones(1))
PARAMS = {"body": {"a": jnp.array(1.0), "b": jnp.array([2.0, 3.0])}, "head": jnp.array(4.0)}
KEY = jax.random.key(0)


def loss(w, h, x):
    return optax.tree.norm(w, squared=True) / 2


PROBLEM = bl.Problem(loss, loss)


@pytest.mark.parametrize("solver", [bl.SGD, bl.GradientDescent])
@pytest.mark.parametrize(
    "step_size",
    [
        {"body": 0.1, "head": 0.5},
        {"body": lambda count: 0.1, "head": lambda count, hyper: hyper},
        lambda count, hyper: {"body": 0.1, "head": hyper},
        {"body": {"a": 0.1, "b": jnp.array([0.1, 0.1])}, "head": 0.5},
    ],
    ids=["numbers", "functions", "function", "leaves"],
)
def test_one_step_size_for_each_part(solver, step_size):
    got = bl.solve(PROBLEM, solver(step_size), jnp.array(0.5), PARAMS, DATA, KEY, steps=2)
    want = {"body": jax.tree.map(lambda w: 0.81 * w, PARAMS["body"]), "head": 0.25 * 4.0}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_its_numbers_are_leaves_and_its_limit_is_that_of_the_largest():
    solver = bl.SGD({"body": 0.1, "head": 0.5})
    assert jax.tree.leaves(solver) == [0.1, 0.5]
    state = solver.init(PARAMS, DATA.inner)
    assert solver.max_curvature(None, state) == 4


@pytest.mark.parametrize("step_size", [{"body": 0.1}, {"other": 0.1, "head": 0.5}, [0.1, 0.2]])
def test_what_is_no_prefix_is_refused(step_size):
    with pytest.raises(ValueError, match="no prefix of that"):
        bl.solve(PROBLEM, bl.SGD(step_size), jnp.array(0.5), PARAMS, DATA, KEY, steps=2)


@pytest.mark.parametrize("step_size", [{"body": -0.1, "head": 0.5}, {}])
def test_numbers_out_of_range_are_refused(step_size):
    with pytest.raises(ValueError, match="step_size must be"):
        bl.SGD(step_size)


def learned(count, hyper):
    return hyper[count]


SOLVERS = {
    "SGD": lambda fn: bl.SGD(fn),
    "momentum": lambda fn: bl.SGD(0.1, momentum=fn),
    "GradientDescent": bl.GradientDescent,
    "by part": lambda fn: bl.SGD({"w": fn}),
    "SAGA": bl.SAGA,
    "SVRG": bl.SVRG,
    "Optax": lambda fn: bl.Optax(bl.transform(optax.sgd, learning_rate=fn)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_learned_schedule_is_the_same_in_every_call(name):
    def quartic(w, h, x):
        return jnp.mean((w["w"] - x) ** 4 + w["w"] ** 2)

    problem, solver = bl.Problem(quartic, quartic), SOLVERS[name](learned)
    hyper, params = jnp.array([0.1, 0.05, 0.02]), {"w": jnp.array(0.3)}
    forward, reverse = (kind(solver, steps=3) for kind in (bl.Forward, bl.Reverse))
    at = problem, reverse, hyper
    first, state = bl.hypergradient(*at, params, DATA, KEY, evidence="off", max_error=np.inf)
    second, _ = bl.hypergradient(
        *at, state.params, DATA, KEY, state=state, evidence="off", max_error=np.inf
    )
    if name not in ("momentum", "SAGA"):  # whose state is more than params
        again, _ = bl.hypergradient(*at, state.params, DATA, KEY, evidence="off", max_error=np.inf)
        np.testing.assert_allclose(second.grad, again.grad, rtol=1e-5)
    both, _ = bl.hypergradient(
        problem, forward, hyper, params, DATA, KEY, evidence="off", max_error=np.inf
    )
    np.testing.assert_allclose(both.grad, first.grad, rtol=1e-4)


def test_its_count_goes_on_where_that_is_said():
    seen = bl.SGD(bl.Continued(lambda count, hyper: hyper / (1 + count)))
    at = PROBLEM, bl.Reverse(seen, steps=1), jnp.array(0.5)
    key = {"evidence": "off", "max_error": np.inf}
    _, state = bl.hypergradient(*at, PARAMS, DATA, KEY, **key)
    _, state = bl.hypergradient(*at, PARAMS, DATA, KEY, state=state, **key)
    np.testing.assert_allclose(state.params["head"], 4 * 0.5 * 0.75)
