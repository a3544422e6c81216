"""`only_if`: values and tangents of `lax.cond`; under `vmap` no work that no lane asks for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.utils import cond_without_select


def fn(x: jax.Array) -> Any:
    return {"a": jnp.sin(x) * x, "n": jnp.int32(7)}


def otherwise(x: jax.Array) -> Any:
    return {"a": 3 * x, "n": jnp.int32(-1)}


def lazy(flag: jax.Array, x: jax.Array) -> Any:
    return cond_without_select(flag, lambda: fn(x), otherwise(x))


def cond(flag: jax.Array, x: jax.Array) -> Any:
    return jax.lax.cond(flag, fn, otherwise, x)


X = np.array([0.3, 1.2, -0.7, 2.0], np.float32)
FLAGS = np.array([True, False, False, True])


def test_values_and_tangents_are_those_of_cond_alone_and_under_vmap() -> None:
    def with_tangent(chosen: Any, flag: jax.Array, x: jax.Array) -> Any:
        return jax.jvp(lambda x: chosen(flag, x)["a"], (x,), (jnp.float32(0.5),)), chosen(flag, x)

    @jax.jit
    def both(flag: jax.Array, x: jax.Array) -> Any:
        return with_tangent(lazy, flag, x), with_tangent(cond, flag, x)

    alone = [both(flag, x) for flag, x in zip(FLAGS, X, strict=True)]
    lanes = jax.jit(jax.vmap(both))(FLAGS, X)
    for i, (ours, reference) in enumerate(alone):
        jax.tree.map(np.testing.assert_array_equal, ours, reference)
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], lanes[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), lane, reference)


@pytest.mark.parametrize("flags", [[0, 0, 0], [0, 1, 0]])
def test_under_vmap_the_branch_runs_only_where_a_lane_asks(flags: list[int]) -> None:
    ran: list[int] = []

    def counted(x: jax.Array) -> Any:
        jax.debug.callback(lambda: ran.append(1))
        return 2 * x

    def runs(choose: Any) -> int:
        ran.clear()
        out = jax.jit(jax.vmap(choose))(jnp.array(flags, bool), jnp.arange(3.0))
        jax.effects_barrier()
        np.testing.assert_array_equal(out, np.where(flags, 2, 1) * np.arange(3.0))
        return len(ran)

    ours = runs(lambda flag, x: cond_without_select(flag, lambda: counted(x), x))
    theirs = runs(lambda flag, x: jax.lax.cond(flag, counted, lambda x: x, x))
    assert (ours > 0) == any(flags)
    assert theirs > 0, "cond is a selection under vmap: else only_if has no purpose"
