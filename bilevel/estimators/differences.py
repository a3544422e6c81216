"""The first-order error of a hypergradient by differences of first derivatives alone."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.estimators.budget import Budget
from bilevel.estimators.rough import solve_roughly
from bilevel.utils import Hyper, Params, axpy, dtype, norm, relative_size


def error_by_differences(
    problem: Problem,
    hyper: Hyper,
    params: Params,
    data: Data,
    adjoint: Params,
    left: Params,
    grad: Hyper,
    budget: Budget,
) -> Array | None:
    """Return the relative error ``()`` of ``grad``, made of params and adjoint that are not solved.

    One Newton step on both: ``d = H^{-1} grad inner``, ``e = H^{-1} (left + change of the outer
    gradient along -d)``, and the hypergradient of ``params - d`` and ``adjoint + e``. Products with
    the Hessian are central differences, of which one digit is enough.

    Parameters
    ----------
    adjoint, left : the solution of ``H v = grad outer``, and what it leaves of it.
    budget : how many products; ``None`` comes back where it affords none.
    """
    if budget.sampled or not budget.products:
        return None
    inner, outer = (jax.grad(loss, argnums=(0, 1)) for loss in (problem.inner, problem.outer))
    info = jnp.finfo(dtype(params))

    def along(at: Params, direction: Params) -> tuple[Params, Hyper]:
        """Return how both parts of the inner gradient change along a direction."""
        step = info.eps ** (1 / 3) * (1 + norm(at)) / jnp.maximum(norm(direction), info.tiny)
        ends = (inner(axpy(sign * step, direction, at), hyper, data.inner) for sign in (1, -1))
        return jax.tree.map(lambda a, b: (a - b) / (2 * step), *ends)

    def solve(b: Params) -> Params:
        return solve_roughly(lambda p: along(params, p)[0], b, budget.products)

    arrived = axpy(-1, solve(inner(params, hyper, data.inner)[0]), params)
    (before, _), (after, direct) = (outer(w, hyper, data.outer) for w in (params, arrived))
    solved = axpy(1, solve(axpy(1, left, axpy(-1, before, after))), adjoint)
    exact = axpy(-1, along(arrived, solved)[1], direct)
    return relative_size(norm(axpy(-1, exact, grad)), norm(exact))
