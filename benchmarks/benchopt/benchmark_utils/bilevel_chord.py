r"""Implicit differentiation with one Cholesky factor of the inner Hessian, kept while it serves.

    w <- w - t M^{-1} grad g(w),   v <- v - M^{-1} (H v + grad_w f),
    M = H at some earlier point

The factor is formed anew where a step leaves more than a tenth of the gradient. A quadratic inner
loss needs one factor for the whole run, a smooth one a few. With more params than a factor is
worth, conjugate gradients take its place. An estimator by the library's contract.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel import CG
from bilevel.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.problem import Data, Problem
from bilevel.solvers.newton import backtrack

STEPS, SLOW = 50, 0.1


@dataclass(frozen=True)
class Chord:
    """``tol``: both residuals, relative to the inner gradient at the start and to ``grad_w f``."""

    tol: Any = 1e-5
    dense: bool = True

    def init(self, params: Any, data: Data) -> Lower:
        """No factor yet."""
        flat, _ = ravel_pytree(params)
        n = flat.size if self.dense else 0
        memory = {"factor": jnp.eye(n, dtype=flat.dtype), "stale": jnp.array(True), "v": 0 * flat}
        return begin(params, (), memory)

    def step(
        self, problem: Problem, hyper: Any, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Solve both systems; counts are of passes over all inner data."""
        w, unravel = ravel_pytree(lower.params)

        def loss(w: Array, hyper: Any, batch: Any) -> Array:
            return problem.inner(unravel(w), hyper, batch)

        def gradient(w: Array) -> Array:
            return jax.grad(loss)(w, hyper, data.inner)

        def hvp(w: Array, x: Array) -> Array:
            return jax.jvp(gradient, (w,), (x,))[1]

        def factorise(w: Array) -> Array:
            hessian = jax.vmap(lambda x: hvp(w, x))(jnp.eye(w.size, dtype=w.dtype))
            return jnp.linalg.cholesky(hessian)

        def solve(w: Array, memory: tuple, x: Array, tol: Any = SLOW) -> tuple[Array, tuple]:
            factor, stale, products = memory
            if not self.dense:
                _, product = jax.linearize(gradient, w)
                found = CG(tol=tol).solve(product, x, jnp.zeros_like(x))
                return found.x, (factor, stale, products + found.matvecs)
            factor = jax.lax.cond(stale, lambda: factorise(w), lambda: factor)
            x = jax.scipy.linalg.cho_solve((factor, True), x)
            return x, (factor, jnp.array(False), products + stale * w.size)

        size = jnp.linalg.norm
        g = gradient(w)
        reference = jnp.where(lower.reference > 0, lower.reference, size(g))

        def unsolved(carry: Any) -> Array:
            _, g, _, k, _ = carry
            return (size(g) > self.tol * reference) & (k < STEPS)

        def descend(carry: Any) -> Any:
            w, g, memory, k, losses = carry
            direction, memory = solve(w, memory, g)
            moved = w - direction
            new = gradient(moved)

            def shorter() -> tuple:
                value = loss(w, hyper, data.inner)
                length = backtrack(loss, w, hyper, data.inner, direction, g, value)
                at = w - length * direction
                return at, gradient(at), 3 - jnp.log2(length)

            moved, new, more = jax.lax.cond(
                size(new) < size(g), lambda: (moved, new, jnp.zeros_like(losses)), shorter
            )
            stale = size(new) > SLOW * size(g)
            return moved, new, (memory[0], stale, memory[2]), k + 1, losses + more

        memory = (lower.memory["factor"], lower.memory["stale"], jnp.zeros((), jnp.int32))
        w, g, memory, k, losses = jax.lax.while_loop(
            unsolved, descend, (w, g, memory, jnp.zeros((), jnp.int32), jnp.zeros((), g.dtype))
        )
        value, (rhs, direct) = jax.value_and_grad(problem.outer, (0, 1))(
            unravel(w), hyper, data.outer
        )
        b = ravel_pytree(rhs)[0]

        def products(v: Array) -> tuple[Array, Any]:
            """``(H v, C^T v)``."""
            gradients = jax.grad(loss, (0, 1))
            return jax.jvp(lambda w: gradients(w, hyper, data.inner), (w,), (v,))[1]

        def wrong(carry: Any) -> Array:
            _, r, _, _, k = carry
            return (size(r) > self.tol * size(b)) & (k < STEPS)

        def refine(carry: Any) -> Any:
            v, r, _, memory, k = carry
            left = self.tol * size(b) / size(r)
            correction, memory = solve(w, memory, r, left / 2)
            v = v - correction
            hv, cross = products(v)
            new = hv + b
            return v, new, cross, (memory[0], size(new) > SLOW * size(r), memory[2]), k + 1

        v = lower.memory["v"]
        hv, cross = (jnp.zeros_like(b), jax.tree.map(jnp.zeros_like, hyper))
        if not self.dense:  # a factor is so good that an earlier adjoint is not worth a product
            hv, cross = products(v)
        v, r, cross, memory, j = jax.lax.while_loop(
            wrong, refine, (v * (not self.dense), hv + b, cross, memory, jnp.zeros((), jnp.int32))
        )
        grad = jax.tree.map(jnp.add, direct, cross)
        counts = Counts.of(
            gradients=1 + k + losses / 2, hvps=2 * (j + (not self.dense)) + memory[2]
        )
        evidence = Evidence(size(g) / reference, size(r) / size(b), counts=counts)
        state = {"factor": memory[0], "stale": memory[1], "v": v}
        return Estimate(value, grad, evidence), Lower(unravel(w), (), state, reference)


jax.tree_util.register_dataclass(Chord, data_fields=["tol"], meta_fields=["dense"])
