"""SGD written out by hand, on losses with keys, a state and a running loss; a tiny such problem."""

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from tests.draws import rows_by_hand

STEPS, BATCH, RATE, MOMENTUM = 4, 5, 0.1, 0.5
KEY = jax.random.key(3)
HYPER = {"decay": np.array(-2.0), "scale": np.array(0.3)}


def rows(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    return X, np.tanh(X @ np.array([1.0, -2.0, 0.5]))


def by_hand(inner, outer, running, params, state, data, hyper, key, steps=STEPS, batch=BATCH):
    """SGD with momentum as anyone writes it; the outer value, params and state at the end."""
    velocity, total = jax.tree.map(jnp.zeros_like, params), 0.0
    X, y = (jnp.asarray(x) for x in data.inner)
    for k in range(steps):
        step = jax.random.fold_in(key, k)
        seen = rows_by_hand(step, batch, len(X))
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


UNROLLED = {
    "full": bl.Reverse(solver(), STEPS),
    "forward": bl.Forward(solver(), STEPS),
    "checkpoint": bl.Reverse(solver(), STEPS, memory="checkpoint"),
    "chunk": bl.Forward(solver(), STEPS, chunk=1),
    "last": bl.OneStep(solver(), STEPS, last=STEPS),
    "auto": bl.Auto(solver=solver(), steps=STEPS),
}


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


def inner_and_state(*args):
    return inner(*args)[:2]


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
        inner_and_state,
        lambda *args: outer(*args)[0],
        running,
        params,
        state,
        data(),
        hyper,
        key,
    )
