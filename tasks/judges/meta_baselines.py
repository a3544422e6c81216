"""What else a user could do with a family of tasks: one network for all, Reptile, pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree
from tasks.datasets.task_distributions import Family
from tasks.parts.adaptation import Adaptation, cross_entropy, squared_error
from tasks.parts.meta_networks import Network

TASKS = 25  # per step of the trained baselines
INNER_STEPS, INNER_RATE, OUTER_RATE = 5, 0.02, 1.0  # Reptile: Nichol, Achiam, Schulman, 2018


def run(
    measure: Callable[[PyTree], Metrics],
    how: Adaptation,
    network: Network,
    family: Family,
    steps: int,
    seed: int,
) -> dict[str, Metrics]:
    """Judge each baseline's start (or representation) in the way of the run itself."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    plain = jax.jit(how.hyper)(jax.random.key(seed))
    start = plain["start"] if "start" in plain else jax.jit(network.init)(jax.random.key(seed))

    def judged(weights: PyTree) -> Metrics:
        shared = {"start": weights} if "start" in plain else plain | {"body": weights["body"]}
        return measure(shared)

    if family.classes:
        return {
            "nearest neighbour on pixels": _nearest(family),
            "random representation": judged(start),
        }
    loss = cross_entropy if family.classes else squared_error
    one = partial(_joint, network, loss, steps)
    found = {
        f"one network for all tasks ({steps} steps), then adapted": one,
        f"Reptile ({steps} steps)": partial(_reptile, network, loss, steps),
    }
    trained = {name: judged(train(start, family.pool, key)) for name, train in found.items()}
    return trained | {"random start, then adapted": judged(start)}


def _rows(data: bl.Data, key: Array) -> tuple[Array, Array]:
    """Return all examples of some tasks, ``[TASKS, n, ...]``."""
    rows = jax.random.randint(key, (TASKS,), 0, len(data.inner[0]))
    X, y = (
        jnp.concatenate([jnp.asarray(a)[rows], jnp.asarray(b)[rows]], 1)
        for a, b in zip(data.inner, data.outer, strict=True)
    )
    return X, y


@partial(jax.jit, static_argnums=(0, 1, 2))
def _joint(
    network: Network, loss: Any, steps: int, start: PyTree, data: bl.Data, key: Array
) -> PyTree:
    """Fit by Adam on the mean loss over tasks, none of which is adapted to."""
    tx = optax.adam(1e-3)

    def objective(weights: PyTree, X: Array, y: Array) -> Array:
        return jnp.mean(jax.vmap(lambda X, y: loss(network(weights, X), y))(X, y))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        weights, state = carry
        updates, state = tx.update(jax.grad(objective)(weights, *_rows(data, key)), state)
        return (optax.apply_updates(weights, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (start, tx.init(start)), keys)[0][0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _reptile(
    network: Network, loss: Any, steps: int, start: PyTree, data: bl.Data, key: Array
) -> PyTree:
    """Move the start towards where a few steps on each task lead, ever less."""

    def adapted(weights: PyTree, X: Array, y: Array) -> PyTree:
        def move(_: Any, w: PyTree) -> PyTree:
            slope = jax.grad(lambda w: loss(network(w, X), y))(w)
            return jax.tree.map(lambda w, g: w - INNER_RATE * g, w, slope)

        return jax.lax.fori_loop(0, INNER_STEPS, move, weights)

    def step(weights: PyTree, k: Array) -> tuple[PyTree, None]:
        X, y = _rows(data, jax.random.fold_in(key, k))
        ends = jax.vmap(adapted, in_axes=(None, 0, 0))(weights, X, y)
        rate = OUTER_RATE * (1 - k / steps)
        return jax.tree.map(lambda w, e: w + rate * (jnp.mean(e, 0) - w), weights, ends), None

    return jax.lax.scan(step, start, jnp.arange(steps))[0]


def _nearest(family: Family) -> Metrics:
    """Predict the class of the example that has the closest pixels."""
    (X, y), (Xq, yq) = (
        tuple(np.asarray(leaf) for leaf in level)
        for level in (family.test.inner, family.test.outer)
    )
    errors = []
    for shown, labels, asked, truth in zip(X, y, Xq, yq, strict=True):
        a, b = (images.reshape(len(images), -1) for images in (asked, shown))
        distance = np.sum(b**2, -1) - 2 * a @ b.T
        errors.append(np.mean(labels[np.argmin(distance, -1)] != truth))
    error = float(np.mean(errors))
    return {"error": error, "accuracy": 1 - error}
