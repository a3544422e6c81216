"""Rows of a history, written one by one inside a loop, against `np.stack` of the same rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.tuning.history import columns_of, join_rows, unwritten_rows, write_row

LENGTH = 5


def row(k: Any) -> dict[str, Any]:
    """Numbers of three dtypes and arrays of two, in a nested tree; ``k`` may be a tracer."""
    k = jnp.asarray(k, jnp.int32)
    x = k.astype(jnp.float32)
    return {
        "value": x + 0.5,
        "counts": {"gradients": 3 * k, "hvps": 7 - k},
        "hyper": x * jnp.arange(3.0),
        "seen": k % 2 == 0,
        "grad_norm": jnp.sqrt(x),
        "table": k * jnp.ones((2, 2), jnp.int32),
    }


ROW = jax.jit(row)


def history(count: Any) -> Any:
    """Rows ``0 .. count - 1`` of ``LENGTH``."""
    like = jax.eval_shape(row, 0)

    def write(k: Any, rows: Any) -> Any:
        return write_row(rows, k, row(k))

    return columns_of(jax.lax.fori_loop(0, count, write, unwritten_rows(like, LENGTH)), like)


def stacked(count: int) -> Any:
    rows = jax.device_get([ROW(k) for k in range(count)])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def assert_columns(columns: Any, count: int) -> None:
    def check(column: np.ndarray, expected: np.ndarray) -> None:
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column[:count], expected)
        floats = np.issubdtype(expected.dtype, np.floating)
        assert np.all(np.isnan(column[count:]) if floats else column[count:] == 0)

    jax.tree.map(check, columns, stacked(count))


def test_columns_are_the_rows_and_what_is_not_written_is_unwritten() -> None:
    counts = [3, LENGTH, 1]
    lanes = jax.device_get(jax.jit(jax.vmap(history))(np.array(counts)))
    for lane, count in enumerate(counts):
        assert_columns(jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes), count)


def test_a_loop_writes_one_vector_per_dtype_of_numbers() -> None:
    arrays, numbers = unwritten_rows(jax.eval_shape(row, 0), LENGTH)
    assert sorted(x.shape for x in arrays) == [(LENGTH, 2, 2), (LENGTH, 3)]
    assert sorted((x.dtype.name, x.shape) for x in numbers) == [
        ("bool", (LENGTH, 1)),
        ("float32", (LENGTH, 2)),
        ("int32", (LENGTH, 2)),
    ]


def test_blocks_follow_one_another() -> None:
    first, second = stacked(2), jax.tree.map(lambda leaf: leaf[2:], stacked(4))
    jax.tree.map(np.testing.assert_array_equal, join_rows([first, second]), stacked(4))
