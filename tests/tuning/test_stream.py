"""Streams of minibatches: the run that one writes by hand, where it goes on, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

RNG = np.random.default_rng(0)
X = RNG.standard_normal((23, 3)).astype("float32")
Y = (X @ np.array([1.0, -1.0, 0.5])).astype("float32")
OUTER = (X[:5] + 0.1, Y[:5])
KEY, W, H = jax.random.key(0), jnp.zeros(3), jnp.array(-1.0)


def inner(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(h) * jnp.sum(w**2) / 2


def outer(w, h, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


PROBLEM = bl.Problem(inner, outer)
SOLVER = bl.SGD(0.1, momentum=0.5)
QUIET = {"evidence": "off", "max_error": np.inf}


def tune(data, steps=4, estimator=bl.Reverse(SOLVER, 3), **more):
    rule = optax.sgd(0.5)
    return bl.tune(PROBLEM, estimator, rule, H, W, data, steps=steps, key=KEY, **QUIET, **more)


def by_hand(minibatches, steps=4, K=3):
    """Outer steps of truncated back-propagation, the momentum going on, as one writes them."""
    h, carry, values = H, (W, jnp.zeros(3)), []
    for t in range(steps):

        def value(h, carry, t=t):
            w, v = carry
            for k in range(K):
                v = 0.5 * v + jax.grad(inner)(w, h, minibatches[t * K + k])
                w = w - 0.1 * v
            return outer(w, h, OUTER), (w, v)

        (made, after), slope = jax.value_and_grad(value, has_aux=True)(h, carry)
        values.append(made)
        h, carry = h - 0.5 * slope, after
    return np.array(values), h


def first_minibatches(stream, n=12):
    reader = stream.read()
    return [next(reader) for _ in range(n)]


SOURCES = {
    "arrays": lambda: bl.Stream((X, Y), batch_size=4, seed=1),
    "list": lambda: bl.Stream([(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)]),
    "epochs": lambda: bl.Stream(lambda e: ((X[i + e :][:4], Y[i + e :][:4]) for i in (0, 4, 8))),
    "iterator": lambda: bl.Stream(iter([(X[i : i + 4], Y[i : i + 4]) for i in range(12)])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_is_that_on_its_minibatches_one_after_the_other(name):
    values, h = by_hand(first_minibatches(SOURCES[name]()))
    result = tune(bl.Data(inner=SOURCES[name](), outer=OUTER))
    np.testing.assert_allclose(result.history["value"], values, rtol=2e-5)
    np.testing.assert_allclose(result.hyper, h, rtol=2e-5)


@pytest.mark.parametrize("name", ["arrays", "epochs", "iterator"])
def test_it_goes_on_where_it_was_bit_for_bit(name):
    whole = tune(bl.Data(inner=SOURCES[name](), outer=OUTER))
    data = bl.Data(inner=SOURCES[name](), outer=OUTER)
    part = tune(data, steps=2)
    assert tune(data, steps=2, state=part.state).hyper == whole.hyper
    if name != "iterator":  # of another process
        data = bl.Data(inner=SOURCES[name](), outer=OUTER)
        assert tune(data, steps=2, state=part.state).hyper == whole.hyper


def test_an_epoch_has_every_row_once_and_row_numbers():
    stream = bl.Stream(np.arange(12) * 10, batch_size=4, index=True)
    examples, rows = stream.block(3, 3)
    assert sorted(rows.tolist()) == list(range(12))
    np.testing.assert_array_equal(examples, rows * 10)
    assert rows.tolist() != stream.block(0, 3)[1].tolist()


def test_rows_of_a_file_in_place(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, two = (bl.Stream((x, Y), batch_size=4).block(0, 5) for x in (mapped, X))
    jax.tree.map(np.testing.assert_array_equal, one, two)


ESTIMATORS = {
    "Forward": bl.Forward(SOLVER, 3),
    "Replicated": bl.Replicated(bl.OneStep(bl.Optax(optax.sgd(0.1)), 3), 2),
    "PES": bl.PES(SOLVER, 3, pairs=2),
    "SingleLoop": bl.SingleLoop(0.1, batch_size=(4, None), steps=2),
    "DoubleLoop": bl.DoubleLoop(0.1, batch_size=(4, None), inner_steps=2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_that_see_minibatches(name):
    data = bl.Data(inner=SOURCES["arrays"](), outer=OUTER)
    result = tune(data, steps=2, estimator=ESTIMATORS[name])
    assert np.all(np.isfinite(result.history["value"]))
    assert result.hyper != H


def test_a_stream_of_outer_minibatches():
    rows = bl.Stream(OUTER, batch_size=2, seed=3)
    result = tune(bl.Data(inner=SOURCES["list"](), outer=rows), steps=1)
    whole = tune(bl.Data(inner=SOURCES["list"](), outer=rows.block(0, 1)), steps=1)
    assert result.history["value"] == whole.history["value"]


def test_an_iterator_that_ends_says_so():
    short = bl.Stream(iter([(X[:4], Y[:4])] * 5))
    with pytest.raises(ValueError, match="ended after 5 minibatches"):
        tune(bl.Data(inner=short, outer=OUTER))
    with pytest.raises(ValueError, match="passes once and is at 5"):
        tune(bl.Data(inner=short, outer=OUTER))


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (bl.Implicit(SOLVER, 3), "Implicit needs all inner rows"),
        (bl.Auto(), "Auto needs all inner rows"),
        (bl.Reverse(bl.GradientDescent(0.1), 3), "GradientDescent needs all rows"),
        (bl.Reverse(bl.SAGA(0.1), 3), "SAGA needs all rows"),
    ],
)
def test_what_needs_all_rows_says_so(estimator, words):
    with pytest.raises(ValueError, match=words):
        tune(bl.Data(inner=SOURCES["arrays"](), outer=OUTER), estimator=estimator)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bl.Stream((X, Y), batch_size=24), "above the 23 rows"),
        (lambda: bl.Stream([X], index=True), "only the rows of arrays have numbers"),
        (lambda: bl.Stream([(X[:4], Y[:4]), (X[:3], Y[:3])]).block(0, 2), "All must be alike"),
        (lambda: bl.Stream(lambda epoch: []).block(0, 1), "has no minibatch"),
    ],
)
def test_bad_streams_get_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_hypergradient_takes_a_block():
    stream = SOURCES["arrays"]()
    estimator = bl.Reverse(bl.SGD(0.1, batch_size=4, sampling="stream"), 3)
    with pytest.raises(TypeError, match=r"stream\.block"):
        bl.hypergradient(PROBLEM, estimator, H, W, bl.Data(inner=stream, outer=OUTER), KEY)
    data = bl.Data(inner=stream.block(0, 3), outer=OUTER)
    got, _ = bl.hypergradient(PROBLEM, estimator, H, W, data, KEY, **QUIET)
    assert jnp.isfinite(got.grad)
