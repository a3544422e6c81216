"""A problem as flat vectors, and functions of its single examples, a chunk at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Data, Problem, count_examples
from bilevel.utils import PyTree, require_smooth, strip_weak_types

ExampleLoss = Callable[[Array, Array], Array]  # (x, theta) -> (), the loss of one example


@dataclass(frozen=True)
class FlatProblem:
    """The losses as functions of ``x [n]`` and ``theta [p]``, the raveled params and hyper."""

    problem: Problem
    data: Data
    x: Array
    theta: Array
    to_params: Callable[[Array], PyTree]
    to_hyper: Callable[[Array], PyTree]

    @classmethod
    def from_problem(
        cls, owner: str, problem: Problem, hyper: PyTree, params: PyTree, data: Data
    ) -> "FlatProblem":
        """Return the flat losses of a smooth problem without a start point of its own."""
        require_smooth(owner, problem)
        x, to_params = ravel_pytree(strip_weak_types(params))
        theta, to_hyper = ravel_pytree(strip_weak_types(hyper))
        return cls(problem, data, x, theta, to_params, to_hyper)

    def inner(self, x: Array, theta: Array, batch: PyTree) -> Array:
        """Return the inner loss on a batch; ``()``."""
        return self.problem.inner(self.to_params(x), self.to_hyper(theta), batch)

    def outer(self, x: Array, theta: Array) -> Array:
        """Return the outer loss on all outer data; ``()``."""
        return self.problem.outer(self.to_params(x), self.to_hyper(theta), self.data.outer)

    def gradient(self, x: Array, theta: Array) -> Array:
        """Return the gradient in ``x`` of the inner loss on all inner data; ``[n]``."""
        return jax.grad(self.inner)(x, theta, self.data.inner)

    def hvp(self, v: Array) -> Array:
        """Return the Hessian of the inner loss at ``(x, theta)`` times ``v``; ``[n]``."""
        return jax.jvp(lambda x: self.gradient(x, self.theta), (self.x,), (v,))[1]

    @property
    def count(self) -> int:
        """Return the number m of inner examples."""
        return count_examples(self.data.inner)

    def map_examples(
        self, fn: Callable[[ExampleLoss], PyTree], rows: Array, chunk: int | None
    ) -> PyTree:
        """Return ``fn(loss of one example)`` for the examples ``rows [k]``; leading axis k.

        ``fn`` sees ``(x, theta) -> ()``. ``chunk`` examples are vectorised at a time (None: all).
        """

        def one(row: Array) -> PyTree:
            batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[row][None], self.data.inner)
            return fn(lambda x, theta: self.inner(x, theta, batch))

        return jax.lax.map(one, rows, batch_size=chunk or len(rows))
