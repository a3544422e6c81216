"""Rows that are mostly zero: the entries of each, padded, so that rows can be drawn."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.utils import PyTree, is_traced, register_node


@dataclass(frozen=True)
class SparseRows:
    """A matrix ``[n, width]`` by the entries of its rows; ``rows @ w`` is what a loss needs of it.

    :class:`bilevel.Data` makes these of SciPy's sparse matrices and of JAX's ``BCOO``. A minibatch
    of them is one, too. Products cost the longest row, not the width.

    Parameters
    ----------
    columns, values : ``[n, k]``, k the entries of the longest row; what pads has the value 0.
    width : number of columns.

    Examples
    --------
    >>> import jax.numpy as jnp, scipy.sparse, bilevel as bl
    >>> matrix = scipy.sparse.csr_matrix([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    >>> rows = bl.SparseRows.from_matrix(matrix)
    >>> rows.shape, (rows @ jnp.ones(3)).tolist()
    ((2, 3), [2.0, 4.0])
    """

    columns: Array
    values: Array
    width: int

    @classmethod
    def from_matrix(cls, matrix: Any) -> "SparseRows":
        """Return the rows of a sparse matrix of SciPy or of JAX (``BCOO``)."""
        if hasattr(matrix, "tocoo"):
            entries = matrix.tocoo()
            rows, columns, values = entries.row, entries.col, entries.data
        else:
            rows, columns = np.asarray(matrix.indices).T
            values = np.asarray(matrix.data)
            kept = rows < matrix.shape[0]  # BCOO pads with rows that there are not
            rows, columns, values = rows[kept], columns[kept], values[kept]
        n, width = matrix.shape
        order = np.argsort(rows, kind="stable")
        rows, columns, values = rows[order], columns[order], values[order]
        lengths = np.bincount(rows, minlength=n)
        place = np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
        shape = n, max(int(lengths.max(initial=0)), 1)
        padded = np.zeros(shape, np.int32), np.zeros(shape, values.dtype)
        padded[0][rows, place], padded[1][rows, place] = columns, values
        return cls(*padded, width)  # pyright: ignore[reportArgumentType]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, width)``."""
        return (*self.values.shape[:-1], self.width)

    def __matmul__(self, weights: Array) -> Array:
        """Return the product with ``weights``, ``[width]`` or ``[width, c]``."""
        entries = jnp.asarray(weights)[self.columns]
        values = self.values.reshape(*self.values.shape, *[1] * (weights.ndim - 1))
        return jnp.sum(values * entries, axis=self.values.ndim - 1)

    def todense(self) -> Array:
        """Return the matrix with its zeros, ``[n, width]``."""
        return self @ jnp.eye(self.width, dtype=self.values.dtype)


register_node(SparseRows, data_fields=["columns", "values"], meta_fields=["width"])


def with_sparse_rows(name: str, tree: PyTree) -> PyTree:
    """Return a level of the data with its sparse matrices by rows.

    Raises
    ------
    ValueError : a sparse matrix under ``jit``, or not of two axes.
    """

    def convert(leaf: Any) -> Any:
        if not _is_sparse(leaf):
            return leaf
        if is_traced(leaf):
            raise ValueError(
                f"data.{name} has a sparse matrix whose entries are not known yet, under jit or "
                "vmap. Make bl.Data outside, or bl.SparseRows.from_matrix."
            )
        if len(leaf.shape) != 2:
            raise ValueError(f"data.{name} has a sparse array of shape {leaf.shape}: give rows.")
        return SparseRows.from_matrix(leaf)

    return jax.tree.map(convert, tree, is_leaf=_is_sparse)


def _is_sparse(leaf: object) -> bool:
    return hasattr(leaf, "nse") or (hasattr(leaf, "tocoo") and hasattr(leaf, "nnz"))
