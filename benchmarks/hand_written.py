"""What a good user would write by hand in JAX: the yardstick of the speed benchmark."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve
from jax.scipy.sparse.linalg import cg

from benchmarks.problems import Case


def draw_rows(case: Case, key: jax.Array, data: Any) -> jax.Array:
    """Draw the rows of all minibatches, ``[steps, batch]``, once and ahead of the loop."""
    n = jax.tree.leaves(data.inner)[0].shape[0]
    return jax.random.randint(key, (case.steps, case.batch), 0, n)


def sgd(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """A plain scan over minibatch gradient steps."""

    def step(w: Any, rows: jax.Array) -> Any:
        batch = jax.tree.map(lambda x: x[rows], data.inner)
        g = jax.grad(case.problem.inner)(w, hyper, batch)
        return jax.tree.map(lambda a, b: a - case.step_size * b, w, g), None

    return jax.lax.scan(step, params, draw_rows(case, key, data))[0]


def reverse(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """``jax.grad`` through the scan."""

    def objective(hyper: Any) -> jax.Array:
        return case.problem.outer(sgd(case, key, hyper, params, data), hyper, data.outer)

    return jax.value_and_grad(objective)(hyper)


def reverse_checkpointed(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """``jax.grad`` through the scan with ``jax.checkpoint`` around the step."""

    def objective(hyper: Any) -> jax.Array:
        @jax.checkpoint
        def step(w: Any, rows: jax.Array) -> Any:
            batch = jax.tree.map(lambda x: x[rows], data.inner)
            g = jax.grad(case.problem.inner)(w, hyper, batch)
            return jax.tree.map(lambda a, b: a - case.step_size * b, w, g), None

        w = jax.lax.scan(step, params, draw_rows(case, key, data))[0]
        return case.problem.outer(w, hyper, data.outer)

    return jax.value_and_grad(objective)(hyper)


def forward(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """The recursion for D with vmapped Jacobian-vector products of the step."""
    flat, unflatten = ravel_pytree(hyper)
    directions = jax.vmap(unflatten)(jnp.eye(flat.size))
    tangents = jax.tree.map(lambda x: jnp.zeros((flat.size, *x.shape)), params)

    def step(carry: Any, rows: jax.Array) -> Any:
        w, D = carry
        batch = jax.tree.map(lambda x: x[rows], data.inner)

        def move(w: Any, h: Any) -> Any:
            g = jax.grad(case.problem.inner)(w, h, batch)
            return jax.tree.map(lambda a, b: a - case.step_size * b, w, g)

        def push(dw: Any, dh: Any) -> Any:
            return jax.jvp(move, (w, hyper), (dw, dh))

        return jax.vmap(push, out_axes=(None, 0))(D, directions), None

    (w, D), _ = jax.lax.scan(step, (params, tangents), draw_rows(case, key, data))
    value, g = jax.value_and_grad(case.problem.outer)(w, hyper, data.outer)
    flat_grad = sum(
        jnp.tensordot(d, x, x.ndim)
        for d, x in zip(jax.tree.leaves(D), jax.tree.leaves(g), strict=True)
    )
    return value, unflatten(flat_grad)


def forward_ridge(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """The same for ridge with every derivative written out: the least anyone could do."""
    X, y = data.inner
    penalty = jnp.exp(hyper)

    def step(carry: Any, rows: jax.Array) -> Any:
        w, D = carry
        Xb, yb = X[rows], y[rows]
        g = Xb.T @ (Xb @ w - yb) / case.batch + penalty * w
        dD = Xb.T @ (Xb @ D) / case.batch + penalty[:, None] * D + jnp.diag(penalty * w)
        return (w - case.step_size * g, D - case.step_size * dD), None

    start = params, jnp.zeros((params.size, params.size))
    (w, D), _ = jax.lax.scan(step, start, draw_rows(case, key, data))
    value, g = jax.value_and_grad(case.problem.outer)(w, hyper, data.outer)
    return value, D.T @ g


def implicit(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """SGD, then JAX's own conjugate gradients on the full Hessian."""
    w = sgd(case, key, hyper, params, data)
    grad = jax.grad(case.problem.inner)
    value, g = jax.value_and_grad(case.problem.outer)(w, hyper, data.outer)

    def hvp(v: Any) -> Any:
        return jax.jvp(lambda w: grad(w, hyper, data.inner), (w,), (v,))[1]

    v, _ = cg(hvp, g, tol=1e-5, maxiter=1000)
    _, pull = jax.vjp(lambda h: grad(w, h, data.inner), hyper)
    return value, jax.tree.map(jnp.negative, pull(v)[0])


def gram_cholesky(case: Case, key: jax.Array, hyper: Any, params: Any, data: Any) -> Any:
    """Ridge solved exactly: the Gram matrix, one Cholesky factor for solution and adjoint."""
    del key, params
    X, y = data.inner
    n, penalty = X.shape[0], jnp.exp(hyper)
    factor = cho_factor(X.T @ X / n + jnp.diag(penalty), lower=True)
    w = cho_solve(factor, X.T @ y / n)
    value, g = jax.value_and_grad(case.problem.outer)(w, hyper, data.outer)
    return value, -penalty * w * cho_solve(factor, g)
