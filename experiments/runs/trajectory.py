"""The hyperparameters' path: what the history records of them at every outer step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel.utils import norm

EACH = 64  # up to so many hyperparameters are recorded one by one, of more the quantiles
QUANTILES = {"minimum": 0.0, "quartile 1": 0.25, "median": 0.5, "quartile 3": 0.75, "maximum": 1.0}
COLUMN = "hyper"


@dataclass(frozen=True)
class Trajectory:
    """`record` of :func:`bilevel.tune`: every hyperparameter, or the quantiles of very many.

    All are equal, so that the second run of a sweep compiles nothing.
    """

    def __call__(self, hyper: Any, params: Any, estimate: Any) -> dict[str, jax.Array]:
        """One row, as long as :func:`names`; the norms of standard error and bias where known."""
        del params
        flat, _ = ravel_pytree(hyper)
        if flat.size > EACH:
            flat = jnp.quantile(flat, jnp.array(list(QUANTILES.values()), flat.dtype))
        known = {name: getattr(estimate.evidence, name) for name in ("standard_error", "bias")}
        norms = {name: norm(error) for name, error in known.items() if error is not None}
        return {COLUMN: flat} | norms


def names(hyper: Any, known: Sequence[str] = ()) -> list[str]:
    """What the entries of a row are called: `['penalty'][3]`, or as the task has named them."""
    entries = [
        jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in index)
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        for index in np.ndindex(np.shape(leaf))
    ]
    if len(entries) > EACH:
        return list(QUANTILES)
    return list(known) if len(known) == len(entries) else entries


def columns(history: dict[str, np.ndarray], labels: list[str]) -> dict[str, np.ndarray]:
    """The history as a table: `step`, then one column per number."""
    table = {"step": np.arange(len(history["value"]))}
    for name, rows in history.items():
        if name == COLUMN:
            parts = zip(labels, rows.T, strict=True)
            table |= {f"hyper {label}".strip(): column for label, column in parts}
        elif rows.ndim == 1:
            table[name] = rows
    return table
