"""Networks of flax, linen and nnx, with dropout and batch norm, against hand-written JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bilevel as bl
from tests.estimators.by_hand import HYPER, KEY, UNROLLED, assert_close, by_hand, data
from tests.marks import quick_cases


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


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


NETWORKS = {"linen": linen, "nnx": in_nnx}


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
