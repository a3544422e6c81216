"""Minibatches: every example once per epoch, whatever the batch size; uniform with replacement."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.solvers.sampling import Sampler
from tests.marks import quick_cases

SIZES = [(1, 1), (7, 1), (7, 3), (7, 5), (7, 7), (12, 5), (10, 9)]  # n, batch size


@partial(jax.jit, static_argnums=(0, 1, 2))
def stream_of(n: int, sampler: Sampler, steps: int, seed: Any) -> Any:
    data = {"row": jnp.arange(n), "square": jnp.arange(n)[:, None] ** 2}

    def step(state: Any, k: Any) -> Any:
        batch, state = sampler.draw(data, jax.random.fold_in(jax.random.key(seed), k), state)
        return state, batch

    return jax.lax.scan(step, sampler.init(data), jnp.arange(steps))[1]


def draws(n: int, sampler: Sampler, steps: int, seed: int) -> np.ndarray:
    """Row numbers of every batch, ``[steps, batch_size]``."""
    batches = stream_of(n, sampler, steps, seed)
    rows = np.asarray(batches["row"])
    np.testing.assert_array_equal(batches["square"][..., 0], rows**2)
    return rows


@pytest.mark.parametrize(("n", "size"), SIZES)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**31 - 1))
def test_an_epoch_draws_every_example_exactly_once(n: int, size: int, seed: int) -> None:
    stream = draws(n, Sampler(size, "epoch"), 4 * n // size + 2, seed).reshape(-1)
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert len(epochs) >= 3
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))
    # Also the unfinished epoch at the end repeats nothing.
    rest = stream[len(epochs) * n :]
    assert len(np.unique(rest)) == len(rest)
    if n >= 10:
        assert len(np.unique(epochs, axis=0)) == len(epochs)  # shuffled anew: 1 in n! to agree


@quick_cases(
    2,
    ("n", "size", "sampling"),
    [(7, 3, "iid"), (7, 1, "epoch"), (7, 7, "epoch"), (12, 5, "epoch"), (15, 5, "epoch")],
)
def test_several_batches_at_once_are_those_drawn_one_by_one(
    n: int, size: int, sampling: str
) -> None:
    sampler, data, key = Sampler(size, sampling), jnp.arange(n), jax.random.key(3)

    @partial(jax.jit, static_argnums=1)
    def both(state: Any, count: int) -> Any:
        keys = partial(jax.random.fold_in, jax.random.fold_in(key, count))
        each, after = [], state
        for k in range(count):
            rows, after = sampler.indices(data, keys(jnp.asarray(k)), after)
            each.append(rows)
        return (jnp.stack(each), after), sampler.ahead(data, keys, state, count)

    state = sampler.init(data)
    for count in (2, 5, 2, 2, 2):  # with n / size batches an epoch: within, across, several
        expected, at_once = both(state, count)
        jax.tree.map(np.testing.assert_array_equal, at_once, expected)
        state = at_once[1]


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("sampling", ["iid", "epoch"])
def test_every_example_is_as_likely_in_every_place(sampling: str, seed: int) -> None:
    n, size, steps, runs = 5, 3, 4, 3000
    sampler = Sampler(size, sampling)
    data = jnp.arange(n)

    @jax.jit
    @jax.vmap
    def run(key: Any) -> Any:
        def step(state: Any, k: Any) -> Any:
            batch, state = sampler.draw(data, jax.random.fold_in(key, k), state)
            return state, batch

        return jax.lax.scan(step, sampler.init(data), jnp.arange(steps))[1]

    rows = np.asarray(run(jax.random.split(jax.random.key(seed), runs))).reshape(runs, -1)
    share = np.stack([(rows == i).mean(axis=0) for i in range(n)])
    # A share of 1/n over independent runs: four standard errors, over n * 12 places.
    # false alarm: 6e-5 each
    assert np.all(np.abs(share - 1 / n) < 4 * np.sqrt((1 / n) * (1 - 1 / n) / runs))


def test_iid_draws_with_replacement() -> None:
    rows = draws(6, Sampler(6, "iid"), 40, seed=0)
    assert any(len(np.unique(batch)) < 6 for batch in rows)
    assert set(rows.reshape(-1)) == set(range(6))


@pytest.mark.parametrize("sampling", ["iid", "epoch"])
def test_the_full_batch_is_the_data_itself(sampling: str) -> None:
    data = (jnp.arange(3), jnp.ones((1, 2)))
    sampler = Sampler(None, sampling)
    batch, state = sampler.draw(data, jax.random.key(0), sampler.init(data))
    assert batch is data
    assert state == ()
