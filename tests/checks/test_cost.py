"""Predicted memory against what XLA plans for the real program, and the shape of its growth."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.estimators import compiled_step

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def case():
    """Ridge with 40 penalties on random data; n is no multiple of the batch."""
    rng = np.random.default_rng(0)
    X = jnp.asarray(rng.normal(size=(203, 40)), jnp.float32)
    y = jnp.asarray(rng.normal(size=203), jnp.float32)

    def inner(w, h, batch):
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2

    def outer(w, h, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    data = bl.Data((X[:150], y[:150]), (X[150:], y[150:]))
    return bl.Problem(inner, outer), jnp.full(40, -2.0), jnp.zeros(40), data


def bytes_of(case, make, steps):
    """`temp_bytes` of `estimate_cost`, which would run shorter loops for the time as well."""
    problem, hyper, params, data = case
    compiled, _ = compiled_step(problem, make(steps), hyper, params, data, KEY)
    return compiled.memory_analysis().temp_size_in_bytes


SOLVER = bl.SGD(step_size=0.01, batch_size=16)


def per_step(case, make):
    """Bytes that each of 20 000 more steps adds."""
    return (bytes_of(case, make, 30_000) - bytes_of(case, make, 10_000)) / 20_000


ROWS = 4 * 16  # the row numbers of a step; drawn ahead, they are held twice for a moment


@pytest.mark.extended
def test_forward_memory_grows_by_row_numbers_alone(case):
    """Twenty thousand more steps (whose evidence is the same): neither params nor minibatches."""
    assert per_step(case, lambda k: bl.Forward(SOLVER, k)) <= 2.05 * ROWS


@pytest.mark.extended
def test_chunked_forward_holds_a_chunk_of_tangents(case):
    """2 500 weights of examples, 7 tangents at a time: no 2 500 x 2 500 basis, 25 MB, anywhere."""
    _, _, params, data = case
    rows = jnp.arange(2500)
    data = bl.Data((data.inner[0][rows % 150], data.inner[1][rows % 150], rows), data.outer)

    def inner(w, h, batch):
        X, y, i = batch
        return jnp.mean(jax.nn.sigmoid(h[i]) * (X @ w - y) ** 2) / 2

    problem = bl.Problem(inner, case[0].outer)
    estimator = bl.Forward(bl.SGD(0.01, 16), 20, chunk=7)
    cost = bl.estimate_cost(problem, estimator, jnp.zeros(2500), params, data, KEY)
    chunk, data_and_gradient = 7 * 4 * (2500 + 40), 4 * 2500 * (40 + 4)
    assert cost.temp_bytes <= 4 * chunk + 2 * data_and_gradient


@pytest.mark.extended
def test_checkpointed_reverse_grows_at_most_as_the_root_of_steps(case):
    """A hundred times the steps: no more than ten times the memory of the stored states."""
    make = lambda k: bl.Reverse(SOLVER, k, memory="checkpoint")  # noqa: E731
    small, large = bytes_of(case, make, 100), bytes_of(case, make, 10_000)
    assert large / small <= 12
    full = bytes_of(case, lambda k: bl.Reverse(SOLVER, k, memory="full"), 10_000)
    assert full / large >= 20


@pytest.mark.extended
def test_full_reverse_stores_params_and_row_numbers_per_step(case):
    """And not the minibatch, 16 times the params."""
    size = per_step(case, lambda k: bl.Reverse(SOLVER, k, memory="full"))
    assert 4 * 40 <= size <= 1.05 * (4 * 40 + 3 * ROWS)


@pytest.mark.extended
def test_auto_stays_within_its_budget(case):
    """The budget decides between the two arrangements."""
    generous = bytes_of(case, lambda k: bl.Reverse(SOLVER, k, budget=2**28), 10_000)
    tight = bytes_of(case, lambda k: bl.Reverse(SOLVER, k, budget=2**20), 10_000)
    assert tight <= 2**20 < generous


def test_cost_has_times_and_prints(case):
    """Seconds are positive, extrapolated for long loops, and the text names all three."""
    problem, hyper, params, data = case
    cost = bl.estimate_cost(problem, bl.Implicit(SOLVER, 200), hyper, params, data, KEY)
    assert cost.temp_bytes == bytes_of(case, lambda k: bl.Implicit(SOLVER, k), 200)
    assert cost.seconds > 0
    assert cost.compile_seconds > 0
    assert cost.extrapolated
    assert "scratch" in str(cost)


def test_cost_says_nothing_of_an_error(case):
    """Sixteen steps from a start that is far away: a hypergradient warns, its cost does not."""
    problem, hyper, params, data = case
    estimator = bl.Reverse(SOLVER, 16)
    with pytest.warns(bl.EvidenceWarning):
        bl.hypergradient(problem, estimator, hyper, params, data, KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bl.estimate_cost(problem, estimator, hyper, params, data, KEY).seconds > 0
