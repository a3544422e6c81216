"""What theory says beforehand: exact moments of ridge, leading order of iterative and implicit."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel import noise
from experiments.studies.open_questions.problems import Setting


def predict_moments(at: Setting, step: float, batch: int, steps: int) -> tuple[float, float]:
    """Exact bias and delta-method standard deviation of ``Forward`` on ridge, over ``|exact|``."""
    (A, b), (V, c) = at.data.inner, at.data.outer
    d, penalty = A.shape[1], float(np.exp(at.hyper))
    process = noise.Ridge.from_data(A, b, penalty, penalty * jnp.ones((d, 1)), batch_size=batch)
    start = process.start(jnp.asarray(at.params))
    rule = noise.rules.sgd(jnp.full(steps, step))
    moments = jax.jit(lambda s: noise.moments.run(process, s, rule, lambda _: ())[0])(start)
    slope, Q = V.T @ (V @ process.solution - c) / len(c), jnp.asarray(V.T @ V / len(c))
    error = noise.hypergradient_error.predict(moments, process.derivative, slope, Q)
    size = float(np.linalg.norm(at.exact))
    return float(error.bias[0]) / size, float(error.standard_deviation[0]) / size


def find_influences(at: Setting) -> tuple[np.ndarray, np.ndarray]:
    """``(a.g_i, v.(H_i D* + C_i))`` of every example at the solution, the two parts of the noise.

    ``v = H^-1 grad outer``; ``a = H^-1 b``, ``b`` the slope of the hypergradient in the iterate.
    One hyperparameter. Their sum is the influence of ``bilevel.noise.influence``, up to its sign.
    """
    x = bl.testing.dense_solution(at.problem, at.hyper, at.params, at.data)
    theta, data = jnp.asarray(at.hyper), jax.tree.map(jnp.asarray, at.data)
    return jax.tree.map(np.asarray, _find_influences(at.problem, jnp.asarray(x), theta, data))


@partial(jax.jit, static_argnames="problem")
def _find_influences(problem: bl.Problem, x: Any, theta: Any, data: bl.Data) -> Any:
    def slope(x: Any, theta: Any, batch: Any) -> Any:
        return jax.grad(problem.inner)(x, theta, batch)

    H = jax.jacobian(slope)(x, theta, data.inner)
    v = jnp.linalg.solve(H, jax.grad(problem.outer)(x, theta, data.outer))
    D = -jnp.linalg.solve(H, jax.jacobian(slope, 1)(x, theta, data.inner))

    def along(fn: Any, x: Any) -> Any:
        """How ``fn(x, theta)`` changes when theta moves and x with it."""
        return jax.jvp(fn, (x, theta), (D, jnp.ones_like(theta)))[1]

    outer = along(lambda x, t: jax.grad(problem.outer)(x, t, data.outer), x)
    bent = jax.grad(lambda x: along(lambda x, t: v @ slope(x, t, data.inner), x))(x)
    a = jnp.linalg.solve(H, outer - bent)

    def one(row: Any) -> Any:
        row = jax.tree.map(lambda leaf: leaf[None], row)
        return a @ slope(x, theta, row), along(lambda x, t: v @ slope(x, t, row), x)

    return jax.vmap(one)(data.inner)


def predict_ratio(at: Setting) -> float:
    """MSE of iterative over implicit, tail averages at equal calls, long windows, small steps."""
    iterate, derivative = find_influences(at)
    return float((iterate + derivative).var() / (iterate.var() + derivative.var()))


def predict_epoch_bias(at: Setting, step: float) -> float:
    """Bias of the tail average of ``Forward`` over epochs of single examples, over ``|exact|``."""
    given = at.problem, jnp.asarray(at.hyper), jnp.asarray(at.params), at.data
    here = noise.linearised.linearise(*given, batch_size=1)
    shift = noise.shuffled.tail_average_shift(here.process, noise.rules.sgd(step), 1)
    (V, c), n = at.data.outer, len(here.solution)
    slope, Q = V.T @ (V @ here.solution - c) / len(c), V.T @ V / len(c)
    bias = here.derivative[0] @ Q @ shift[:n] + slope @ shift[n:]
    return float(bias) / float(np.linalg.norm(at.exact))
