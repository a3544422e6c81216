r"""The derivative of a solver's iterates, pushed forward along chosen directions.

    z_{k+1} = step(z_k, h; b_k),   Z_{k+1} = d step / d z (z_k, h; b_k) Z_k + d step / d h U

``z`` holds all floating-point leaves of ``(params, solver state)``, ``U`` the directions in hyper
space and ``Z`` their tangents, one leading axis for all. For SGD this is the recursion of
Iutzeler, Pauwels, Vaiter, NeurIPS 2024; the iterate and its derivative share key and minibatch.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, InnerState, Problem, inner_loss
from bilevel.solvers import (
    Carry,
    Solver,
    begin_again,
    draw_ahead,
    repeat_step,
    run_steps,
    start_solver,
    step_key,
)
from bilevel.utils import Float, Hyper, Key, Params, PyTree, partition

# Floating-point leaves of params and solver state, the other leaves, tangents of the former.
ChainCarry: TypeAlias = tuple[list[Array], list[Array], list[Array]]
Tangents: TypeAlias = list[Array] | None


class ForwardMemory(NamedTuple):
    """``tangents`` of all moving leaves, ``[p, *leaf]``; ``twin``, the independent chain."""

    tangents: Tangents | tuple[()]
    twin: Carry | None


def run_chain(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    tangents: list[Array] | None,
    directions: PyTree,
    data: Data,
    key: Key,
    *,
    steps: int,
    late: int,
    average: int,
) -> tuple[Carry, list[Array]]:
    """Return ``((params, state), tangents)`` after ``steps``, differentiated from step ``late``.

    ``directions`` has leaves ``[m, *leaf]``; ``tangents`` continue from earlier ones, ``None`` from
    zero (or from the derivative of ``problem.start``). Both results are means over the last
    ``average`` steps if that is positive.
    """
    if average and problem.running is not None:
        raise ValueError(
            "Forward: average is the mean of the last iterates, Problem.running a mean over all of "
            "them. Leave out one of the two."
        )
    loss = inner_loss(problem)
    carry, tangents = _init_tangents(problem, solver, hyper, lower, tangents, directions, data)
    if late:
        carry = run_steps(loss, solver, hyper, carry, data, key, steps=late)
    moving, fixed, merge = partition(carry)
    keys = draw_ahead(solver, data.inner, key, steps - late, late)

    def advance(k: Array, loop: ChainCarry) -> ChainCarry:
        moving, fixed, tangents = loop
        key_k = step_key(keys, k)

        def move(moving: list[Array], hyper: Hyper) -> tuple[list[Array], list[Array]]:
            params, state = merge(moving, fixed)
            moved = solver.step(loss, params, hyper, data.inner, key_k, state)
            return partition(moved)[:2]

        moving, tangents, fixed = push_tangents(move, (moving, hyper), (tangents, directions))
        return moving, fixed, tangents

    plain = steps - average
    loop, _ = repeat_step(advance, (moving, fixed, tangents), first=late, length=plain - late)
    if average:
        loop, mean = repeat_step(
            advance, loop, first=plain, length=average, averaged=lambda loop: (loop[0], loop[2])
        )
        loop = (mean[0], loop[1], mean[1])
    moving, fixed, tangents = loop
    return merge(moving, fixed), tangents


def push_tangents(
    fn: Callable[..., tuple[PyTree, PyTree]], primals: tuple, tangents: tuple
) -> tuple[PyTree, PyTree, PyTree]:
    """Return ``fn(*primals)``, its derivative along tangents ``[m, *leaf]``, its auxiliaries."""

    def one(*tangent: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        return jax.jvp(fn, primals, tangent, has_aux=True)

    return jax.vmap(one, out_axes=(None, 0, None))(*tangents)


def contract_tangents(tangents: list[Array], cotangent: Params) -> Float[Array, " m"]:
    """Return ``<d params / d direction, cotangent>`` for every direction, ``[m]``."""
    leaves = jax.tree.leaves(cotangent)
    products = [
        jnp.tensordot(d, g, g.ndim) for d, g in zip(tangents[: len(leaves)], leaves, strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)


def _init_tangents(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    tangents: list[Array] | None,
    directions: PyTree,
    data: Data,
) -> tuple[Carry, list[Array]]:
    """Return the start point and its tangents."""
    carry = start_solver(problem, solver, hyper, lower, data)
    if problem.start is not None:

        def initial(hyper: Hyper) -> tuple[list[Array], list[Array]]:
            return partition(start_solver(problem, solver, hyper, lower, data))[:2]

        return carry, push_tangents(initial, (hyper,), (directions,))[1]
    if tangents is not None:
        moving, fixed, merge = partition((lower.params, lower.solver_state))

        def again(moving: list[Array]) -> tuple[list[Array], list[Array]]:
            return partition(begin_again(solver, merge(moving, fixed)))[:2]

        return carry, push_tangents(again, (moving,), (tangents,))[1]
    m = jax.tree.leaves(directions)[0].shape[0]
    return carry, [jnp.zeros((m, *leaf.shape), leaf.dtype) for leaf in partition(carry)[0]]
