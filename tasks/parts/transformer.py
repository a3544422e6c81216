"""A small transformer that predicts the next character, as a value: its weights are arguments."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree


class Transformer(nn.Module):
    """Causal, normalised before each part; ``[n, T] -> [n, T, characters]``, embeddings tied.

    Parameters
    ----------
    characters : of the alphabet.
    width, layers, heads : of the residual stream, blocks, and heads of attention in each.
    """

    characters: int
    width: int = 48
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return scores of the character that follows each."""
        embed = nn.Embed(self.characters, self.width)
        place = self.param("place", nn.initializers.normal(0.02), (x.shape[1], self.width))
        h, mask = embed(x) + place, nn.make_causal_mask(x)
        for _ in range(self.layers):
            attend = nn.MultiHeadDotProductAttention(self.heads)
            h = h + attend(nn.LayerNorm()(h), mask=mask)
            inside = nn.gelu(nn.Dense(3 * self.width)(nn.LayerNorm()(h)))
            h = h + nn.Dense(self.width)(inside)
        return embed.attend(nn.LayerNorm()(h))

    def draw_weights(self, length: int, seed: int) -> PyTree:
        """Return weights to start from, in JAX's floating-point type: flax makes float32."""
        made = self.init(jax.random.key(seed), jnp.zeros((1, length), jnp.int32))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), made)

    def losses(self, weights: PyTree, rows: Array) -> Array:
        """Return the mean cross-entropy of each of the rows ``[n, T + 1]``, in nats a character."""
        scores: Any = self.apply(weights, rows[:, :-1])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), rows[:, 1:, None], axis=-1)
        return -jnp.mean(chosen, axis=(1, 2))
