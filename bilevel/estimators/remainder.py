r"""What an unconverged derivative, or an unconverged iterate, means for a hypergradient.

At the returned params, with H and C the second derivatives of the inner loss and b the outer
gradient, an unrolled derivative satisfies the equation of the minimiser's up to a remainder:

    reverse, implicit:  H u = b - a,      grad - exact = C^T e,         H e = a
    forward:            H D + C = R,      slope - exact slope = b . x,  H x = R u

and the iterate is off by d, ``H d = grad inner``, which changes b by ``(Hessian of outer) d``. The
remainder is what is left after all steps, so its slowest directions dominate it, and a few steps of
conjugate gradients tell how large it is once divided by H. First order: exact on quadratics. Where
there are few params the exact hypergradient itself takes its place, see :mod:`reference`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Data, Evidence, Problem
from bilevel.estimators.budget import Budget
from bilevel.estimators.reference import find_reference, steps_are_objective
from bilevel.estimators.refusals import lacks_forward_mode
from bilevel.estimators.residuals import find_progress
from bilevel.estimators.rough import solve_roughly
from bilevel.estimators.systems import System, first_order_bias, measure_distance
from bilevel.linear import Operator, Solution
from bilevel.utils import PyTree, axpy, norm, register_node, relative_size, vdot


@register_node
@dataclass(frozen=True)
class Remainder:
    """``residual`` of the equation of the derivative, relative ``error`` of grad, ``()`` each.

    ``missing`` names what the error leaves out; static.
    """

    residual: Array
    error: Array | None
    missing: tuple[str, ...] = field(default=(), metadata={"static": True})


_DISPLACED = ("distance of the params to the minimiser",)


def adjoint_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    left: PyTree,
    right: PyTree,
    grad: PyTree,
    budget: Budget,
    whole: bool,
) -> Remainder:
    """Of an adjoint that leaves ``left`` of ``H u = right``; ``right`` is the outer gradient."""
    hyper, params, left, right, grad = jax.lax.stop_gradient((hyper, params, left, right, grad))
    residual = relative_size(norm(left), norm(right))
    if steps_are_objective(problem, hyper, params, data):
        return Remainder(residual, jnp.zeros_like(residual) if whole else residual)
    if budget.exact:
        exact = find_reference(problem, hyper, params, data)
        return Remainder(residual, exact.error(grad))
    if not budget.products or problem.prox is not None:
        return Remainder(residual, None)

    try:
        wrong = _adjoint_error(problem, hyper, params, data, left, budget)
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        return Remainder(residual, None)  # a loss with a rule for reverse mode alone
    error = relative_size(norm(wrong), norm(axpy(-1, wrong, grad)))
    return Remainder(residual, error, _DISPLACED if budget.sampled or budget.random else ())


def _adjoint_error(
    problem: Problem, hyper: PyTree, params: PyTree, data: Data, left: PyTree, budget: Budget
) -> PyTree:
    """Return what ``grad`` is off by, to first order."""

    def in_hyper(params: PyTree) -> PyTree:
        return jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)

    gradient, product = jax.linearize(
        lambda w: jax.grad(problem.inner)(w, hyper, data.inner), params
    )
    e = solve_roughly(product, left, budget.products)
    wrong = jax.jvp(in_hyper, (params,), (e,))[1]
    if budget.sampled or budget.random:
        return wrong
    change, _ = _displacement(problem, hyper, params, data, product, gradient, budget.products)
    return axpy(1, change, wrong)


def adjoint_evidence(
    problem: Problem,
    hyper: PyTree,
    before: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
    reference: Array,
    adjoint: list[Array],
    right: PyTree,
    grad: PyTree,
    *,
    solver: object,
    passes: int,
    whole: bool,
) -> tuple[Evidence, Array]:
    """Return residuals of an unrolled adjoint, their error and products, and the reference.

    The params come first among the leaves of the ``adjoint``, carried back from ``right``.
    """
    budget = Budget.of(problem, solver, data, params, passes)
    sample = budget.draw(data, key)
    residual, reference = find_progress(
        problem, hyper, before, params, sample, reference, budget.sampled
    )
    leaves, tree = jax.tree.flatten(params)
    left = jax.tree.unflatten(tree, adjoint[: len(leaves)])
    remainder = adjoint_remainder(
        problem, hyper, params, sample, left, right, grad, budget=budget, whole=whole
    )
    evidence = Evidence(
        residual,
        counts=Counts.of(hvps=budget.hvps(params)),
        derivative_residual=remainder.residual,
        residual_error=remainder.error,
        not_measured=remainder.missing,
    )
    return evidence, reference


def system_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    system_at: Callable[[PyTree], System],
    x: PyTree,
    now: PyTree,
    budget: Budget,
) -> Array | None:
    """Relative error of ``now = grad(x)``: of ``x``, of the damping, and of the params."""
    if budget.exact:
        return find_reference(problem, hyper, params, data).error(now)
    if not (products := budget.products) or budget.random:
        return None
    x, now = jax.lax.stop_gradient((x, now))

    def solve(operator: Operator, b: PyTree, _: int) -> Solution:
        return Solution(solve_roughly(operator.product, b, products), jnp.zeros(()), products)

    try:
        distance = measure_distance(system_at, params, x, solve)
        wrong = first_order_bias(system_at, params, x, distance)
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        return None
    return jax.lax.stop_gradient(relative_size(norm(wrong), norm(axpy(-1, wrong, now))))


def tangent_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    tangents: PyTree,
    directions: PyTree,
    slopes: Array,
    budget: Budget,
    whole: bool,
) -> Remainder:
    """Of ``tangents`` ``[m, *leaf]`` along ``directions``, along which the outer loss has slopes.

    Looks along the hypergradient itself, as far as the directions span it.
    """
    hyper, params, tangents, directions, slopes = jax.lax.stop_gradient(
        (hyper, params, tangents, directions, slopes)
    )
    weights = slopes / jnp.maximum(jnp.linalg.norm(slopes), jnp.finfo(slopes.dtype).tiny)

    def mix(rows: Array) -> Array:
        return jnp.tensordot(weights.astype(rows.dtype), rows, 1)

    tangent, direction = jax.tree.map(mix, (tangents, directions))
    slope = jnp.vdot(weights, slopes)

    def inner(params: PyTree, hyper: PyTree) -> PyTree:
        return jax.grad(problem.inner)(params, hyper, data.inner)

    left = jax.jvp(inner, (params, hyper), (tangent, direction))[1]
    right = jax.jvp(lambda hyper: inner(params, hyper), (hyper,), (direction,))[1]
    residual = relative_size(norm(left), norm(right))
    if steps_are_objective(problem, hyper, params, data):
        return Remainder(residual, jnp.zeros_like(residual) if whole else residual)
    if budget.exact:
        exact = find_reference(problem, hyper, params, data)
        return Remainder(residual, exact.error_along(directions, slopes))
    if not budget.products or problem.prox is not None:
        return Remainder(residual, None)
    gradient, product = jax.linearize(lambda w: inner(w, hyper), params)
    b = jax.grad(problem.outer)(params, hyper, data.outer)
    wrong = vdot(b, solve_roughly(product, left, budget.products))
    derivative = relative_size(jnp.abs(wrong), jnp.abs(slope - wrong))
    if budget.sampled or budget.random:
        return Remainder(residual, derivative, _DISPLACED)
    change, now = _displacement(problem, hyper, params, data, product, gradient, budget.products)
    displaced = relative_size(norm(change), norm(axpy(-1, change, now)))
    return Remainder(residual, jnp.hypot(derivative, displaced))


def _displacement(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    product: Callable[[PyTree], PyTree],
    gradient: PyTree,
    products: int,
) -> tuple[PyTree, PyTree]:
    """Return the hypergradient less that at the minimiser, and itself, to first order.

    Along ``d = H^{-1} gradient``, with all that depends on the params: the outer gradient, the
    Hessian and the mixed derivatives. Not from a sample of the rows, whose own minimiser lies
    elsewhere.
    """
    solve = partial(solve_roughly, product, steps=products)
    outer = jax.grad(problem.outer, argnums=(0, 1))
    x = solve(outer(params, hyper, data.outer)[0])

    def along(params: PyTree, hyper: PyTree) -> Array:
        return vdot(jax.grad(problem.inner)(params, hyper, data.inner), x)

    def hypergradient(params: PyTree) -> PyTree:
        through = jax.grad(along, argnums=1)(params, hyper)
        return axpy(-1, through, outer(params, hyper, data.outer)[1])

    def left(params: PyTree) -> PyTree:
        image = jax.grad(along)(params, hyper)
        return axpy(-1, image, outer(params, hyper, data.outer)[0])

    d = solve(gradient)
    e = solve(jax.jvp(left, (params,), (d,))[1])
    now, moved = jax.jvp(hypergradient, (params,), (d,))
    mixed = jax.grad(problem.inner, argnums=1)
    through = jax.jvp(lambda params: mixed(params, hyper, data.inner), (params,), (e,))[1]
    return axpy(-1, through, moved), now
