"""Curvature of the inner loss, measured, against what the solver can contract."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, InnerState, Problem
from bilevel.linear import largest_eigenvalue
from bilevel.solvers.base import DeclaresStability, Solver
from bilevel.utils import Counter, Hyper, Key, Params, PyTree, Scalar, is_constant


def largest_curvature(
    problem: Problem, hyper: Hyper, params: Params, data: Data, key: Key, steps: int | Counter = 50
) -> Scalar:
    """Return the largest eigenvalue (in modulus) of the inner Hessian by power iteration; ``()``.

    A lower bound that ``steps`` products bring close; the Rayleigh quotient of the last vector.
    """
    _, hvp = jax.linearize(lambda w: jax.grad(problem.inner)(w, hyper, data.inner), params)
    return largest_eigenvalue(hvp, params, key, steps)


def stability_limit(solver: Solver | None, hyper: Hyper, state: PyTree) -> Scalar | None:
    """Return the largest curvature that the solver's steps contract, ``()``, if it says so."""
    limit = solver.max_curvature(hyper, state) if isinstance(solver, DeclaresStability) else None
    return None if limit is None else jnp.min(limit)


def exceeds_stability_limit(
    problem: Problem,
    solver: Solver | None,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
    ask: Array,
) -> Scalar:
    """Return whether the inner curvature is above what the solver can contract; ``()``, boolean.

    Where ``ask`` is false nothing is measured, also under ``vmap``, and the answer is no.
    """
    limit = stability_limit(solver, hyper, lower.solver_state)
    if limit is None:
        return jnp.array(False)
    steps = jnp.where(ask, 20, 0)
    return ask & (largest_curvature(problem, hyper, lower.params, data, key, steps) > limit)


def constant_stability_limit(
    problem: Problem, solver: Solver | None, hyper: Hyper, lower: InnerState, data: Data, key: Key
) -> tuple[Array, Array] | None:
    """Return ``(curvature, limit)`` where they hold for the whole solve, else ``None``.

    They hold if neither the inner Hessian depends on the params nor the limit on the solver's
    state (a schedule), as the traced programs show, and if there is no proximal part, on whose
    support alone the curvature counts.
    """
    limit = stability_limit(solver, hyper, lower.solver_state)
    if limit is None or problem.prox is not None:
        return None

    def product(params: Params) -> PyTree:
        gradient = jax.grad(problem.inner)
        return jax.jvp(lambda w: gradient(w, hyper, data.inner), (params,), (lower.params,))[1]

    def limits(state: PyTree) -> Scalar | None:
        return stability_limit(solver, hyper, state)

    constant = problem.quadratic or is_constant(product, lower.params)
    if not constant or not is_constant(limits, lower.solver_state):
        return None
    return largest_curvature(problem, hyper, lower.params, data, key, steps=20), limit
