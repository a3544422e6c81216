r"""Params in units of their own, ``w = d u``, in which every one of them has about curvature 1.

What a user measures in metres or in millimetres is the same problem, with the same hypergradient:
``inner(d u, h)``, ``outer(d u, h)``. Norms of gradients, residuals and adjoints are not the same:
where one column is in millionths of another, its part of the gradient is too, and they do not see
whether it is solved.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem, space_rows
from bilevel.linear import Matvec, OutputLoss, equilibrate_rows
from bilevel.utils import Hyper, Key, Params, Scalar

ScaledStep: TypeAlias = Callable[..., tuple[Estimate, InnerState]]
_ROWS = 64  # of which the units of params are seen


def find_units(
    problem: Problem, hyper: Hyper, params: Params, data: Data, key: Key
) -> tuple[Params, Array]:
    """Return ``d``, like ``params``, and the products used; 1 where units are about alike.

    Some of the rows tell whether they are.
    """
    loss = problem.exact.inner
    at, hyper = jax.lax.stop_gradient((params, hyper))

    def product_on(data: Data) -> Matvec:
        return jax.linearize(lambda w: jax.grad(loss)(w, hyper, data.inner), at)[1]

    some = product_on(space_rows(problem, data, _ROWS))
    return equilibrate_rows(lambda v: product_on(data)(v), at, key, some)


def in_units(problem: Problem, d: Params) -> Problem:
    """Return the problem of ``u``."""

    def scaled(u: Params) -> Params:
        return jax.tree.map(jnp.multiply, u, d)

    def of_units(loss: Callable[..., Scalar]) -> Callable[..., Scalar]:
        return lambda u, hyper, batch: loss(scaled(u), hyper, batch)

    exact, inner = problem.exact, problem.exact.inner
    if isinstance(inner, OutputLoss):
        outputs, loss = inner.outputs, inner.loss
        inner = OutputLoss(
            lambda u, h, batch: outputs(scaled(u), h, batch),
            lambda z, u, h, batch: loss(z, scaled(u), h, batch),
        )
    else:
        inner = of_units(inner)
    outer = of_units(problem.outer)
    return replace(exact, inner=inner, outer=outer, compute_dtype=problem.compute_dtype)


def step_in_units(
    step: ScaledStep, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
) -> tuple[Estimate, InnerState]:
    """Return what the ``step`` of an estimator that remembers an adjoint does to ``u``."""
    d, products = find_units(problem, hyper, lower.params, data, key)

    def map_state(fn: Callable[[Array, Array], Array], lower: InnerState) -> InnerState:
        params, memory = (jax.tree.map(fn, x, d) for x in (lower.params, lower.memory))
        return replace(lower, params=params, memory=memory)

    begin = map_state(jnp.divide, lower)
    estimate, after = step(in_units(problem, d), hyper, begin, data, key)
    counts = estimate.evidence.counts
    evidence = replace(estimate.evidence, counts=counts._replace(hvps=counts.hvps + products))
    return replace(estimate, evidence=evidence), map_state(jnp.multiply, after)
