"""Sinusoids that no training has seen, and how the shared start takes to them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from tasks.base import PyTree
from tasks.parts.adaptation import Adaptation

SHOWN = (0, 1, 11)  # steps of adaptation


def sinusoids(
    how: Adaptation, solver: Any, tasks: bl.Data, figure: Any, hyper: PyTree, params: PyTree
) -> None:
    """Draw four test tasks: their points, the curve behind them, the network after some steps."""
    del params
    x = jnp.linspace(-5.0, 5.0, 200)[:, None]
    places = figure.subplots(1, 4, sharey=True)
    for i, place in enumerate(places):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], tasks)
        (X, y), (Xq, yq) = jax.tree.map(np.asarray, (task.inner, task.outer))
        order = np.argsort(Xq[:, 0])
        place.plot(Xq[order, 0], yq[order, 0], "0.7", linewidth=3, label="the curve")
        for steps, style in zip(SHOWN, (":", "--", "-"), strict=True):
            found = _outputs(how, solver, steps, hyper, task, x)
            place.plot(x[:, 0], found[:, 0], f"C0{style}", label=f"after {steps} steps")
        place.plot(X[:, 0], y[:, 0], "ko", markersize=4, label="what is shown of it")
        place.set(xlabel="x")
    places[-1].legend(fontsize="small")


@partial(jax.jit, static_argnames=("how", "steps"))
def _outputs(
    how: Adaptation, solver: Any, steps: int, hyper: PyTree, task: bl.Data, x: jax.Array
) -> jax.Array:
    params = how.params(hyper)
    if steps:
        key = jax.random.key(0)  # read by no solver without minibatches
        params = bl.solve(how.problem(), solver, hyper, params, task, key, steps=steps)
    return how.outputs(params, hyper, x)
