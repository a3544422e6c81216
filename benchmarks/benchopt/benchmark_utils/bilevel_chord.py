r"""Implicit differentiation with one Cholesky factor of the inner Hessian, kept while it serves.

    w <- w - t M^{-1} grad g(w),   v <- v - M^{-1} (H v + grad_w f),
    M = H at some earlier point

The factor is formed anew where a step leaves more than a tenth of the gradient. A quadratic inner
loss needs one factor for the whole run, a smooth one a few. With more params than a factor is
worth, conjugate gradients take its place. An estimator by the library's contract.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel import CG, Counts, Data, Estimate, Evidence, InnerState, Problem
from bilevel.extend import backtrack_step, init_inner_state, register_node

STEPS, SLOW = 50, 0.1
_size = jnp.linalg.norm


@dataclass(frozen=True)
class Chord:
    """``tol``: both residuals, relative to the inner gradient at the start and to ``grad_w f``."""

    tol: Any = 1e-5
    dense: bool = True

    def init(self, params: Any, data: Data) -> InnerState:
        """No factor yet."""
        flat, _ = ravel_pytree(params)
        n = flat.size if self.dense else 0
        memory = {"factor": jnp.eye(n, dtype=flat.dtype), "stale": jnp.array(True), "v": 0 * flat}
        return init_inner_state(params, (), memory)

    def step(
        self, problem: Problem, hyper: Any, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Solve both systems; counts are of passes over all inner data."""
        w, unravel = ravel_pytree(lower.params)
        inner = _Inner(self, problem, hyper, data, unravel)
        g = inner.gradient(w)
        reference = jnp.where(lower.reference > 0, lower.reference, _size(g))
        memory = (lower.memory["factor"], lower.memory["stale"], jnp.zeros((), jnp.int32))
        w, g, memory, k, losses = inner.minimise(w, g, memory, self.tol * reference)
        value, (rhs, direct) = jax.value_and_grad(problem.outer, (0, 1))(
            unravel(w), hyper, data.outer
        )
        b = ravel_pytree(rhs)[0]
        v, r, cross, memory, j = inner.adjoint(w, b, lower.memory["v"], memory)
        grad = jax.tree.map(jnp.add, direct, cross)
        counts = Counts.of(
            gradients=1 + k + losses / 2, hvps=2 * (j + (not self.dense)) + memory[2]
        )
        evidence = Evidence(_size(g) / reference, _size(r) / _size(b), counts=counts)
        state = {"factor": memory[0], "stale": memory[1], "v": v}
        return Estimate(value, grad, evidence), InnerState(unravel(w), (), state, reference)


register_node(Chord, data_fields=["tol"], meta_fields=["dense"])


class _Inner(NamedTuple):
    """The inner problem of one call, in flat params; ``memory`` is factor, staleness, products."""

    chord: Chord
    problem: Problem
    hyper: Any
    data: Data
    unravel: Any

    def loss(self, w: Array, hyper: Any, batch: Any) -> Array:
        return self.problem.inner(self.unravel(w), hyper, batch)

    def gradient(self, w: Array) -> Array:
        return jax.grad(self.loss)(w, self.hyper, self.data.inner)

    def products(self, w: Array, v: Array) -> tuple[Array, Any]:
        """``(H v, C^T v)``."""
        gradients = jax.grad(self.loss, (0, 1))
        return jax.jvp(lambda w: gradients(w, self.hyper, self.data.inner), (w,), (v,))[1]

    def factorise(self, w: Array) -> Array:
        columns = jax.vmap(lambda x: jax.jvp(self.gradient, (w,), (x,))[1])
        return jnp.linalg.cholesky(columns(jnp.eye(w.size, dtype=w.dtype)))

    def solve(self, w: Array, memory: tuple, x: Array, tol: Any = SLOW) -> tuple[Array, tuple]:
        factor, stale, products = memory
        if not self.chord.dense:
            _, product = jax.linearize(self.gradient, w)
            found = CG(tol=tol).solve(product, x, jnp.zeros_like(x))
            return found.x, (factor, stale, products + found.matvecs)
        factor = jax.lax.cond(stale, lambda: self.factorise(w), lambda: factor)
        x = jax.scipy.linalg.cho_solve((factor, True), x)
        return x, (factor, jnp.array(False), products + stale * w.size)

    def minimise(self, w: Array, g: Array, memory: tuple, enough: Array) -> tuple:
        """Params, gradient, memory, steps, further evaluations of the loss."""

        def unsolved(carry: Any) -> Array:
            _, g, _, k, _ = carry
            return (_size(g) > enough) & (k < STEPS)

        def descend(carry: Any) -> Any:
            w, g, memory, k, losses = carry
            direction, memory = self.solve(w, memory, g)
            moved = w - direction
            new = self.gradient(moved)

            def shorter() -> tuple:
                data = self.data.inner
                value = self.loss(w, self.hyper, data)
                length = backtrack_step(self.loss, w, self.hyper, data, direction, g, value)
                at = w - length * direction
                return at, self.gradient(at), 3 - jnp.log2(length)

            moved, new, more = jax.lax.cond(
                _size(new) < _size(g), lambda: (moved, new, jnp.zeros_like(losses)), shorter
            )
            stale = _size(new) > SLOW * _size(g)
            return moved, new, (memory[0], stale, memory[2]), k + 1, losses + more

        begun = (w, g, memory, jnp.zeros((), jnp.int32), jnp.zeros((), g.dtype))
        return jax.lax.while_loop(unsolved, descend, begun)

    def adjoint(self, w: Array, b: Array, v: Array, memory: tuple) -> tuple:
        """The adjoint, its residual, the cross derivative's part, memory, steps."""
        tol, dense = self.chord.tol, self.chord.dense

        def wrong(carry: Any) -> Array:
            _, r, _, _, k = carry
            return (_size(r) > tol * _size(b)) & (k < STEPS)

        def refine(carry: Any) -> Any:
            v, r, _, memory, k = carry
            left = tol * _size(b) / _size(r)
            correction, memory = self.solve(w, memory, r, left / 2)
            v = v - correction
            hv, cross = self.products(w, v)
            new = hv + b
            stale = _size(new) > SLOW * _size(r)
            return v, new, cross, (memory[0], stale, memory[2]), k + 1

        hv, cross = jnp.zeros_like(b), jax.tree.map(jnp.zeros_like, self.hyper)
        if not dense:  # a factor is so good that an earlier adjoint is not worth a product
            hv, cross = self.products(w, v)
        begun = (v * (not dense), hv + b, cross, memory, jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(wrong, refine, begun)
