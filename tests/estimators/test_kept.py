"""What a backward pass keeps of a step: params and row numbers, not rows or hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.estimators import compiled_step

STEPS, BATCH, WIDTH, ROWS = 500, 32, 40, 2000


def weighted(w, h, batch):
    X, y, i = batch
    return jnp.mean(jax.nn.sigmoid(h[i]) * (X @ w - y) ** 2) / 2


def plain(w, h, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def test_neither_rows_nor_hyperparameters_are_kept_at_every_step() -> None:
    X = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, WIDTH)), jnp.float32)
    data = bl.Data((X, X[:, 0], jnp.arange(ROWS)), (X, X[:, 0]))
    estimator = bl.Reverse(bl.SGD(0.01, batch_size=BATCH), STEPS, memory="full")
    parts = bl.Problem(weighted, plain), estimator, jnp.zeros(ROWS), jnp.zeros(WIDTH), data
    compiled, _ = compiled_step(*parts, jax.random.key(0))
    scratch = compiled.memory_analysis().temp_size_in_bytes
    kept, data_once = 4 * STEPS * (WIDTH + BATCH), 4 * ROWS * WIDTH
    assert scratch < 3 * (kept + data_once)  # the evidence goes over the data, too
    assert scratch < 4 * STEPS * min(ROWS, BATCH * WIDTH)


MADE = {
    "SGD": bl.SGD(0.1, batch_size=7),
    "Optax": bl.Optax(bl.transform(optax.sgd, learning_rate=0.1), batch_size=7),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_drawn_ahead_is_what_steps_draw(name: str, x64: None) -> None:
    """The iterates are those of steps one by one, each with the key that is documented."""
    X = np.random.default_rng(1).standard_normal((50, 3))
    data, solver = bl.Data((X, X[:, 0]), (X, X[:, 0])), MADE[name]
    key, params, hyper = jax.random.key(3), jnp.ones(3), jnp.zeros(())
    found = bl.solve(bl.Problem(plain, plain), solver, hyper, params, data, key, steps=9)
    state = solver.init(params, data.inner)
    for k in range(9):
        key_k = jax.random.fold_in(key, k)
        params, state = solver.step(plain, params, hyper, data.inner, key_k, state)
    np.testing.assert_allclose(found, params, rtol=1e-13)
