"""Directions in hyper space: all of them, a few random ones, or the user's own."""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import (
    FloatTree,
    Hyper,
    Key,
    PyTree,
    basis,
    combine_basis,
    require_positive_int,
    size,
    unit_vectors,
)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Random:
    """``n`` random sign vectors, drawn anew at every call."""

    n: int


Directions: TypeAlias = FloatTree | Random | None  # None is all of hyper space


def normalise(owner: str, directions: int | FloatTree) -> FloatTree:
    """Return ``None``, a number of random directions, or a tree with leaves ``[m, *leaf]``."""
    if isinstance(directions, int):
        require_positive_int(owner, "directions", directions)
        return Random(directions)
    return directions


def draw(directions: Directions, hyper: Hyper, key: Key) -> PyTree:
    """Return the directions as a tree like ``hyper`` with one more leading axis."""
    if directions is None:
        return basis(hyper)
    if not isinstance(directions, Random):
        _check(directions, hyper)
        return directions
    leaves, treedef = jax.tree.flatten(hyper)
    keys = jax.random.split(key, len(leaves))
    signs = [
        jax.random.rademacher(k, (directions.n, *x.shape), x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, signs)


def assemble_gradient(
    directions: Directions, drawn: PyTree, slopes: Array, hyper: Hyper, *, one_run: bool = False
) -> tuple[PyTree, PyTree | None]:
    """Return ``(grad, standard error or None)`` from directional derivatives ``slopes``, ``[m]``.

    All directions: the gradient itself. Random signs ``u``: the mean of ``slope u``, unbiased since
    ``E[u u^T] = I`` (forward gradient, Baydin et al., 2022). The user's own: ``sum slope u``, the
    projection of the gradient if they are orthonormal. Slopes of ``one_run`` along the signs of a
    single number are the same but for these, and their spread of 0 is no standard error.
    """
    if directions is None:
        return combine_basis(slopes, hyper), None

    def weigh(u: Array) -> Array:
        return (slopes.reshape(-1, *[1] * (u.ndim - 1)) * u).astype(u.dtype)

    samples = jax.tree.map(weigh, drawn)
    if not isinstance(directions, Random):
        return jax.tree.map(lambda x: jnp.sum(x, 0), samples), None
    grad = jax.tree.map(lambda x: jnp.mean(x, 0), samples)
    if directions.n == 1 or (one_run and size(hyper) == 1):
        return grad, None
    return grad, jax.tree.map(lambda x: jnp.std(x, 0, ddof=1) / directions.n**0.5, samples)


def chunk(directions: Directions, drawn: PyTree, hyper: Hyper, first: Array, rows: int) -> PyTree:
    """Return directions ``first .. first + rows - 1``, ``[rows, *leaf]``; zeros beyond the last.

    Those of the basis are made here, so that no more than ``rows`` of them ever exist.
    """
    wanted = first + jnp.arange(rows)
    if directions is None:
        return unit_vectors(hyper, wanted)

    def take(u: Array) -> Array:
        return jnp.take(u, wanted, axis=0, mode="fill", fill_value=0)

    return jax.tree.map(take, drawn)


def count_tangents(directions: Directions, hyper: Hyper) -> int:
    """Return how many tangents are pushed through every step."""
    if directions is None:
        return size(hyper)
    if isinstance(directions, Random):
        return directions.n
    return jax.tree.leaves(directions)[0].shape[0]


def _check(directions: PyTree, hyper: Hyper) -> None:
    same = jax.tree.structure(directions) == jax.tree.structure(hyper)
    if not same or any(
        jnp.shape(u)[1:] != x.shape
        or jnp.shape(u)[0] != jnp.shape(jax.tree.leaves(directions)[0])[0]
        for u, x in zip(jax.tree.leaves(directions), jax.tree.leaves(hyper), strict=True)
    ):
        raise ValueError(
            "Forward: directions must be None (all), a number of random ones, or a tree like hyper "
            "with one more leading axis [m, *leaf]; got shapes "
            f"{[jnp.shape(u) for u in jax.tree.leaves(directions)]} for hyper "
            f"{[x.shape for x in jax.tree.leaves(hyper)]}."
        )
