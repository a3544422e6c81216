"""Losses with keys, a model state, side results and a running loss, against hand-written JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bilevel as bl
from tests.marks import quick_cases

STEPS, BATCH, RATE, MOMENTUM = 4, 5, 0.1, 0.5
KEY = jax.random.key(3)
HYPER = {"decay": np.array(-2.0), "scale": np.array(0.3)}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rows(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    return X, np.tanh(X @ np.array([1.0, -2.0, 0.5]))


class Linen(nn.Module):
    """A small network with dropout and batch norm."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, param_dtype=float)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=float)(x)
        x = nn.Dropout(0.3, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(1, param_dtype=float)(x)[:, 0]


class Nnx(nnx.Module):
    """The same, in nnx."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs, param_dtype=float)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs, param_dtype=float)
        self.dropout = nnx.Dropout(0.3)
        self.last = nnx.Linear(4, 1, rngs=rngs, param_dtype=float)

    def __call__(self, x, key, train):
        x = self.norm(self.first(x), use_running_average=not train)
        x = self.dropout(jnp.tanh(x), deterministic=not train, rngs=nnx.Rngs(key))
        return self.last(x)[:, 0]


def linen():
    """Return ``apply(params, state, x, key, train) -> (output, state)``, params and state."""
    model = Linen()
    variables = model.init(jax.random.key(0), jnp.zeros((2, 3)), train=False)

    def apply(params, state, x, key, train):
        both = {"params": params, "batch_stats": state}
        kept = {"mutable": ["batch_stats"]} if train else {}
        out = model.apply(both, x, train=train, rngs={"dropout": key}, **kept)
        return (out[0], out[1]["batch_stats"]) if train else (out, state)

    return apply, variables["params"], in_float64(variables["batch_stats"])


def in_nnx():
    """Return the same of the network in nnx."""
    graph, params, state = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, state, x, key, train):
        model = nnx.merge(graph, *jax.tree.map(lambda x: x, (params, state)))
        out = model(x, key, train)
        return out, nnx.split(model, nnx.Param, ...)[2]

    return apply, params, in_float64(state)


def in_float64(tree):
    def convert(x):
        return x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(convert, tree)


def losses(apply):
    def inner(params, hyper, batch, state, key):
        x, y = batch
        out, state = apply(params, state, x, key, True)
        loss = jnp.mean((out - y) ** 2) + jnp.exp(hyper["decay"]) * optax.tree.norm(
            params, squared=True
        )
        return loss * jnp.exp(hyper["scale"]), state

    def outer(params, hyper, batch, state, key):
        x, y = batch
        x = x + 0.1 * jax.random.normal(key, x.shape)  # augmentation
        return jnp.mean((apply(params, state, x, key, False)[0] - y) ** 2)

    return inner, outer


def by_hand(inner, outer, running, params, state, data, hyper, key, steps=STEPS, batch=BATCH):
    """SGD with momentum as anyone writes it; the outer value, params and state at the end."""
    velocity, total = jax.tree.map(jnp.zeros_like, params), 0.0
    X, y = (jnp.asarray(x) for x in data.inner)
    for k in range(steps):
        step = jax.random.fold_in(key, k)
        seen = jax.random.randint(step, (batch,), 0, len(X), jnp.int32)
        extra = bl.loss_key(step, "inner")
        b = X[seen], y[seen]
        if running is not None:
            total = total + running(params, hyper, b, state, extra)
        g, new = jax.grad(inner, has_aux=True)(params, hyper, b, state, extra)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, g)
        params = jax.tree.map(lambda w, v: w - RATE * v, params, velocity)
        state = new
    value = outer(params, hyper, data.outer, state, bl.loss_key(key, "outer"))
    return value + total / steps, (params, state)


def solver(batch=BATCH):
    return bl.SGD(RATE, batch_size=batch, momentum=MOMENTUM)


def data():
    return bl.Data(inner=rows(20, 0), outer=rows(8, 1))


def assert_close(got, want, tol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tol, atol=tol)


NETWORKS = {"linen": linen, "nnx": in_nnx}
UNROLLED = {
    "full": bl.Reverse(solver(), STEPS),
    "forward": bl.Forward(solver(), STEPS),
    "checkpoint": bl.Reverse(solver(), STEPS, memory="checkpoint"),
    "chunk": bl.Forward(solver(), STEPS, chunk=1),
    "last": bl.OneStep(solver(), STEPS, last=STEPS),
    "auto": bl.Auto(solver=solver(), steps=STEPS),
}


@quick_cases(2, "network, name", [("linen", "full"), ("nnx", "full"), ("nnx", "forward")])
def test_dropout_and_batch_norm_equal_hand_written_jax(network, name):
    apply, params, state = NETWORKS[network]()
    inner, outer = losses(apply)
    problem = bl.Problem(inner, outer, stochastic=True, has_state=True)
    estimate, after = bl.hypergradient(
        problem, UNROLLED[name], HYPER, params, data(), KEY, model_state=state, max_error=np.inf
    )

    def hand(hyper):
        return by_hand(inner, outer, None, params, state, data(), hyper, KEY)

    (value, (end, last)), grad = jax.jit(jax.value_and_grad(hand, has_aux=True))(HYPER)
    assert_close(estimate.value, value)
    assert_close(estimate.grad, grad)
    assert_close((after.params, after.model_state), (end, last))


def mask(key, x):
    return jax.random.bernoulli(key, 0.7, x.shape) / 0.7


def inner(w, hyper, batch, state, key):
    """A tiny loss that reads and writes floats, a counter and a key in its state."""
    x, y = batch
    z = jnp.tanh((x * mask(key, x)) @ w)
    new = {
        "mean": 0.9 * state["mean"] + 0.1 * z.mean() + 0.01 * hyper["scale"],
        "count": state["count"] + 1,
        "key": jax.random.fold_in(state["key"], 1),
    }
    loss = jnp.mean((z - state["mean"] - y) ** 2) + jnp.exp(hyper["decay"]) * jnp.sum(w**2)
    return loss, new, {"spread": jnp.std(z), "count": state["count"]}


def outer(w, hyper, batch, state, key):
    x, y = batch
    z = (x * mask(key, x)) @ w - state["mean"] * state["count"] * hyper["scale"]
    return jnp.mean((z - y) ** 2), {"error": jnp.mean(jnp.abs(z - y))}


def running(w, hyper, batch, state, key):
    x, y = batch
    noise = jax.random.normal(key, y.shape)
    return jnp.mean((x @ w - y - noise) ** 2 * state["mean"]) + hyper["scale"] * jnp.sum(w**2)


def tiny():
    problem = bl.Problem(
        inner, outer, stochastic=True, has_state=True, has_aux=True, running=running
    )
    state = {"mean": jnp.array(0.3), "count": jnp.array(0), "key": jax.random.key(9)}
    return problem, jnp.zeros(3), state


def tiny_by_hand(hyper, params, state, key):
    return by_hand(
        lambda *args: inner(*args)[:2],
        lambda *args: outer(*args)[0],
        running,
        params,
        state,
        data(),
        hyper,
        key,
    )


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
