"""Small algebra on pytrees of arrays: norms, inner products, bases, splitting by dtype."""

import math
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from bilevel.utils.types import FloatTree, FloatTreeLike, Number, Params, PyTree, Scalar


def is_inexact(leaf: ArrayLike) -> bool:
    """Return whether a leaf holds floating-point numbers, so that it can carry a derivative."""
    dtype = getattr(leaf, "dtype", None)  # asked first: every call of a verb asks for every leaf
    return jnp.issubdtype(jnp.result_type(leaf) if dtype is None else dtype, jnp.inexact)


def is_traced(tree: PyTree) -> bool:
    """Return whether any leaf is a tracer, so that no value can be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def leaf_address(name: str, path: KeyPath) -> str:
    """Return a leaf's address as a user would write it: ``hyper['a'][0]``."""
    return name + jax.tree_util.keystr(path)


def size(tree: PyTree) -> int:
    """Return the total number of entries of all leaves."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Return the total bytes of all leaves (arrays or ``ShapeDtypeStruct``)."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def dtype(tree: PyTree) -> np.dtype:
    """Return the floating-point dtype that the floating-point leaves promote to."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.result_type(*leaves) if leaves else jnp.result_type(float)


def strip_weak_types(tree: PyTree) -> PyTree:
    """Return leaves as arrays without a weak type, so that equal shapes share a compilation."""

    def convert(leaf: ArrayLike) -> Array:
        array = leaf if isinstance(leaf, Array) else jnp.asarray(leaf)
        weak = getattr(array, "weak_type", False)  # random keys have no such type
        return jax.lax.convert_element_type(array, array.dtype) if weak else array

    return jax.tree.map(convert, tree)


def as_float64(tree: PyTree) -> PyTree:
    """Return every floating-point leaf as a NumPy float64 array, the others as they are."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, float) if is_inexact(leaf) else leaf, tree)


def vdot(a: FloatTree, b: FloatTree) -> Scalar:
    """Return the inner product of two trees, ``sum_leaves sum(a * b)``; shape ``()``."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype(a)))


def norm(tree: FloatTree) -> Scalar:
    """Return the Euclidean norm over all leaves; shape ``()``."""
    return jnp.sqrt(vdot(tree, tree))


def relative_size(error: Scalar, exact: Scalar) -> Scalar:
    """Return ``error / exact``, 0 where there is no error; ``()``."""
    return jnp.where(error == 0, 0, error / exact)


def axpy(scale: Number, x: FloatTree, y: FloatTree) -> FloatTree:
    """Return ``scale * x + y``, leaf by leaf, in the dtype of ``y``."""
    return jax.tree.map(lambda a, b: (scale * a + b).astype(b.dtype), x, y)


def descend(step: FloatTreeLike, direction: Params, params: Params) -> Params:
    """Return ``params - step * direction``; ``step`` a number, or a tree that is a prefix of both.

    Raises
    ------
    ValueError : a tree that is none.
    """
    if jax.tree_util.all_leaves([step]):
        return axpy(-step, direction, params)
    try:
        return jax.tree.map(lambda s, d, w: axpy(-s, d, w), step, direction, params)
    except ValueError as error:
        raise ValueError(
            f"step_size has the structure {jax.tree.structure(step)}, which is no prefix of that "
            f"of params, {jax.tree.structure(params)}: give one number for all, for each part or "
            "for each leaf."
        ) from error


def largest_entry(tree: PyTree) -> Array:
    """Return a number or an array as it is; of any other tree the largest entry, ``()``."""
    if jax.tree_util.all_leaves([tree]):
        return tree
    return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(tree)]))


def zeros_like(tree: PyTree) -> PyTree:
    """Return zeros with the shapes and dtypes of ``tree`` (arrays or ``ShapeDtypeStruct``)."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def all_finite(tree: PyTree) -> Array:
    """Return whether no floating-point entry is NaN or infinite; shape ``()``, boolean."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.array(True)


def basis(tree: PyTree) -> PyTree:
    """Return the standard basis, leaves ``[p, *shape]``, where ``p`` is the size of the tree."""
    return unit_vectors(tree, jnp.arange(size(tree)))


def unit_vectors(tree: PyTree, wanted: Array) -> PyTree:
    """Return vectors ``wanted``, ``[m]``, of the standard basis; leaves are ``[m, *shape]``.

    A number outside the basis gives zeros.
    """
    leaves, treedef = jax.tree.flatten(tree)
    offset, columns = 0, []
    for leaf in leaves:
        n = math.prod(leaf.shape)
        block = jax.nn.one_hot(wanted - offset, n, dtype=leaf.dtype)
        columns.append(block.reshape(len(wanted), *leaf.shape))
        offset += n
    return jax.tree.unflatten(treedef, columns)


def combine_basis(coefficients: Array, tree: PyTree) -> PyTree:
    """Return the tree whose coordinates in :func:`basis` are ``coefficients``, shape ``[p]``."""
    leaves, treedef = jax.tree.flatten(tree)
    offset, parts = 0, []
    for leaf in leaves:
        n = math.prod(leaf.shape)
        parts.append(coefficients[offset : offset + n].reshape(leaf.shape).astype(leaf.dtype))
        offset += n
    return jax.tree.unflatten(treedef, parts)


def partition(tree: PyTree) -> tuple[list[Array], list[Array], Callable[[list, list], PyTree]]:
    """Split into floating-point leaves and the others, with the function that joins them again."""
    leaves, treedef = jax.tree.flatten(tree)
    mask = [is_inexact(leaf) for leaf in leaves]

    def merge(moving: list, fixed: list) -> PyTree:
        a, b = iter(moving), iter(fixed)
        return jax.tree.unflatten(treedef, [next(a) if m else next(b) for m in mask])

    moving = [leaf for leaf, m in zip(leaves, mask, strict=True) if m]
    fixed = [leaf for leaf, m in zip(leaves, mask, strict=True) if not m]
    return moving, fixed, merge
