"""Run by a test on eight virtual devices: seeds, rows, params and hyperparameters over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bilevel as bl

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((32, 16)), RNG.standard_normal(32)
DATA = bl.Data(inner=(X, Y), outer=(X[:16] + 0.1, Y[:16]))
HYPER, PARAMS = np.linspace(-2, -1, 16), np.zeros(16)
KEYS = jax.random.split(jax.random.key(0), 8)
MESH = Mesh(np.array(jax.devices()), ("i",))


def outer(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


def inner(w, h, batch):
    return outer(w, h, batch) + jnp.sum(jnp.exp(h) * w**2)


PROBLEM = bl.Problem(inner, outer)
SOLVER = bl.SGD(0.02, batch_size=4, momentum=0.5, sampling="epoch")
ESTIMATORS = {
    "Reverse": bl.Reverse(SOLVER, 5),
    "Forward": bl.Forward(SOLVER, 5),
    "Implicit": bl.Implicit(bl.GradientDescent(0.05), 5),
    "SingleLoop": bl.SingleLoop(0.02, 4),
}


def gradient(estimator, hyper, params, data, key):
    return bl.hypergradient(PROBLEM, estimator, hyper, params, data, key, max_error=np.inf)[0].grad


def over(tree):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(MESH, P("i"))), tree)


for name, estimator in ESTIMATORS.items():

    def of_seed(key, estimator=estimator):
        return gradient(estimator, HYPER, PARAMS, DATA, key)

    seeds = jax.vmap(of_seed)
    spread = jax.shard_map(seeds, mesh=MESH, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    np.testing.assert_allclose(jax.jit(spread)(KEYS), seeds(KEYS), rtol=1e-10, err_msg=name)
    want = of_seed(KEYS[0])
    for what, at in {
        "hyper": (over(HYPER), PARAMS, DATA),
        "params": (HYPER, over(PARAMS), DATA),
        "rows": (HYPER, PARAMS, over(DATA)),
    }.items():
        got = gradient(estimator, *at, KEYS[0])
        np.testing.assert_allclose(got, want, rtol=1e-10, err_msg=f"{name}, {what}")
with pytest.raises(ValueError, match="check_vma=False"):  # it sums gradients over devices
    jax.jit(jax.shard_map(seeds, mesh=MESH, in_specs=P("i"), out_specs=P("i")))(KEYS)
