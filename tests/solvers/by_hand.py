"""The solvers' recursions written as plain loops, with the same minibatches as the library's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.solvers.sampling import Sampler

Grad = Callable[..., Any]  # (w, h, rows) -> gradient of the mean loss over these rows
Prox = Callable[[Any, Any, Any], Any]


def batches(data: Any, key: Any, steps: int, batch_size: int | None, sampling: str) -> list[Any]:
    sampler = Sampler(batch_size, sampling)
    state, drawn = sampler.init(data), []
    for k in range(steps):
        rows, state = sampler.indices(data, jax.random.fold_in(key, k), state)
        drawn.append(rows)
    return drawn


def logistic_gradient(X: Any, y: Any) -> Grad:
    """Of `mean log(1 + exp(-y x.w)) + sum exp(h[1:]) w^2 / 2`, written out."""

    def grad(w: Any, h: Any, rows: Any) -> Any:
        A, b = X[rows], y[rows]
        slope = -b / (1 + jnp.exp(b * (A @ w)))
        return slope @ A / len(rows) + jnp.exp(h[1:]) * w

    return grad


def svrg(grad: Grad, prox: Prox, w: Any, h: Any, eta: Any, drawn: list[Any], n: int, m: int) -> Any:
    for k, rows in enumerate(drawn):
        if k % m == 0:
            snapshot, full = w, grad(w, h, jnp.arange(n))
        w = prox(w - eta * (grad(w, h, rows) - grad(snapshot, h, rows) + full), h, eta)
    return w


def saga(grad: Grad, prox: Prox, w: Any, h: Any, eta: Any, drawn: list[Any], n: int) -> Any:
    table = [jnp.zeros_like(w)] * n
    for rows in drawn:
        rows = [int(i) for i in rows]
        new = {i: grad(w, h, jnp.array([i])) for i in rows}
        correction = sum(new[i] - table[i] for i in rows) / len(rows)
        w = prox(w - eta * (correction + sum(table) / n), h, eta)
        for i in new:
            table[i] = new[i]
    return w


def fista(grad: Grad, prox: Prox, w: Any, h: Any, eta: Any, steps: int, n: int) -> Any:
    before, t = w, 1.0
    for _ in range(steps):
        t_next = (1 + (1 + 4 * t**2) ** 0.5) / 2
        y = w + (t - 1) / t_next * (w - before)
        before, w, t = w, prox(y - eta * grad(y, h, jnp.arange(n)), h, eta), t_next
    return w


def nesterov(grad: Grad, w: Any, h: Any, eta: Any, beta: float, drawn: list[Any]) -> Any:
    """Sutskever et al., ICML 2013: the gradient at the point that the velocity leads to.

    That point is what SGD(nesterov=True) calls params, as PyTorch and optax do.
    """
    here, velocity = w, jnp.zeros_like(w)
    for rows in drawn:
        ahead = here + beta * velocity
        velocity = beta * velocity - eta * grad(ahead, h, rows)
        here = here + velocity
    return here + beta * velocity


def newton(grad: Grad, w: Any, h: Any, steps: int, n: int) -> Any:
    for _ in range(steps):
        rows = jnp.arange(n)
        w = w - jnp.linalg.solve(jax.jacfwd(grad)(w, h, rows), grad(w, h, rows))
    return w
