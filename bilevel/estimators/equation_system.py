r"""The adjoint system of an inner equation ``F(w, h) = 0``, whose Jacobian has no symmetry.

    J = dF/dw,   J^T u = grad_w outer,   d outer / d h = grad_h outer - (dF/dh)^T u

The implicit function theorem. For a fixed point ``F = w - T(w, h)``, so ``J = I - dT/dw``.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.estimators.systems import System
from bilevel.linear import LinearSolver, Operator
from bilevel.utils import Hyper, Key, Number, Params, PyTree


def equation_system(
    problem: Problem,
    hyper: Hyper,
    params: Params,
    data: Data,
    *,
    damping: Number | None,
    step: Number,
    key: Key,
) -> System:
    """Return the system at ``params``, as ``adjoint_system`` does for a loss."""

    def residual(params: Params, hyper: Hyper) -> Params:
        return jax.grad(problem.inner)(params, hyper, data.inner)

    outer = jax.value_and_grad(problem.outer, argnums=(0, 1))
    value, (b, direct) = outer(params, hyper, data.outer)
    f, product = jax.linearize(lambda w: residual(w, hyper), params)
    transpose = jax.linear_transpose(product, params)

    def grad(u: PyTree) -> PyTree:
        through = jax.vjp(lambda hyper: residual(params, hyper), hyper)[1](u)[0]
        return jax.tree.map(jnp.subtract, direct, through)

    def displacement(q: PyTree) -> Array:
        raise NotImplementedError("the system of an equation is that of its transpose")

    forward = Operator(product, damping=damping)
    operator = Operator(lambda u: transpose(u)[0], damping=damping, transposed=forward)
    return System(operator, b, value, grad, f, f, displacement)


def require_solvable(problem: Problem, linear: LinearSolver, *, bias: bool, correct: bool) -> None:
    """Raise ``ValueError`` where the system of the problem needs other settings of ``Implicit``."""
    if correct and not (problem.prox is None and problem.is_plain and not problem.is_equation):
        raise ValueError(
            "Implicit(correct=True) is for smooth inner losses of params, hyper and a batch alone. "
            "Leave correct out."
        )
    if not problem.is_equation:
        return
    if getattr(linear, "needs_symmetry", False):
        raise ValueError(
            f"Implicit(linear={type(linear).__name__}(...)) needs a symmetric system, and that of "
            "an equation has no symmetry. Give linear=bl.GMRES(tol=1e-6), BiCGSTAB or FixedPoint."
        )
    if bias:
        raise ValueError("Implicit(bias=True) is for inner losses. Leave bias out.")
