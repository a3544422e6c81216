"""A small convolutional classifier with dropout and batch norm, and its losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree
from tasks.parts.meta_networks import take_patches
from tasks.parts.weighting import cross_entropy, square


class Convolutional(nn.Module):
    """3 x 3 convolutions of stride 2, each with batch norm; dropout; a linear map to classes.

    Parameters
    ----------
    side, classes : of the images, whose pixels are the rows of X; of the scores.
    channels : of each convolution.
    dropout : the share of features left out in training.
    """

    side: int
    classes: int
    channels: tuple[int, ...] = (8, 16)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, X: Array, train: bool) -> Array:
        """Return scores ``[n, classes]`` of rows ``[n, side^2]``."""
        x = X.reshape(len(X), self.side, self.side, 1)
        for channels in self.channels:
            x = nn.Dense(channels)(take_patches(x))
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(x)

    def draw_weights(self, seed: int) -> tuple[PyTree, PyTree]:
        """Return params and statistics to start from, in JAX's type: flax makes float32."""
        made = self.init(jax.random.key(seed), jnp.zeros((1, self.side**2)), train=False)
        made = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), made)
        return made["params"], made["batch_stats"]

    def score(self, params: PyTree, state: PyTree, X: Array) -> Array:
        """Return scores by the statistics that training has left, without dropout."""
        scores: Any = self.apply({"params": params, "batch_stats": state}, X, train=False)
        return scores


@dataclass(frozen=True)
class TrainingLoss:
    r"""``mean_i weight_i loss_i + decay |params|^2``, and the statistics after this minibatch.

    Parameters
    ----------
    network : whose dropout takes the key; a batch is ``((X, y), i)``, i the numbers of its rows.
    weight : ``(hyper, i [n], losses [n]) -> [n]``.
    decay : of all params.
    """

    network: Convolutional
    weight: Callable[[PyTree, Array, Array], Array]
    decay: float

    def __call__(
        self, params: PyTree, hyper: PyTree, batch: Any, state: PyTree, key: Array
    ) -> tuple[Array, PyTree]:
        (X, y), i = batch
        both, rngs = {"params": params, "batch_stats": state}, {"dropout": key}
        out: Any = self.network.apply(both, X, train=True, rngs=rngs, mutable=["batch_stats"])
        losses = cross_entropy(out[0], y)
        weights = self.weight(hyper, i, jax.lax.stop_gradient(losses))
        return jnp.mean(weights * losses) + self.decay * square(params), out[1]["batch_stats"]


@dataclass(frozen=True)
class PredictionLoss:
    """The mean loss of the rows of a batch ``(X, y)``, without dropout."""

    network: Convolutional

    def __call__(
        self, params: PyTree, hyper: PyTree, batch: Any, state: PyTree, key: Array
    ) -> Array:
        X, y = batch
        return jnp.mean(cross_entropy(self.network.score(params, state, X), y))
