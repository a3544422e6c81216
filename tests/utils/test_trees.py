"""The algebra of trees is that of the flat vectors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from bilevel.utils import trees

SHAPES = st.lists(st.sampled_from([(), (1,), (3,), (2, 2), (0,)]), min_size=1, max_size=4)
SEED = st.integers(0, 2**31)


def tree(shapes: list[tuple[int, ...]], seed: int) -> Any:
    """Nested: a list in a dict, beside its last leaf."""
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    return {"many": leaves[:-1], "last": leaves[-1]}


def flat(x: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(x)[0])


@settings(deadline=None, max_examples=20)
@given(shapes=SHAPES, seed=SEED, scale=st.floats(-3, 3, width=32))
def test_inner_product_norm_and_axpy(shapes: Any, seed: int, scale: float) -> None:
    x, y = tree(shapes, seed), tree(shapes, seed + 1)
    np.testing.assert_allclose(trees.vdot(x, y), flat(x) @ flat(y), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trees.norm(x), np.linalg.norm(flat(x)), rtol=1e-5)
    moved = trees.axpy(scale, x, y)
    assert jax.tree.structure(moved) == jax.tree.structure(y)
    np.testing.assert_allclose(flat(moved), scale * flat(x) + flat(y), rtol=1e-5, atol=1e-6)
    assert trees.size(x) == flat(x).size


@settings(deadline=None, max_examples=20)
@given(shapes=SHAPES, seed=SEED)
def test_a_tree_is_the_sum_of_its_coordinates(shapes: Any, seed: int) -> None:
    x = tree(shapes, seed)
    p = trees.size(x)
    rows = [np.asarray(leaf).reshape(p, -1) for leaf in jax.tree.leaves(trees.basis(x)) if p]
    np.testing.assert_array_equal(np.concatenate(rows or [np.eye(0)], axis=1), np.eye(p))
    back = trees.combine_basis(jnp.asarray(flat(x)), x)
    assert jax.tree.structure(back) == jax.tree.structure(x)
    np.testing.assert_array_equal(flat(back), flat(x))


@settings(deadline=None, max_examples=20)
@given(shapes=SHAPES, seed=SEED)
def test_partition_and_merge_are_inverse(shapes: Any, seed: int) -> None:
    x = {"float": tree(shapes, seed), "count": jnp.arange(3), "key": jax.random.key(seed)}
    moving, fixed, merge = trees.partition(x)
    assert len(moving) == len(shapes)
    assert len(fixed) == 2
    merged = merge([leaf + 1 for leaf in moving], fixed)
    np.testing.assert_array_equal(flat(merged["float"]), flat(x["float"]) + 1)
    np.testing.assert_array_equal(merged["count"], x["count"])


def test_finiteness_looks_at_every_floating_point_leaf() -> None:
    good = {"a": jnp.ones(2), "n": jnp.arange(2)}
    assert trees.all_finite(good)
    assert trees.all_finite({"n": jnp.arange(2)})
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not trees.all_finite(good | {"b": jnp.array([0.0, bad])})


def test_double_leaves_integers_alone() -> None:
    x = trees.as_float64({"a": jnp.ones(2), "n": jnp.arange(2), "p": 1.0})
    assert x["a"].dtype == x["p"].dtype == np.float64
    assert x["n"].dtype == jnp.int32
