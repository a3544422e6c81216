"""Classifiers whose training examples have weights, and what a user would judge them by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from bilevel.utils import PyTree

Model = Callable[[PyTree, Array], Array]  # (params, X [n, d]) -> scores [n, C]; [n, 1]: log-odds


def linear(params: PyTree, X: Array) -> Array:
    """Return scores ``X W + b``, ``[n, C]``."""
    return X @ params["W"] + params["b"]


def linear_zeros(d: int, classes: int) -> PyTree:
    """Return the params that :func:`linear` starts from."""
    return {"W": jnp.zeros((d, classes)), "b": jnp.zeros(classes)}


def cross_entropy(scores: Array, y: Array) -> Array:
    """Return minus the log-likelihood of each row; one column of scores is the log-odds of 1."""
    if scores.shape[-1] == 1:
        return jax.nn.softplus(scores[:, 0]) - y * scores[:, 0]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=-1)[:, 0]


def predict(scores: Any) -> np.ndarray:
    """Return the likeliest class of each row, ``[n]``."""
    scores = np.asarray(scores)
    return (scores[:, 0] > 0).astype(int) if scores.shape[-1] == 1 else np.argmax(scores, axis=1)


def square(params: PyTree) -> Array:
    """Return the sum of the squares of all entries, ``()``."""
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), start=jnp.zeros(()))


@dataclass(frozen=True)
class Weighted:
    r"""``mean_i weight_i loss_i + decay |params|^2``; a batch is ``(X, y, i)``, i the row's number.

    Parameters
    ----------
    model : scores of rows.
    weight : ``(hyper, i [n], losses [n]) -> [n]``.
    decay : of all params, intercepts too.
    """

    model: Model
    weight: Callable[[PyTree, Array, Array], Array]
    decay: float = 0.0

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        X, y, i = batch
        losses = cross_entropy(self.model(params, X), y)
        weights = self.weight(hyper, i, jax.lax.stop_gradient(losses))
        return jnp.mean(weights * losses) + self.decay * square(params)


@dataclass(frozen=True)
class Mean:
    """The plain mean loss of the rows of a batch ``(X, y)``."""

    model: Model

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        X, y = batch
        return jnp.mean(cross_entropy(self.model(params, X), y))


def itself(hyper: Array, i: Array, losses: Array) -> Array:
    """Return hyperparameters that are the weights."""
    return hyper[i]


def squashed(hyper: Array, i: Array, losses: Array) -> Array:
    """Return weights between 0 and 1: the sigmoid of the hyperparameters."""
    return jax.nn.sigmoid(hyper[i])


def fitter(
    model: Model, solver: Any, steps: int, decay: float = 0.0
) -> Callable[[PyTree, Array, tuple, Array], PyTree]:
    """Return ``(start, weights, (X, y), key) -> params``, compiled once for all weights.

    The solver that the task recommends runs on ``mean_i weight_i loss_i + decay |params|^2``.
    """
    problem = bl.Problem(Weighted(model, itself, decay), Mean(model))

    @jax.jit
    def fit(start: PyTree, weights: Array, rows: tuple, key: Array) -> PyTree:
        data = bl.Data(inner=(*rows, jnp.arange(len(rows[1]))), outer=rows)
        return bl.solve(problem, solver, weights, start, data, key, steps=steps)

    return fit
