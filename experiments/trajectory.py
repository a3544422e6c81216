"""The hyperparameters' path: what the history records of them at every outer step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

EACH = 64  # up to so many hyperparameters are recorded one by one, of more the quantiles
QUANTILES = {"minimum": 0.0, "quartile 1": 0.25, "median": 0.5, "quartile 3": 0.75, "maximum": 1.0}
COLUMN = "hyper"


class Trajectory:
    """`record` of :func:`bilevel.tune`: every hyperparameter, or the quantiles of very many."""

    def __init__(self, hyper: Any) -> None:
        self.names = names(hyper)

    def __call__(self, hyper: Any, params: Any, estimate: Any) -> dict[str, jax.Array]:
        """One row, `[len(self.names)]`."""
        del params, estimate
        flat, _ = ravel_pytree(hyper)
        if flat.size > EACH:
            flat = jnp.quantile(flat, jnp.array(list(QUANTILES.values()), flat.dtype))
        return {COLUMN: flat}


def names(hyper: Any) -> list[str]:
    """What the columns of the trajectory are called: `['penalty'][3]`, or the quantiles."""
    entries = [
        jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in index)
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        for index in np.ndindex(np.shape(leaf))
    ]
    return list(QUANTILES) if len(entries) > EACH else entries


def columns(history: dict[str, np.ndarray], hyper: Any) -> dict[str, np.ndarray]:
    """The history as a table: `step`, then one column per number."""
    table = {"step": np.arange(len(history["value"]))}
    for name, rows in history.items():
        if name == COLUMN:
            parts = zip(names(hyper), rows.T, strict=True)
            table |= {f"hyper {part}".strip(): column for part, column in parts}
        elif rows.ndim == 1:
            table[name] = rows
    return table
