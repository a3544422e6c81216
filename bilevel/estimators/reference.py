r"""The exact hypergradient of a small problem, by Newton's method with dense Hessians.

    w* by  w <- w - H^{-1} grad_w inner,   H u = grad_w outer,   grad = grad_h outer - C^T u

What an estimate of any kind is compared with where the inner variable is small enough for this to
cost next to nothing. Everything is in the comparison: unconverged derivatives and iterates,
damping, the noise of this very run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Data, Problem
from bilevel.estimators.refusals import lacks_forward_mode, unused_by_minimiser
from bilevel.utils import Hyper, Params, PyTree, axpy, norm, vdot

_NEWTON = 12  # steps; a smooth convex loss takes three or four
_SHORTER = 0.25  # of a step that did not make the gradient smaller


class Reference(NamedTuple):
    """The exact ``grad`` like ``hyper``, and ``rounding``, the size of what it cannot tell."""

    grad: Hyper
    rounding: Array

    def error(self, grad: Hyper) -> Array:
        """Return ``|grad - exact| / |exact|``, ``()``."""
        return self._relative(norm(axpy(-1, self.grad, grad)), norm(self.grad))

    def error_along(self, directions: Hyper, slopes: Array) -> Array:
        """Return the same for the slopes along directions ``[m, *leaf]``."""
        exact = jax.vmap(lambda u: vdot(u, self.grad))(directions)
        return self._relative(jnp.linalg.norm(slopes - exact), jnp.linalg.norm(exact))

    def _relative(self, error: Array, exact: Array) -> Array:
        return jax.lax.stop_gradient(jnp.where(error <= self.rounding, 0, error / exact))


class Look(NamedTuple):
    """What Newton's method knows at a point ``w``, ``[d]``, beside the hypergradient there.

    The inner ``gradient``, ``[d]``, and the ``step`` that would make it vanish, ``[d]``.
    """

    w: Array
    gradient: Array
    step: Array
    found: Reference


def find_reference(problem: Problem, hyper: Hyper, params: Params, data: Data) -> Reference:
    """Return the hypergradient at the inner minimum that Newton's method finds from ``params``.

    A step is taken only if it makes the gradient smaller. One loop does it all, so that the loss
    and its derivatives are compiled once.
    """
    problem = problem.exact  # a loss in bfloat16 would be as wrong as what it judges
    hyper, params, data = jax.lax.stop_gradient((hyper, params, data))
    flat, unravel = ravel_pytree(params)
    enough = jnp.finfo(flat.dtype).eps ** 0.5  # the next error is the square of this step

    def unfinished(carry: PyTree) -> Array:
        k, best, _, _, moved, _ = carry
        return (k <= _NEWTON) & (moved > enough * jnp.linalg.norm(best.w))

    def advance(carry: PyTree) -> PyTree:
        k, best, at, length, _, moved = carry
        there = _look(problem, hyper, at, unravel, data)
        better = jnp.linalg.norm(there.gradient) < jnp.linalg.norm(best.gradient)
        longer = jnp.where(better, jnp.minimum(1, length / _SHORTER), length * _SHORTER)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), there, best)
        step = longer * best.step
        return k + 1, best, best.w - step, longer, moved, jnp.linalg.norm(step)

    one, nowhere = jnp.ones((), flat.dtype), jnp.full_like(flat, jnp.inf)
    unknown = jax.tree.map(lambda h: jnp.full(jnp.shape(h), jnp.nan, jnp.result_type(h)), hyper)
    begin = Look(flat, nowhere, nowhere, Reference(unknown, jnp.nan * one))
    initial = 0, begin, flat, one, jnp.inf * one, jnp.inf * one
    return jax.lax.while_loop(unfinished, advance, initial)[1].found


def raise_to_exact(
    error: Array, grad: Hyper, problem: Problem, hyper: Hyper, params: Params, data: Data
) -> Array:
    """Return the ``error`` that is claimed for ``grad``, ``()``, or the true one if that is more.

    A step solved to a residual need not show what lies along small curvature.
    """
    return jnp.fmax(error, find_reference(problem, hyper, params, data).error(grad))


def steps_are_objective(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> bool:
    """Return whether the steps themselves are tuned, and not the minimiser that they approach.

    With a start of the problem's own, a running loss, or a hyperparameter of the solver, the
    derivative of all steps is right however far they are from the minimiser.
    """
    if problem.start is not None or problem.running is not None:
        return True
    return bool(unused_by_minimiser(problem, hyper, params, data))


def _look(
    problem: Problem, hyper: Hyper, w: Array, unravel: Callable[[Array], Params], data: Data
) -> Look:
    """Return all that is known at ``w``: one Hessian, one factorisation for both its systems."""

    def slopes(w: Array, hyper: Hyper) -> tuple[Array, Hyper]:
        in_params, in_hyper = jax.grad(problem.inner, (0, 1))(unravel(w), hyper, data.inner)
        return ravel_pytree(in_params)[0], in_hyper

    b, direct = jax.grad(problem.outer, argnums=(0, 1))(unravel(w), hyper, data.outer)
    b = ravel_pytree(b)[0]
    eye = jnp.eye(w.size, dtype=w.dtype)
    if problem.is_equation:
        gradient, pull = jax.vjp(lambda *at: slopes(*at)[0], w, hyper)
        step, u = _solve_general(jax.vmap(lambda v: pull(v)[0])(eye), gradient, b)
        through = pull(u)[1]
        return _looked(w, gradient, step, direct, through)
    try:
        (gradient, _), push = jax.linearize(lambda w: slopes(w, hyper), w)
        hessian = jax.vmap(lambda v: push(v)[0])(eye)
        step, u = _solve(hessian, gradient, b)
        through = push(u)[1]
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise  # what follows serves a loss with a rule for reverse mode alone
        gradient, pull = jax.vjp(lambda *at: slopes(*at)[0], w, hyper)
        step, u = _solve(jax.vmap(lambda v: pull(v)[0])(eye), gradient, b)
        through = pull(u)[1]
    return _looked(w, gradient, step, direct, through)


def _looked(w: Array, gradient: Array, step: Array, direct: Hyper, through: Hyper) -> Look:
    rounding = 100 * jnp.finfo(w.dtype).eps * (norm(direct) + norm(through)).astype(w.dtype)
    return Look(w, gradient, step, Reference(axpy(-1, through, direct), rounding))


def _solve(matrix: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Return ``matrix^{-1}`` times both, 0 in the null space: what nothing reads is free.

    With the diagonal brought to 1, so that the units of params do not decide what is rounding.
    """
    diagonal = jnp.abs(jnp.diagonal(matrix))
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    values, vectors = jnp.linalg.eigh(scale[:, None] * matrix * scale)
    least = len(b) * jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(values))
    inverse = jnp.where(jnp.abs(values) > least, 1 / jnp.where(values == 0, 1, values), 0)
    x, y = (
        scale
        * (vectors @ (inverse[:, None] * (vectors.T @ jnp.stack([scale * b, scale * c], 1)))).T
    )
    return x, y


def _solve_general(matrix: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Return ``matrix^{-1} b`` and ``matrix^{-T} c`` without symmetry, 0 in the null spaces."""
    left, values, right = jnp.linalg.svd(matrix)
    least = len(b) * jnp.finfo(b.dtype).eps * jnp.max(values)
    inverse = jnp.where(values > least, 1 / jnp.where(values == 0, 1, values), 0)
    return right.T @ (inverse * (left.T @ b)), left @ (inverse * (right @ c))
