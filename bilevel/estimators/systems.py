r"""The adjoint system, and one Newton step on both levels from the params and the adjoint reached.

    H d = grad inner,   H e = H x - b + (its change along d),   bias = d grad / d (w, x) (d, e)

``w - d`` and ``x - e`` are the solutions to first order, and ``grad - bias`` the hypergradient
there; ``x``, ``b`` and ``grad(x)`` as in ``adjoint.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear import LinearSolver, Operator, Solution, solve_scaled
from bilevel.utils import (
    Count,
    Hyper,
    Key,
    Params,
    PyTree,
    axpy,
    norm,
    relative_size,
    zeros_like,
)

_SURE, _MARGIN = 0.04, 1.25  # share up to which the claim needs no margin, and its power above
_CONVERGES = 0.18  # share to which residuals fall in a step below which the next ones are smaller


class System(NamedTuple):
    """``operator(x) = rhs`` at some params, and what its solution and another one mean.

    ``grad(x)`` is the hypergradient, like ``hyper``; ``value`` that of the outer loss. With
    ``operator(q) = defect``, ``displacement(q)`` is ``params - w*`` to first order. ``gradient`` is
    that of the smooth inner loss.
    """

    operator: Operator
    rhs: PyTree
    value: Array
    grad: Callable[[PyTree], PyTree]
    gradient: PyTree
    defect: PyTree
    displacement: Callable[[PyTree], PyTree]

    def within(self, x: PyTree) -> PyTree:
        """Return ``x`` without what lies off the support, which no solver could remove."""
        support = self.operator.support
        return x if support is None else jax.tree.map(jnp.multiply, support, x)


class Distance(NamedTuple):
    """``params`` less the minimiser, ``adjoint`` less its solution, both to first order.

    ``unsolved`` are the right sides of their two systems, ``residuals`` what is left of those.
    """

    params: Params
    adjoint: Params
    unsolved: tuple[Params, Params]
    residuals: tuple[Array, Array]
    products: Count

    def rest(self) -> Array:
        """Return what share is missing of a distance whose systems are solved to a share r."""
        r = jnp.minimum(jnp.maximum(*self.residuals), 1)
        return jnp.where(r < 1, r / (1 - r), jnp.inf)


class Answer(NamedTuple):
    """What a pair of params and adjoint says; ``residual`` is that of the adjoint's system."""

    params: Params
    adjoint: Params
    value: Array
    grad: Hyper
    gradient: Params
    residual: Array


def solve_from_zero(linear: LinearSolver, key: Key) -> Callable[[Operator, PyTree, int], Solution]:
    """Return the solver of two more systems, each from 0."""
    keys = jax.random.split(key)

    def solve(operator: Operator, b: PyTree, k: int) -> Solution:
        found = solve_scaled(linear, operator, b, zeros_like(b), keys[k])
        return found._replace(residual=jnp.where(norm(b) > 0, found.residual, 0))

    return solve


def measure_distance(
    system_at: Callable[[PyTree], System],
    params: Params,
    x: Params,
    solve: Callable[[Operator, PyTree, int], Solution],
) -> Distance:
    """Return how far ``params`` and ``x`` are from their solutions.

    ``solve(operator, b, k)`` solves the system of level ``k``, 0 or 1. What a damped system leaves
    is that of the undamped one.
    """
    system = system_at(params)
    inner = solve(system.operator, system.defect, 0)
    d = system.displacement(inner.x)

    def left(params: Params) -> PyTree:
        there = system_at(params)
        return axpy(-1, there.operator.product(x), there.rhs)

    now, change = jax.jvp(left, (params,), (d,))
    unsolved = axpy(-1, now, change)
    outer = solve(system.operator, unsolved, 1)
    residuals = inner.residual, outer.residual
    products = inner.matvecs + outer.matvecs
    return Distance(d, outer.x, (system.defect, unsolved), residuals, products)


def first_order_bias(
    system_at: Callable[[PyTree], System], params: Params, x: Params, distance: Distance
) -> Hyper:
    """Return ``grad(params, x) - grad(w*, x*)`` to first order, like ``hyper``."""
    far = distance.params, distance.adjoint
    return jax.jvp(lambda params, x: system_at(params).grad(x), (params, x), far)[1]


def left_by_bias(bias: Hyper, grad: Hyper, distance: Distance) -> Array:
    """Return the relative error of ``grad`` that is left once its bias is known."""
    return relative_size(norm(bias), norm(axpy(-1, bias, grad))) * distance.rest()


def correct_answer(
    system_at: Callable[[PyTree], System], answer: Answer, distance: Distance
) -> tuple[Answer, Array]:
    """Return the answer after a step on both levels, where it is a good one, and its error.

    A step that changes ``grad``, or the adjoint if that is more, by a share s, where the residuals
    of both levels fall to a share q, leaves about ``s q`` on a well-conditioned problem, more where
    the curvature is small. The error claimed is the geometric mean of that and of ``s``, and more
    where residuals fall by so little that the next steps need not be much smaller.
    """
    params = axpy(-1, distance.params, answer.params)
    system = system_at(params)
    x = axpy(-1, distance.adjoint, answer.adjoint)
    unsolved = axpy(-1, system.operator.product(x), system.rhs)
    moved = Answer(
        params,
        x,
        system.value,
        system.grad(x),
        system.gradient,
        relative_size(norm(unsolved), norm(system.rhs)),
    )
    s = relative_size(norm(axpy(-1, moved.grad, answer.grad)), norm(moved.grad))
    s = jnp.maximum(s, relative_size(norm(distance.adjoint), norm(x)))
    fallen = tuple(
        relative_size(norm(now), norm(before))
        for now, before in zip((system.gradient, unsolved), distance.unsolved, strict=True)
    )
    left = jnp.maximum(jnp.maximum(*fallen), distance.rest())
    q = jnp.maximum(left, s)
    good = q < 1
    best = jax.tree.map(lambda a, b: jnp.where(good, a, b), moved, answer)
    margin = jnp.clip(left / _SURE, 1, 1 / _SURE) ** _MARGIN
    claimed = s * margin * jnp.where(left <= _CONVERGES, jnp.sqrt(q), 1 + q)
    return best, jnp.where(jnp.isnan(claimed), jnp.inf, claimed)
