"""What a step of `tune` looks at where an estimator reports no inner residual."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl


def loss(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


@dataclass(frozen=True)
class WithoutResidual:
    """An estimator of a user's own, which says nothing of the inner problem."""

    inside: Any

    def init(self, params: Any, data: bl.Data) -> Any:
        return self.inside.init(params, data)

    def step(self, problem: bl.Problem, hyper: Any, lower: Any, data: bl.Data, key: Any) -> Any:
        estimate, lower = self.inside.step(problem, hyper, lower, data, key)
        return replace(estimate, evidence=bl.Evidence()), lower


bl.extend.register_node(WithoutResidual)


def test_a_step_without_a_residual_looks_at_no_row_but_its_own() -> None:
    """XLA would hoist a look at all rows out of the branch that is never taken."""
    rng, rows = np.random.default_rng(0), set()
    draw = lambda n: (rng.normal(size=(n, 3)), rng.normal(size=n))  # noqa: E731
    data = bl.Data(inner=draw(4221), outer=draw(50))  # more than a look at costs next to nothing

    def inner(w: Any, h: Any, batch: Any) -> Any:
        rows.add(len(batch[1]))
        return loss(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2

    estimator = WithoutResidual(bl.Reverse(bl.SGD(0.01, batch_size=8), steps=3))
    problem = bl.Problem(inner, loss, evidence="off")
    loop = bl.Loop(problem, estimator, optax.adam(0.1), data)
    state = loop.init(jnp.array(0.0), jnp.zeros(3), jax.random.key(0))
    rows.clear()
    jax.jit(bl.Loop.step).lower(loop, state)
    assert 8 in rows
    assert 4221 not in rows
