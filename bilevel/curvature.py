"""Curvature of the inner loss, measured, against what the solver can contract."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Lower
from bilevel.linear.power import largest_eigenvalue
from bilevel.problem import Data, Problem
from bilevel.solvers.base import DeclaresStability
from bilevel.trees import PyTree


def largest_curvature(
    problem: Problem, hyper: PyTree, params: PyTree, data: Data, key: Array, steps: Any = 50
) -> Array:
    """Largest eigenvalue (in modulus) of the inner Hessian by power iteration; ``()``.

    A lower bound that ``steps`` products bring close; the Rayleigh quotient of the last vector.
    """
    _, hvp = jax.linearize(lambda w: jax.grad(problem.inner)(w, hyper, data.inner), params)
    return largest_eigenvalue(hvp, params, key, steps)


def contractible(solver: Any, hyper: PyTree, state: PyTree) -> Array | None:
    """Largest curvature that the solver's steps contract, ``()``; ``None`` if it does not say."""
    if not isinstance(solver, DeclaresStability):
        return None
    return jnp.min(solver.max_curvature(hyper, state))


def outgrown(
    problem: Problem, solver: Any, hyper: PyTree, lower: Lower, data: Data, key: Array, ask: Array
) -> Array:
    """Whether the inner curvature is above what the solver can contract; ``()``, boolean.

    Where ``ask`` is false nothing is measured, also under ``vmap``, and the answer is no.
    """
    limit = contractible(solver, hyper, lower.solver_state)
    if limit is None:
        return jnp.array(False)
    steps = jnp.where(ask, 20, 0)
    return ask & (largest_curvature(problem, hyper, lower.params, data, key, steps) > limit)
