"""Chains of stochastic methods on a quadratic, many at once, and their mean `w w^T` over time.

Each simulator takes one setting; `vmap` over settings. Noise is Gaussian and additive.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

Step = Callable[[Any, Array], tuple[Any, Array]]  # (state, z [chains, d]) -> (state, w)


def average_chains(
    step: Step, state: Any, key: Array, shape: tuple[int, int], burn: int, steps: int
):
    """Mean of `w w^T` over `steps` steps after `burn`, for each chain; `[chains, d, d]`."""
    before, after = jax.random.split(key)

    def advance(state, key):
        return step(state, jax.random.normal(key, shape, float))

    def measure(carry, key):
        state, total = carry
        state, w = advance(state, key)
        return (state, total + w[:, :, None] * w[:, None, :]), None

    keys = jax.random.split(before, burn)
    state, _ = jax.lax.scan(lambda s, k: (advance(s, k)[0], None), state, keys)
    zero = jnp.zeros((*shape, shape[1]))
    keys = jax.random.split(after, steps)
    return jax.lax.scan(measure, (state, zero), keys)[0][1] / steps


@partial(jax.jit, static_argnames=("chains", "burn", "steps"))
def simulate_heavy_ball(K, roots, rates, momenta, keys, *, chains, burn, steps):
    """`m <- mu m + K w + root z`, `w <- w - rate m`, for each setting; `[settings, chains, d, d]`.

    Roots and rates are `[settings, d, d]`, momenta and keys `[settings]`.
    """
    shape = chains, len(K)

    def one(root, rate, mu, key):
        def step(state, z):
            w, m = state
            m = mu * m + w @ K + z @ root.T
            w = w - m @ rate.T
            return (w, m), w

        return average_chains(step, (jnp.zeros(shape), jnp.zeros(shape)), key, shape, burn, steps)

    return jax.vmap(one)(roots, rates, momenta, keys)


@partial(jax.jit, static_argnames=("chains", "burn", "steps"))
def simulate_adam(K, root, step_sizes, momenta, keys, *, chains, burn, steps):
    """optax's Adam with `b2 = 0.999` and no epsilon."""
    shape = chains, len(K)

    def one(lr, b1, key):
        tx = optax.adam(lr, b1=b1, b2=0.999, eps=0.0)

        def step(state, z):
            w, memory = state
            updates, memory = tx.update(w @ K + z @ root.T, memory, w)
            w = w + updates
            return (w, memory), w

        w = jnp.zeros(shape)
        return average_chains(step, (w, tx.init(w)), key, shape, burn, steps)

    return jax.vmap(one)(step_sizes, momenta, keys)


def estimate_errors(samples: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chains, and its standard error; `[..., d, d]` from `[..., chains, d, d]`."""
    samples = np.asarray(samples)
    chains = samples.shape[-3]
    return samples.mean(-3), samples.std(-3, ddof=1) / np.sqrt(chains)
