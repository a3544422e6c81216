"""Small flax networks as values: a body that makes features, a linear head on top."""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree


class Dense(nn.Module):
    """Layers of rectified units, ``[n, d] -> [n, widths[-1]]``."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return features of a batch."""
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return x


class Convolutions(nn.Module):
    """3 x 3 convolutions of stride 2, then a linear map: ``[n, h, w] -> [n, width]``.

    Each as nine shifted copies and a matrix product: inside a loop XLA's CPU code is six times
    slower on its own convolutions.
    """

    channels: Sequence[int]
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return features of a batch of grey images."""
        x = x[..., None]
        for channels in self.channels:
            x = nn.relu(nn.Dense(channels)(take_patches(x)))
        return nn.Dense(self.width)(x.reshape(len(x), -1))


def take_patches(x: Array) -> Array:
    """Return 3 x 3 neighbourhoods of every other pixel, ``[n, h, w, c] -> [n, h/2, w/2, 9 c]``."""
    h, w = (-(-size // 2) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 2 * h + 1 - x.shape[1]), (1, 2 * w + 1 - x.shape[2]), (0, 0)))
    shifted = [x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


@dataclass(frozen=True)
class Network:
    """``body(x) @ kernel + bias``; weights are ``{"body": ..., "head": {"kernel", "bias"}}``.

    Equal networks compare equal, so that problems made of them share their compilation.

    Parameters
    ----------
    body : a flax module, ``[n, *shape] -> [n, features]``.
    shape : of one input.
    outputs : of the head.
    """

    body: nn.Module
    shape: tuple[int, ...]
    outputs: int

    def init(self, key: Array) -> PyTree:
        """Draw weights of variance 1 / fan-in, biases 0, in the type of JAX: flax makes float32."""
        key_body, key_head = jax.random.split(key)
        x = jnp.zeros((1, *self.shape))
        features, variables = self.body.init_with_output(key_body, x)
        dtype, d = x.dtype, features.shape[-1]
        kernel = jax.random.normal(key_head, (d, self.outputs)) / d**0.5
        return {
            "body": jax.tree.map(lambda w: w.astype(dtype), variables.get("params", {})),
            "head": {"kernel": kernel, "bias": jnp.zeros(self.outputs)},
        }

    def __call__(self, weights: PyTree, x: Array) -> Array:
        """Return outputs ``[n, outputs]`` of a batch ``[n, *shape]``.

        Raises
        ------
        ValueError : a batch of another shape.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"the network takes a batch of inputs {list(self.shape)}, got {list(x.shape)}. "
                "The losses of a meta-learning task are those of one task: run it with "
                "estimator=sampled, which draws tasks."
            )
        features = self.body.apply({"params": weights["body"]}, x)
        return features @ weights["head"]["kernel"] + weights["head"]["bias"]
