"""Minibatches of a series: the next ones of the epoch, or independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.single_loop.batches import Batches


@pytest.mark.parametrize("blocks", [False, True])
def test_a_series_goes_on_with_the_epoch(blocks: bool) -> None:
    """Two steps, a series of three, one step: 12 rows in six minibatches, each once."""
    data, batches = jnp.arange(12), Batches(2, "epoch", blocks)

    @jax.jit
    def run(key: jax.Array) -> tuple[list, jax.Array]:
        one, two, three, four = jax.random.split(key, 4)
        first, state = batches.draw(data, one, batches.init(data))
        second, state = batches.draw(data, two, state)
        series, state = batches.series(data, three, state, 3)
        last, _ = batches.draw(data, four, state)
        drawn = [first, second, *map(series, jnp.arange(3)), last]
        return [d.batch for d in drawn], jnp.stack([d.block for d in drawn])

    rows, numbers = run(jax.random.key(0))
    if blocks:
        np.testing.assert_array_equal(np.sort(numbers), np.arange(6))
    else:
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(12))


def test_independent_minibatches_are_those_of_one_draw() -> None:
    data, key = jnp.arange(100, 110), jax.random.key(3)
    series, state = Batches(4, "iid", False).series(data, key, (), 5)
    rows = 100 + np.asarray(jax.random.randint(key, (5, 4), 0, 10, jnp.int32))
    np.testing.assert_array_equal([series(jnp.asarray(i)).batch for i in range(5)], rows)
    assert state == ()
