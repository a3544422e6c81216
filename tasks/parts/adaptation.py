r"""How one task is learned from what all tasks share: the inner problems of meta-learning.

all        params are all weights, from the shared start        MAML, Meta-SGD (learned rates)
head       params are the head, from the shared start, body shared        ANIL
proximal   all weights, near the start: + strength / 2 |w - start|^2      iMAML
ridge      params are the head, solved for: + exp(log_penalty) / 2 |w|^2  hyper-representation
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import bilevel as bl
from bilevel.utils import PyTree
from tasks.parts.meta_networks import Network

KINDS = ("all", "head", "proximal", "ridge")


def squared_error(outputs: Array, y: Array) -> Array:
    """Return the mean squared residual, ``()``."""
    return jnp.mean((outputs - y) ** 2)


def cross_entropy(outputs: Array, y: Array) -> Array:
    """Return minus the mean log-likelihood of the class numbers ``y``, ``()``."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=-1))


@dataclass(frozen=True)
class Adaptation:
    """What ``params`` and ``hyper`` are, and what they make of an input.

    ``hyper`` is ``{"start": weights}``, for ridge ``{"body", "log_penalty"}`` and, for classes,
    ``log_scale``; with learned rates also ``log_rates``, like ``params``.

    Parameters
    ----------
    network, classes : the model; whether its targets are class numbers.
    kind : one of ``KINDS``.
    strength : of the proximal term.
    """

    network: Network
    classes: bool
    kind: str
    strength: float = 0.0

    def hyper(self, key: Array) -> PyTree:
        """Return what is shared, before anything is learned."""
        weights = self.network.init(key)
        if self.kind != "ridge":
            return {"start": weights}
        zero = jnp.zeros(())
        scale = {"log_scale": zero} if self.classes else {}
        return {"body": weights["body"], "log_penalty": zero, **scale}

    def params(self, hyper: PyTree) -> PyTree:
        """Return where a task begins; for ridge, where a closed form finds the shapes."""
        if self.kind == "ridge":
            template = jax.eval_shape(self.network.init, jax.random.key(0))["head"]
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
        return hyper["start"]["head"] if self.kind == "head" else hyper["start"]

    def outputs(self, params: PyTree, hyper: PyTree, x: Array) -> Array:
        """Return outputs of the network that a task has adapted, ``[n, outputs]``."""
        if self.kind in ("all", "proximal"):
            return self.network(params, x)
        body = hyper["body"] if self.kind == "ridge" else hyper["start"]["body"]
        return self.network({"body": body, "head": params}, x)

    def problem(self) -> bl.Problem:
        """Return the inner and the outer loss of one task; batches are ``(X [n, *shape], y)``."""
        inner = bl.OutputLoss(Outputs(self), Learn(self))
        if self.kind == "ridge":
            return bl.Problem(inner, Judge(self), quadratic=True)
        return bl.Problem(inner, Judge(self), start=Begin(self))


@dataclass(frozen=True)
class Begin:
    """Every task begins at the shared start."""

    how: Adaptation

    def __call__(self, hyper: PyTree, params: PyTree) -> PyTree:
        return self.how.params(hyper)


@dataclass(frozen=True)
class Outputs:
    """What the network says of the examples of a batch."""

    how: Adaptation

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        return self.how.outputs(params, hyper, batch[0])


@dataclass(frozen=True)
class Learn:
    """The loss of outputs on the examples to learn from, with what holds the params back."""

    how: Adaptation

    def __call__(self, outputs: Array, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        y = batch[1]
        if self.how.kind == "ridge":
            if self.how.classes:
                y = jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype)
            penalty = jnp.exp(hyper["log_penalty"]) * _squares(params)
            return (jnp.mean(jnp.sum((outputs - y) ** 2, -1)) + penalty) / 2
        loss = _loss(self.how)(outputs, y)
        if self.how.kind == "proximal":
            moved = jax.tree.map(jnp.subtract, params, self.how.params(hyper))
            loss = loss + self.how.strength * _squares(moved) / 2
        return loss


@dataclass(frozen=True)
class Judge:
    """The loss on the task's other examples."""

    how: Adaptation

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        X, y = batch
        outputs = self.how.outputs(params, hyper, X)
        if self.how.kind == "ridge" and self.how.classes:
            outputs = jnp.exp(hyper["log_scale"]) * outputs
        return _loss(self.how)(outputs, y)


@dataclass(frozen=True)
class LearnedRates:
    """``step_size`` of a solver: one for each parameter, ``exp(hyper["log_rates"])`` (Meta-SGD)."""

    def __call__(self, count: Array, hyper: PyTree) -> PyTree:
        return jax.tree.map(jnp.exp, hyper["log_rates"])


def _loss(how: Adaptation) -> Callable[[Array, Array], Array]:
    return cross_entropy if how.classes else squared_error


def _squares(tree: PyTree) -> Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
