r"""The derivative of a solver's iterates, pushed forward along chosen directions.

    z_{k+1} = step(z_k, h; b_k),   Z_{k+1} = d step / d z (z_k, h; b_k) Z_k + d step / d h U

``z`` holds all floating-point leaves of ``(params, solver state)``, ``U`` the directions in hyper
space and ``Z`` their tangents, one leading axis for all. For SGD this is the recursion of
Iutzeler, Pauwels, Vaiter, NeurIPS 2024; the iterate and its derivative share key and minibatch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, InnerState, Problem, inner_loss
from bilevel.solvers.base import Solver, run, start
from bilevel.utils import Hyper, Key, PyTree, partition


def chain(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    tangents: list | None,
    directions: PyTree,
    data: Data,
    key: Key,
    *,
    steps: int,
    late: int,
    average: int,
) -> tuple[Any, Any]:
    """``((params, state), tangents)`` after ``steps``, the derivative begun at step ``late``.

    ``directions`` has leaves ``[m, *leaf]``; ``tangents`` continue from earlier ones, ``None`` from
    zero (or from the derivative of ``problem.start``). Both results are means over the last
    ``average`` steps if that is positive.
    """
    loss = inner_loss(problem)
    carry, tangents = _begin(problem, solver, hyper, lower, tangents, directions, data)
    if late:
        carry = run(loss, solver, hyper, carry, data, key, steps=late)
    moving, fixed, merge = partition(carry)

    def advance(loop: Any, _: None) -> tuple[Any, None]:
        k, moving, fixed, tangents, mean = loop
        key_k = jax.random.fold_in(key, k)

        def move(moving: list, hyper: Hyper) -> Any:
            params, state = merge(moving, fixed)
            moved = solver.step(loss, params, hyper, data.inner, key_k, state)
            return partition(moved)[:2]

        moving, tangents, fixed = push(move, (moving, hyper), (tangents, directions))
        if mean is not None:
            mean = running_mean(mean, (moving, tangents), k - (steps - average))
        return (k + 1, moving, fixed, tangents, mean), None

    loop = (jnp.asarray(late, jnp.int32), moving, fixed, tangents, None)
    loop, _ = jax.lax.scan(advance, loop, length=steps - late - average)
    k, moving, fixed, tangents, _ = loop
    if average:
        loop = (k, moving, fixed, tangents, (moving, tangents))
        (_, _, fixed, _, (moving, tangents)), _ = jax.lax.scan(advance, loop, length=average)
    return merge(moving, fixed), tangents


def averaged_run(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    carry: tuple[PyTree, PyTree],
    data: Data,
    key: Key,
    *,
    steps: int,
    average: int,
) -> tuple[PyTree, PyTree]:
    """The plain loop, its floating-point leaves averaged over the last ``average`` steps."""
    loss = inner_loss(problem)
    carry = run(loss, solver, hyper, carry, data, key, steps=steps - average)
    if not average:
        return carry
    moving, _, merge = partition(carry)

    def advance(loop: Any, _: None) -> tuple[Any, None]:
        k, (params, state), mean = loop
        moved = solver.step(loss, params, hyper, data.inner, jax.random.fold_in(key, k), state)
        mean = running_mean(mean, partition(moved)[0], k - (steps - average))
        return (k + 1, moved, mean), None

    loop = (jnp.asarray(steps - average, jnp.int32), carry, moving)
    (_, carry, mean), _ = jax.lax.scan(advance, loop, length=average)
    return merge(mean, partition(carry)[1])


def running_mean(mean: PyTree, new: PyTree, count: Array) -> PyTree:
    """The mean of ``count + 1`` trees from that of the first ``count`` and the next one."""
    return jax.tree.map(lambda m, x: (m + (x - m) / (count + 1)).astype(m.dtype), mean, new)


def push(fn: Any, primals: tuple, tangents: tuple) -> tuple[Any, Any, Any]:
    """``fn(*primals)``, its derivative along a leading axis of tangents, and its auxiliaries."""

    def one(*tangent: Any) -> Any:
        return jax.jvp(fn, primals, tangent, has_aux=True)

    return jax.vmap(one, out_axes=(None, 0, None))(*tangents)


def contract(tangents: list, cotangent: PyTree) -> Array:
    """``<d params / d direction, cotangent>`` for every direction, ``[m]``."""
    leaves = jax.tree.leaves(cotangent)
    products = [
        jnp.tensordot(d, g, g.ndim) for d, g in zip(tangents[: len(leaves)], leaves, strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)


def _begin(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    tangents: list | None,
    directions: PyTree,
    data: Data,
) -> tuple[Any, Any]:
    """Start point and its tangents."""
    carry = start(problem, solver, hyper, lower, data)
    if problem.start is not None:

        def initial(hyper: Hyper) -> Any:
            return partition(start(problem, solver, hyper, lower, data))[:2]

        return carry, push(initial, (hyper,), (directions,))[1]
    if tangents is not None:
        return carry, tangents
    m = jax.tree.leaves(directions)[0].shape[0]
    return carry, [jnp.zeros((m, *leaf.shape), leaf.dtype) for leaf in partition(carry)[0]]
