r"""The adjoint system of an inner equation ``F(w, h) = 0``, whose Jacobian has no symmetry.

    J = dF/dw,   J^T u = grad_w outer,   d outer / d h = grad_h outer - (dF/dh)^T u

The implicit function theorem. For a fixed point ``F = w - T(w, h)``, so ``J = I - dT/dw``.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.estimators.adjoint import System
from bilevel.linear import Operator
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
