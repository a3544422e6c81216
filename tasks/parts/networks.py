"""Flax networks as pure functions of a dict of arrays, which is what a problem's losses take."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree


@dataclass(frozen=True)
class Network:
    """``(params, X) -> scores``: an ``nnx`` module whose arrays are arguments.

    Networks of one architecture are equal whatever their seed, and so are problems made of them.
    """

    graph: Any

    def __call__(self, params: PyTree, X: Array) -> Array:
        from flax import nnx  # it takes seconds to import

        return nnx.merge(self.graph, params)(X)


def perceptron(sizes: tuple[int, ...], seed: int) -> tuple[Network, PyTree]:
    """Return dense layers with rectified units between, and params in JAX's float type.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from tasks.parts.networks import perceptron
    >>> network, params = perceptron((64, 20, 10), seed=0)
    >>> network(params, jnp.ones((3, 64))).shape
    (3, 10)
    """
    from flax import nnx

    rngs, layers = nnx.Rngs(seed), []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nnx.relu] if layers else []
        layers.append(nnx.Linear(inputs, outputs, rngs=rngs))
    graph, state = nnx.split(nnx.Sequential(*layers), nnx.Param)
    dtype = jnp.result_type(float)
    return Network(graph), jax.tree.map(lambda a: a.astype(dtype), nnx.to_pure_dict(state))
