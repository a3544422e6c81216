"""Trainings that judge a schedule: new weights, new minibatches."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree
from tasks.parts.adaptation import cross_entropy
from tasks.parts.learned_schedules import Momentum, Rate
from tasks.parts.meta_networks import Network


@dataclass(frozen=True, eq=False)
class Judge:
    """Trains with a schedule as a user would, from weights and minibatches that no tuning has seen.

    On the training rows only: the schedule's number of steps was chosen for so many rows.
    """

    problem: bl.Problem
    network: Network
    data: bl.Data
    test: tuple[Array, Array]
    batch_size: int
    runs: int
    seed: int

    def solver(self, hyper: PyTree) -> bl.SGD:
        """Return SGD that reads the schedule."""
        momentum = Momentum() if "momentum" in hyper else None
        return bl.SGD(
            step_size=Rate(), batch_size=self.batch_size, momentum=momentum, sampling="epoch"
        )

    def ends(self, hyper: PyTree, starts: PyTree, keys: Array) -> PyTree:
        """Return the weights after training from each of ``starts``."""
        return _train(
            self.problem, self.solver(hyper), len(hyper["rate"]), hyper, starts, self.data, keys
        )

    def keys(self, stream: int) -> Array:
        """Return a key for each run."""
        key = jax.random.fold_in(jax.random.key(self.seed), stream)
        return jax.random.split(key, self.runs)

    def starts(self, keys: Array) -> PyTree:
        """Draw new weights, one set for each key."""
        return _starts(self.network, keys)

    def losses(self, ends: PyTree) -> np.ndarray:
        """Return the validation loss of each training."""
        return np.asarray(_scores(self.network, ends, self.data.outer)[1])

    def __call__(self, hyper: PyTree) -> Metrics:
        """Return the mean test error with half its 95 % interval, accuracy, and losses."""
        keys = self.keys(1)
        ends = self.ends(hyper, self.starts(keys), keys)
        errors, losses = (np.asarray(x) for x in _scores(self.network, ends, self.test))
        half = 1.96 * float(errors.std(ddof=1)) / self.runs**0.5
        return {
            "test_error": float(errors.mean()),
            "test_accuracy": 1 - float(errors.mean()),
            "test_log_loss": float(losses.mean()),
            "validation_log_loss": float(self.losses(ends).mean()),
            "±": half,
        }


@partial(jax.jit, static_argnames="network")
def _starts(network: Network, keys: Array) -> PyTree:
    return jax.vmap(network.init)(keys)


@partial(jax.jit, static_argnames=("problem", "steps"))
def _train(
    problem: bl.Problem,
    solver: bl.SGD,
    steps: int,
    hyper: PyTree,
    starts: PyTree,
    data: bl.Data,
    keys: Array,
) -> PyTree:
    def one(start: PyTree, key: Array) -> PyTree:
        return bl.solve(problem, solver, hyper, start, data, key, steps=steps)

    return jax.vmap(one)(starts, keys)


@partial(jax.jit, static_argnames="network")
def _scores(network: Network, weights: PyTree, rows: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return error rate and cross-entropy of each training."""
    X, y = rows

    def one(weights: PyTree) -> tuple[Array, Array]:
        outputs = network(weights, X)
        wrong = jnp.argmax(outputs, -1) != y
        return jnp.mean(wrong.astype(outputs.dtype)), cross_entropy(outputs, y)

    return jax.vmap(one)(weights)
