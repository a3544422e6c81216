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
from bilevel.estimators.refusals import lacks_forward_mode
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


def find_reference(problem: Problem, hyper: Hyper, params: Params, data: Data) -> Reference:
    """Return the hypergradient at the inner minimum that Newton's method finds from ``params``."""
    hyper, params, data = jax.lax.stop_gradient((hyper, params, data))
    flat, unravel = ravel_pytree(params)

    def slopes(w: Array, hyper: Hyper) -> Array:
        return ravel_pytree(jax.grad(problem.inner)(unravel(w), hyper, data.inner))[0]

    w = _minimise(lambda w: slopes(w, hyper), flat)
    in_params, direct = jax.grad(problem.outer, argnums=(0, 1))(unravel(w), hyper, data.outer)
    u = _solve(_jacobian(lambda w: slopes(w, hyper), w), ravel_pytree(in_params)[0])
    through = jax.vjp(lambda hyper: slopes(w, hyper), hyper)[1](u)[0]
    rounding = 100 * jnp.finfo(flat.dtype).eps * (norm(direct) + norm(through))
    return Reference(axpy(-1, through, direct), rounding)


def _minimise(slopes: Callable[[Array], Array], w: Array) -> Array:
    """Newton's method; a step is taken only if it makes the gradient smaller."""
    enough = jnp.finfo(w.dtype).eps ** 0.5  # the next error is the square of this step

    def unfinished(carry: PyTree) -> Array:
        k, w, _, _, moved = carry
        return (k < _NEWTON) & (moved > enough * jnp.linalg.norm(w))

    def advance(carry: PyTree) -> PyTree:
        k, w, gradient, length, _ = carry
        step = length * _solve(_jacobian(slopes, w), gradient)
        trial = w - step
        there = slopes(trial)
        better = jnp.linalg.norm(there) < jnp.linalg.norm(gradient)
        longer = jnp.where(better, jnp.minimum(1, length / _SHORTER), length * _SHORTER)
        w, gradient = jnp.where(better, trial, w), jnp.where(better, there, gradient)
        return k + 1, w, gradient, longer, jnp.linalg.norm(step)

    one = jnp.ones((), w.dtype)
    return jax.lax.while_loop(unfinished, advance, (0, w, slopes(w), one, jnp.inf * one))[1]


def _jacobian(slopes: Callable[[Array], Array], w: Array) -> Array:
    """Return it by forward mode, or in reverse where a loss has a rule for that alone."""
    try:
        return jax.jacfwd(slopes)(w)
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        return jax.jacrev(slopes)(w)


def _solve(matrix: Array, b: Array) -> Array:
    """Return ``matrix^{-1} b``, symmetric, 0 in the null space: what nothing reads is free."""
    values, vectors = jnp.linalg.eigh(matrix)
    least = len(b) * jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(values))
    inverse = jnp.where(jnp.abs(values) > least, 1 / jnp.where(values == 0, 1, values), 0)
    return vectors @ (inverse * (vectors.T @ b))
