"""What an estimate adds to a row of the history, and rows while they are written.

XLA writes each array of a loop by an operation of its own, which for a number costs as much as a
dot product of a small step. So the numbers of a row lie side by
side in one vector per dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Estimate
from bilevel.utils import PyTree, norm

ROW = jnp.uint32  # of the rows' numbers: a signed index is first asked whether it is negative
HistoryRows = tuple[list[Array], list[Array]]  # of the arrays of a row, of its numbers by dtype


def estimate_columns(estimate: Estimate) -> dict[str, Array]:
    """Return what the history says of an estimate: value, norm, residuals, error and counts.

    An error is said where more than residuals is known of it: they have columns of their own. So
    have the side results of the losses.
    """
    evidence = estimate.evidence
    columns = {"value": estimate.value, "grad_norm": norm(estimate.grad)}
    known = (evidence.bias, evidence.residual_error, evidence.standard_error)
    if any(entry is not None for entry in known):
        columns["relative_error"] = estimate.relative_error
    for name in ("inner_residual", "linear_residual", "derivative_residual"):
        if (entry := getattr(evidence, name)) is not None:
            columns[name] = entry
    columns |= {name: jnp.asarray(n) for name, n in evidence.counts._asdict().items()}
    return columns | (_metric_columns(estimate.aux, taken=set(columns)) if estimate.aux else {})


def _metric_columns(aux: dict[str, PyTree], taken: set[str]) -> dict[str, Array]:
    """Return side results of the losses under their own names.

    Where both losses have the name, or the history does, with ``inner_`` or ``outer_`` before it.
    """
    named = {level: _named_leaves(tree) for level, tree in aux.items()}
    seen = [name for leaves in named.values() for name in leaves]
    free = {name for name in seen if seen.count(name) == 1} - taken - {""}
    return {
        name if name in free else f"{level}_{name or 'aux'}": jnp.asarray(leaf)
        for level, leaves in named.items()
        for name, leaf in leaves.items()
    }


def _named_leaves(tree: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unwritten_rows(like: PyTree, length: int) -> HistoryRows:
    """Return ``length`` rows that nobody has written: NaN, and 0 where there is no NaN."""

    def empty(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jnp.full((length, *shape), _nothing(dtype), dtype)

    leaves, (arrays, numbers) = jax.tree.leaves(like), _split(like)
    return (
        [empty(leaves[i].shape, leaves[i].dtype) for i in arrays],
        [empty((len(group),), leaves[group[0]].dtype) for group in numbers],
    )


def erase_row(rows: HistoryRows, k: Array, flag: Array) -> HistoryRows:
    """Return the rows with the k-th unwritten again, where ``flag``."""

    def clear(column: Array) -> Array:
        here = flag & (jnp.arange(len(column)) == k)
        here = here.reshape(-1, *[1] * (column.ndim - 1))
        return jnp.where(here, jnp.asarray(_nothing(column.dtype), column.dtype), column)

    return jax.tree.map(clear, rows)


def write_row(rows: HistoryRows, k: Array, row: PyTree) -> HistoryRows:
    """Return the rows with ``row`` as the k-th."""
    row = jax.tree.map(jnp.asarray, row)
    leaves, (arrays, numbers) = jax.tree.leaves(row), _split(row)
    stacked = [jnp.stack([leaves[i] for i in group]) for group in numbers]

    def put(into: Array, entry: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(into, entry, k, 0)

    return jax.tree.map(put, rows, ([leaves[i] for i in arrays], stacked))


def columns_of(rows: HistoryRows, like: PyTree) -> PyTree:
    """Return a tree like a row, with a leading axis."""
    arrays, numbers = _split(like)
    columns = dict(zip(arrays, rows[0], strict=True))
    for group, vectors in zip(numbers, rows[1], strict=True):
        columns |= {i: vectors[:, j] for j, i in enumerate(group)}
    return jax.tree.unflatten(jax.tree.structure(like), [columns[i] for i in range(len(columns))])


def join_rows(blocks: list[PyTree]) -> PyTree:
    """Join histories by NumPy: each new number of blocks would be a new program of XLA."""
    return jax.tree.map(lambda *columns: np.concatenate(columns), *blocks)


def _nothing(dtype: jnp.dtype) -> float | int:
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0


def _split(row: PyTree) -> tuple[list[int], list[list[int]]]:
    """Return the leaves that are arrays; those that are numbers, by dtype."""
    arrays: list[int] = []
    numbers: dict[jnp.dtype, list[int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(row)):
        group = arrays if leaf.shape else numbers.setdefault(jnp.dtype(leaf.dtype), [])
        group.append(i)
    return arrays, list(numbers.values())
